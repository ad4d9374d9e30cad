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
from interlace.evaluation.grader_client import CallFailed, Client, shown_name

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
    def hosted(self) -> bool:
        """Whether it is on another machine, where calls may cost money."""
        return not is_loopback(self.base_url)

    @property
    def identity(self) -> list[str]:
        """What makes its answers its own; not the address, whose port may change."""
        return [self.kind, self.model]

    def client(self) -> Client:
        """Return a client with this grader's limits."""
        return Client(self.base_url, self.key, self.key_env, self.timeout_s, self.retries)


def connect(settings: dict[str, Any] | None, benchmarks: Sequence[str]) -> Grader | None:
    """Return the grader that the config's `evaluation.grader` describes, after asking it for a sign.

    None where none of `benchmarks` needs one. Without a `model` the first one that the server lists
    is taken. InputError for settings that cannot work, and if nobody answers or the key is refused.
    """
    settings = settings or {}
    extract = bool(settings.get("extract"))
    asked = [name for name in benchmarks if asks_grader(get_benchmark(name), extract)]
    if not asked:
        return None
    kind = settings.get("kind")
    if kind not in KINDS:
        raise InputError(
            f"evaluation.grader.kind: {', '.join(asked)} need a grader and it is '{kind}'; set it to "
            "'openai' with base_url and model, or leave out these benchmarks and extract"
        )
    base_url = _checked_address(settings.get("base_url"))
    price, budget = settings.get("price"), settings.get("budget")
    if budget is not None and price is None:
        raise InputError("evaluation.grader.budget: needs evaluation.grader.price; set it as well")
    key_env = settings.get("key_env") or ""
    client = Client(
        base_url,
        _key(base_url, key_env),
        key_env,
        min(int(settings.get("timeout_s") or 120), _CHECK_S),
        min(_retries(settings), _CHECK_RETRIES),
    )
    try:
        served = client.models()
    except CallFailed as failed:
        if failed.everywhere:
            raise InputError(f"evaluation.grader: {base_url}: {failed.reason}") from None
        raise InputError(
            f"evaluation.grader.base_url: {base_url} does not answer ({failed.reason}); start the "
            "grader"
        ) from None
    model = settings.get("model") or (served[0] if served else None)
    if not model:
        raise InputError(
            f"evaluation.grader.model: empty, and {base_url}/models lists none; set it"
        )
    return Grader(
        base_url,
        model,
        client.key,
        kind=kind,
        key_env=key_env,
        extract=extract,
        timeout_s=int(settings.get("timeout_s") or 120),
        retries=_retries(settings),
        parallel=int(settings.get("parallel") or 4),
        price=None if price is None else (float(price[0]), float(price[1])),
        budget=budget,
    )


def _retries(settings: dict[str, Any]) -> int:
    retries = settings.get("retries")
    return 5 if retries is None else int(retries)


def _checked_address(base_url: str | None) -> str:
    base_url = (base_url or "").rstrip("/")
    if not base_url:
        raise InputError("evaluation.grader.base_url: empty; start a grader and give its address")
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
    return base_url


def _key(base_url: str, key_env: str) -> str:
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
            "key there"
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
