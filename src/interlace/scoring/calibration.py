"""The model and the samples that losses are measured on: SLEB's and the one-shot criterion's."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from interlace.data.chat import SampleDataset, load_records
from interlace.data.seeds import derive_seed
from interlace.decoder.load import default_device, load_model, load_processor
from interlace.io import digest
from interlace.provenance import stamp
from interlace.scoring.batches import SampleBatches
from interlace.stamps import file_stamps, weights_record

TEXT = "whole conversations of the run's own calibration samples, user and assistant turns"
SLEB_TEXT = "the reference of SLEB uses WikiText-2, the paper does not say what it used"
CONVENTION = (
    "loss = sum over sequences of mean cross-entropy x predicted text tokens; a removed layer is "
    "absent, DeepStack features enter by position among the layers left"
)


@dataclass(frozen=True)
class Calibration:
    """A loaded model, the batches of its calibration samples, and what a result says of them.

    `weights` is `weights_record` of the model, `sample_stamps` tell this drawing of the samples
    from another of the same ids.
    """

    model: PreTrainedModel
    records: SampleDataset
    batches: SampleBatches
    chosen: list[int]
    settings: dict[str, Any]
    seed: int
    weights: dict[str, Any]
    sample_stamps: list[list[Any]]

    def stamp(self, kind: str) -> dict[str, Any]:
        """Return the provenance of a result; only after iterating over `batches`."""
        return stamp(
            kind,
            config_digest=digest(self.settings),
            seed=self.seed,
            num_samples=len(self.batches.positions),
            model_revision=self.weights["model_digest"],
        )

    def record(self) -> dict[str, Any]:
        """Return which text and samples were used; only after iterating over `batches`."""
        return calibration_record(self.batches, self.records, self.settings, SLEB_TEXT)


def calibration_record(
    batches: SampleBatches,
    records: SampleDataset,
    settings: Mapping[str, Any],
    reference: str,
) -> dict[str, Any]:
    """Return which text and samples `batches` gave; only after iterating over them.

    `reference` says what the method's own code is calibrated on.
    """
    return {
        "text": f"{TEXT}; {reference}",
        "samples": [records.ids[position] for position in sorted(batches.positions)],
        "left_out": batches.left_out,
        "asked_for": int(settings["samples"]),
        "max_length": settings.get("max_length"),
    }


def draw_batches(
    samples: str | Path, processor: Any, settings: Mapping[str, Any], seed: int, section: str
) -> tuple[SampleBatches, SampleDataset, list[int]]:
    """Draw `settings["samples"]` of the calibration samples; return batches, records, indices.

    `section` of the config names the random stream and the settings in messages.
    """
    records = load_records(samples, calibration_only=True)
    generator = np.random.default_rng(derive_seed(seed, section))
    wanted = min(int(settings["samples"]), len(records))
    chosen = sorted(int(i) for i in generator.choice(len(records), size=wanted, replace=False))
    batches = SampleBatches(
        records,
        processor,
        settings["batch_tokens"],
        settings.get("max_length"),
        f"{section}.max_length",
        select=chosen,
    )
    return batches, records, chosen


def load_calibration(
    model_path: str | Path, samples: str | Path, settings: dict[str, Any], seed: int
) -> Calibration:
    """Load the checkpoint and draw `settings["samples"]` of the calibration samples with `seed`.

    `settings` also holds `max_length` and `batch_tokens` (tokens), and optionally `min_pixels`,
    `max_pixels`, `dtype` and `device`.
    """
    device = default_device(settings)
    model = load_model(model_path, settings.get("dtype") or "float32", device)
    processor = load_processor(model_path, settings.get("min_pixels"), settings.get("max_pixels"))
    batches, records, chosen = draw_batches(samples, processor, settings, seed, "sleb")
    weights, stamps = weights_record(model_path), file_stamps(samples, "*/*.parquet")
    return Calibration(model, records, batches, chosen, settings, seed, weights, stamps)
