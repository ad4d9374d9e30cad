"""The configuration: read against its schema, completed with defaults, checked before any work.

Loads without torch. The schema (`workflow/schemas/config.schema.yaml`) is the documentation of
every key and holds the defaults, which are the paper's own recipe.
"""

import copy
import difflib
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from interlace.depth import check_depth
from interlace.errors import InputError
from interlace.evaluation.benchmarks import BENCHMARKS
from interlace.evaluation.grading import check_grader
from interlace.evaluation.settings import check_pixels
from interlace.io import read_json
from interlace.scoring.released_files import released_files
from interlace.secrets import secret_in
from interlace.selection.registry import PRUNERS, TWO_FOUR
from interlace.training.recipe import resolve

Config = dict[str, Any]
# What a run keeps beside the folders of its models.
RESERVED = (
    *("audit.html", "audit.md", "benchmarks", "config.yaml", "conversations", "demo", "examples"),
    *("figures", "logs", "report.html", "samples", "sampling", "tables"),
)
# What the schema's `x-methods` stands for: the registry knows the methods, the file lists none.
METHOD_LISTS = {"pruners": PRUNERS, "baselines": (*TWO_FOUR, *PRUNERS)}


def load_schema(path: Path) -> dict[str, Any]:
    """Return the schema at `path`, with the registry's methods where it says `x-methods`."""
    with path.open(encoding="utf-8") as handle:
        return _with_methods(yaml.safe_load(handle))


def _with_methods(node: Any) -> Any:
    if isinstance(node, list):
        return [_with_methods(item) for item in node]
    if not isinstance(node, dict):
        return node
    found = {key: _with_methods(sub) for key, sub in node.items() if key != "x-methods"}
    if "x-methods" in node:
        found["enum"] = list(METHOD_LISTS[node["x-methods"]])
    return found


def complete(
    config: Config, schema: dict[str, Any], demo_models: Mapping[str, int] | None = None
) -> Config:
    """Return `config` checked against `schema` and completed with its defaults.

    `demo_models` maps the names of the demo's base models to their number of decoder layers.
    Raises InputError with one line that names the key, what is wrong and what is possible.
    """
    validator = jsonschema.Draft202012Validator(schema)
    error = jsonschema.exceptions.best_match(validator.iter_errors(config))
    if error is not None:
        raise InputError(_one_line(error))
    config = _with_defaults(copy.deepcopy(config), schema)
    _check(config, demo_models or {})
    return config


def _with_defaults(value: Any, schema: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        for key, sub in schema.get("properties", {}).items():
            if key not in value and "default" in sub:
                value[key] = copy.deepcopy(sub["default"])
            if key in value:
                value[key] = _with_defaults(value[key], sub)
        extra = schema.get("additionalProperties")
        if isinstance(extra, dict):
            for key in value:
                value[key] = _with_defaults(value[key], extra)
    return value


def _one_line(error: jsonschema.ValidationError) -> str:
    place = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in error.absolute_path)
    place = place.lstrip(".") or "top level"
    if error.validator == "additionalProperties":
        known = sorted(error.schema["properties"])
        unknown = sorted(set(error.instance) - set(known))
        key = unknown[0]
        return f"config: unknown key '{key}' at {place}{_near(key, known)}"
    if error.validator == "enum":
        return f"config: {place}: '{error.instance}' is unknown{_near(error.instance, error.validator_value)}"
    if place == "evaluation.grader.key_env":  # it may be the key itself
        return f"config: {place}: give the name of an environment variable, in capitals"
    if place == "evaluation.grader.base_url":  # it may hold a password
        return f"config: {place}: give an address that begins with http, without user or query"
    if error.validator == "required":
        return f"config: {place}: {error.message}; add it (config/README.md explains every key)"
    return f"config: {place}: {error.message} (config/README.md explains every key)"


