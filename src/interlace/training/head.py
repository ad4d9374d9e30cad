"""The loss of the supervised tokens straight from hidden states, without logits of the others.

Shapes: B rows, T tokens, D width, V vocabulary, N supervised tokens, n of them at a time.
"""

from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from interlace.data.collate import IGNORED
from interlace.decoder.layers import text_config
from interlace.errors import InputError

KINDS = ("supervised", "chunked", "liger")
# Logits of one chunk in float32; about three times that lives for a moment. On a CPU (V 151,936,
# D 512) 128 to 256 MiB are fastest: fewer rows read the head's weight too often, more leave the
# caches. A GPU's matrix units are filled by the 384 rows that it makes of such a vocabulary.
CHUNK_BYTES = 2**28
_TILE = 128  # rows that a GPU's matrix multiplication takes at once
# What configs call a change of the logits behind the head: Gemma's, Cohere's, Granite's.
_BEHIND_HEAD = ("final_logit_softcapping", "logit_scale", "logits_scaling")


class Supervised(NamedTuple):
    """The tokens that are learnt: `mask_BT` (B, T-1) says at which positions one is predicted,
    `targets_N` which, `weights_N` what it weighs in the loss."""

    mask_BT: torch.Tensor
    targets_N: torch.Tensor
    weights_N: torch.Tensor

    @classmethod
    def of(cls, labels_BT: torch.Tensor, weights_BT: torch.Tensor) -> "Supervised":
        """Shift: the state of token t predicts label t+1; the weight belongs to the label."""
        mask = labels_BT[:, 1:] != IGNORED
        return cls(mask, labels_BT[:, 1:][mask], weights_BT[:, 1:][mask])


