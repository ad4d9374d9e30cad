"""Time to first token: sanity of the measurement, and Table 4's shapes beside the paper's numbers.

Without --shape, on the 8B's stand-in: dense beside two variants of 27 layers (other layers dropped)
and one of 33, in turns on pictures of several sizes. On a CPU, where others may run beside, time is
the processor's. Bars for --check: `check_sanity` finds nothing (variants of equal depth agree within
the interval, the decoder's time follows its depth, no stage is negative), and the first
token of 27 layers comes at least 1.1 times as fast. Prints that ratio last.

With --shape, random weights in the shape of the 8B or 4B, 36 layers beside 33, 31, 29 and 27 (10,
15, 20, 25 %), in turns on pictures of assumed sizes (TYPICAL); prints Table 4 beside the
paper's. VLMEvalKit is not needed. On a GPU:

    python bench/ttft.py --shape 8b --dtype bfloat16 --samples 4 --repeats 3 --out results
    python bench/ttft.py --shape 4b --dtype bfloat16 --samples 4 --repeats 3 --out results

and small, on a CPU: --shape 8b --scale 0.125 --area 0.02 --samples 1 --repeats 1
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText

from interlace.decoder.load import load_model, load_processor
from interlace.decoder.surgery import drop_layers
from interlace.demo.models import write_base_model
from interlace.evaluation.ttft import check_sanity, clock, machine, memory, roofline
from interlace.evaluation.ttft.outcome import Side, summarise
from interlace.evaluation.ttft.ratios import STAGES
from interlace.evaluation.ttft.turns import Inputs, Turns
from interlace.io import write_json
from interlace.memory import free_bytes
from interlace.reporting.paper import OVERALL, load_paper

BAR = 1.1
# Hidden and inner size, heads, key-value heads, tied head; the tower's hidden and inner size, depth
# and layers that feed DeepStack: of Qwen3-VL-8B and -4B as far as known here, towers unconfirmed.
SHAPES: dict[str, tuple[Any, ...]] = {
    "8b": (4096, 12288, 32, 8, False, 1152, 4304, 27, [8, 16, 24]),
    "4b": (2560, 9728, 32, 8, True, 1024, 4096, 24, [5, 11, 17]),
}
VOCABULARY, TOWER_HEADS, SIDE = 151936, 16, 48
PIXELS = (65536, 16777216)  # Qwen3-VL's own limits
DEPTHS = {10: 33, 15: 31, 20: 29, 25: 27}
# A picture's width and height and tokens of text, by benchmark: our assumptions of what is typical.
TYPICAL = {
    "AI2D": (600, 450, 90), "ChartQA": (850, 600, 45), "OCRBench": (480, 320, 40),
    "TextVQA": (1024, 768, 40), "MMBench": (400, 300, 110), "POPE": (640, 480, 40),
    "RealWorldQA": (1536, 1024, 80), "HRBench4K": (4032, 3024, 90),
    "HRBench8K": (7680, 4320, 90), "VStar": (2246, 1582, 80), "MIABench": (1024, 768, 110),
    "ScienceQA": (400, 250, 120),
}  # fmt: skip
STANDIN_SIZES = {"AI2D": (224, 160, 60), "POPE": (96, 96, 30), "HRBench8K": (512, 512, 60)}


def shaped_config(folder: Path, args: argparse.Namespace) -> Any:
    """Return the config of a shape, scaled in its widths, around the stand-in's special tokens."""
    hidden, inner, heads, keys, tied, tower, tower_inner, depth, deepstack = SHAPES[args.shape]
    config = AutoConfig.from_pretrained(folder)
    text, vision = config.text_config, config.vision_config

    def scaled(size: int, multiple: int = 1) -> int:
        return max(1, round(size * args.scale / multiple)) * multiple

    text.num_attention_heads, text.num_key_value_heads = scaled(heads), scaled(keys)
    text.hidden_size, text.intermediate_size, text.head_dim = (
        scaled(hidden, 8),
        scaled(inner, 8),
        128,
    )
    text.vocab_size = max(text.vocab_size, scaled(VOCABULARY, 64))
    text.rope_parameters["mrope_section"] = [24, 20, 20]
    config.tie_word_embeddings = text.tie_word_embeddings = tied
    vision.num_heads = scaled(TOWER_HEADS)
    vision.hidden_size = vision.num_heads * tower // TOWER_HEADS
    vision.intermediate_size, vision.depth = scaled(tower_inner, 2), depth
    vision.deepstack_visual_indexes, vision.num_position_embeddings = deepstack, SIDE**2
    vision.out_hidden_size = text.hidden_size
    return config


def random_model(config: Any, layers: int, args: argparse.Namespace, device: torch.device) -> Any:
    """Return a model with random weights and so many decoder layers."""
    config.text_config.num_hidden_layers = layers
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(
            config, dtype=getattr(torch, args.dtype), attn_implementation=args.attention
        )
    return model.eval()


