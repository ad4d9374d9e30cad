"""Every window's score in one pass, against the released way, against a plain forward pass.

In turns, batch by batch, on one random Qwen3-VL and the same samples: (a) `ours`, all windows of up
to L/3+1 layers, token sums by modality and angles, in batches by token budget; (b) `released`, a
pass for each of pack 1, 2, 3 with output_hidden_states, batch 1, full logits, a wait for every
score; (c) `plain`, (a)'s batches through the model without logits and without scores.

Bars for --check: b / a at least 3.0, a / c at most 1.15, and the sample means of (a) and (b) equal
where `output_hidden_states` shows what a layer sees. Peak memory is what each holds beyond the
model: on a GPU the allocator's, on the CPU the resident set of a process of its own that runs the
largest batch. Time on the CPU is this process's own, whatever else the machine does.

On the CPU the bar of 3 holds at --batch-tokens 256, the default: measured was 3.20 there, and
2.83 at 1024, whose longer batches hold more padding (the released way, batches of one, has none).

Vocabulary and vision tower are Qwen3-VL-8B's, scaled with the hidden size, so that logits and
images cost the share that they have there. Its real shape, with random weights:

    python bench/scores.py --device cuda --dtype bfloat16 --hidden 4096 --samples 512 \\
        --batch-tokens 16384
"""

import argparse
import ctypes
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from interlace.data.collate import pad
from interlace.scoring.batches import within_budget
from interlace.scoring.similarity import to_model, window_sums
from interlace.scoring.store import longest_window, window_list

SPEEDUP_BAR, OVERHEAD_BAR, EQUAL_BAR = 3.0, 1.15, 2e-5
SIDE, VISUAL_TOKENS = 14, 49  # an image at the paper's 50176 pixels: 14 x 14 patches, merged 2 x 2
IMAGE_ID = 5

Sample = dict[str, torch.Tensor]


def make_model(args: argparse.Namespace) -> Qwen3VLForConditionalGeneration:
    """Return a random Qwen3-VL of the shape asked for, in evaluation mode."""
    hidden, heads = args.hidden, args.hidden // 128
    vision = max(64, int(1152 * hidden / 4096) // 64 * 64)
    depth = 27 if hidden >= 2048 else 9
    text = {
        "vocab_size": args.vocab or int(151936 * hidden / 4096) // 16 * 16,
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": args.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 4),
        "head_dim": 128,
    }
    tower = {
        "depth": depth,
        "hidden_size": vision,
        "intermediate_size": 15 * vision // 4,
        "num_heads": vision // 64,
        "out_hidden_size": hidden,
        "deepstack_visual_indexes": [depth // 3 - 1, 2 * depth // 3 - 1, depth - 1],
    }
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=tower,
        image_token_id=IMAGE_ID,
        video_token_id=IMAGE_ID + 1,
        vision_start_token_id=IMAGE_ID + 2,
        vision_end_token_id=IMAGE_ID + 3,
    )
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, args.dtype))
    with torch.device(args.device):
        model = Qwen3VLForConditionalGeneration(config).eval()
    torch.set_default_dtype(torch.float32)
    with torch.no_grad():  # layers that change what they get
        for layer in model.model.language_model.layers:
            for module in layer.modules():
                if isinstance(module, torch.nn.Linear):
                    module.weight.normal_(std=0.5 * module.in_features**-0.5)
    return model


def make_samples(args: argparse.Namespace, vocab: int) -> list[Sample]:
    """Return encoded samples as the processor would: two in three with an image, as FineVision."""
    rng = np.random.default_rng(1)
    samples = []
    for index in range(args.samples):
        text = int(np.clip(rng.lognormal(np.log(args.length), 0.6), 16, 8 * args.length))
        ids = rng.integers(10, vocab, text)
        sample: Sample = {}
        if index % 3:
            ids = np.concatenate([ids[:4], np.full(VISUAL_TOKENS, IMAGE_ID), ids[4:]])
            pixels = rng.normal(size=(SIDE * SIDE, 3 * 2 * 16 * 16))
            sample["pixel_values"] = torch.from_numpy(pixels).float()
            sample["image_grid_thw"] = torch.tensor([[1, SIDE, SIDE]])
        ids = torch.from_numpy(ids)[None]
        sample |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        sample["mm_token_type_ids"] = (ids == IMAGE_ID).long()
        samples.append(sample)
    return samples


