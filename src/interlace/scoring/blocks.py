"""The loss after removing each single layer: the one-shot criterion of Shortened LLaMA.

Kim et al., "Shortened LLaMA: Depth Pruning for Large Language Models", score a block by the
perplexity of the model without it. With the number of predicted tokens fixed, the summed loss
orders the layers as perplexity does.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from interlace.decoder.layers import decoder_layers
from interlace.io import write_json
from interlace.scoring.calibration import CONVENTION, load_calibration
from interlace.scoring.loss import BatchLoss, finite_loss


@dataclass(frozen=True)
class BlockLosses:
    """The loss of the whole model, and without layer 0, 1, ..., summed over `num_targets` tokens."""

    base_loss: float
    losses: list[float]
    num_targets: int
    layer_evaluations: int


@torch.inference_mode()
def block_losses(
    model: PreTrainedModel, batches: Iterable[Mapping[str, torch.Tensor]]
) -> BlockLosses:
    """Return the loss of `model` on `batches` after removing each single layer, first and last too.

    The loss is that of `interlace.scoring.loss.BatchLoss`; a removed layer is absent, as after
    `interlace.decoder.surgery.drop_layers`. The layers before it run once for all: one hidden
    state per layer is held, of one batch at a time. Raises InputError for a loss that is no number.
    """
    layers = tuple(range(len(decoder_layers(model))))
    choices = (None, *layers)
    totals = torch.zeros(len(choices), dtype=torch.float64)
    num_targets = evaluations = 0
    for batch in batches:
        run = BatchLoss(model, batch)
        totals += torch.stack([run.loss(layers, out) for out in choices]).cpu()
        num_targets += run.num_targets
        evaluations += run.prefixes.layer_evaluations
    base, *losses = (finite_loss(*pair) for pair in zip(totals, choices, strict=True))
    return BlockLosses(base, losses, num_targets, evaluations)


def score_blocks(
    model_path: str | Path,
    samples: str | Path,
    out: str | Path,
    settings: dict[str, Any],
    *,
    model_key: str,
    seed: int,
) -> None:
    """Write `out` (`block_losses.json`): `block_losses` on the samples and settings of SLEB."""
    calibration = load_calibration(model_path, samples, settings, seed)
    found = block_losses(calibration.model, calibration.batches)
    body = {
        "provenance": calibration.stamp("block_losses"),
        "model": model_key,
        **calibration.weights,
        "num_layers": len(found.losses),
        "base_loss": found.base_loss,
        "num_targets": found.num_targets,
        "losses": found.losses,
        "calibration": calibration.record(),
        "convention": CONVENTION,
        "layer_evaluations": found.layer_evaluations,
    }
    write_json(out, body)
