"""How a run is made to fit the memory there is: levers chosen before anything is loaded."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from interlace.training import memory
from interlace.training.out_of_memory import MicroBatchMemory
from interlace.training.recipe import Recipe, resolve

CHARS_PER_TOKEN = 3  # few enough for most languages that are written with letters
PIXELS_PER_TOKEN = 32 * 32  # of Qwen3-VL: patches of 16, merged two by two


@dataclass
class Fit:
    """What was chosen and why: `recipe` without `auto` in its memory levers, `deepspeed` its file.

    `budget` tokens of a packed row, `rows` of a padded micro-batch: those of the configuration, or
    fewer where a run of this kind went out of memory before. `configured` is the largest of the one
    that the recipe uses.
    """

    recipe: Recipe
    estimate: memory.MemoryEstimate
    why: str
    budget: int
    rows: int
    configured: int
    divisor: int
    deepspeed: str | None

    def lines(self) -> list[str]:
        """Return what is told before the start."""
        smaller = f"{self.budget} tokens a packed row, {self.rows} samples a padded batch"
        again = [f"ran out of memory before: {smaller}"] if self.divisor > 1 else []
        return [*memory.describe(self.estimate).splitlines(), self.why, *again]

    def record(self) -> dict[str, Any]:
        """Return what interlace.json keeps of it."""
        parts = {part.name: part.bytes for part in self.estimate.parts if part.bytes}
        return {"why": self.why, "divisor": self.divisor, "estimate_bytes": parts}


def fit_memory(
    job: dict[str, Any],
    plan: dict[str, Any],
    head: bool,
    world_size: int,
    smaller: MicroBatchMemory,
) -> Fit:
    """Choose sharding and checkpointing for a job, by what its model's config and samples ask for.

    `head`: an untied head is trained too. What `job["chosen"]` says is not chosen again: memory that
    is free differs from rank to rank, but all of them must do the same. Raises InputError for levers that exclude each other.
    """
    settings = job["settings"]
    recipe = resolve(settings)
    most = settings.get("max_length") or 8192
    longest = min(most, longest_sample(job["samples"], settings.get("max_pixels")))
    tokens = settings.get("pack_tokens") or most
    budget, rows = smaller.smaller(tokens), smaller.smaller(settings["micro_batch"])
    configured = tokens if recipe.packing else settings["micro_batch"]
    if recipe.packing:
        load = memory.Load(1, max(budget, longest))
    else:
        load = memory.Load(rows, longest)
    loss = settings.get("loss", "ce")
    on = (settings.get("kd") or {}).get("match", "logits")
    shape = memory.model_shape(job["base"])
    estimate_for = memory.estimator(
        shape, load, replace(recipe, head="chunked" if recipe.head == "auto" else recipe.head),
        drop=plan["drop"], tune=plan["tune"], head=head and shape.head > 0,
        precision=settings["precision"], world=world_size,
        distilled=None if loss == "ce" else on, fused=torch.cuda.is_available(),
    )  # fmt: skip
    available, host = memory.available_bytes(settings.get("processes", 1), job.get("mem_mb"))
    if chosen := job.get("chosen"):
        recipe = replace(recipe, **chosen)
    elif loss != "ce" and recipe.sharding == "auto":
        recipe = replace(recipe, sharding="none")  # the teacher shares weights with the student
    choice = memory.choose_sharding(
        estimate_for, available, world_size, recipe.sharding, recipe.checkpointing, host
    )
    recipe = replace(recipe, sharding=choice.sharding, checkpointing=choice.checkpointing)
    files = {
        "zero3": settings.get("deepspeed"),
        "zero3_offload": settings.get("deepspeed_offload"),
    }
    return Fit(
        recipe, choice.estimate, choice.why, budget, rows, configured, smaller.divisor,
        files.get(choice.sharding),
    )  # fmt: skip


def choose_for_all(job: dict[str, Any], plan: dict[str, Any], world_size: int) -> dict[str, str]:
    """Return the sharding and checkpointing that every one of `world_size` ranks is to use."""
    out = Path(job["out"])
    never = MicroBatchMemory(out.with_name(f".{out.name}.none"))
    fit = fit_memory(job, plan, plan.get("reading") == "released", world_size, never)
    return {"sharding": fit.recipe.sharding, "checkpointing": fit.recipe.checkpointing}


def longest_sample(samples: str | Path, max_pixels: int | None) -> int:
    """Return about how many tokens the longest sample has, by the manifest's characters and pixels.

    A guess from above for memory, not a bound; a large number where no manifest says them.
    """
    path, columns = Path(samples) / "manifest.parquet", ["num_chars", "image_sizes"]
    names = set(pq.read_schema(path).names) if path.exists() else set()
    if not {*columns, "status"} <= names:
        return 2**31
    table = pq.read_table(path)
    table = table.filter(pc.equal(table["status"], "kept"))
    if "finetune" in names:
        table = table.filter(table["finetune"])
    table = table.select(columns)
    longest = 0
    for chars, sizes in zip(*(table[name].to_pylist() for name in table.column_names), strict=True):
        pixels = [width * height for width, height in sizes or []]
        tokens = sum(min(count, max_pixels or count) // PIXELS_PER_TOKEN + 2 for count in pixels)
        longest = max(longest, (chars or 0) // CHARS_PER_TOKEN + tokens)
    return longest