def needed(config: Any, layers: int, args: argparse.Namespace) -> int:
    """Return the bytes of the weights of `random_model`."""
    model = random_model(config, layers, args, torch.device("meta"))
    return sum(weight.numel() for weight in model.parameters()) * model.dtype.itemsize


def write_pictures(folder: Path, sizes: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Write JPEGs of about each size; return (path, tokens of text) of each benchmark's samples."""
    rng = np.random.default_rng(1)
    found: dict[str, Any] = {}
    for name, (width, height, tokens) in sizes.items():
        for number in range(args.samples):
            factor = np.sqrt(args.area) * rng.uniform(0.9, 1.1)
            size = (max(32, round(width * factor)), max(32, round(height * factor)))
            noise = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
            path = folder / f"{name}{number}.jpg"
            noise.resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
            found.setdefault(name, []).append((path, round(tokens * rng.uniform(0.8, 1.2))))
    return found


def asks(processor: Any, path: Path, tokens: int) -> Callable[[], Inputs]:
    """Return what opens a picture and makes a prompt of it with about so many tokens of text."""
    ids = processor.tokenizer("what is the color of this shape? " * tokens)["input_ids"][:tokens]
    question = processor.tokenizer.decode(ids)
    content = [{"type": "image"}, {"type": "text", "text": question}]

    def prepare() -> Inputs:
        message = [{"role": "user", "content": content}]
        text = processor.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        with Image.open(path) as image:
            inputs = processor(text=[text], images=[image.convert("RGB")], return_tensors="pt")
        return dict(inputs)

    return prepare


def measure(
    models: dict[str, Any],
    resident: dict[str, int],
    samples: dict[str, list[Callable[[], Inputs]]],
    args: argparse.Namespace,
) -> Iterator[dict[str, Any]]:
    """Yield a result for every variant and benchmark, as TTFT files hold them."""
    turns = Turns(models, resident, warmup=1, repeats=args.repeats)
    rng = np.random.default_rng(args.seed)
    dense = models["dense"]
    peaks = roofline.measure_peaks(dense.device, dense.dtype)
    for benchmark, prepared in samples.items():
        turns.memory.peaks.clear()
        found = turns.measure([(str(i), prepare) for i, prepare in enumerate(prepared)], rng)
        rates = turns.decode(prepared[0], args.decode_tokens, rng)
        clocks = {"after": machine.read_clocks(dense.device)}
        work, sides = {}, {}
        for name, model in models.items():
            work[name] = roofline.work_of(model, found)
            layers = model.config.text_config.num_hidden_layers
            peak = turns.memory.peaks[name]
            sides[name] = Side(layers, resident[name], resident[name], peak, rates[name])
        for name in (n for n in models if n != "dense"):
            yield {
                "model": args.shape or "standin_8b",
                "variant": name,
                "benchmark": benchmark,
                **summarise(found, name, sides, work=work, peaks=peaks, seed=args.seed),
                "decode_tokens": args.decode_tokens,
                "memory_kind": turns.memory.kind,
                "loaded_together": list(models),
                "device": machine.device_name(dense.device),
                "machine": machine.describe_machine(dense.device),
                "clocks": clocks,
                "dtype": args.dtype,
                "attention": args.attention,
                "kernels": "dense",
                "kernels_reason": "random weights" if args.shape else "none is 2:4 sparse",
                "fixture": True,
            }


def run_standin(folder: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the stand-in, and what is left of it when layers are dropped."""
    write_base_model("standin_8b", folder / "base")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    drops = {
        "dense": [],
        "interlace-25-ft": list(range(5, 32, 3)),
        "consecutive-25-ft": list(range(20, 29)),
        "interlace-10-ft": [10, 16, 22],
    }
    models, resident = {}, {}
    for name, drop in drops.items():
        model = load_model(folder / "base", args.dtype, device, args.attention)
        if drop:
            drop_layers(model, drop)
        models[name] = model
        resident[name] = sum(w.numel() * w.element_size() for w in model.parameters())
    processor = load_processor(folder / "base")
    pictures = write_pictures(folder, STANDIN_SIZES, args)
    samples = {n: [asks(processor, *each) for each in found] for n, found in pictures.items()}
    return list(measure(models, resident, samples, args))


def run_shape(folder: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure a shape at every depth, in groups that fit into the device's memory."""
    write_base_model("standin_8b", folder / "base")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = shaped_config(folder / "base", args)
    depths = {"dense": 36, **{f"interlace-{r}-ft": layers for r, layers in DEPTHS.items()}}
    low, high = (max(1024, round(limit * args.area)) for limit in PIXELS)
    processor = load_processor(folder / "base", low, high)
    pictures = write_pictures(folder, TYPICAL, args)
    samples = {n: [asks(processor, *each) for each in found] for n, found in pictures.items()}
    needs = {name: needed(config, layers, args) for name, layers in depths.items()}
    free, results = free_bytes(device), []
    for names in memory.groups(needs, free):
        print(
            f"loaded together: {', '.join(names)} ({sum(needs[n] for n in names) / 1e9:.2f} GB, "
            f"{free / 1e9:.1f} GB free)",
            flush=True,
        )
        # A copy of the config each: the depth is written into it.
        models, resident = {}, {}
        for name in names:
            own = type(config).from_dict(config.to_dict())
            models[name], resident[name] = memory.load_measured(
                device, lambda own=own, n=name: random_model(own, depths[n], args, device)
            )
        for result in measure(models, resident, samples, args):
            results.append(result)
            print(
                f"  {result['variant']:<18}{result['benchmark']:<13}{result['speedup']:.3f}",
                flush=True,
            )
        del models
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return results


def print_table4(results: list[dict[str, Any]], size: str) -> None:
    """Print speed-ups by benchmark and ratio: ours, the paper's, and what the roofline allows."""
    paper = load_paper()
    by = {(r["benchmark"], r["variant"]): r for r in results}
    print(f"\nTable 4, {size}: speed-up ours / the paper's / roofline's")
    heads = "".join(f"{f'{ratio} % ({layers})':>22}" for ratio, layers in DEPTHS.items())
    print(f"{'':<12}{'tokens':>13}{'dense ms':>10}{heads}")
    means: dict[int, list[float]] = {}
    for name in TYPICAL:
        first = by[name, "interlace-10-ft"]
        counts = first["tokens"]
        line = f"{counts['visual_tokens']['mean']:.0f}+{counts['text_tokens']['mean']:.0f}"
        text = f"{name:<12}{line:>13}{1000 * first['dense']['mean_s']:>10.1f}"
        for ratio in DEPTHS:
            found = by[name, f"interlace-{ratio}-ft"]
            printed = paper.cell(4, name, f"{size}_{ratio}")
            theirs = "  – " if printed is None else f"{printed:.2f}"
            ours, possible = found["speedup"], found["roofline"]["speedup"]
            cell = f"{ours:.2f} / {theirs} / {possible:.2f}"
            text += f"{cell:>22}"
            means.setdefault(ratio, []).append(ours)
        print(text)
    text = f"{'mean':<35}"
    for ratio, values in means.items():
        printed = paper.cell(4, OVERALL, f"{size}_{ratio}")
        cell = f"{np.mean(values):.2f} / {printed:.2f}       "
        text += f"{cell:>22}"
    print(text)


def print_details(results: list[dict[str, Any]]) -> None:
    """Print where the time goes, decoding and memory, by variant."""
    print(
        f"\n{'':<20}{'layers':>7}{'decoder':>9}{'tokens/s':>10}{'peak MB':>9}  shares of a first token"
    )
    variants = dict.fromkeys(r["variant"] for r in results)
    for name in ("dense", *variants):
        side = "dense" if name == "dense" else "pruned"
        found = [r for r in results if name in ("dense", r["variant"])]
        total = sum(r[side]["mean_s"] for r in found)
        shares = {s: sum(r["split"][side][f"{s}_s"] for r in found) / total for s in STAGES}
        ratio = sum(r["split"]["dense"]["decoder_s"] for r in found)
        ratio /= sum(r["split"][side]["decoder_s"] for r in found)
        rate = np.mean([r[side]["decode_tokens_per_s"] for r in found])
        peak = max(r[side]["peak_memory_bytes"] for r in found) / 1e6
        print(
            f"{name:<20}{found[0][side]['num_layers']:>7}{ratio:>9.3f}{rate:>10.1f}{peak:>9.0f}  "
            + ", ".join(f"{stage} {share:.1%}" for stage, share in shares.items())
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 below the bar")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="a real shape, random weights")
    parser.add_argument("--scale", type=float, default=1.0, help="of the shape's widths")
    parser.add_argument("--area", type=float, default=1.0, help="of the pictures")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--samples", type=int, default=4, help="per benchmark")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--decode-tokens", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for TTFT files (needs a GPU)")
    args = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    if args.out and not on_gpu:
        parser.error("--out needs a GPU: on a CPU the processor's time is taken, which is no TTFT")
    if not on_gpu:
        clock.now = time.process_time
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        run = run_shape if args.shape else run_standin
        results = run(Path(name), args)
    device = torch.device("cuda" if on_gpu else "cpu")
    print(f"{results[0]['device']}, {args.dtype}, {args.attention}, torch {torch.__version__}")
    print(f"clocks: {machine.read_clocks(device)}")
    if args.out:
        for result in results:
            folder = args.out / result["model"] / "ttft" / result["variant"]
            write_json(folder / f"{result['benchmark']}.json", result)
    if args.shape:
        print_table4(results, args.shape.upper())
    print_details(results)
    problems = check_sanity(results)
    print("\nsanity: " + ("; ".join(problems) or "nothing is wrong"))
    deepest = [r for r in results if r["variant"] == "interlace-25-ft"]
    ratio = sum(r["dense"]["mean_s"] for r in deepest) / sum(r["pruned"]["mean_s"] for r in deepest)
    print(f"time to first token, 36 layers / 27: {ratio:.3f}")
    return int(args.check and bool(problems or ratio < BAR))


if __name__ == "__main__":
    sys.exit(main())
