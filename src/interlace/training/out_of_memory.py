"""Running out of memory: one line that says what to change, and a smaller micro-batch next time."""

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from interlace.errors import InputError
from interlace.io import read_json, write_json
from interlace.memory import is_out_of_memory
from interlace.training.memory import MemoryEstimate
from interlace.training.recipe import Recipe


class OutOfMemory(InputError):
    """Training needs more memory than there is; the line says how much, for what, and the way out."""


class MicroBatchMemory:
    """How many times smaller than configured micro-batches must be, after running out of memory.

    Kept beside the work folder (`<work>.memory.json`), whose name stands for the settings that decide
    the weights. Those that decide the need of memory (levers, configured size) are no part of it,
    and are noted as `under`: with others, which may be what the error advised, or without a note,
    `divisor` is 1. A run that fails for another reason leaves it as it is. What an optimizer step
    takes stays the same: there are more micro-batches in it.
    """

    def __init__(self, work: str | Path, under: Mapping[str, Any]):
        """`under`: levers as configured, `auto` not settled (free memory may settle it otherwise in
        the next attempt), and the configured `size`; as JSON has them.
        """
        work = Path(work)
        self.path = work.with_name(f"{work.name}.memory.json")
        self._under = dict(under)
        noted = read_json(self.path) if self.path.exists() else {}
        self.divisor = int(noted["divisor"]) if noted.get("under") == self._under else 1

    def smaller(self, size: int) -> int:
        """Return the size to use for the configured one, in samples or tokens; 1 at least."""
        return max(1, size // self.divisor)

    def note_out_of_memory(self, size: int) -> int | None:
        """Let the next attempt halve; return the size that it will use.

        `size` is the configured one. None, and no change, where this attempt already used 1. Any
        rank may call this, several too: each states twice the divisor that it started with.
        """
        if self.smaller(size) == 1:
            return None
        # A name of its own for each writer: two ranks must not rename each other's file.
        mine = self.path.with_name(f"{self.path.name}.{socket.gethostname()}-{os.getpid()}")
        write_json(mine, {"divisor": 2 * self.divisor, "under": self._under})
        mine.replace(self.path)
        return max(1, size // (2 * self.divisor))


class Now:
    """What a run is doing: `step` in words, and how many samples go through the model at once.

    `samples` is 0 while none does: before the first step, and once the last one is done.
    """

    def __init__(self) -> None:
        self.step, self.samples = "its start", 0


@contextlib.contextmanager
def one_line_if_out_of_memory(
    title: str,
    now: Now,
    estimate: MemoryEstimate,
    memory: MicroBatchMemory,
    recipe: Recipe,
    size: int,
) -> Iterator[None]:
    """Turn a failed allocation in the block into an `OutOfMemory`, and note it for the next attempt.

    `size` is the configured `micro_batch`, or `pack_tokens` of a recipe that packs. Smaller ones are
    noted only where several samples went through the model at once: for weights alone they would
    not help. All other errors pass, and leave no note.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        following = memory.note_out_of_memory(size) if now.samples > 1 else None
        tried = memory.smaller(size)
        line = _line(f"{title}, {now.step}", now.samples, estimate, recipe, tried, following)
        raise OutOfMemory(line) from None


def _line(
    doing: str,
    samples: int,
    estimate: MemoryEstimate,
    recipe: Recipe,
    tried: int,
    following: int | None,
) -> str:
    key, unit = ("pack_tokens", "tokens") if recipe.packing else ("micro_batch", "samples")
    if following is not None:
        plan = f"the next attempt takes {following} {unit} in place of {tried}, in as large a step"
        changes = [f"lower finetune.{key}"]
    elif samples:
        plan = "it was one sample alone, no smaller micro-batch is left"
        changes = ["lower finetune.max_length or finetune.max_pixels"]
    else:
        plan = "no sample was in the model, so a smaller micro-batch would not help"
        changes = []
    if recipe.checkpointing == "none" and samples:
        changes.append("set finetune.levers.checkpointing: tuned")
    if recipe.head in ("full", "supervised") and samples:
        changes.append("set finetune.levers.head: chunked")
    if recipe.sharding != "zero3_offload":
        changes.append("set finetune.levers.sharding: zero3_offload")
        changes.append("use more GPUs (finetune.processes, finetune.nodes)")
    way_out = f"; or {', or '.join(changes)}" if changes else "; use a larger GPU"
    return f"out of memory in {doing}; estimated need {estimate.brief()}; {plan}{way_out}"
