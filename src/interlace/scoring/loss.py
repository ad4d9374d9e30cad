"""Next-token loss of a decoder without some of its layers, on batches of calibration samples."""

from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

from interlace.decoder.layers import image_token_id, text_config
from interlace.decoder.replay import DecoderCall
from interlace.errors import InputError
from interlace.scoring.prefixes import CURRENT, PrefixRun, Storage

LOGIT_TOKENS = 2048  # logits of so many tokens are made at a time


def target_mask(batch: Mapping[str, torch.Tensor], image_token: int | None) -> torch.Tensor:
    """Return (B, T-1): whether token t+1 is one to predict, a real token that is no image piece."""
    ids, real = batch["input_ids"][:, 1:], batch["attention_mask"].bool()
    mask = real[:, 1:] & real[:, :-1]
    return mask if image_token is None else mask & (ids != image_token)


class BatchLoss:
    """The loss of one batch for any choice of layers; states are kept as in `PrefixRun`.

    The loss is the sum over its sequences of (mean next-token cross-entropy x number of tokens
    predicted), over all text tokens, not image placeholders, as in the reference of SLEB
    (jiwonsong-dev/SLEB). Logits are in float32, in float64 for a model in float64.
    """

    def __init__(self, model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> None:
        self._head = model.get_output_embeddings()
        decoder = text_config(model.config)
        self._softcap: float | None = getattr(decoder, "final_logit_softcapping", None)
        ids_BT = batch["input_ids"]
        mask = target_mask(batch, image_token_id(model.config))
        self.num_targets = int(mask.sum())
        self._mask = mask.to(model.device)
        self._targets = ids_BT[:, 1:][mask].to(model.device)
        self.state_bytes = ids_BT.numel() * decoder.hidden_size * model.dtype.itemsize
        self.prefixes = PrefixRun(DecoderCall(model, batch))

    def loss(
        self, left: tuple[int, ...], out: int | None = None, storage: Storage = CURRENT
    ) -> torch.Tensor:
        """Return the loss, a float64 scalar on the model's device, of the layers `left` but `out`."""
        hidden_BTD = self.prefixes.forward(left, out, storage)
        predicting = hidden_BTD[:, :-1][self._mask]
        wide = torch.float64 if hidden_BTD.dtype == torch.float64 else torch.float32
        total = torch.zeros((), dtype=torch.float64, device=hidden_BTD.device)
        for start in range(0, self.num_targets, LOGIT_TOKENS):
            part = slice(start, start + LOGIT_TOKENS)
            logits = self._head(predicting[part]).to(wide)
            if self._softcap is not None:
                logits = self._softcap * torch.tanh(logits / self._softcap)
            total += torch.nn.functional.cross_entropy(logits, self._targets[part], reduction="sum")
        return total


def finite_loss(loss: torch.Tensor, out: int | None = None) -> float:
    """Return the loss without layer `out` as a number; InputError if it is infinite or none."""
    if not torch.isfinite(loss):
        of = "of the whole model" if out is None else f"without layer {out}"
        raise InputError(
            f"the loss {of} is {float(loss)}; choose another models.<key>.dtype (bfloat16 or "
            "float32), or look into the checkpoint"
        )
    return float(loss)
