"""The checkpoint of a 2:4 sparse variant."""

from pathlib import Path
from typing import Any

import numpy as np

from interlace.data.chat import load_records
from interlace.data.collate import EncodeError, encode, pad
from interlace.data.images import ImageDecodeError
from interlace.decoder.checkpoint import save_checkpoint
from interlace.decoder.load import load_model, load_processor
from interlace.errors import InputError
from interlace.io import digest, folder_digest
from interlace.provenance import stamp
from interlace.sparsity.two_four import METHODS, prune_two_four


def sparsify(
    base: str | Path,
    out: str | Path,
    method: str,
    samples: str | Path,
    settings: dict[str, Any],
    seed: int,
    *,
    model: str | None = None,
) -> None:
    """Write to `out` the checkpoint `base` pruned by `method`, wanda(_2_4) or magnitude(_2_4).

    Wanda is calibrated on `settings["samples"]` of the calibration samples, drawn with `seed` and
    cut at `settings["max_length"]` tokens; settings may carry `batch_size`, `min_pixels`,
    `max_pixels` and `dtype` too. `model` is the model's key, by default the name of the folder that holds
    `base`. Raises InputError for an unknown method or where no sample can be used.
    """
    method = method.removesuffix("_2_4") + "_2_4"
    if method not in METHODS:
        raise InputError(f"sparsity method {method!r}: choose one of {', '.join(METHODS)}")
    base = Path(base)
    network = load_model(base, dtype=settings.get("dtype", "auto"))
    sequences: list[dict[str, Any]] = []
    batches: list[dict[str, Any]] = []
    used: list[str] = []
    left_out: list[str] = []
    if method == "wanda_2_4":
        processor = load_processor(base, settings.get("min_pixels"), settings.get("max_pixels"))
        records = load_records(samples, calibration_only=True)
        order = np.random.default_rng(seed).permutation(len(records))
        for index in order.tolist():
            if len(sequences) == settings["samples"]:
                break
            try:
                encoded = encode(records[index], processor, settings["max_length"])
            except (EncodeError, ImageDecodeError) as error:
                left_out.append(f"{records.ids[index]}: {error}")
                continue
            sequences.append(encoded)
            used.append(records.ids[index])
        if not sequences:
            raise InputError(
                f"{samples}: none of {len(records)} calibration samples can be used, first"
                f" {left_out[0]}; raise sparsity.max_length"
            )
        size = settings.get("batch_size", 1)
        sequences.sort(key=lambda sequence: sequence["input_ids"].shape[1])  # little padding
        batches = [
            pad(sequences[start : start + size], processor.tokenizer.pad_token_id, "right")
            for start in range(0, len(sequences), size)
        ]
    report = prune_two_four(network, method, batches)
    sparsity = {"method": method, **report, "calibration": used, "left_out": left_out}
    info = {
        "provenance": stamp(
            "checkpoint",
            config_digest=digest(settings),
            seed=seed if used else None,
            num_samples=len(used) or None,
            model_revision=folder_digest(base, "*.safetensors"),
        ),
        "model": model or base.parent.name,
        "variant": method,
        "plan": None,
        "training": None,
        "sparsity": sparsity,
    }
    save_checkpoint(network, load_processor(base), out, info)