def ours(model: torch.nn.Module, batch: Sample) -> np.ndarray:
    """Return sums (B, W, 2) of one batch."""
    return window_sums(model, [batch], longest_window(len(model.model.language_model.layers)))[0]


@torch.inference_mode()
def released(model: torch.nn.Module, sample: Sample, size: int) -> list[float]:
    """Return one sample's mean for every start of one pack."""
    outputs = model(**to_model(sample, model), output_hidden_states=True)
    means = []
    for start in range(len(model.model.language_model.layers) - size):
        before, after = (outputs.hidden_states[i].squeeze(0) for i in (start, start + size))
        cosine = torch.nn.functional.cosine_similarity(before, after, dim=1)
        means.append(cosine.mean().item())
    return means


@torch.inference_mode()
def plain(model: torch.nn.Module, batch: Sample) -> None:
    """Run one batch, no more."""
    model.base_model(**to_model(batch, model), use_cache=False)


def work(samples: list[Sample], batches: list[Sample]) -> list[tuple[str, Any, tuple]]:
    """Return (way, what it is, arguments) of everything to run: ours and plain in turns."""
    items = []
    for number, batch in enumerate(batches):
        items += [("ours", number, (batch,)), ("plain", number, (batch,))]
    for number, sample in enumerate(samples):
        items += [("released", (number, size), (sample, size)) for size in (1, 2, 3)]
    return items


WAYS: dict[str, Callable] = {"ours": ours, "released": released, "plain": plain}


def matmul_rate(model: torch.nn.Module, rows: int) -> float:
    """Return the FLOP/s of the decoder's own largest product, best of a few."""
    weight = model.model.language_model.layers[0].mlp.gate_proj.weight
    x = torch.randn(rows, weight.shape[1], device=weight.device, dtype=weight.dtype)
    times = []
    for _ in range(5):
        start = clock(weight.device)
        for _ in range(4):
            x @ weight.T
        times.append(clock(weight.device) - start)
    return 4 * 2 * rows * weight.numel() / min(times)


def clock(device: torch.device) -> float:
    """Return the time when a GPU is done; on the CPU what this process has computed so far."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def keep_memory() -> None:
    """Have the C library keep what is freed, as a GPU's allocator does.

    Otherwise every large tensor is mapped and cleared anew, which costs a third of the time here,
    but not to whoever happens to hold a block at the end of the heap.
    """
    trim_threshold, mmap_max = -1, -4
    libc = ctypes.CDLL(None)
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(mmap_max, 0)


def peak(model: torch.nn.Module, way: str, samples: list[Sample], batches: list[Sample]) -> int:
    """Return the bytes held at most beyond the model while the largest batch or sample runs."""
    sample, batch = (
        max(group, key=lambda inputs: inputs["input_ids"].numel()) for group in (samples, batches)
    )
    arguments = (sample, 3) if way == "released" else (batch,)
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(model.device)
        before = torch.cuda.memory_allocated(model.device)
        WAYS[way](model, *arguments)
        return torch.cuda.max_memory_allocated(model.device) - before
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts at what is held now
    before = resident("VmRSS")
    WAYS[way](model, *arguments)
    return resident("VmHWM") - before


def resident(entry: str) -> int:
    """Return an entry of this process's memory status in bytes."""
    status = Path("/proc/self/status").read_text().split(f"{entry}:")[1]
    return int(status.split()[0]) * 1024


