"""What one optimizer step is made of: samples encoded, weighed and laid out in micro-batches.

Shapes: B rows, T tokens. What cannot be encoded is left out by name, never silently replaced.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from PIL import Image

from interlace.data.chat import Record, SampleDataset
from interlace.data.collate import IGNORED, Collator, EncodeError, encode, pad, pad_token_id
from interlace.data.images import ImageDecodeError
from interlace.data.packing import bins, pack
from interlace.training.order import Slot
from interlace.training.vision_store import VisionStore

Sample = dict[str, Any]


@dataclass
class MicroBatch:
    """What goes through the model at once.

    `inputs`: the model's keyword arguments. `labels` (B, T), `IGNORED` where nothing is learnt;
    `weights` (B, T) float32, what each of them weighs in the step's loss; `owners` (B, T), the
    position in `ids` of the sample each token is of, -1 for padding. `starts`: where the samples of
    a packed row start, and its end; None if padded.
    """

    inputs: dict[str, Any]
    labels: torch.Tensor
    weights: torch.Tensor
    owners: torch.Tensor
    ids: list[str]
    starts: torch.Tensor | None = None


class Failure(NamedTuple):
    """A sample that cannot be used, and why, in one line that names it."""

    id: str
    text: str


@dataclass
class Step:
    """One rank's share of an optimizer step.

    `blank`: a micro-batch without a label, for a rank that has fewer than another, or none at all;
    None where it is not needed. `samples`, `tokens`, `supervised`: how many there are, padding left out;
    `counts`: what `Collator` counts. `groups`: how many the step has on all ranks (0 on a rank that
    gets none of it), `groups_left`: of how many of this rank's at least one label is left.
    """

    micro_batches: list[MicroBatch]
    blank: MicroBatch | None
    failures: list[Failure] = field(default_factory=list)
    samples: int = 0
    tokens: int = 0
    supervised: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    groups: int = 0
    groups_left: int = 0


class TrainingDataset(torch.utils.data.Dataset):
    """The kept samples by slot; one whose image does not decode comes as a `Failure`."""

    def __init__(self, samples: SampleDataset):
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, slot: Slot) -> tuple[Slot, Record | Failure]:
        """Return the slot with its record, or with why it cannot be had."""
        try:
            return slot, self._samples[slot.index]
        except ImageDecodeError as error:
            name = self._samples.ids[slot.index]
            return slot, Failure(name, f"{name}: {error}")


class StepCollator:
    """Make a `Step` of the records of one rank.

    The loss of a group is the mean over its supervised tokens, that of a step the mean over its
    groups; so a token of a group with n of them weighs 1 / (n groups), wherever it is laid. Ranks
    average their gradients, hence the factor `world_size`. Groups that turn out to be without a
    label, on any rank, are known once the ranks have met (`LayerTrainer.training_step`).

    With `world_size` above 1, a micro-batch of text only gets one more sample: a grey picture
    without labels. It has no part in the loss, but takes every rank of ZeRO-3 through the vision
    tower's module (stored features too); where one rank does and another does not, both wait for
    ever.
    """

    def __init__(
        self,
        processor: Any,
        max_length: int | None,
        layout: "Padded | Packed",
        world_size: int = 1,
        sharded: bool = False,
        store: VisionStore | None = None,
    ):
        """`sharded`: an engine counts steps by backward passes, so that none may be without one.

        `store` puts the stored features of a sample in place of its pixels.
        """
        self._processor, self._max_length = processor, max_length
        self._layout, self._world_size, self._sharded = layout, world_size, sharded
        self._store = store
        self._blank: Sample | None = None

    def __call__(self, items: Sequence[tuple[Slot, Record | Failure]]) -> Step:
        """Return the step; its micro-batches are none where no sample can be used."""
        step = Step([], None)
        collator = Collator(self._processor, self._max_length, padding_side="right")
        kept: list[tuple[Slot, str, Sample]] = []
        for slot, record in items:
            if isinstance(record, Failure):
                step.failures.append(record)
                continue
            try:
                kept.append((slot, record.id, self._encoded(record, collator)))
            except EncodeError as error:
                step.failures.append(Failure(record.id, str(error)))
        step.counts = collator.counts
        supervised = [_supervised(sample["labels"]) for *_, sample in kept]
        of_group: dict[int, int] = {}
        for (slot, *_), count in zip(kept, supervised, strict=True):
            of_group[slot.group] = of_group.get(slot.group, 0) + count
        for slot, _, sample in kept:
            share = self._world_size / slot.groups
            sample["weights"] = _weights(sample["labels"], share / max(1, of_group[slot.group]))
        step.groups = items[0][0].groups if items else 0
        step.groups_left = sum(count > 0 for count in of_group.values())
        step.samples, step.supervised = len(kept), sum(supervised)
        step.tokens = sum(sample["labels"].shape[1] for *_, sample in kept)
        groups = [
            [(name, sample) for slot, name, sample in kept if slot.group == group]
            for group in sorted(of_group)
        ]
        for members in self._layout.split(groups):
            step.micro_batches.append(self._micro_batch(members))
        if self._sharded or not step.micro_batches:
            step.blank = self._micro_batch([])
        return step

    def _encoded(self, record: Record, collator: Collator) -> Sample:
        sample = collator([record])
        return sample if self._store is None else self._store.add_features(record.id, sample)

    def _micro_batch(self, members: list[tuple[str, Sample]]) -> MicroBatch:
        samples = [sample for _, sample in members]
        seen = any("pixel_values" in sample for sample in samples)
        if not samples or (self._world_size > 1 and not seen):
            samples = [*samples, self._blank_sample()]
        ids = [name for name, _ in members]
        for owner, sample in enumerate(samples):
            if owner < len(ids):
                sample["owners"] = torch.full_like(sample["labels"], owner)
            else:
                sample["owners"] = torch.full_like(sample["labels"], -1)
        inputs, starts = self._layout.join(samples, pad_token_id(self._processor))
        return MicroBatch(
            labels=inputs.pop("labels"),
            weights=inputs.pop("weights"),
            owners=inputs.pop("owners"),
            inputs=inputs,
            ids=ids,
            starts=starts,
        )

    def _blank_sample(self) -> Sample:
        if self._blank is None:
            images = []
            if getattr(self._processor, "image_processor", None) is not None:
                images = [Image.new("RGB", (64, 64), (128, 128, 128))]
            record = Record("blank", "blank", images, [{"user": ".", "assistant": "."}])
            sample = encode(record, self._processor)
            sample["labels"] = torch.full_like(sample["labels"], IGNORED)
            sample["weights"] = _weights(sample["labels"], 0.0)
            if self._store is not None and "pixel_values" in sample:
                merged = self._processor.image_processor.merge_size**2
                tokens = int(sample["image_grid_thw"].prod(1).sum()) // merged
                sample["pixel_values"] = self._store.zeros(tokens)
            self._blank = sample
        return dict(self._blank)


class Padded:
    """Rows padded on the right, at most `rows` of one group in a micro-batch."""

    def __init__(self, rows: int):
        self.rows = rows

    def split(self, groups: list[list[tuple[str, Sample]]]) -> list[list[tuple[str, Sample]]]:
        """Return the members of each micro-batch, as they stand in the groups."""
        return [
            group[start : start + self.rows]
            for group in groups
            for start in range(0, len(group), self.rows)
        ]

    def join(self, samples: list[Sample], pad_id: int) -> tuple[Sample, None]:
        """Return the (B, T) tensors of one micro-batch."""
        return pad(samples, pad_id, "right", fill={"owners": -1}), None


class Packed:
    """One row of several samples, at most `budget` tokens or one sample; see `data.packing`."""

    def __init__(self, budget: int, positions: Any):
        self.budget, self.positions = budget, positions

    def split(self, groups: list[list[tuple[str, Sample]]]) -> list[list[tuple[str, Sample]]]:
        """Return the members of each row, longest first, from all groups of the step."""
        members = [member for group in groups for member in group]
        lengths = [sample["labels"].shape[1] for _, sample in members]
        return [[members[index] for index in row] for row in bins(lengths, self.budget)]

    def join(self, samples: list[Sample], pad_id: int) -> tuple[Sample, torch.Tensor]:
        """Return the (1, T) tensors of one row and where its samples start, with its end."""
        return pack(samples, self.positions)


def _supervised(labels: torch.Tensor) -> int:
    """Return how many tokens are predicted: the first of a sequence never is."""
    return int((labels[:, 1:] != IGNORED).sum())


def _weights(labels: torch.Tensor, weight: float) -> torch.Tensor:
    """Return `weight` where there is a label that is predicted, 0 elsewhere; float32."""
    weights = torch.where(labels != IGNORED, weight, 0.0).float()
    weights[:, 0] = 0.0
    return weights