class Criterion(Protocol):
    """A loss of the logits of the supervised tokens `part` of all N, differentiable."""

    def __call__(self, logits_nV: torch.Tensor, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weighted sum, and each token's plain cross-entropy (n,) without a graph."""


class CrossEntropy:
    """sum_t w_t CE_t, on logits upcast to float32 as transformers' ForCausalLMLoss does."""

    def __init__(self, tokens: Supervised):
        self._tokens = tokens

    def __call__(self, logits_nV: torch.Tensor, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Criterion`."""
        targets, weights = self._tokens.targets_N[part], self._tokens.weights_N[part]
        losses = F.cross_entropy(widened(logits_nV), targets, reduction="none")
        return (losses * weights).sum(), losses.detach()


class SupervisedHead:
    """Takes the place of a model's output head: `model(**inputs).logits` is then the loss, a scalar.

    The head module keeps its place, its weight and its hooks (ZeRO-3 gathers the weight around its
    forward); only its `forward` is another one, until `restore`. `kind` says how the loss is made:

    - `supervised`: all N logits at once, by plain autograd.
    - `chunked`: a few rows at a time, gradients along with the loss; no more than `rows` x V logits
      exist at any time, and nothing of them is kept for the backward pass. The gradient of a
      trained head is summed in float32.
    - `liger`: LinkedIn's fused kernel, one call for each distinct weight. What it cannot do is
      `chunked`: a criterion other than cross-entropy, and a trained head, for which each call would
      hold a gradient of the whole weight.

    Raises InputError where `head_refusal` has a reason, or Liger's kernel cannot be had.
    """

    def __init__(self, model: PreTrainedModel, kind: str = "auto", rows: int | None = None):
        self.kind = choose_head(kind)
        if why := head_refusal(model):
            raise InputError(f"finetune.levers.head: {kind} cannot be had, {why}; set it to full")
        self._head = model.get_output_embeddings()
        self._rows = rows or chunk_rows(self._head.weight)
        self._expected: tuple[Supervised, Criterion | None] | None = None
        self.losses: torch.Tensor | None = None
        self._plain = self._head.forward
        self._replaced: Any = vars(self._head).get("forward")
        self._head.forward = self._forward

    def restore(self) -> None:
        """Give the head its own forward back."""
        if self._replaced is None:
            vars(self._head).pop("forward", None)
        else:
            self._head.forward = self._replaced

    def expect(
        self,
        labels_BT: torch.Tensor,
        weights_BT: torch.Tensor,
        criterion: Criterion | None = None,
    ) -> None:
        """State what the next forward pass is to learn, before each of them.

        labels_BT are unshifted, `IGNORED` where nothing is learnt; weights_BT[t] belongs to
        labels_BT[t]. `criterion` is cross-entropy unless given. Afterwards `losses` holds the plain
        cross-entropy (N,) of the supervised tokens, row by row; None where Liger's kernel gave
        finite sums alone.
        """
        self._expected = (Supervised.of(labels_BT, weights_BT), criterion)

    def _forward(self, hidden_BTD: torch.Tensor) -> torch.Tensor:
        assert self._expected is not None, "`expect` must come before each forward pass"
        (tokens, criterion), self._expected = self._expected, None
        shape = (hidden_BTD.shape[0], hidden_BTD.shape[1] - 1)
        assert tokens.mask_BT.shape == shape, (tokens.mask_BT.shape, hidden_BTD.shape)
        hidden_ND = hidden_BTD[:, :-1][tokens.mask_BT]
        weight = self._head.weight
        fused = self.kind == "liger" and criterion is None and not weight.requires_grad
        if criterion is None:
            criterion = CrossEntropy(tokens)
        if self.kind == "supervised":
            loss, self.losses = criterion(self._plain(hidden_ND), slice(None))
            return loss
        if fused:
            loss, self.losses = _liger(hidden_ND, weight, tokens), None
            if not torch.isfinite(loss):  # then it matters whose it is
                with torch.no_grad():
                    _, self.losses = chunked_loss(hidden_ND, weight, criterion, self._rows)
            return loss
        loss, self.losses = chunked_loss(hidden_ND, weight, criterion, self._rows)
        return loss


def choose_head(kind: str) -> str:
    """Return one of `KINDS`; `auto` is Liger's kernel on a GPU where it is installed, else `chunked`.

    Raises InputError for another kind, or `liger` where it cannot run.
    """
    has_liger = torch.cuda.is_available() and find_spec("liger_kernel") is not None
    if kind == "auto":
        return "liger" if has_liger else "chunked"
    if kind not in KINDS:
        raise InputError(
            f"finetune.levers.head: {kind!r} is none of {', '.join(KINDS)}, auto, full"
        )
    if kind == "liger" and not has_liger:
        raise InputError(
            "finetune.levers.head: liger needs a GPU and the package liger-kernel; use auto"
        )
    return kind


def head_refusal(model: PreTrainedModel) -> str | None:
    """Return why the loss cannot be had from the states before the head, None where it can."""
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear:
        return f"its output head is of {type(head).__name__}, no plain linear map"
    if head.bias is not None:
        return "its output head has a bias"
    for config in (model.config, text_config(model.config)):
        for name in _BEHIND_HEAD:
            if getattr(config, name, None) not in (None, 1):
                return f"its logits are changed behind the head ({name})"
    return None


def full_loss(
    logits_BTV: torch.Tensor,
    labels_BT: torch.Tensor,
    weights_BT: torch.Tensor,
    criterion: Criterion | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss from logits of all tokens and the plain cross-entropy (N,) of the supervised.

    Computed as transformers' ForCausalLMLoss does, upcast of all logits included, but for the
    weights in place of the mean. Another `criterion` gets the supervised logits alone.
    """
    tokens = Supervised.of(labels_BT, weights_BT)
    if criterion is not None:
        return criterion(logits_BTV[:, :-1][tokens.mask_BT], slice(None))
    shifted = F.pad(labels_BT, (0, 1), value=IGNORED)[:, 1:]
    wide = widened(logits_BTV).view(-1, logits_BTV.shape[-1])
    losses = F.cross_entropy(wide, shifted.reshape(-1), ignore_index=IGNORED, reduction="none")
    losses = losses.view(labels_BT.shape)[:, :-1]
    picked = losses[tokens.mask_BT]
    return (picked * tokens.weights_N).sum(), picked.detach()


def chunk_rows(weight_VD: torch.Tensor) -> int:
    """Return how many rows of float32 logits make a chunk of memory; whole tiles where it can be."""
    vocabulary = getattr(weight_VD, "ds_shape", weight_VD.shape)[0]  # ZeRO-3 leaves no shape behind
    rows = max(1, CHUNK_BYTES // (4 * vocabulary))
    return rows - rows % _TILE if rows > _TILE else rows


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """Return it in float32; what is in float64 stays so."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def chunked_loss(
    hidden_ND: torch.Tensor, weight_VD: torch.Tensor, criterion: Criterion, rows: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the criterion's weighted sum and plain losses (N,), from `rows` logits at a time."""
    return _InChunks.apply(hidden_ND, weight_VD, criterion, rows, torch.is_grad_enabled())


class _InChunks(torch.autograd.Function):
    """Gradients are made in the forward pass, where the logits are; the backward scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        criterion: Criterion,
        rows: int,
        with_graph: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        needs = [with_graph and need for need in ctx.needs_input_grad[:2]]
        device, dtype = hidden_ND.device.type, _compute_dtype(hidden_ND)
        weight = weight_VD.detach().to(dtype).requires_grad_(needs[1])
        grad_hidden = torch.empty_like(hidden_ND) if needs[0] else None
        grad_weight = None
        loss, losses = None, []
        for start in range(0, max(1, len(hidden_ND)), rows):
            part = slice(start, start + rows)
            with torch.enable_grad(), torch.autocast(device, enabled=False):
                hidden = hidden_ND[part].detach().requires_grad_(needs[0])
                chunk_loss, chunk_losses = criterion(F.linear(hidden.to(dtype), weight), part)
            loss = chunk_loss.detach() if loss is None else loss + chunk_loss.detach()
            losses.append(chunk_losses)
            wanted = [tensor for tensor in (hidden, weight) if tensor.requires_grad]
            grads = list(torch.autograd.grad(chunk_loss, wanted)) if wanted else []
            if needs[0]:
                grad_hidden[part] = grads.pop(0)
            if needs[1]:
                new = widened(grads.pop())
                grad_weight = new if grad_weight is None else grad_weight.add_(new)
        ctx.dtypes = (hidden_ND.dtype, weight_VD.dtype)
        ctx.save_for_backward(grad_hidden, grad_weight)
        all_losses = torch.cat(losses)
        ctx.mark_non_differentiable(all_losses)
        return loss, all_losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: torch.Tensor, _grad_losses: Any) -> tuple[Any, ...]:
        scaled = [
            None if grad is None else (grad * grad_loss).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (*scaled, None, None, None)


def _compute_dtype(hidden: torch.Tensor) -> torch.dtype:
    """Return the type a linear map of `hidden` computes in, autocast or not."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return hidden.dtype


def _liger(hidden_ND: torch.Tensor, weight_VD: torch.Tensor, tokens: Supervised) -> torch.Tensor:
    """Return the weighted loss by Liger's kernel (github.com/linkedin/Liger-Kernel).

    It takes no weights of tokens, and its per-token losses are recomputed for the gradient (0.8) or
    differentiated wrongly (before); sums over the tokens of one weight are exact in all versions.
    """
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    dtype = _compute_dtype(hidden_ND)
    loss = widened(hidden_ND[:0]).sum()
    with torch.autocast(hidden_ND.device.type, enabled=False):
        hidden_ND, weight_VD = hidden_ND.to(dtype), weight_VD.to(dtype)
        for weight in tokens.weights_N.unique():
            same = tokens.weights_N == weight
            summed = liger_fused_linear_cross_entropy(
                hidden_ND[same], weight_VD, tokens.targets_N[same], reduction="sum"
            )
            loss = loss + weight * summed
    return loss