def equal(layers: int, lengths: list[int], groups: list[list[int]], found: dict) -> float:
    """Return the largest difference of a sample mean between ours and the released way.

    Only of windows between the last DeepStack layer and the final norm: outside of these
    `output_hidden_states` of transformers 5 does not show what a layer gets.
    """
    windows = window_list(layers, range(1, longest_window(layers) + 1))
    worst = 0.0
    for number, group in enumerate(groups):
        for row, sample in enumerate(group):
            means = found["ours", number][row].sum(1) / lengths[sample]
            for size in (1, 2, 3):
                theirs = found["released", (sample, size)]
                for start in range(4, layers - size):
                    worst = max(worst, abs(means[windows.index((size, start))] - theirs[start]))
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 below the bars")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--layers", type=int, default=36)
    parser.add_argument("--hidden", type=int, default=512, help="a multiple of 128")
    parser.add_argument("--vocab", type=int, help="default: 151936 x hidden / 4096")
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--length", type=int, default=100, help="median of a sample's text tokens")
    parser.add_argument("--batch-tokens", type=int, default=256)  # the bar's: see above
    parser.add_argument(
        "--rounds", type=int, default=2, help="runs of everything; the best of each batch counts"
    )
    parser.add_argument("--peak", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device == "cpu" and sys.platform == "linux":
        keep_memory()
    model = make_model(args)
    samples = make_samples(args, model.config.text_config.vocab_size)
    groups = list(within_budget([s["input_ids"].shape[1] for s in samples], args.batch_tokens))
    batches = [pad([samples[i] for i in group], 0) for group in groups]
    if args.peak:
        print(peak(model, args.peak, samples, batches))
        return 0
    lengths = [sample["input_ids"].numel() for sample in samples]
    tokens = sum(lengths)
    padded = sum(batch["input_ids"].numel() for batch in batches)
    decoder = sum(p.numel() for p in model.model.language_model.layers.parameters())
    print(
        f"{args.layers} layers of width {args.hidden}, {decoder / 1e6:.0f} M parameters in them, "
        f"vocabulary {model.config.text_config.vocab_size}, {args.dtype} on {args.device}; "
        f"{len(samples)} samples, {tokens} tokens, {len(batches)} batches, "
        f"{padded / tokens - 1:.1%} padding",
        flush=True,
    )
    items = work(samples, batches)
    for way in WAYS:  # the first call costs extra
        WAYS[way](model, *next(item[2] for item in reversed(items) if item[0] == way))
    seconds: dict[tuple[str, Any], list[float]] = {item[:2]: [] for item in items}
    found = {}
    for number in range(args.rounds):
        for way, what, arguments in items:
            start = clock(model.device)
            found[way, what] = WAYS[way](model, *arguments)
            seconds[way, what].append(clock(model.device) - start)
        print(f"round {number + 1} of {args.rounds} done", flush=True)
    best = {
        way: sum(min(times) for (run, _), times in seconds.items() if run == way) for way in WAYS
    }
    rate = matmul_rate(model, args.batch_tokens)
    for way in WAYS:
        if model.device.type == "cuda":
            held = peak(model, way, samples, batches)
        else:  # in a process of its own: this one keeps memory that it has freed
            again = [sys.executable, *sys.argv, "--peak", way]
            child = subprocess.run(again, capture_output=True, text=True, check=True)
            held = int(child.stdout.split()[-1])
        passes = 3 if way == "released" else 1
        share = passes * 2 * decoder * tokens / best[way] / rate
        print(
            f"{way}: {best[way]:.2f} s, {len(samples) / best[way]:.2f} samples/s, decoder at "
            f"{share:.0%} of the measured {rate / 1e9:.0f} GFLOP/s, "
            f"peak {held / 2**20:.0f} MiB beyond the model",
            flush=True,
        )
    difference = equal(args.layers, lengths, groups, found)
    # Rounded states of a narrow dtype differ with the batch; float32 must agree.
    same = difference <= EQUAL_BAR or args.dtype != "float32"
    print(f"largest difference of a sample mean, ours and released: {difference:.1e}")
    overhead, speedup = best["ours"] / best["plain"], best["released"] / best["ours"]
    print(f"ratio ours / plain: {overhead:.3f}")
    print(f"ratio released / ours: {speedup:.2f}")
    return int(args.check and not (same and speedup >= SPEEDUP_BAR and overhead <= OVERHEAD_BAR))


if __name__ == "__main__":
    sys.exit(main())
