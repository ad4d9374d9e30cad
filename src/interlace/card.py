"""The model card that lies beside a checkpoint's weights, and heads its page on a hub."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCardData

PAPER = "https://arxiv.org/abs/2511.19676"
_CITATION = """\
```bibtex
@article{madinei2025interlace,
  title = {{INTERLACE}: Interleaved Layer Pruning and Efficient Adaptation in Large Vision-Language Models},
  author = {Madinei, Parsa and Solgi, Ryan and Wen, Ziqi and Skaza, Jonathan and Eckstein, Miguel and Pedarsani, Ramtin},
  journal = {arXiv preprint arXiv:2511.19676},
  year = {2025}
}
```"""
_USAGE = """\
```python
from transformers import AutoModelForImageTextToText, AutoProcessor

path = "{path}"{remark}
model = AutoModelForImageTextToText.from_pretrained(path, dtype="auto", device_map="auto")
processor = AutoProcessor.from_pretrained(path)
content = [
    {{"type": "image", "image": "picture.jpg"}},
    {{"type": "text", "text": "What does this picture show?"}},
]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}],
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
).to(model.device)
tokens = model.generate(**inputs, max_new_tokens=128)[0, inputs["input_ids"].shape[1] :]
print(processor.decode(tokens, skip_special_tokens=True))
```"""
_USAGE_TEXT = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

path = "{path}"{remark}
model = AutoModelForCausalLM.from_pretrained(path, dtype="auto", device_map="auto")
tokenizer = AutoTokenizer.from_pretrained(path)
inputs = tokenizer("The capital of France is", return_tensors="pt").to(model.device)
tokens = model.generate(**inputs, max_new_tokens=128)[0]
print(tokenizer.decode(tokens, skip_special_tokens=True))
```"""
# Told in words, or too long; everything else of `training` stands in the table.
_TOLD = {
    "steps", "loss_first", "loss_last", "seconds", "world_size", "hardware", "counts",
    "num_trained_tensors", "num_trained_parameters", "num_parameters",
    "trained_parameters", "failures", "memory",
}  # fmt: skip


def model_card(
    info: Mapping[str, Any],
    *,
    repo: str | None = None,
    scores: Sequence[str] = (),
    standin: Sequence[str] = (),
) -> str:
    """Return the README.md of a checkpoint whose interlace.json is `info`.

    `info["base"]` and `info["data"]` are records of `interlace.origin`, `info["loads_with"]` the
    stock class; what is missing is left out. `repo` is the hub id that it is published under,
    `scores` the lines of a section, `standin` why it stands in, beside what `info` itself tells.
    """
    text_only = info.get("loads_with") == "AutoModelForCausalLM"
    reasons = _standin(info, standin)
    usage = (_USAGE_TEXT if text_only else _USAGE).format(
        path=repo or ".", remark="" if repo else "  # this folder"
    )
    sections: list[tuple[str, Iterable[str]]] = [
        ("Usage", ["With stock transformers (and accelerate, for `device_map`):", "", usage]),
        ("Layers", _layers(info)),
        ("Data", _data(info)),
        ("Fine-tuning", _training(info.get("training"))),
        ("Sparsity", _table(_flat(info.get("sparsity") or {}))),
        ("Scores", scores),
        ("Licence", _licence(info.get("base"))),
        ("Citation", [_CITATION]),
    ]
    lines = ["---", _metadata(info, text_only, bool(reasons)), "---"]
    lines += [f"# {info.get('model')} · {info.get('variant')}", "", *_warning(reasons)]
    lines += _what(info)
    for title, body in sections:
        body = list(body)
        if body:
            lines += ["", f"## {title}", "", *body]
    lines += ["", f"Digest of the weights: `{info['digest']}`. The whole record: `interlace.json`."]
    return "\n".join(lines) + "\n"


