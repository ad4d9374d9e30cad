"""The shipped base models, and how they become plain Hugging Face checkpoints."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from interlace.errors import InputError
from interlace.io import atomic_path, folder_digest, read_json, write_json, write_text

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class BaseModel:
    """A shipped model: what it stands in for, and the label that says so."""

    label: str
    stands_for: str
    num_layers: int = 36


BASE_MODELS = {
    "standin_8b": BaseModel("stand-in for Qwen3-VL-8B", "Qwen3-VL-8B-Instruct"),
    "standin_4b": BaseModel("stand-in for Qwen3-VL-4B", "Qwen3-VL-4B-Instruct"),
}

CARD = """\
---
library_name: transformers
pipeline_tag: image-text-to-text
---
# {name}: a {label}

A tiny Qwen3-VL ({parameters:,} parameters, {layers} decoder layers, {head} output head) made by
`interlace.demo.pretrain` from generated pictures of shapes, bars and characters. It is **not**
{stands_for}, shares no weight with it, and nothing measured with it says anything about it.

It answers the demo's own questions in the prompts of VLMEvalKit's datasets, one visual token per
32 x 32 px cell. `recipe.json` holds the seed, the steps, the versions and the accuracy on held-out
questions after rounding the weights to bfloat16, in which they are shipped.
"""


def write_base_model(name: str, out: Path) -> None:
    """Unpack a shipped model to `out`, a Hugging Face checkpoint in float32, all or nothing.

    Stock `AutoModelForImageTextToText` and `AutoProcessor` load it. Raises InputError for a name
    that is not in `BASE_MODELS` and for weights that are missing from the installation.
    """
    from safetensors.torch import load_file, save_file

    if name not in BASE_MODELS:
        raise InputError(f"model {name!r}: the demo has {', '.join(sorted(BASE_MODELS))}")
    source = WEIGHTS / name
    if not (source / "model.safetensors").is_file():
        raise InputError(
            f"{source}: no weights; make them with python -m interlace.demo.pretrain and .ship"
        )
    state = {key: value.float() for key, value in load_file(source / "model.safetensors").items()}
    with atomic_path(out, directory=True) as partial:
        for path in sorted(source.iterdir()):
            if path.name != "model.safetensors":
                shutil.copyfile(path, partial / path.name)
        save_file(state, partial / "model.safetensors", metadata={"format": "pt"})
        (partial / "model.safetensors").chmod(0o644)  # safetensors writes 0600
        config = read_json(partial / "config.json")
        record = {"source": "demo", "path": name, "revision": None}
        resolved = folder_digest(partial, "*.safetensors")
        write_json(partial / "source.json", record | {"resolved": resolved})
        write_text(
            partial / "README.md",
            CARD.format(
                name=name,
                label=BASE_MODELS[name].label,
                stands_for=BASE_MODELS[name].stands_for,
                parameters=sum(value.numel() for value in state.values()),
                layers=config["text_config"]["num_hidden_layers"],
                head="a tied" if config["tie_word_embeddings"] else "an untied",
            ),
        )
