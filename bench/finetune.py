"""Fine-tuning: recipe `fast` beside `paper`, in turns on the same model, plan and samples.

Every run is a process of its own that calls what the workflow calls, and has half an hour. The clock
starts with the first step, behind imports and engines; on a GPU, where kernels are chosen or compiled
in it, the first step is not counted. Time is the processor's on a CPU, where others may run beside, on
one thread unless OMP_NUM_THREADS says otherwise, and the clock's on a GPU.

The model is a random Qwen3-VL of 36 layers of which 9 are dropped and 9 tuned, its vocabulary the
8B's scaled with the width; two samples in three have a picture of 49 tokens, turns and lengths vary
as FineVision's do (about 4 turns of 107 answer tokens on average, https://huggingface.co/spaces/
HuggingFaceM4/FineVision), scaled by --length. Then, with --levers paper, every lever alone is turned
on in `paper`; the original packs its batches of 16 too, so `paper, packing` is the fairer base where
that matters. With --levers fast, every other way that this machine has is taken in `fast`: back ends
of attention, heads, torch.compile, checkpointing.

Bars for --check: samples per second of fast over paper at least 3 on a CPU, 4 on a GPU; losses of
the two equal to 1e-5 in float32. Prints that ratio last. On a GPU, in the real shapes:

    python bench/finetune.py --shape 8b --dtype bfloat16 --samples 256 --length 1 --micro-batch 16
"""

import argparse
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText

from interlace.demo.models import write_base_model
from interlace.errors import InputError
from interlace.io import write_json
from interlace.training.attention import unavailable
from interlace.training.head import choose_head
from interlace.training.shape import model_shape
from interlace.training.vision_cache import cache_vision

ROOT = Path(__file__).resolve().parents[1]
LAYERS, DROPPED = 36, 9
BAR = {"cpu": 3.0, "cuda": 4.0}
# Hidden size, inner size, heads, key-value heads, vision hidden size, depth and inner size.
SHAPES = {
    "8b": (4096, 12288, 32, 8, 1152, 27, 4304),
    "4b": (2560, 9728, 32, 8, 1152, 27, 4304),
}
LEVERS: dict[str, dict[str, Any]] = {
    "graph from the first tuned layer": {"graph": "tuned"},
    "no checkpointing": {"checkpointing": "none"},
    "both": {"graph": "tuned", "checkpointing": "none"},
    "head on supervised tokens": {"head": "chunked"},
    "packing": {"packing": True, "attention": "auto"},
    "one device, no ZeRO-3": {"sharding": "none"},
    "stored vision features": {"vision": "cached"},
}
FAST_LEVERS: dict[str, dict[str, Any]] = {
    "attention sdpa": {"attention": "sdpa"},
    "attention flex": {"attention": "flex_attention"},
    "attention flash 2": {"attention": "flash_attention_2"},
    "padded": {"packing": False},
    "head in chunks": {"head": "chunked"},
    "head of supervised tokens": {"head": "supervised"},
    "head of all tokens": {"head": "full"},
    "head by liger": {"head": "liger"},
    "compiled layers": {"compile": True, "sharding": "none"},
    "checkpointing": {"checkpointing": "tuned"},
    "stored vision features": {"vision": "cached"},
}
RUN_SECONDS = 1800


def write_model(folder: Path, args: argparse.Namespace) -> None:
    """Write a random checkpoint of the shape asked for, with a stand-in's processor."""
    write_base_model("standin_8b", folder)
    config = AutoConfig.from_pretrained(folder)
    text, vision = config.text_config, config.vision_config
    hidden = args.hidden
    old_head = text.head_dim
    if args.shape:
        hidden, text.intermediate_size, heads, keys, *tower = SHAPES[args.shape]
        vision.hidden_size, vision.depth, vision.intermediate_size = tower
        vision.num_heads, vision.deepstack_visual_indexes = 16, [8, 16, 24]
        text.head_dim, text.vocab_size = 128, 151936
        config.tie_word_embeddings = text.tie_word_embeddings = args.shape == "4b"
    else:
        heads, keys = hidden // 64, max(1, hidden // 256)
        text.intermediate_size, text.head_dim = 3 * hidden, 64
        text.vocab_size = max(text.vocab_size, 151936 * hidden // 4096)
    text.hidden_size, text.num_attention_heads, text.num_key_value_heads = hidden, heads, keys
    vision.out_hidden_size = hidden
    sections = text.rope_parameters["mrope_section"]
    text.rope_parameters["mrope_section"] = [s * text.head_dim // old_head for s in sections]
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForImageTextToText.from_config(config, dtype=getattr(torch, args.dtype))
    for path in folder.glob("*.safetensors"):
        path.unlink()
    model.save_pretrained(folder)


def write_samples(folder: Path, args: argparse.Namespace) -> None:
    """Write conversations of random words in FineVision's schema."""
    rng = np.random.default_rng(1)
    words = ["red", "blue", "three", "left", "circle", "what", "the", "is", "of", "chart", "row"]

    def text(tokens: float) -> str:
        return " ".join(rng.choice(words, max(1, round(tokens))))

    rows = []
    for index in range(args.samples):
        images = []
        if index % 3:
            pixels = rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "JPEG")
            images.append({"bytes": buffer.getvalue(), "path": None})
        turns = [
            {
                "user": text(25 * args.length),
                "assistant": text(min(rng.lognormal(np.log(50), 1.2), 800) * args.length),
            }
            for _ in range(rng.integers(1, 5))
        ]
        rows.append({"id": f"s{index}", "images": images, "texts": turns})
    (folder / "words").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "words" / "train.parquet")
    manifest = [{"id": row["id"], "status": "kept"} for row in rows]
    pq.write_table(pa.Table.from_pylist(manifest), folder / "manifest.parquet")


