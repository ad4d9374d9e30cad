"""SLEB's search from known prefixes against the reference's loop, in turns on the same model and data.

(a) `ours`, every state kept; (b) `prefix`, those of the current layers only; (c) `reference`, every
candidate a whole forward pass with the layer taken out, as jiwonsong-dev/SLEB. What the same search
runs where memory holds few states is counted and printed too: 55 % want about 17. The model is a
random Qwen3-VL of 36 layers, its vocabulary Qwen3-VL-8B's scaled with the hidden size, and the
samples are the demo's; `--weights standin_8b` takes a shipped stand-in instead.

Bars for --check, on random weights: the same removals and losses (to 1e-5) from all three, layer
evaluations of (a) at most 55 % of the reference's, time of (c) over (a) at least 1.7. Time is the
processor's on a CPU, where others may run beside, and the clock's on a GPU. Prints (c) / (a) last.
On a GPU, in the real shape:

    python bench/sleb.py --device cuda --dtype bfloat16 --hidden 4096 --samples 32 --batch-tokens 8192
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from interlace.data.chat import load_records
from interlace.decoder.layers import image_token_id
from interlace.decoder.load import load_model, load_processor
from interlace.demo.finevision import write_finevision
from interlace.demo.models import write_base_model
from interlace.sampling.run import draw_samples
from interlace.scoring.batches import SampleBatches
from interlace.scoring.loss import target_mask
from interlace.scoring.prefixes import Storage
from interlace.scoring.sleb import expected_evaluations, full_evaluations, sleb_search

EVALUATIONS_BAR, TIME_BAR = 0.55, 1.7
LAYERS = 36
FEW_STATES = (16, 4)

Batch = dict[str, torch.Tensor]


def random_model(base: Path, args: argparse.Namespace) -> PreTrainedModel:
    """Return a random model of the stand-in's architecture and the width asked for."""
    config = AutoConfig.from_pretrained(base)
    text = config.text_config
    head_dim = 128 if args.hidden >= 1024 else 64
    sections = [s * head_dim // text.head_dim for s in text.rope_parameters["mrope_section"]]
    text.rope_parameters["mrope_section"] = sections
    text.hidden_size, text.intermediate_size = args.hidden, 3 * args.hidden
    text.head_dim, text.num_attention_heads = head_dim, args.hidden // head_dim
    text.num_key_value_heads = max(1, text.num_attention_heads // 4)
    text.vocab_size = max(text.vocab_size, 151936 * args.hidden // 4096)
    config.vision_config.out_hidden_size = args.hidden
    torch.manual_seed(args.seed)
    with torch.device(args.device):
        model = AutoModelForImageTextToText.from_config(config, dtype=getattr(torch, args.dtype))
    for module in model.model.language_model.layers.modules():
        if isinstance(module, torch.nn.Linear):  # layers that change what they get
            torch.nn.init.normal_(module.weight, std=module.in_features**-0.5)
    return model.eval()


def make_batches(folder: Path, base: Path, args: argparse.Namespace) -> list[Batch]:
    """Return batches of the demo's calibration samples, on the device."""
    write_finevision(folder / "finevision", rows=400, seed=1)
    settings = {
        "fraction": 0.5, "min_per_subset": 1, "max_images": 3, "max_turns": 5,
        "calibration_fraction": 1.0,
    }  # fmt: skip
    draw_samples(folder / "finevision", folder / "samples", settings, seed=0)
    records = load_records(folder / "samples", calibration_only=True)
    every = max(1, len(records) // args.samples)
    chosen = range(0, len(records), every)[: args.samples]
    batches = SampleBatches(
        records, load_processor(base), args.batch_tokens, 1024, "--samples", select=chosen
    )
    return [{k: v.to(args.device) for k, v in batch.items()} for batch in batches]


@torch.inference_mode()
def reference(model: PreTrainedModel, batches: list[Batch], count: int) -> list[tuple[int, float]]:
    """Return the removals and their losses by the plain loop."""
    stack = model.model.language_model
    own = list(stack.layers)
    image = image_token_id(model.config)
    alive = list(range(len(own)))
    removals = []
    for _ in range(count):
        best = None
        for out in alive[1:-1]:
            stack.layers = torch.nn.ModuleList(own[i] for i in alive if i != out)
            loss = 0.0
            for batch in batches:
                inputs = {key: value for key, value in batch.items() if key != "labels"}
                logits = model(**inputs, use_cache=False).logits[:, :-1]
                mask = target_mask(batch, image)
                targets = batch["input_ids"][:, 1:][mask]
                loss += float(
                    torch.nn.functional.cross_entropy(
                        logits[mask].float(), targets, reduction="sum"
                    )
                )
            if best is None or loss < best[1]:
                best = (out, loss)
        alive.remove(best[0])
        removals.append(best)
    stack.layers = torch.nn.ModuleList(own)
    return removals


def clock(device: str) -> float:
    """Return seconds: of this process on a CPU, of the clock once the device is done on a GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def agree(ours: list[tuple[int, float]], theirs: list[tuple[int, float]]) -> bool:
    """Return whether two searches removed the same layers at the same losses."""
    return all(
        a == b and abs(x - y) <= 1e-5 * y for (a, x), (b, y) in zip(ours, theirs, strict=True)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 below the bars")
    parser.add_argument(
        "--weights", default="random", choices=["random", "standin_8b", "standin_4b"]
    )
    parser.add_argument("--hidden", type=int, default=256, help="width of the random model")
    parser.add_argument("--removals", type=int, default=9)
    parser.add_argument("--samples", type=int, default=2, help="calibration samples")
    parser.add_argument("--batch-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=1, help="runs of each way")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        base = Path(name) / "base"
        write_base_model("standin_8b" if args.weights == "random" else args.weights, base)
        if args.weights == "random":
            model = random_model(base, args)
        else:
            model = load_model(base, args.dtype, args.device)
        batches = make_batches(Path(name), base, args)
    tokens = [batch["input_ids"].numel() for batch in batches]
    state = sum(tokens) * model.config.text_config.hidden_size * model.dtype.itemsize
    print(
        f"{args.weights}: {LAYERS} layers, {args.removals} removed, {args.samples} samples in "
        f"{len(batches)} batches, {sum(tokens)} tokens"
    )
    uncached = len(batches) * full_evaluations(LAYERS, args.removals)
    memory = {"ours": None, "prefix": (LAYERS - 2) * state}
    seconds: dict[str, list[float]] = {"ours": [], "prefix": [], "reference": []}
    evaluations = {"reference": uncached}
    found = {}
    for _ in range(args.rounds):
        for way, times in seconds.items():
            start = clock(args.device)
            if way == "reference":
                found[way] = reference(model, batches, args.removals)
            else:
                search = sleb_search(model, batches, args.removals, cache_bytes=memory[way])
                found[way] = [(removal.layer, removal.loss) for removal in search.removals]
                evaluations[way] = search.layer_evaluations
            times.append(clock(args.device) - start)
    print(f"removed: {[layer for layer, _ in found['ours']]}")
    equal = all(agree(found[way], found["reference"]) for way in memory)
    print(f"same removals and losses: {equal}")
    for way, times in seconds.items():
        share = 100 * evaluations[way] / uncached
        print(f"{way}: {evaluations[way]} layer evaluations ({share:.1f} %), {min(times):.1f} s")
    removals = [layer for layer, _ in found["ours"]]
    for states in FEW_STATES:
        count = len(batches) * expected_evaluations(
            LAYERS, removals, Storage.fitting(LAYERS, states)
        )
        print(
            f"where memory holds {states} states of all samples: {count} layer evaluations "
            f"({100 * count / uncached:.1f} %), counted, not run"
        )
    ratio = min(seconds["reference"]) / min(seconds["ours"])
    print(f"ratio of times, reference / ours: {ratio:.2f}")
    good = equal and evaluations["ours"] <= EVALUATIONS_BAR * uncached and ratio >= TIME_BAR
    return int(args.check and not good)


if __name__ == "__main__":
    sys.exit(main())
