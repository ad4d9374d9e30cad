"""How a run is made to fit the memory there is: levers chosen before anything is loaded."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from transformers import PreTrainedConfig

from interlace.errors import InputError
from interlace.training import memory
from interlace.training.attention import packing_refusal, unavailable
from interlace.training.head import choose_head
from interlace.training.out_of_memory import MicroBatchMemory
from interlace.training.recipe import UNCOMPILED, Recipe, resolve
from interlace.training.shape import read_config
from interlace.training.vision_tower import why_not
from interlace.training.work import kept_sharding, work_folder

CHARS_PER_TOKEN = 3  # few enough for most languages that are written with letters
PIXELS_PER_TOKEN = 32 * 32  # of Qwen3-VL: patches of 16, merged two by two


@dataclass
class Fit:
    """What was chosen and why: `recipe` without `auto` in its memory levers, `deepspeed` its file.

    `budget` tokens of a packed row, `rows` of a padded micro-batch: those of the configuration, or
    fewer where a run of this kind went out of memory before. `configured` is the largest of the one
    that the recipe uses. `notes`: a line for each lever that could not be had.
    """

    recipe: Recipe
    estimate: memory.MemoryEstimate
    why: str
    budget: int
    rows: int
    configured: int
    divisor: int
    deepspeed: str | None
    notes: list[str]

    def lines(self) -> list[str]:
        """Return what is told before the start."""
        smaller = f"{self.budget} tokens a packed row, {self.rows} samples a padded batch"
        again = [f"ran out of memory before: {smaller}"] if self.divisor > 1 else []
        return [*memory.describe(self.estimate).splitlines(), self.why, *again, *self.notes]

    def record(self) -> dict[str, Any]:
        """Return what interlace.json keeps of it."""
        parts = {part.name: part.bytes for part in self.estimate.parts if part.bytes}
        return {"why": self.why, "divisor": self.divisor, "estimate_bytes": parts}


def settle(recipe: Recipe, config: PreTrainedConfig) -> tuple[Recipe, list[str]]:
    """Return `recipe` without what the family of `config` cannot do, and a line for each such lever.

    The head is settled with the model (`training.setup`), what depends on memory by `fit_memory`.
    Raises InputError for what this machine cannot do.
    """
    notes = []
    if recipe.vision == "cached" and (why := why_not(config)):
        recipe = replace(recipe, vision="live")
        notes.append(f"vision: live, {why}")
    if recipe.packing and (why := packing_refusal(config)):
        recipe = replace(recipe, packing=False)
        notes.append(f"packing: off, {why}")
    if not recipe.packing:
        if recipe.attention not in ("auto", "sdpa"):
            notes.append(f"attention: sdpa, {recipe.attention} is for packed rows")
        recipe = replace(recipe, attention="sdpa")
    elif why := unavailable(recipe.attention):
        raise InputError(f"finetune.levers.attention: {recipe.attention}: {why}")
    elif recipe.attention == "auto":
        recipe = replace(recipe, attention="varlen")
    if recipe.head not in ("auto", "full"):
        choose_head(recipe.head, "cuda" if torch.cuda.is_available() else "cpu")
    return recipe, notes


def fit_memory(
    job: dict[str, Any],
    plan: dict[str, Any],
    head: bool,
    world_size: int,
    smaller: MicroBatchMemory,
    kept: str | None = None,
) -> Fit:
    """Choose sharding and checkpointing for a job, by what its model's config and samples ask for.

    `head`: an untied head is trained too. What `job["chosen"]` says is not chosen again: memory that
    is free differs from rank to rank, but all of them must do the same. `kept` is the sharding of a
    checkpoint to go on from, which `auto` keeps. Raises InputError for levers that exclude each
    other or cannot be had on this machine.
    """
    settings = job["settings"]
    loss = settings.get("loss", "ce")
    recipe = resolve(settings)
    if loss != "ce" and world_size > 1:
        raise InputError(f"finetune.loss: {loss} is for one process, but there are {world_size}")
    recipe, notes = settle(recipe, read_config(job["base"]))
    most = settings.get("max_length") or 8192
    longest = min(most, longest_sample(job["samples"], settings.get("max_pixels")))
    tokens = settings.get("pack_tokens") or most
    budget, rows = smaller.smaller(tokens), smaller.smaller(settings["micro_batch"])
    configured = tokens if recipe.packing else settings["micro_batch"]
    if recipe.packing:
        load = memory.Load(1, max(budget, longest))
    else:
        load = memory.Load(rows, longest)
    on = (settings.get("kd") or {}).get("match", "logits")
    shape = memory.model_shape(job["base"])
    estimate_for = memory.estimator(
        shape, load, replace(recipe, head="chunked" if recipe.head == "auto" else recipe.head),
        drop=plan["drop"], tune=plan["tune"], head=head and shape.head > 0,
        precision=settings["precision"], world=world_size,
        distilled=None if loss == "ce" else on, fused=torch.cuda.is_available(),
    )  # fmt: skip
    was_auto = recipe.sharding == "auto"
    available, host = memory.available_bytes(settings.get("processes", 1), job.get("mem_mb"))
    if chosen := job.get("chosen"):
        recipe = replace(recipe, **chosen)
    elif loss != "ce" and recipe.sharding == "auto":
        recipe = replace(recipe, sharding="none")  # the teacher shares weights with the student
    elif kept is not None and recipe.sharding == "auto":
        recipe = replace(recipe, sharding=kept)
    if was_auto and recipe.sharding == kept:
        notes.append(f"sharding: {kept}, as in the checkpoint that training goes on from")
    choice = memory.choose_sharding(
        estimate_for, available, world_size, recipe.sharding, recipe.checkpointing, host
    )
    recipe = replace(recipe, sharding=choice.sharding, checkpointing=choice.checkpointing)
    if recipe.compile and recipe.sharding != "none":
        recipe = replace(recipe, compile=False)
        notes.append(f"compile: off, {UNCOMPILED}")
    files = {
        "zero3": settings.get("deepspeed"),
        "zero3_offload": settings.get("deepspeed_offload"),
    }
    return Fit(
        recipe, choice.estimate, choice.why, budget, rows, configured, smaller.divisor,
        files.get(choice.sharding), notes,
    )  # fmt: skip


def choose_for_all(job: dict[str, Any], plan: dict[str, Any], world_size: int) -> dict[str, str]:
    """Return the sharding and checkpointing that every one of `world_size` ranks is to use."""
    work = work_folder(job, plan, world_size)
    fit = fit_memory(
        job, plan, plan.get("reading") == "released", world_size, MicroBatchMemory(work),
        kept_sharding(work),
    )  # fmt: skip
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
