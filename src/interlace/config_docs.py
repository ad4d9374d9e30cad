"""config/README.md, written from the schema so that the two can't disagree.

Renew it with `python -m interlace.config_docs > config/README.md`.
"""

from pathlib import Path
from typing import Any

import yaml

from interlace.config import load_schema

SCHEMA = Path(__file__).resolve().parents[2] / "workflow" / "schemas" / "config.schema.yaml"

_HEAD = """# Configuration

One file configures a run. `config.yaml` is the demo (default), `paper.yaml` the whole paper,
`smoke.yaml` the whole workflow in minutes. Pass another with `--configfile`; it replaces the demo's
as a whole. Two files are merged, the later one wins: `--configfile config/config.yaml
config/methods.yaml` is Table 2 of the demo with every pruner as a baseline.

Every key that is left out has the default below, which is the paper's own value. Unknown keys are
refused. The shortest file that prunes a model of your own:

```yaml
run: mine
models:
  mine: {source: local, path: path/to/checkpoint}     # or {source: hub, path: org/name}
data: {source: local, path: path/to/samples}          # <subset>/*.parquet in FineVision's schema
tables: [1, 4]
evaluation: {benchmarks: [ChartQA, TextVQA, POPE]}
```

A `hub` dataset (any with Parquet files in a folder per subset) is never downloaded as a whole. Its
footers are read by range requests, the sample is drawn and its bytes are stated, and then the row
groups that hold a drawn row are fetched, one job per subset. HF_TOKEN, HF_ENDPOINT, HF_HOME and
HF_HUB_OFFLINE are honoured; `--resources requests=16` bounds the requests of all jobs together.

Secrets never stand in a configuration: `evaluation.grader.key_env` holds the *name* of the
environment variable with the grader's key, and `HF_TOKEN` is read from the environment.
"""


def describe(schema: dict[str, Any]) -> str:
    """Return the Markdown page: a table of keys, values, defaults and meanings per section."""
    lines = [_HEAD, "## Top level", ""]
    sections = []
    rows = []
    for key, sub in schema["properties"].items():
        if "properties" in sub or isinstance(sub.get("additionalProperties"), dict):
            sections.append((key, sub))
        else:
            rows.append(_row(key, sub))
    lines += [*_table(rows), ""]
    for key, sub in sections:
        lines += _section(key, sub)
    return "\n".join(lines).rstrip() + "\n"


def _section(key: str, schema: dict[str, Any]) -> list[str]:
    lines = [f"## {key}", "", schema["description"], ""]
    properties = schema.get("properties")
    if properties is None:
        properties = schema["additionalProperties"]["properties"]
    rows, nested = [], []
    for name, sub in properties.items():
        if "properties" in sub:
            nested.append((name, sub))
        else:
            rows.append(_row(name, sub))
    if rows:
        lines += [*_table(rows), ""]
    for name, sub in nested:
        lines += [f"**{key}.{name}**: {sub['description']}", ""]
        lines += [*_table([_row(n, s) for n, s in sub["properties"].items()]), ""]
    return lines


def _table(rows: list[str]) -> list[str]:
    return ["| key | value | default | meaning |", "| --- | --- | --- | --- |", *rows]


def _row(name: str, schema: dict[str, Any]) -> str:
    default = "required" if "default" not in schema else f"`{_value(schema['default'])}`"
    if name == "label":
        default = "the key"
    return f"| `{name}` | {_kind(schema)} | {default} | {schema['description']} |"


def _kind(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(f"`{_value(v)}`" for v in schema["enum"])
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    listed = f"list of {_kind(schema['items'])}" if "items" in schema else "array"
    return " or ".join(listed if kind == "array" else kind for kind in kinds)


def _value(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000).strip()
    return text.removesuffix("...").strip()


if __name__ == "__main__":
    print(describe(load_schema(SCHEMA)), end="")
