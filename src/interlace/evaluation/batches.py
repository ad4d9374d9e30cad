"""Rows on their way into a batch: prepared ahead, grouped by room, padded on the left."""

import collections
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

Inputs = dict[str, torch.Tensor]

# One row per image patch or image; everything else is one row per token and padded on the left.
PER_IMAGE = ("pixel_values", "image_grid_thw")

# New tokens that a row is expected to take, at most: what counts beside its prompt when a batch is
# put together. Modes that allow 16,384 tokens use a few hundred of them for nearly every answer;
# counting all of them would leave one row in a batch. A batch that outgrows its room is cut.
EXPECTED_NEW_TOKENS = 256


@dataclass(eq=False)
class Row:
    """One row of a benchmark, and what has been generated for it so far.

    `prepare` makes the prompt's tensors, `length` tokens long (known once it has run); `seed` is
    that of the row's own randomness, None where greedy. Rows of equal `images` have the same
    pictures; None: unknown.
    """

    index: str
    prepare: Callable[[], Inputs]
    seed: int | None = None
    images: str | None = None
    tokens: list[int] = field(default_factory=list)
    finished: bool = False
    length: int = 0

    def draw(self) -> float:
        """Return the number in [0, 1) that chooses the next token: seed and position decide it.

        A multiple of 2^-24, so that its product with a sum in float64 stays below the sum.
        """
        assert self.seed is not None
        return float(np.random.default_rng([self.seed, len(self.tokens)]).random(dtype=np.float32))

    def inputs(self) -> Inputs:
        """Return the prompt followed by what has been generated: tensors of one sample."""
        inputs = self.prepare()
        self.length = inputs["input_ids"].shape[1]
        new = torch.tensor([self.tokens], dtype=torch.long)
        fills = {"input_ids": new, "attention_mask": torch.ones_like(new)}
        return {
            key: value
            if key in PER_IMAGE or not self.tokens
            else torch.cat([value, fills.get(key, torch.zeros_like(new)).to(value.dtype)], dim=1)
            for key, value in inputs.items()
        }


@dataclass
class Room:
    """How much a batch may hold: at most `rows` rows, and about `tokens` tokens of cache.

    Tokens are counted as the memory is: rows times the width of the padded batch, with the new
    tokens each row is expected to take (`EXPECTED_NEW_TOKENS`, or as many again as it took so far).
    One row always fits. `tokens` shrinks when the device runs out of memory.
    """

    rows: int
    tokens: int
    max_new_tokens: int

    def width(self, row: Row) -> int:
        """Return how many tokens a prepared row is expected to have at its end."""
        new = len(row.tokens)
        return row.length + min(self.max_new_tokens, new + max(EXPECTED_NEW_TOKENS, new))

    def fits(self, rows: int, width: int) -> bool:
        """Return whether so many rows of such a width may be together."""
        return rows <= 1 or (rows <= self.rows and rows * width <= self.tokens)


def batches(rows: Iterable[tuple[Row, Inputs]], room: Room) -> Iterator[list[tuple[Row, Inputs]]]:
    """Yield prepared rows in groups that fit, in their order."""
    batch: list[tuple[Row, Inputs]] = []
    widest = 0
    for row, inputs in rows:
        width = room.width(row)
        if batch and not room.fits(len(batch) + 1, max(widest, width)):
            yield batch
            batch, widest = [], 0
        batch.append((row, inputs))
        widest = max(widest, width)
    if batch:
        yield batch


def prepared(rows: Iterable[Row], ahead: int) -> Iterator[tuple[Row, Inputs]]:
    """Yield each row with its tensors, prepared in order by a thread that is ahead of its reader.

    It waits when rows of more than `ahead` tokens are ready: the images of a few long rows take
    gigabytes. With `ahead` 0 there is no thread. What raises in it raises here.
    """
    if not ahead:
        for row in rows:
            yield row, row.inputs()
        return
    ready: collections.deque[tuple[Row, Inputs] | BaseException | None] = collections.deque()
    changed = threading.Condition()
    held, is_left = 0, False

    def may_go_on() -> bool:
        return held <= ahead or is_left

    def work() -> None:
        nonlocal held
        try:
            for row in rows:
                item = row, row.inputs()
                with changed:
                    changed.wait_for(may_go_on)
                    if is_left:
                        return
                    held += row.length
                    ready.append(item)
                    changed.notify_all()
            end: BaseException | None = None
        except BaseException as error:  # whatever it is, the reader gets it
            end = error
        with changed:
            ready.append(end)
            changed.notify_all()

    thread = threading.Thread(target=work, daemon=True, name="prepare")
    thread.start()
    try:
        while True:
            with changed:
                changed.wait_for(lambda: ready)
                item = ready.popleft()
                if isinstance(item, tuple):
                    held -= item[0].length
                    changed.notify_all()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        with changed:
            is_left = True
            changed.notify_all()
        thread.join()


def collate(samples: list[Inputs], pad_token_id: int) -> Inputs:
    """Return one batch from single prompts: tokens padded on the left, images one after another."""
    width = max(sample["input_ids"].shape[1] for sample in samples)
    batch = {}
    for key in dict.fromkeys(key for sample in samples for key in sample):
        values = [sample[key] for sample in samples if key in sample]
        if key not in PER_IMAGE:
            assert len(values) == len(samples), key
            fill = pad_token_id if key == "input_ids" else 0
            pads = [(width - value.shape[1], 0) for value in values]
            values = [
                torch.nn.functional.pad(value, pad, value=fill)
                for value, pad in zip(values, pads, strict=True)
            ]
        batch[key] = torch.cat(values)
    return batch
