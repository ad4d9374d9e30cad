"""Training batches: what cannot be encoded is left out by name, never silently replaced."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from interlace.data.chat import Record, SampleDataset
from interlace.data.collate import IGNORED, Collator, EncodeError, encode, pad, pad_token_id
from interlace.data.images import ImageDecodeError

FAILURES = "failures"  # batch key: names of the samples that were left out of this batch


class TrainingDataset(torch.utils.data.Dataset):
    """The kept samples; one whose image does not decode comes as a string that says so."""

    def __init__(self, samples: SampleDataset):
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Record | str:
        """Return the record, or `<id>: <why not>`."""
        try:
            return self._samples[index]
        except ImageDecodeError as error:
            return f"{self._samples.ids[index]}: {error}"


class TrainingCollator:
    """Make a batch of records, and name under `FAILURES` those that are left out of it.

    With `always_image`, a batch of text only gets one more row: a grey picture without labels. It
    has no part in the loss, but takes every rank of ZeRO-3 through the vision tower; where one rank
    gathers its weights and another does not, both wait for ever. A batch whose samples all fail is
    such a row alone.
    """

    def __init__(self, processor: Any, max_length: int | None, always_image: bool):
        self.collator = Collator(processor, max_length, padding_side="right")
        self.always_image = always_image
        self._blank: dict[str, torch.Tensor] | None = None

    def __call__(self, items: Sequence[Record | str]) -> dict[str, Any]:
        """Return the padded (B, T) tensors of the model, `labels` and the list of failures."""
        failures = [item for item in items if isinstance(item, str)]
        encoded = []
        for item in items:
            if isinstance(item, str):
                continue
            try:
                encoded.append(self.collator([item]))
            except EncodeError as error:
                failures.append(str(error))
        if not encoded or (
            self.always_image and not any("pixel_values" in sample for sample in encoded)
        ):
            encoded.append(self._blank_row())
        batch = pad(encoded, pad_token_id(self.collator.processor), "right")
        return {**batch, FAILURES: failures}

    def _blank_row(self) -> dict[str, torch.Tensor]:
        if self._blank is None:
            images = []
            if getattr(self.collator.processor, "image_processor", None) is not None:
                images = [Image.new("RGB", (64, 64), (128, 128, 128))]
            record = Record("blank", "blank", images, [{"user": ".", "assistant": "."}])
            row = encode(record, self.collator.processor)
            row["labels"] = torch.full_like(row["labels"], IGNORED)
            self._blank = row
        return self._blank