def _near(word: Any, known: list[Any]) -> str:
    names = [str(k) for k in known]
    close = difflib.get_close_matches(str(word), names, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"{hint} (possible: {', '.join(names)})"


def _check(config: Config, demo_models: Mapping[str, int]) -> None:
    """Check what a schema cannot say."""
    models, experiments = config["models"], config["experiments"]
    primary = experiments["primary"]
    if primary is None:
        experiments["primary"] = next(iter(models))
    elif primary not in models:
        raise InputError(
            f"config: experiments.primary: '{primary}' is no key of models{_near(primary, list(models))}"
        )
    if config["seed"] in experiments["seeds"]:
        raise InputError(
            f"config: experiments.seeds: {config['seed']} is the run's own seed already; leave it out"
        )
    for key, model in models.items():
        model.setdefault("label", key)
        if model["scores"]:
            try:
                released_files(model["scores"])
            except InputError as error:
                raise InputError(f"config: models.{key}.scores: {error}") from None
            _check_imported(config["plan"], key)
        depth = None
        if model["source"] == "local":
            depth = _checkpoint_depth(key, Path(model["path"]))
        elif model["source"] == "demo":
            if model["path"] not in demo_models:
                raise InputError(
                    f"config: models.{key}.path: '{model['path']}' is no base model of the demo"
                    + _near(model["path"], list(demo_models))
                )
            depth = demo_models[model["path"]]
        check_depth(config, key, depth)
        if key in RESERVED:
            raise InputError(
                f"config: models.{key}: a run keeps other files under this name; choose another key"
            )
    for section in ("scoring", "sleb", "sparsity", "finetune", "evaluation"):
        low, high = config[section]["min_pixels"], config[section]["max_pixels"]
        if low and high and low > high:
            raise InputError(f"config: {section}.min_pixels: {low} is more than max_pixels, {high}")
    if config["data"]["source"] in ("hub", "address") and not config["data"]["path"]:
        what = "id of the hub dataset" if config["data"]["source"] == "hub" else "address"
        raise InputError(f"config: data.path: missing; give the {what}")
    if secret_in(config["data"]["path"] or ""):  # it would stand in messages and records
        raise InputError(
            "config: data.path: an address without password, token or query is expected; give what "
            "opens it where fsspec looks (environment, ~/.netrc, ~/.config/fsspec)"
        )
    if config["data"]["source"] == "local":
        _check_samples_folder(config["data"]["path"])
    _check_evaluation(config["evaluation"])
    _check_finetune(config["finetune"])


def _check_imported(plan: Config, key: str) -> None:
    """Check that plans ask nothing of imported scores, means per sample, that they cannot tell."""
    for name, possible in (("reading", "released"), ("modality", "all"), ("subsets", None)):
        if plan[name] != possible:
            shown = "null" if possible is None else possible
            raise InputError(
                f"config: plan.{name}: models.{key}.scores are one mean per sample, without token "
                f"counts and subsets; set plan.{name}: {shown}"
            )


def _checkpoint_depth(key: str, folder: Path) -> int | None:
    if not (folder / "config.json").is_file():
        raise InputError(
            f"config: models.{key}.path: {folder} holds no config.json; "
            "give the folder of a Hugging Face checkpoint"
        )
    settings = read_json(folder / "config.json")
    return settings.get("text_config", settings).get("num_hidden_layers")


def _check_samples_folder(path: str | None) -> None:
    if path is None:
        raise InputError(
            "config: data.path: missing; give the folder that holds <subset>/*.parquet"
        )
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"config: data.path: {folder}: no such folder")
    if (
        next(itertools.chain(folder.glob("*/*.parquet"), folder.glob("*/*/*.parquet")), None)
        is None
    ):
        raise InputError(
            f"config: data.path: {folder} holds no <subset>/*.parquet; one folder per subset is expected"
        )


def _check_finetune(finetune: Config) -> None:
    for key in ("deepspeed", "deepspeed_offload"):
        if not Path(finetune[key]).is_file():
            raise InputError(f"config: finetune.{key}: {finetune[key]}: no such file")
    try:
        resolve(finetune)
    except InputError as error:
        raise InputError(f"config: {error}") from None


def _check_evaluation(evaluation: Config) -> None:
    source = evaluation["source"]
    if source not in ("official", "demo"):
        for name in evaluation["benchmarks"]:
            file = Path(source) / f"{BENCHMARKS[name].dataset}.tsv"
            if not file.is_file():
                raise InputError(
                    f"config: evaluation.source: {file}: no such file; put it there or leave {name} "
                    "out of evaluation.benchmarks"
                )
    try:
        check_grader(evaluation["grader"], evaluation["benchmarks"])
        check_pixels(evaluation["benchmarks"], evaluation)
    except InputError as error:
        raise InputError(f"config: {error}") from None


def standin_reasons(config: Config) -> list[str]:
    """Return why this run's numbers are not the paper's: empty for real models, data and benchmarks."""
    reasons = []
    if any(m["source"] == "demo" for m in config["models"].values()):
        reasons.append("stand-in models")
    if config["data"]["source"] == "demo":
        reasons.append("stand-in data")
    if config["evaluation"]["source"] == "demo":
        reasons.append("stand-in benchmarks")
    if config["evaluation"]["grader"]["kind"] == "demo":
        reasons.append("rule-based stand-in grader")
    return reasons
