"""How a run is made to fit the memory there is: levers chosen before anything is loaded."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from transformers import PreTrainedConfig

from interlace.data.chat import SampleDataset, load_records
from interlace.decoder.load import load_processor
from interlace.errors import InputError
from interlace.training import memory
from interlace.training.attention import packing_refusal, unavailable, without_kernel
from interlace.training.freeze import trains_head
from interlace.training.head import choose_head
from interlace.training.out_of_memory import MicroBatchMemory
from interlace.training.recipe import UNCOMPILED, Recipe, resolve
from interlace.training.shape import model_shape, read_config
from interlace.training.vision_tower import why_not
from interlace.training.work import kept_sharding, work_folder

CHARS_PER_TOKEN = 3  # few enough for most languages that are written with letters
UNKNOWN = 2**31  # tokens of a sample, where nothing tells


@dataclass
class Fit:
    """What was chosen and why.

    `recipe` has no `auto` left in its memory levers, `deepspeed` is its file. `work` is the run's
    folder, `processor` has its image sizes, `records` are its samples. `budget` tokens of a packed
    row, `rows` of a padded micro-batch: those of the configuration, or fewer where this run, with
    these levers, went out of memory before (`smaller`). `configured` is the largest of the one that the
    recipe uses. `notes`: a line for each lever that could not be had.
    """

    recipe: Recipe
    estimate: memory.MemoryEstimate
    why: str
    budget: int
    rows: int
    configured: int
    smaller: MicroBatchMemory
    work: Path
    deepspeed: str | None
    processor: Any
    records: SampleDataset
    notes: list[str]

    def lines(self) -> list[str]:
        """Return what is told before the start."""
        taken = f"{self.budget} tokens a packed row, {self.rows} samples a padded batch"
        again = [f"ran out of memory before: {taken}"] if self.smaller.divisor > 1 else []
        return [*memory.describe(self.estimate).splitlines(), self.why, *again, *self.notes]

    def record(self) -> dict[str, Any]:
        """Return what interlace.json keeps of it."""
        parts = {part.name: part.bytes for part in self.estimate.parts if part.bytes}
        return {"why": self.why, "divisor": self.smaller.divisor, "estimate_bytes": parts}


def settle(recipe: Recipe, config: PreTrainedConfig, precision: str) -> tuple[Recipe, list[str]]:
    """Return `recipe` without what the family of `config` cannot do, and a line for each lever that
    is not had as it is named, in `precision`.

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
    elif recipe.attention in ("auto", "varlen"):
        recipe = replace(recipe, attention="varlen")
        if why := without_kernel(config, precision):
            notes.append(f"attention: varlen as SDPA sample by sample, {why}")
    if recipe.head not in ("auto", "full"):
        choose_head(recipe.head)
    return recipe, notes


