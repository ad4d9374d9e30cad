"""The grading model that a config describes: checked, reached once, its key kept to itself.

Loads without torch or vlmeval.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from interlace.errors import InputError
from interlace.evaluation.benchmarks import asks_grader, get_benchmark, is_loopback
from interlace.evaluation.cost import Account
from interlace.evaluation.grader_client import SHORTEST_KEY, CallFailed, Client, shown_name

# What vlmeval calls the grader in file names; on the wire it is the served model's name.
JUDGE = "grader"
KINDS = ("openai", "demo")
_CHECK_RETRIES, _CHECK_S = 2, 30


@dataclass(frozen=True)
class Grader:
    """An OpenAI-compatible grading model; the key is in no `repr`.

    `extract`: it also reads choices and yes or no. `price`: of a million tokens read and written.
    `account` adds up what the calls of one job come to.
    """

    base_url: str
    model: str
    key: str = field(repr=False)
    kind: str = "openai"
    key_env: str = ""
    extract: bool = False
    timeout_s: float = 120
    retries: int = 5
    parallel: int = 4
    price: tuple[float, float] | None = None
    budget: float | None = None
    account: Account = field(default_factory=Account, repr=False, compare=False)

    @property
    def billed(self) -> bool:
        """Whether calls may cost money: it is on another machine, or has a price or a budget."""
        return not is_loopback(self.base_url) or (self.price, self.budget) != (None, None)

    @property
    def identity(self) -> list[str]:
        """What makes its answers its own; not the address, whose port may change."""
        return [self.kind, self.model]

    def client(self) -> Client:
        """Return a client with this grader's limits."""
        return Client(self.base_url, self.key, self.key_env, self.timeout_s, self.retries)


def check_grader(settings: dict[str, Any] | None, benchmarks: Sequence[str]) -> list[str]:
    """Return which of `benchmarks` the grader of the config's `evaluation.grader` reads.

    Raises InputError for settings that cannot work, whatever the network and the environment hold.
    Kind `demo` is complete without address and model, which the demo gives when its server runs.
    """
    settings = settings or {}
    kind, extract = settings.get("kind"), bool(settings.get("extract"))
    asked = [name for name in benchmarks if asks_grader(get_benchmark(name), extract)]
    if asked and kind not in KINDS:
        graded = ", ".join(name for name in asked if get_benchmark(name).needs_grader)
        if not graded:
            raise InputError(
                f"evaluation.grader.extract: there is no grader to extract answers (kind '{kind}'); "
                "set kind to openai with base_url and model"
            )
        raise InputError(
            f"evaluation.grader.kind: {graded} needs a grader and it is '{kind}'; set it to openai "
            f"with base_url and model, or leave {graded} out of evaluation.benchmarks"
        )
    for key in ("base_url", "model"):
        if kind == "openai" and not settings.get(key):
            raise InputError(
                f"evaluation.grader.{key}: empty, and kind openai needs base_url and model; set it"
            )
    if settings.get("base_url"):
        _check_address(settings["base_url"])
    if settings.get("budget") is not None and settings.get("price") is None:
        raise InputError(
            "evaluation.grader.price: budget needs it; give the price of a million tokens read and "
            "written"
        )
    return asked


def connect(settings: dict[str, Any] | None, benchmarks: Sequence[str]) -> Grader | None:
    """Return the grader that the config's `evaluation.grader` describes, after asking it for a sign.

    None where none of `benchmarks` needs one. InputError for settings that cannot work, and if
    nobody answers or the key is missing or refused.
    """
    if not check_grader(settings, benchmarks):
        return None
    if not (settings.get("base_url") and settings.get("model")):
        raise InputError(
            "evaluation.grader.base_url: empty; start a grader and give its address and model"
        )
    base_url, key_env = settings["base_url"].rstrip("/"), settings.get("key_env") or ""
    price = settings.get("price")
    client = Client(
        base_url,
        key_of(settings),
        key_env,
        min(int(settings.get("timeout_s") or 120), _CHECK_S),
        min(_retries(settings), _CHECK_RETRIES),
    )
    try:
        client.models()
    except CallFailed as failed:
        if failed.everywhere:
            raise InputError(f"evaluation.grader: {base_url}: {failed.reason}") from None
        raise InputError(
            f"evaluation.grader.base_url: {base_url} does not answer ({failed.reason}); start the "
            "grader"
        ) from None
    return Grader(
        base_url,
        settings["model"],
        client.key,
        kind=settings["kind"],
        key_env=key_env,
        extract=bool(settings.get("extract")),
        timeout_s=int(settings.get("timeout_s") or 120),
        retries=_retries(settings),
        parallel=int(settings.get("parallel") or 4),
        price=None if price is None else (float(price[0]), float(price[1])),
        budget=settings.get("budget"),
    )


def _retries(settings: dict[str, Any]) -> int:
    retries = settings.get("retries")
    return 5 if retries is None else int(retries)


def _check_address(base_url: str) -> None:
    if any(sign in base_url for sign in "@?#"):
        raise InputError(
            "evaluation.grader.base_url: holds a name, a password or a query, which would end up in "
            "logs; give the bare address, and the key in the variable that key_env names"
        )
    try:
        parts = urlsplit(base_url)
        found = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # brackets or a port that are none
        found = False
    if not found or any(sign.isspace() for sign in base_url):
        raise InputError(
            f"evaluation.grader.base_url: '{base_url}' is no address; it has to look like "
            "https://host/v1"
        )


def key_of(settings: dict[str, Any]) -> str:
    """Return the key of a grader that has an address, out of the variable that `key_env` names.

    A stand-in for one on this machine without a key. InputError where another has none, or its key
    is none.
    """
    base_url, key_env = settings["base_url"], settings.get("key_env") or ""
    if not re.fullmatch(r"([A-Za-z_][A-Za-z0-9_]*)?", key_env):
        raise InputError(
            "evaluation.grader.key_env: is not the name of an environment variable (its value is "
            "not shown: it may be a key); export the key, and give the variable's name here"
        )
    key = os.environ.get(key_env, "").strip() if key_env else ""
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise InputError(
            f"evaluation.grader.key_env: {shown_name(key_env)}, holds characters that no key has; "
            "export the key again"
        )
    if not key and not is_loopback(base_url):
        raise InputError(
            f"evaluation.grader.key_env: {shown_name(key_env)}, is not set; {base_url} needs its "
            "key there: export it"
        )
    if len(key) < SHORTEST_KEY and not is_loopback(base_url):
        raise InputError(
            f"evaluation.grader.key_env: {shown_name(key_env)}, holds less than {SHORTEST_KEY} "
            "characters, which is no key; export the key again"
        )
    return key or "sk-loopback"


@contextlib.contextmanager
def key_hidden(settings: dict[str, Any] | None) -> Iterator[None]:
    """Take the grader's key out of the environment within the block: children do not inherit it."""
    name = (settings or {}).get("key_env") or ""
    key = os.environ.pop(name, None)
    try:
        yield
    finally:
        if key is not None:
            os.environ[name] = key
