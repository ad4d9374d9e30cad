"""Batches of samples of similar length, and which samples are in them."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from interlace.data.chat import SampleDataset
from interlace.data.collate import EncodeError, encode, pad
from interlace.errors import InputError
from interlace.progress import track

BATCHES_SORTED = 32  # how many batches' worth of samples are sorted by length at a time


class SampleBatches:
    """Iterate once over samples as padded batches; samples of similar length share one.

    `positions` grows while iterating: the index in `records` of every row that came out, in order.
    `left_out` names the samples that cannot be encoded, with the reason.
    """

    def __init__(
        self,
        records: SampleDataset,
        processor: Any,
        batch_size: int,
        max_length: int | None,
        key: str,
        select: Sequence[int] | None = None,
    ) -> None:
        """Batch the records at the indices `select` (default: all); `key` names max_length."""
        self._records = records
        self._processor = processor
        self._batch_size = batch_size
        self._max_length = max_length
        self._key = key
        self._select = range(len(records)) if select is None else select
        self.positions: list[int] = []
        self.left_out: list[dict[str, str]] = []

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        waiting: list[tuple[int, dict[str, torch.Tensor]]] = []
        for position in track(self._select, "reading samples", unit="sample"):
            record = self._records[position]
            try:
                waiting.append((position, encode(record, self._processor, self._max_length)))
            except EncodeError as error:
                self.left_out.append({"id": record.id, "reason": error.reason})
            if len(waiting) == BATCHES_SORTED * self._batch_size:
                yield from self._flush(waiting)
                waiting = []
        yield from self._flush(waiting)
        if not self.positions:
            raise InputError(
                f"{self._key}: none of {len(self.left_out)} calibration samples can be encoded "
                f"({self.left_out[0]['reason']}); raise it"
            )
        if self.left_out:
            print(f"{len(self.left_out)} calibration samples left out", file=sys.stderr)

    def _flush(
        self, waiting: list[tuple[int, dict[str, torch.Tensor]]]
    ) -> Iterator[dict[str, torch.Tensor]]:
        waiting = sorted(waiting, key=lambda item: item[1]["input_ids"].shape[1])
        for start in range(0, len(waiting), self._batch_size):
            part = waiting[start : start + self._batch_size]
            self.positions += [position for position, _ in part]
            yield pad([sample for _, sample in part], self._processor.tokenizer.pad_token_id)
