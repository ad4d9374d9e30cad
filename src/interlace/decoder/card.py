"""The model card that lies beside a checkpoint's weights."""

import json
from typing import Any

_USAGE = """\
```python
from transformers import {auto}, AutoProcessor

model = {auto}.from_pretrained("<this folder>")
processor = AutoProcessor.from_pretrained("<this folder>")
```"""


def model_card(info: dict[str, Any], auto: str = "AutoModelForImageTextToText") -> str:
    """Return the README.md of a checkpoint whose interlace.json is `info`, loaded by `auto`."""
    task = "text-generation" if auto == "AutoModelForCausalLM" else "image-text-to-text"
    plan, training, sparsity = (info.get(key) for key in ("plan", "training", "sparsity"))
    lines = [
        "---",
        "library_name: transformers",
        f"pipeline_tag: {task}",
        "tags: [interlace, pruned]",
        "---",
        f"# {info.get('model')} · {info.get('variant')}",
        "",
        f"A checkpoint of `{info.get('model')}` with {info['num_layers']} decoder layers, made by"
        " interlace. It loads with stock transformers:",
        "",
        _USAGE.format(auto=auto),
        "",
    ]
    if plan:
        dropped = ", ".join(map(str, plan["drop"])) or "none"
        tuned = ", ".join(map(str, plan["tune"])) or "none"
        lines += [
            "## Layers",
            f"- method `{plan['method']}`, ratio {plan.get('ratio')} %, of {plan['num_layers']} layers",
            f"- dropped (0-based in the dense model): {dropped}",
            f"- chosen for tuning: {tuned}" + ("" if training else " (not tuned in this variant)"),
            "",
        ]
    if training:
        lines += ["## Fine-tuning", *_items(training), ""]
    if sparsity:
        lines += ["## Sparsity", *_items(sparsity), ""]
    lines += [f"Weights digest `{info['digest']}`; the whole record is in `interlace.json`.", ""]
    return "\n".join(lines)


def _items(values: dict[str, Any]) -> list[str]:
    plain = {key: value for key, value in values.items() if not isinstance(value, list | dict)}
    return [f"- {key}: {json.dumps(value)}" for key, value in plain.items()]
