"""Several samples in one row: which go together, and the row's tensors with positions per sample.

Shapes: T tokens of a row, t of one sample, S samples. A packed row has no padding and no attention
mask; what keeps its samples apart is `interlace.training.attention`.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from interlace.data.collate import IGNORED, pad

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Sample = Mapping[str, torch.Tensor]
# What a sample's first token gets: nothing predicts it, or the shift of the labels would let the
# last token of the sample before it learn it.
_FIRST = {"labels": IGNORED, "weights": 0}


def bins(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Return which samples share a row of at most `budget` tokens: lists of ascending indices.

    First-fit decreasing: the longest sample first, equal ones by index, each into the first row
    with room for it; at most 11/9 of the fewest rows possible plus 6/9 (Dosa 2007). A sample
    longer than the budget has a row of its own.
    """
    assert budget > 0, budget
    assert all(length > 0 for length in lengths), "a sample without tokens"
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        length = lengths[index]
        row = next((row for row, left in enumerate(room) if length <= left), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(budget)
        rows[row].append(index)
        room[row] -= length
    return [sorted(row) for row in rows]


class SamplePositions:
    """The positions of one sample's tokens, as the model gives them to the sample alone.

    Where the family has M-RoPE they come from the model's own `get_rope_index`, called on an empty
    object of its class that has the config and no weights: small enough to be copied into the
    worker processes of a DataLoader.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        self._of_class = None
        base = model.base_model
        if hasattr(base, "get_rope_index"):
            self._of_class = type(base).__new__(type(base))
            torch.nn.Module.__init__(self._of_class)
            self._of_class.config = base.config

    def __call__(self, sample: Sample) -> torch.Tensor:
        """Return 0, 1, ... (1, t); with M-RoPE (4, 1, t): this row, then time, height and width.

        The first of four rows is where transformers looks for the starts of packed samples. The
        others are equal to it unless the sample has images (`image_grid_thw`).
        """
        ids = sample["input_ids"]
        text_1t = torch.arange(ids.shape[1]).expand(ids.shape)
        if self._of_class is None:
            return text_1t
        if not any(f"{kind}_grid_thw" in sample for kind in ("image", "video")):
            return text_1t.expand(4, *ids.shape)
        known = inspect.signature(self._of_class.get_rope_index).parameters
        rope_31t, _ = self._of_class.get_rope_index(
            **{key: value for key, value in sample.items() if key in known}
        )
        return torch.cat([text_1t[None], rope_31t])


def pack(
    samples: Sequence[Sample], positions: Callable[[Sample], torch.Tensor]
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return one row of what `encode` returned for S samples, and where its samples start.

    The row: `input_ids`, `labels` and whatever else a sample has one of per token, each (1, T);
    `position_ids`, (4, 1, T) or (1, T), those of `positions` (a `SamplePositions`) for each sample;
    pixels and grids of all samples one after the other, as `pad` joins them. `labels` are `IGNORED`
    and `weights` 0 at each sample's first token. There is no `attention_mask`.

    The starts: int32 (S + 1,), the first token of every sample and the end of the row.
    """
    assert samples, "a row needs at least one sample"
    columns: dict[str, list[torch.Tensor]] = {}
    others, places = [], []
    for sample in samples:
        ids = sample["input_ids"]
        mask = sample.get("attention_mask")
        assert ids.shape[0] == 1, ids.shape
        assert mask is None or bool(mask.all()), "a padded sample cannot be packed"
        per_token = {key for key, value in sample.items() if value.shape == ids.shape}
        others.append({key: sample[key] for key in sample if key not in per_token})
        others[-1]["input_ids"] = ids
        for key in per_token - {"attention_mask"}:
            value = sample[key]
            if key in _FIRST:
                value = value.clone()
                value[:, 0] = _FIRST[key]
            columns.setdefault(key, []).append(value)
        places.append(positions(sample))
    lacking = [key for key, values in columns.items() if len(values) < len(samples)]
    assert not lacking, f"some samples have no {', '.join(sorted(lacking))}"
    row: dict[str, Any] = pad(others, 0)
    row |= {key: torch.cat(values, dim=1) for key, values in columns.items()}
    row["position_ids"] = torch.cat(places, dim=-1)
    lengths = [sample["input_ids"].shape[1] for sample in samples]
    return row, torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
