"""The grading model of MIA-Bench: reached by vlmeval's own client, its key kept out of every log."""

import contextlib
import json
import logging
import os
import pickle
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from interlace.errors import InputError
from interlace.evaluation.benchmarks import is_loopback
from interlace.evaluation.kit import kit_environment
from interlace.evaluation.scores import total_grade

# What vlmeval calls the grader in file names; on the wire it is the served model's name.
JUDGE = "grader"
_PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


@dataclass(frozen=True)
class Grader:
    """An OpenAI-compatible grading model; the key is in no `repr`."""

    base_url: str
    model: str
    key: str = field(repr=False)
    timeout_s: int = 120
    parallel: int = 4


def connect(settings: dict[str, Any]) -> Grader:
    """Return the grader that the config's `evaluation.grader` describes, after asking it for a sign.

    Without a `model` the first one that the server lists is taken. InputError if nobody answers.
    """
    base_url = (settings.get("base_url") or "").rstrip("/")
    if not base_url:
        raise InputError("evaluation.grader.base_url: empty; start a grader and give its address")
    key = os.environ.get(settings.get("key_env") or "", "")
    if is_loopback(base_url):
        key = key or "sk-loopback"
    served = _served_models(base_url, key)
    model = settings.get("model") or (served[0] if served else None)
    if not model:
        raise InputError(
            f"evaluation.grader.model: empty, and {base_url}/models lists none; set it"
        )
    return Grader(base_url, model, key, int(settings.get("timeout_s") or 120))


def _served_models(base_url: str, key: str) -> list[str]:
    """Return the names at `/models`, or none where a server has no such list."""
    request = urllib.request.Request(
        f"{base_url}/models", headers={"Authorization": f"Bearer {key}"}
    )
    handlers = [urllib.request.ProxyHandler({})] if is_loopback(base_url) else []
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=30) as answer:
            return [entry["id"] for entry in json.load(answer)["data"]]
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise InputError(
                f"evaluation.grader: {base_url} refuses the key (HTTP {error.code}); check the "
                "variable that key_env names"
            ) from None
        return []
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise InputError(
            f"evaluation.grader.base_url: {base_url} does not answer ({reason}); start the grader"
        ) from None
    except (json.JSONDecodeError, KeyError, TypeError):
        return []


def grade(dataset: Any, predictions: Path, grader: Grader, data_root: Path) -> None:
    """Have vlmeval grade `predictions` (a TSV of MIA-Bench); InputError if any row stays ungraded.

    Answers that could be read are kept beside the TSV: the next call asks only for the others.
    """
    stem = predictions.with_suffix("")
    cache = Path(f"{stem}_{JUDGE}.pkl")
    _keep_readable(cache)
    Path(f"{stem}_{JUDGE}.tsv").unlink(missing_ok=True)
    with (
        kit_environment(data_root, LOCAL_LLM=grader.model),
        _without_proxies(is_loopback(grader.base_url)),
        redacted(grader.key),
    ):
        dataset.evaluate(
            str(predictions),
            model=JUDGE,
            api_base=f"{grader.base_url}/chat/completions",
            key=grader.key,
            timeout=grader.timeout_s,
            nproc=grader.parallel,
        )
    table = pd.read_csv(f"{stem}_{JUDGE}.tsv", sep="\t", keep_default_na=False)
    bad = [
        str(index)
        for index, raw, components, types in zip(
            *(table[c] for c in ("index", "score_raw", "num_of_component", "component_type")),
            strict=True,
        )
        if not readable(raw, int(components), types)
    ]
    if bad:
        shown = ", ".join(bad[:10]) + (", ..." if len(bad) > 10 else "")
        raise InputError(
            f"MIA-Bench: {len(bad)} of {len(table)} rows were not graded by {grader.model} at "
            f"{grader.base_url} (index {shown}); mend the grader and run again: the grades that "
            "could be read are kept"
        )


def readable(raw: Any, components: int | None = None, component_type: Any = None) -> bool:
    """Return whether vlmeval gets from a grader's answer a total between 0 and 1.

    `components`: how many scores have to come before the total.
    """
    total = total_grade(raw, component_type)
    scores = str(raw).split(".")[0].count(",")
    in_range = total is not None and 0 <= total <= 1
    return in_range and "total score" in str(raw) and components in (None, scores)


def _keep_readable(cache: Path) -> None:
    """Drop failed answers from vlmeval's cache, which it would take for answers; a torn one whole."""
    if not cache.exists():
        return
    try:
        answers = pickle.loads(cache.read_bytes())
    except (pickle.UnpicklingError, EOFError):
        cache.unlink()
        return
    kept = {index: raw for index, raw in answers.items() if readable(raw)}
    cache.write_bytes(pickle.dumps(kept))


@contextlib.contextmanager
def _without_proxies(wanted: bool) -> Iterator[None]:
    """Hide proxy variables: vlmeval hands them to its client even for this machine's addresses."""
    before = dict(os.environ)
    if wanted:
        for name in _PROXIES:
            os.environ.pop(name, None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class _Redact(logging.Filter):
    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if self.key in message:
            record.msg, record.args = message.replace(self.key, "[key]"), ()
        return True


@contextlib.contextmanager
def redacted(key: str) -> Iterator[None]:
    """Keep `key` out of the log records of a block; vlmeval logs the key it was given at INFO."""
    loggers = [logging.root, logging.getLogger("vlmeval"), logging.getLogger("vlmeval.api.gpt")]
    places: list[Any] = [*loggers, *(handler for log in loggers for handler in log.handlers)]
    shield = _Redact(key)
    if key:
        for place in places:
            place.addFilter(shield)
    try:
        yield
    finally:
        for place in places:
            place.removeFilter(shield)