def settings_of(args: argparse.Namespace, recipe: str, levers: dict[str, Any]) -> dict[str, Any]:
    return {
        "recipe": recipe, "levers": levers, "epochs": 1, "learning_rate": 1e-4,
        "warmup_ratio": 0.0, "weight_decay": 0.0, "max_grad_norm": 1.0,
        "micro_batch": args.micro_batch, "accumulation": 2, "precision": args.dtype,
        "max_length": args.max_length, "min_pixels": 784, "max_pixels": 50176, "workers": 0,
        "deepspeed": str(ROOT / "config/deepspeed/zero3.json"),
        "deepspeed_offload": str(ROOT / "config/deepspeed/zero3_offload.json"),
        "checkpoint_minutes": None, "max_failed_share": 0.05, "pack_tokens": args.pack_tokens,
    }  # fmt: skip


def run_one(folder: Path, settings: dict[str, Any]) -> None:
    """Tune in this process and print what it took."""
    from interlace.io import read_json
    from interlace.training import tune
    from interlace.training.run import finetune

    if not torch.cuda.is_available():  # others may run beside: this process's own time counts
        tune.Exchange = partial(tune.Exchange, clock=time.process_time)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    out = folder / "out"
    finetune(
        folder / "base", folder / "plan.json", folder / "samples", out, settings,
        model="bench", variant="bench", seed=0, vision=folder / "vision",
    )  # fmt: skip
    steps = [json.loads(line) for line in (out / "training.jsonl").open()]
    timed = steps[1 if torch.cuda.is_available() else 0 :]
    samples = [s["samples"] for s in timed]
    seconds = sum(n / s["samples_per_s"] for n, s in zip(samples, timed, strict=True))
    tokens = sum(
        n / s["samples_per_s"] * s["tokens_per_s"] for n, s in zip(samples, timed, strict=True)
    )
    result = {
        "seconds": seconds, "samples_per_s": sum(samples) / seconds,
        "tokens_per_s": tokens / seconds,
        "supervised": sum(s["supervised_tokens"] for s in timed) / tokens, "memory_mb": steps[-1]["memory_mb"],
        "before_mb": before / 1024, "losses": [s["loss"] for s in steps],
        "recipe": read_json(out / "interlace.json")["training"]["recipe"],
    }  # fmt: skip
    print(json.dumps(result))


def lacking(levers: dict[str, Any]) -> str | None:
    """Return why levers cannot be had on this machine, or None."""
    try:
        choose_head(levers.get("head", "chunked") if levers.get("head") != "full" else "auto")
    except InputError as error:
        return str(error)
    if levers.get("compile") and not (torch.cuda.is_available() or shutil.which("g++")):
        return "torch.compile needs a GPU or g++"
    return unavailable(levers.get("attention", "auto"))


def run(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Tune in a process of its own; SystemExit where it fails or takes longer than `RUN_SECONDS`."""
    command = [
        sys.executable,
        __file__,
        "--folder",
        str(folder),
        "--settings",
        json.dumps(settings),
    ]
    # One thread, unless told otherwise: those that wait for each other would count as work.
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment,
            timeout=RUN_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise SystemExit(f"a run took longer than {RUN_SECONDS} s: {settings['levers']}") from None
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def matmul_rate(dtype: str) -> float:
    """Return the floating point operations per second of a large product of matrices, measured."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 8192 if device == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=getattr(torch, dtype))
    clock = time.perf_counter if device == "cuda" else time.process_time
    best = 0.0
    for _ in range(6):
        start = clock()
        for _ in range(10):
            a @ a
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, 20 * size**3 / (clock() - start))
    return best


