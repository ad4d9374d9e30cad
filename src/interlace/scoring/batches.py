"""Batches of samples of similar length within a budget of tokens, and which samples are in them."""

import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from interlace.data.chat import SampleDataset
from interlace.data.collate import EncodeError, encode, encode_prompt, pad, pad_token_id
from interlace.data.images import ImageDecodeError
from interlace.progress import track
from interlace.scoring.left_out import check_left_out

POOL_BYTES = 2**30  # encoded samples wait for others of their length up to this size
TEXTS = {"conversation": encode, "prompt": encode_prompt}

Sample = dict[str, torch.Tensor]


class SampleBatches:
    """Iterate once over samples as padded batches; samples of similar length share one.

    A batch has at most `batch_tokens` tokens, padding included; a sample longer than that makes a
    batch of its own. `positions` grows while iterating: the index in `records` of every row that
    came out, in order. `left_out` names the samples that cannot be encoded: `id`, `reason` (the name
    it is counted under), `detail` (one line) and whether it has `images`.
    """

    def __init__(
        self,
        records: SampleDataset,
        processor: Any,
        batch_tokens: int,
        max_length: int | None,
        key: str,
        select: Sequence[int] | None = None,
        text: str = "conversation",
        workers: int = 0,
    ) -> None:
        """Batch the records at the indices `select` (default: all); `key` names max_length.

        `text` is `conversation` (all turns, cut at `max_length`) or `prompt` (the first user turn
        and its images, with the generation prompt); `workers` processes encode ahead.
        """
        self._encoding = _Encoding(records, processor, max_length, text)
        self._pad_token_id = pad_token_id(processor)
        self._batch_tokens = batch_tokens
        self._key = key
        self._select = list(range(len(records)) if select is None else select)
        self._workers = workers
        self.positions: list[int] = []
        self.left_out: list[dict[str, Any]] = []
        self._with_images = False

    def __iter__(self) -> Iterator[Sample]:
        yield from self._batch(self._samples())
        check_left_out(self._key, self.left_out, len(self.positions), self._with_images)

    def chunks(self, size: int) -> Iterator[Iterator[Sample]]:
        """Yield the batches of `size` selected samples after the other; none spans two chunks.

        The batches of a chunk depend on its own samples alone. Each is to be used up before the
        next; one whose samples are all left out has no batch.
        """
        samples = self._samples()
        for start in range(0, len(self._select), size):
            yield self._batch(itertools.islice(samples, min(size, len(self._select) - start)))
        next(samples, None)  # says how long it took and how many are left out

    def _samples(self) -> Iterator[tuple[int, Sample | None]]:
        encoded = DataLoader(
            self._encoding,
            batch_size=None,
            sampler=self._select,
            num_workers=self._workers,
            collate_fn=_as_is,
        )
        for position, sample, left_out in track(
            encoded, "reading samples", total=len(self._select), unit="sample"
        ):
            if left_out is not None:
                self.left_out.append(left_out)
                yield position, None
            else:
                self._with_images |= "pixel_values" in sample
                yield position, {key: torch.from_numpy(value) for key, value in sample.items()}
        if self.left_out:
            print(f"{len(self.left_out)} calibration samples left out", file=sys.stderr)

    def _batch(self, samples: Iterator[tuple[int, Sample | None]]) -> Iterator[Sample]:
        waiting: list[tuple[int, Sample]] = []
        held = 0
        for position, sample in samples:
            if sample is None:
                continue
            waiting.append((position, sample))
            held += sum(value.nbytes for value in sample.values())
            if held >= POOL_BYTES:
                yield from self._flush(waiting)
                waiting, held = [], 0
        yield from self._flush(waiting)

    def _flush(self, waiting: list[tuple[int, Sample]]) -> Iterator[Sample]:
        lengths = [_length(sample) for _, sample in waiting]
        for part in within_budget(lengths, self._batch_tokens):
            self.positions += [waiting[i][0] for i in part]
            yield pad([waiting[i][1] for i in part], self._pad_token_id)


def within_budget(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield the indices of `lengths` in groups of at most `batch_tokens` tokens once padded.

    The longest first, so that what does not fit into memory shows at once; equal ones in order. A
    length above the budget makes a group of its own.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    while order:
        fitting = max(1, batch_tokens // lengths[order[0]])
        yield order[:fitting]
        order = order[fitting:]


class _Encoding(Dataset):
    """Records as model inputs. NumPy arrays: tensors from a worker would each hold a file open."""

    def __init__(
        self, records: SampleDataset, processor: Any, max_length: int | None, text: str
    ) -> None:
        self._records = records
        self._processor = processor
        self._max_length = max_length
        self._encode = TEXTS[text]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(
        self, position: int
    ) -> tuple[int, dict[str, np.ndarray] | None, dict[str, Any] | None]:
        """Return the position, and the sample or why it is left out."""
        out: dict[str, Any] = {"id": self._records.ids[position]}
        try:
            record = self._records[position]
        except ImageDecodeError as error:
            detail = f"an image cannot be decoded: {error}"
            out |= {"reason": "dropped_undecodable", "detail": detail, "images": True}
            return position, None, out
        out["images"] = bool(record.images)
        try:
            encoded = self._encode(record, self._processor, self._max_length)
        except EncodeError as error:
            return position, None, out | {"reason": error.reason, "detail": error.detail}
        return position, {key: value.numpy() for key, value in encoded.items()}, None


def _as_is(item: Any) -> Any:
    return item


def _length(sample: Sample) -> int:
    return sample["input_ids"].shape[1]
