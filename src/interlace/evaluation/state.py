"""What a model remembers of a batch while it answers; images that rows share are read once."""

from typing import Any

import torch
from transformers import DynamicCache

from interlace.evaluation.batches import PER_IMAGE, Inputs, Row, collate

# Rows are prefilled in two steps, shared images first, if that spares this share of the rows.
_SHARED_SHARE = 1 / 4


class BatchState:
    """Cache, mask and last positions of a batch, and the logits that follow.

    Rows are padded on the left. Positions are those of model.generate: `(B, T)`, or `(4, B, T)`
    where images have positions in three dimensions (text, then those). A prompt ends in text, after
    which all of them go on by one.
    """

    @torch.inference_mode()
    def __init__(self, model: Any, batch: list[tuple[Row, Inputs]], pad: int) -> None:
        """Prefill the rows' prompts.

        Where several rows open with the same image, as the rotations of a choice question and the
        questions of POPE do, what comes before their text is prefilled once, and copied. Rows that
        have tokens already are prefilled in those two steps as well: a model may say an image
        token, which is no place for the pixels of the first step.
        """
        self.model, self.cache = model, DynamicCache(config=model.config)
        whole = self._to_device(collate([inputs for _, inputs in batch], pad))
        positions = self._positions(whole)
        self.positions = positions[..., -1:]
        mask_BT = whole["attention_mask"]
        openings = _shared_openings(batch)
        if openings is None:
            self._prefill(positions, whole)
        else:
            firsts, owner_B = openings
            heads = self._to_device(collate(firsts, pad))
            head_BT = heads["attention_mask"]
            self._prefill(self._positions(heads), heads)
            owner_B = owner_B.to(mask_BT.device)
            self.cache.batch_select_indices(owner_B)
            # Columns of `whole` from where the longest rest begins. In a shorter one they begin
            # with the end of its opening, which is in the cache already: masked, like padding.
            rest_B = mask_BT.sum(1) - head_BT.sum(1)[owner_B]
            width = int(rest_B.max())
            columns_T = torch.arange(width, 0, -1, device=mask_BT.device)
            rest_BT = (columns_T <= rest_B[:, None]).to(mask_BT.dtype)
            mask_BT = torch.cat([head_BT[owner_B], rest_BT], dim=1)
            self._forward(
                _padding(mask_BT),
                input_ids=whole["input_ids"][:, -width:],
                position_ids=positions[..., -width:],
            )
        self.mask_BT = _padding(mask_BT)

    def _to_device(self, inputs: Inputs) -> Inputs:
        return {key: value.to(self.model.device) for key, value in inputs.items()}

    def _positions(self, inputs: Inputs) -> torch.Tensor:
        return self.model._prepare_position_ids_for_generation(inputs["input_ids"], inputs)

    def _prefill(self, positions: torch.Tensor, inputs: Inputs) -> None:
        rest = {key: value for key, value in inputs.items() if key != "attention_mask"}
        self._forward(_padding(inputs["attention_mask"]), position_ids=positions, **rest)

    def _forward(self, mask_BT: torch.Tensor | None, **inputs: torch.Tensor) -> None:
        self.logits_BV = self.model(
            attention_mask=mask_BT,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            **inputs,
        ).logits[:, -1]

    @property
    def width(self) -> int:
        """Tokens of the cache per row, padding included."""
        return self.cache.get_seq_length()

    @torch.inference_mode()
    def keep(self, kept_B: torch.Tensor) -> None:
        """Let all rows but those at these positions leave."""
        self.cache.batch_select_indices(kept_B)
        self.positions = self.positions[..., kept_B, :]
        if self.mask_BT is not None:
            self.mask_BT = self.mask_BT[kept_B]

    @torch.inference_mode()
    def step(self, tokens_B: torch.Tensor) -> None:
        """Feed each row its new token."""
        self.positions = self.positions + 1
        if self.mask_BT is not None:
            self.mask_BT = torch.cat([self.mask_BT, torch.ones_like(self.mask_BT[:, :1])], dim=1)
        self._forward(self.mask_BT, input_ids=tokens_B[:, None], position_ids=self.positions)


def _padding(mask_BT: torch.Tensor) -> torch.Tensor | None:
    """Return the mask, or None without padding: attention has faster kernels for that."""
    return None if bool(mask_BT.all()) else mask_BT


def _shared_openings(
    batch: list[tuple[Row, Inputs]],
) -> tuple[list[Inputs], torch.Tensor] | None:
    """Return the batch's different openings and, for each row, which is its own; None if too many.

    An opening reaches to the last image token of the prompt. Two rows share one if they have the
    same images (`Row.images`) and the same tokens up to there. Not too many: where a row has
    tokens of its own, whose opening then ends before them.
    """
    found: dict[tuple, int] = {}
    firsts, owners = [], []
    for position, (row, inputs) in enumerate(batch):
        kinds = inputs.get("mm_token_type_ids")
        if kinds is None or row.images is None or not kinds.any():
            key, end = (position,), row.length if row.tokens else inputs["input_ids"].shape[1] - 1
        else:
            end = int(kinds[0].nonzero()[-1]) + 1
            if end == kinds.shape[1]:  # nothing after the image to go on from
                return None
            key = (row.images, tuple(inputs["input_ids"][0, :end].tolist()))
        if key not in found:
            found[key] = len(firsts)
            firsts.append({k: v if k in PER_IMAGE else v[:, :end] for k, v in inputs.items()})
        owners.append(found[key])
    resumes = any(row.tokens for row, _ in batch)
    if not resumes and len(batch) - len(firsts) < _SHARED_SHARE * len(batch):
        return None
    return firsts, torch.tensor(owners)