def fit_memory(job: dict[str, Any], plan: dict[str, Any], world_size: int) -> Fit:
    """Choose sharding and checkpointing for a job, by what its model's config and samples ask for.

    What `job["chosen"]` says is not chosen again: memory that is free differs from rank to rank, but
    all of them must do the same. `auto` keeps the sharding of a checkpoint to go on from. After
    running out of memory, the choice stays that of the configured sizes: smaller ones are to fit
    where these did not. Raises InputError for levers that exclude each other or cannot be had on
    this machine.
    """
    settings = job["settings"]
    loss, precision = settings.get("loss", "ce"), settings["precision"]
    recipe, notes = settle(resolve(settings), read_config(job["base"]), precision)
    records = load_records(job["samples"])
    work = work_folder(job, plan, world_size, records.ids)
    processor = load_processor(job["base"], settings.get("min_pixels"), settings.get("max_pixels"))
    most = settings.get("max_length") or 8192
    longest = min(most, longest_sample(job["samples"], getattr(processor, "image_processor", None)))
    tokens, micro_batch = settings.get("pack_tokens") or most, settings["micro_batch"]
    configured = tokens if recipe.packing else micro_batch
    smaller = MicroBatchMemory(work, {**recipe.levers(), "size": configured})
    budget, rows = smaller.smaller(tokens), smaller.smaller(micro_batch)
    shape = model_shape(job["base"])
    on = (settings.get("kd") or {}).get("match", "logits")

    def estimator_for(tokens: int, rows: int) -> Callable[[str, str], memory.MemoryEstimate]:
        load = memory.Load(rows, longest)
        if recipe.packing:
            load = memory.Load(1, max(tokens, longest))
        return memory.estimator(
            shape, load, replace(recipe, head="chunked" if recipe.head == "auto" else recipe.head),
            drop=plan["drop"], tune=plan["tune"], head=trains_head(plan) and shape.head > 0,
            precision=precision, world=world_size,
            distilled=None if loss == "ce" else on, fused=torch.cuda.is_available(),
        )  # fmt: skip

    was_auto, kept = recipe.sharding == "auto", kept_sharding(work)
    available, host = memory.available_bytes(settings.get("processes", 1), job.get("mem_mb"))
    if chosen := job.get("chosen"):
        recipe = replace(recipe, **chosen)
    elif loss != "ce" and was_auto:
        recipe = replace(recipe, sharding="none")  # the teacher shares weights with the student
    elif kept is not None and was_auto:
        recipe = replace(recipe, sharding=kept)
    if was_auto and recipe.sharding == kept:
        notes.append(f"sharding: {kept}, as in the checkpoint that training goes on from")
    choice = memory.choose_sharding(
        estimator_for(tokens, micro_batch), available, world_size, recipe.sharding,
        recipe.checkpointing, host,
    )  # fmt: skip
    recipe = replace(recipe, sharding=choice.sharding, checkpointing=choice.checkpointing)
    if recipe.compile and recipe.sharding != "none":
        recipe = replace(recipe, compile=False)
        notes.append(f"compile: off, {UNCOMPILED}")
    files = {
        "zero3": settings.get("deepspeed"),
        "zero3_offload": settings.get("deepspeed_offload"),
    }
    return Fit(
        recipe=recipe,
        estimate=estimator_for(budget, rows)(choice.sharding, choice.checkpointing),
        why=choice.why,
        budget=budget,
        rows=rows,
        configured=configured,
        smaller=smaller,
        work=work,
        deepspeed=files.get(choice.sharding),
        processor=processor,
        records=records,
        notes=notes,
    )


def choose_for_all(job: dict[str, Any], plan: dict[str, Any], world_size: int) -> dict[str, str]:
    """Return the sharding and checkpointing that every one of `world_size` ranks is to use."""
    fit = fit_memory(job, plan, world_size)
    return {"sharding": fit.recipe.sharding, "checkpointing": fit.recipe.checkpointing}


def longest_sample(samples: str | Path, images: Any) -> int:
    """Return about how many tokens the longest sample has, by the manifest's characters and pixels.

    A guess from above for memory, not a bound; a large number where no manifest says them, or the
    image processor `images` does not say how many patches it makes of a picture and merges.
    """
    path, columns = Path(samples) / "manifest.parquet", ["num_chars", "image_sizes"]
    names = set(pq.read_schema(path).names) if path.exists() else set()
    if not {*columns, "status"} <= names:
        return UNKNOWN
    table = pq.read_table(path)
    table = table.filter(pc.equal(table["status"], "kept"))
    if "finetune" in names:
        table = table.filter(table["finetune"])
    table = table.select(columns)

    @cache
    def image_tokens(width: int, height: int) -> int:
        if not hasattr(images, "merge_size"):
            return UNKNOWN
        try:
            patches = images.get_number_of_image_patches(height, width)
        except ValueError:  # of a shape that is left out
            return 0
        return patches // images.merge_size**2 + 2  # what opens and closes it

    longest = 0
    for chars, sizes in zip(*(table[name].to_pylist() for name in table.column_names), strict=True):
        tokens = sum(image_tokens(*size) for size in sizes or [])
        longest = max(longest, (chars or 0) // CHARS_PER_TOKEN + tokens)
    return longest
