"""What a checkpoint is made of, as its record and its model card tell it: base model, samples, machine.

A folder on this machine is named by its last part: the record may be published, and a path tells
strangers more than they need.
"""

from pathlib import Path
from typing import Any

from interlace.errors import InputError
from interlace.io import read_json

_LICENCE = ("license", "license_name", "license_link")


def base_record(base: str | Path) -> dict[str, Any]:
    """Return where the base model in the folder `base` is from, and the licence its card states.

    `source` is hub, local or demo (None for a folder that no stage made), `path` a hub id or a
    name, `resolved` a hub commit or a digest of the weights; `license`, `license_name` and
    `license_link` are None where the card has none. Raises InputError for a card whose head is no
    YAML.
    """
    base = Path(base)
    source = read_json(base / "source.json") if (base / "source.json").exists() else {}
    record: dict[str, Any] = {
        "source": source.get("source"),
        "path": source.get("path") or base.name,
        "revision": source.get("revision"),
        "resolved": source.get("resolved"),
    }
    if record["source"] != "hub":
        record["path"] = Path(record["path"]).name
    licence = _licence(base / "README.md")
    link = licence["license_link"]
    if record["source"] == "hub" and link and "://" not in link:
        # Relative to the base model's repository, not to the one that this card will be read in.
        place = f"{record['path']}/blob/{record['resolved'] or 'main'}"
        licence["license_link"] = f"https://huggingface.co/{place}/{link.lstrip('./')}"
    return record | licence


def _licence(card: Path) -> dict[str, Any]:
    import yaml
    from huggingface_hub import metadata_load

    if not card.exists():
        return dict.fromkeys(_LICENCE)
    try:
        head = metadata_load(card) or {}
    except (yaml.YAMLError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{card}: its head is no YAML ({reason}); mend or delete it") from None
    licence = {key: head.get(key) for key in _LICENCE}
    return {key: None if value is None else _text(value) for key, value in licence.items()}


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def data_record(samples: str | Path) -> dict[str, Any] | None:
    """Return what the samples in a folder were drawn from and how; None if it has no samples.json.

    `source` is hub, address, local or demo, `path` a hub id, an address or a name; `subsets` maps
    the name of each subset to its number of samples, those held out for calibration included.
    """
    file = Path(samples) / "samples.json"
    if not file.exists():
        return None
    body = read_json(file)
    settings, total = body["settings"], body["total"]
    source, path = _place(body["source"])
    return {
        "source": source,
        "path": path,
        "revision": body.get("revision"),
        "seed": body["provenance"]["seed"],
        **{key: settings.get(key) for key in ("fraction", "unit", "max_images", "max_turns")},
        "calibration_held_out": settings.get("calibration_held_out", False),
        "samples": total.get("records", total["kept"]),
        "calibration": total["calibration"],
        "images": total["images"],
        "subsets": {
            name: count.get("records", count["kept"]) for name, count in body["subsets"].items()
        },
    }


def _place(source: str) -> tuple[str, str]:
    """Return the kind and the name of what samples were drawn from."""
    prefix = "hf://datasets/"
    if source.startswith(prefix):
        return "hub", source.removeprefix(prefix).partition("@")[0]
    if "://" in source:
        return "address", source
    # The demo's data lie below the run's folder under this name, which no other source can have.
    if Path(source).parts[-2:] == ("demo", "finevision"):
        return "demo", "FineVision stand-in"
    return "local", Path(source).name


def hardware(processes: int = 1) -> str:
    """Return what the training of `processes` ranks runs on, as `2 x NVIDIA H100 80GB HBM3`."""
    import torch

    if torch.cuda.is_available():
        return f"{processes} x {torch.cuda.get_device_name()}"
    return f"CPU, {processes} x {torch.get_num_threads()} threads"