def _metadata(info: Mapping[str, Any], text_only: bool, standin: bool) -> str:
    base, data = info.get("base") or {}, info.get("data") or {}
    plan = info.get("plan") or {}
    tags = ["interlace"]
    tags += ["pruned", "layer-pruning"] if plan.get("drop") else []
    tags += ["pruned", "2:4-sparsity"] if info.get("sparsity") else []
    tags += ["stand-in"] if standin else []
    on_hub = base.get("source") == "hub"
    return ModelCardData(
        base_model=base["path"] if on_hub else None,
        datasets=[data["path"]] if data.get("source") == "hub" else None,
        library_name="transformers",
        license=base.get("license"),
        license_name=base.get("license_name"),
        license_link=base.get("license_link"),
        pipeline_tag="text-generation" if text_only else "image-text-to-text",
        tags=tags,
    ).to_yaml()


def _standin(info: Mapping[str, Any], known: Sequence[str]) -> list[str]:
    own = {
        "stand-in models": (info.get("base") or {}).get("source") == "demo",
        "stand-in data": (info.get("data") or {}).get("source") == "demo",
    }
    return list(dict.fromkeys([*known, *(reason for reason, holds in own.items() if holds)]))


def _warning(reasons: Sequence[str]) -> list[str]:
    if not reasons:
        return []
    return [
        f"> **This is a stand-in** ({', '.join(reasons)}): made to show that every stage of the"
        " workflow works. Nothing measured with it says anything about a real model.",
        "",
    ]


def _what(info: Mapping[str, Any]) -> list[str]:
    base, plan = info.get("base") or {}, info.get("plan") or {}
    name = base.get("path") or info.get("model")
    shown = (
        f"[`{name}`](https://huggingface.co/{name})" if base.get("source") == "hub" else f"`{name}`"
    )
    if base.get("source") == "hub" and base.get("resolved"):
        shown += f" (commit `{base['resolved'][:12]}`)"
    elif base.get("resolved"):
        shown += f" (digest of its weights `{base['resolved']}`)"
    done = []
    if plan.get("drop"):
        done.append(
            f"without {len(plan['drop'])} of its {plan['num_layers']} decoder layers, chosen by"
            f" the method `{plan['method']}`"
        )
    if info.get("sparsity"):
        done.append(f"with 2:4 sparse decoder weights by `{info['sparsity'].get('method')}`")
    if info.get("training"):
        names = info["training"].get("trained_parameters") or []
        head = " and the output head" if any("lm_head." in name for name in names) else ""
        done.append(f"with {len(plan.get('tune', []))} layers{head} fine-tuned")
    done.append(f"{info['num_layers']} decoder layers in all")
    return [
        f"{shown} {', '.join(done)}.",
        "",
        f"Made by interlace, a workflow that reproduces [INTERLACE]({PAPER}); not by its authors.",
    ]


def _layers(info: Mapping[str, Any]) -> list[str]:
    plan = info.get("plan")
    if not plan:
        return []
    kept = sorted(set(range(plan["num_layers"])) - set(plan["drop"]))
    ratio = "" if plan.get("ratio") is None else f", {plan['ratio']:g} %"
    tuned = ranges(plan["tune"]) or "none"
    if plan["tune"] and not info.get("training"):
        tuned = f"none (the plan has {tuned})"
    rows = {
        f"dropped ({len(plan['drop'])})": ranges(plan["drop"]) or "none",
        f"fine-tuned ({len(plan['tune']) if info.get('training') else 0})": tuned,
        f"kept, as 0-{len(kept) - 1} of this checkpoint ({len(kept)})": ranges(kept),
    }
    reading = f", reading `{plan['reading']}`" if plan.get("reading") else ""
    how = plan.get("how_reached") or ""
    reached = f" {how[0].upper()}{how[1:]}." if how else ""
    return [
        f"Numbers of the dense model's {plan['num_layers']} decoder layers, from 0. Plan: method"
        f" `{plan['method']}`{ratio}{reading}.{reached}",
        "",
        *_table(rows),
    ]


