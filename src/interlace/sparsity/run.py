"""The checkpoint of a 2:4 sparse variant."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from interlace.decoder.checkpoint import save_checkpoint
from interlace.decoder.load import default_device, load_model, load_processor
from interlace.errors import InputError
from interlace.io import digest, folder_digest
from interlace.origin import base_record
from interlace.provenance import stamp
from interlace.scoring.calibration import calibration_record, draw_batches
from interlace.sparsity.two_four import METHODS, prune_two_four

WANDA_TEXT = "the reference of Wanda uses C4, the paper does not say what it used"


def sparsify(
    base: str | Path,
    out: str | Path,
    method: str,
    samples: str | Path,
    settings: dict[str, Any],
    seed: int,
    *,
    model: str,
) -> None:
    """Write to `out` the checkpoint `base` pruned 2:4 by `method`, wanda or magnitude.

    Wanda is calibrated on `settings["samples"]` of the calibration samples, drawn with `seed` and
    cut at `settings["max_length"]` tokens, `settings["batch_tokens"]` of them in a forward pass;
    settings may carry `min_pixels`, `max_pixels`, `dtype` and `device` too. `model` is the model's
    key. Raises InputError for an unknown method or where no sample can be used.
    """
    variant = f"{method}_2_4"
    if variant not in METHODS:
        raise InputError(f"sparsity method {method!r}: choose wanda or magnitude")
    base = Path(base)
    device = default_device(settings)
    network = load_model(base, settings.get("dtype") or "auto", device)
    if variant == "wanda_2_4":
        report, calibration = _wanda(network, base, Path(samples), settings, seed)
    else:
        report, calibration = prune_two_four(network, variant), None
    num_samples = len(calibration["samples"]) if calibration else None
    info = {
        "provenance": stamp(
            "checkpoint",
            config_digest=digest(settings),
            seed=seed if calibration else None,
            num_samples=num_samples,
            model_revision=folder_digest(base, "*.safetensors"),
        ),
        "model": model,
        "variant": variant,
        "plan": None,
        "base": base_record(base),
        "training": None,
        "sparsity": {"method": variant, **report, "calibration": calibration},
    }
    save_checkpoint(network, load_processor(base), out, info)


def _wanda(
    network: PreTrainedModel, base: Path, samples: Path, settings: dict[str, Any], seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Prune `network`; return the report and which text and samples it was calibrated on."""
    processor = load_processor(base, settings.get("min_pixels"), settings.get("max_pixels"))
    batches, records, _ = draw_batches(samples, processor, settings, seed, "sparsity")
    report = prune_two_four(network, "wanda_2_4", batches)
    return report, calibration_record(batches, records, settings, WANDA_TEXT)