def operations_per_token(
    folder: Path, drop: list[int], tune: list[int], supervised: float
) -> float:
    """Return what the mathematics needs: 2 a weight forward, 2 for the gradient of what it gets
    from the first tuned layer on, 2 for its own where tuned; the head twice for supervised tokens.
    Attention and the vision tower are left out, so the share stated is too low."""
    shape = model_shape(folder)
    layer = shape.layers[0]
    kept = len(shape.layers) - len(drop)
    first = sum(n < min(tune) for n in range(LAYERS) if n not in drop)
    head = 4 * shape.vocab * shape.hidden * supervised
    return 2 * layer * (kept + (kept - first) + len(tune)) + head


def show(name: str, result: dict[str, Any], against: float | None) -> None:
    ratio = "" if against is None else f"{result['samples_per_s'] / against:8.2f}"
    print(
        f"  {name:<34}{result['samples_per_s']:>10.3f}{result['tokens_per_s']:>10.0f}"
        f"{result['memory_mb']:>10.0f}{ratio}",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 below the bar")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="a real shape, for a GPU")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--length", type=float, default=0.125, help="scale of FineVision's lengths")
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--micro-batch", type=int, default=16)
    parser.add_argument("--pack-tokens", type=int)
    parser.add_argument("--rounds", type=int, default=2, help="runs of each recipe, in turns")
    parser.add_argument(
        "--levers", choices=("paper", "fast", "none"), default="paper",
        help="the recipe whose levers are turned, one at a time",
    )  # fmt: skip
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--settings", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder:
        run_one(Path(args.folder), json.loads(args.settings))
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = time.monotonic()
        write_model(folder / "base", args)
        write_samples(folder / "samples", args)
        # Triplets as a plan has them in the upper half: one dropped, the next one tuned.
        drop = list(range(8, 8 + 3 * DROPPED, 3))
        tune = [layer + 1 for layer in drop]
        freeze = [n for n in range(LAYERS) if n not in {*drop, *tune}]
        write_json(folder / "plan.json", {
            "model": "bench", "method": "bench", "ratio": 25, "num_layers": LAYERS,
            "num_dropped": DROPPED, "drop": drop, "tune": tune, "freeze": freeze,
            "reading": "paper", "seed": 0, "how_reached": "stated",
        })  # fmt: skip
        device = "cuda" if torch.cuda.is_available() else "cpu"
        print(
            f"{args.shape or args.hidden}: {LAYERS} layers, {DROPPED} dropped, layers {tune} tuned; "
            f"{args.samples} samples, {args.micro_batch} x 2 a step, {args.dtype}, {device} "
            f"(made in {time.monotonic() - start:.0f} s)"
        )
        print(f"  {'':<34}{'samples/s':>10}{'tokens/s':>10}{'peak MB':>10}{'  ratio'}")
        cache_vision(
            folder / "base", folder / "samples", folder / "vision",
            settings_of(args, "fast", {}), model="bench",
        )  # fmt: skip
        rates: dict[str, list[float]] = {"paper": [], "fast": []}
        losses, fast = {}, []
        for _ in range(args.rounds):
            for recipe in rates:
                result = run(folder, settings_of(args, recipe, {}))
                rates[recipe].append(result["samples_per_s"])
                losses[recipe] = result["losses"]
                fast += [result] if recipe == "fast" else []
                show(recipe, result, None)
        paper = max(rates["paper"])
        operations = operations_per_token(folder / "base", drop, tune, fast[0]["supervised"])
        levers_of = {"paper": LEVERS, "fast": FAST_LEVERS, "none": {}}[args.levers]
        for name, levers in levers_of.items():
            title = f"{args.levers}, {name}"
            if why := lacking(levers):
                print(f"  {title:<34} not here: {why}", flush=True)
                continue
            result = run(folder, settings_of(args, args.levers, levers))
            show(title, result, max(rates[args.levers]))
    worst = max(abs(a - b) for a, b in zip(losses["paper"], losses["fast"], strict=True))
    print(f"largest difference of a loss: {worst:.1e}")
    ratio = max(rates["fast"]) / paper
    share = max(r["tokens_per_s"] for r in fast) * operations / matmul_rate(args.dtype)
    print(f"fast does {share:.0%} of the measured rate of matrix products (decoder and head alone)")
    hours = 240_000 / max(rates["fast"]) / 3600
    print(f"240,000 samples like these: {hours:.1f} h (the paper, 8B on one GPU: 6 h)")
    print(f"ratio of samples per second, fast / paper: {ratio:.2f}")
    good = ratio >= BAR[device] and (args.dtype != "float32" or worst <= 1e-5)
    return int(args.check and not good)


if __name__ == "__main__":
    sys.exit(main())
