"""What the tests of training share: tiny inputs, settings, and a run to its weights."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

from interlace.training.run import finetune
from tests.tiny import make_tiny_checkpoint, make_tiny_samples

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "recipe": "fast",
    "levers": {},
    "epochs": 1,
    "learning_rate": 1e-2,
    "warmup_ratio": 0.03,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "micro_batch": 4,
    "accumulation": 1,
    "pack_tokens": 300,
    "precision": "float32",
    "max_length": 512,
    "min_pixels": None,
    "max_pixels": None,
    "workers": 0,
    "loss": "ce",
    "kd": {"match": "logits", "temperature": 2.0, "weight": 0.5},
    "max_failed_share": 0.05,
    "checkpoint_minutes": None,
    "deepspeed": str(ROOT / "config/deepspeed/zero3.json"),
    "deepspeed_offload": str(ROOT / "config/deepspeed/zero3_offload.json"),
    "processes": 1,
    "nodes": 1,
}
PLAN = {
    "model": "tiny", "method": "interlace", "ratio": 25, "num_layers": 6, "num_dropped": 1,
    "drop": [1], "tune": [2, 4], "freeze": [0, 3, 5], "reading": "paper", "seed": 0,
    "how_reached": "stated",
}  # fmt: skip
PREFIX = "model.language_model.layers."


def make_inputs(root: Path, rows: int = 24, seed: int = 0, **plan) -> Path:
    """Write `base`, `samples` and `plan.json` below `root`; six layers, an untied head."""
    make_tiny_checkpoint(root / "base", tied=False, seed=seed)
    make_tiny_samples(root / "samples", rows=rows // 4)
    (root / "plan.json").write_text(json.dumps({**PLAN, **plan}))
    return root


def tuned(
    given: Path, out: Path, samples="samples", seed=0, plan="plan.json", vision=None, **changes
):
    """Tune in this process; return the checkpoint's weights by name."""
    finetune(
        given / "base", given / plan, given / samples, out, {**SETTINGS, **changes},
        model="tiny", variant="interlace-25-ft", seed=seed, vision=vision,
    )  # fmt: skip
    return load_file(out / "model.safetensors")


def in_process(
    given: Path, out: Path, timeout=300, vision=None, **changes
) -> subprocess.CompletedProcess:
    """Tune in a process of its own, which may start ranks."""
    job = {
        "base": str(given / "base"), "plan": str(given / "plan.json"),
        "samples": str(given / "samples"), "out": str(out), "settings": {**SETTINGS, **changes},
        "vision": None if vision is None else str(vision),
    }  # fmt: skip
    code = (
        "import json, sys; from interlace.training.run import finetune;"
        "finetune(**json.loads(sys.argv[1]), model='tiny', variant='v', seed=0)"
    )
    return subprocess.run(
        [sys.executable, "-c", code, json.dumps(job)],
        check=False, timeout=timeout, capture_output=True, text=True,
    )  # fmt: skip


def losses(out: Path) -> list[float]:
    """Return the loss of every step."""
    return [json.loads(line)["loss"] for line in (out / "training.jsonl").open()]


def training(out: Path) -> dict:
    """Return what interlace.json says of the training."""
    return json.loads((out / "interlace.json").read_text())["training"]


def differing(left, right):
    """Return the names of the weights that differ in any bit."""
    assert left.keys() == right.keys()
    return {name for name in left if not torch.equal(left[name], right[name])}


def spoil(samples, out, count):
    """Copy samples; the images of the first `count` rows with images no longer decode."""
    shutil.copytree(samples, out)
    for file in sorted(out.glob("tiny_*/*.parquet")):
        rows = pq.read_table(file).to_pylist()
        for row in rows:
            if row["images"] and count:
                row["images"][0]["bytes"] = b"no image"
                count -= 1
        pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(file)), file)