def ranges(numbers: Iterable[int]) -> str:
    """Return ascending numbers with their runs drawn together: `0-2, 5, 7-8`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _data(info: Mapping[str, Any]) -> list[str]:
    data, used = info.get("data"), (info.get("provenance") or {}).get("num_samples")
    if not info.get("training"):
        return []
    if not data:
        return [f"{used:,} samples."] if used else []
    path = data["path"]
    shown = (
        f"[`{path}`](https://huggingface.co/datasets/{path})"
        if data["source"] == "hub"
        else f"`{path}`"
    )
    rows = {
        "source": shown,
        "revision": data["revision"] and f"`{data['revision']}`",
        "share of each subset": None
        if data["fraction"] is None
        else f"{100 * data['fraction']:g} %",
        "unit of drawing": data["unit"] and f"`{data['unit']}`",
        "seed": data["seed"],
        "most images, most turns": f"{data['max_images']}, {data['max_turns']}",
        "samples used": used and f"{used:,}",
        "samples drawn": f"{data['samples']:,} with {data['images']:,} images"
        + (f", {data['calibration']:,} of them held out" if data["calibration_held_out"] else ""),
        "subsets": sum(count > 0 for count in data["subsets"].values()),
    }
    subsets = {f"`{name}`": f"{count:,}" for name, count in data["subsets"].items() if count}
    return [
        *_table({key: value for key, value in rows.items() if value not in (None, "")}),
        "",
        "<details><summary>Samples by subset</summary>",
        "",
        *_table(subsets),
        "",
        "</details>",
    ]


def _training(training: Mapping[str, Any] | None) -> list[str]:
    if not training:
        return []
    have = training.get
    lines = []
    if have("num_trained_parameters"):
        whole = f" of {have('num_parameters'):,}" if have("num_parameters") else ""
        lines.append(f"- {have('num_trained_parameters'):,}{whole} parameters trained")
    if have("loss_first") is not None and have("loss_last") is not None:
        lines.append(
            f"- loss {have('loss_first'):.4g} at the first step, {have('loss_last'):.4g} at the last"
        )
    if have("steps"):
        lines.append(f"- {have('steps'):,} optimizer steps")
    if have("seconds") is not None:
        place = f" on {have('hardware')}" if have("hardware") else ""
        lines.append(f"- {_duration(have('seconds'))}{place}, {have('world_size', 1)} process(es)")
    counts = {key: value for key, value in (have("counts") or {}).items() if value}
    if counts:
        told = (f"{key.replace('_', ' ')} {value:,}" for key, value in counts.items())
        lines.append(f"- counts: {', '.join(told)}")
    settings = {key: value for key, value in training.items() if key not in _TOLD}
    if isinstance(have("recipe"), Mapping):  # it holds the levers as they were settled
        settings.pop("levers", None)
    return [*lines, "", *_table(_flat(settings))]


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds:.0f} s"


def _licence(base: Mapping[str, Any] | None) -> list[str]:
    if not base:
        return ["That of the base model."]
    name, link = base.get("license_name") or base.get("license"), base.get("license_link")
    if not name:
        return ["That of the base model, whose card states none."]
    shown = f"[{name}]({link})" if link else f"`{name}`"
    return [f"That of the base model: {shown}."]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return values by dotted name; lists of many or of records are left to interlace.json."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif not isinstance(value, list) or (len(value) <= 8 and not _nested(value)):
            flat[f"{prefix}{key}"] = f"`{json.dumps(value, ensure_ascii=False)}`"
    return flat


def _nested(values: list[Any]) -> bool:
    return any(isinstance(value, list | Mapping) for value in values)


def _table(rows: Mapping[str, Any]) -> list[str]:
    if not rows:
        return []
    escaped = ((str(key), str(value)) for key, value in rows.items())
    cells = ((key.replace("|", "\\|"), value.replace("|", "\\|")) for key, value in escaped)
    return ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in cells)]
