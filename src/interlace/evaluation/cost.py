"""What a hosted grader will cost, estimated before it is called."""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from interlace.errors import InputError

CHARACTERS_PER_TOKEN = 4
WRITTEN_TOKENS = {"grade": 350, "extract": 5}
"""Tokens of one answer. ASSUME: MIA-Bench's scores with their reasons fill a page's third."""

# Tokens of an image by the beginning of a model's name, at `detail: low`, which VLMEvalKit asks for
# (OpenAI's documentation); the first that fits counts.
_LOW_DETAIL = (
    ("gpt-4o-mini", 2833),
    *((name, 85) for name in ("gpt-4o", "gpt-4.1", "gpt-4.5", "gpt-4-")),
    *((name, 75) for name in ("o1", "o3")),
    ("gpt-5", 70),
)
# These bill patches of 32 x 32 pixels, at most 1536, times 1.62 to 2.46.
_PATCHED = ("gpt-4.1-mini", "gpt-4.1-nano", "gpt-5-mini", "gpt-5-nano", "o4-mini")
_PATCH, _MOST_PATCHES, _PATCH_FACTOR = 32, 1536, 2.46
_PIXELS_PER_TOKEN = 750  # ASSUME: elsewhere as Anthropic documents it; 28 x 28 of Qwen2-VL is close
_REASONING = ("gpt-5", "o1", "o3", "o4")
_REASONING_TOKENS = 1000  # ASSUME: written before the answer, and billed


@dataclass
class Account:
    """What the calls really asked in one job come to by their estimates, in the price's currency."""

    spent: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, amount: float, budget: float | None) -> bool:
        """Add the estimate of a call; False, and nothing added, where it would pass the budget."""
        with self._lock:
            if amount > 0 and _above(self.spent + amount, budget):
                return False
            self.spent += amount
            return True


def _above(total: float, budget: float | None) -> bool:
    return budget is not None and total > budget * (1 + 1e-9)  # sums are rounded


@dataclass(frozen=True)
class Call:
    """One call to come: characters of its text, size of its image if it has one, and its kind."""

    characters: int
    image: tuple[int, int] | None
    kind: str


@dataclass(frozen=True)
class Estimate:
    """Calls, tokens read and written, and their price (None: not given)."""

    calls: int
    read: int
    written: int
    cost: float | None


def image_tokens(size: tuple[int, int], model: str) -> int:
    """Return the tokens that an image of `size` (width, height) pixels is billed as."""
    width, height = size
    name = model.rsplit("/", 1)[-1]
    if name.startswith(_PATCHED):
        patches = math.ceil(width / _PATCH) * math.ceil(height / _PATCH)
        return math.ceil(_PATCH_FACTOR * min(_MOST_PATCHES, patches))
    known = [tokens for beginning, tokens in _LOW_DETAIL if name.startswith(beginning)]
    return known[0] if known else math.ceil(width * height / _PIXELS_PER_TOKEN)


def estimate(
    calls: Sequence[Call], model: str, price: tuple[float, float] | None = None
) -> Estimate:
    """Return what `calls` will come to; a try that fails and is billed comes on top."""
    read = sum(math.ceil(call.characters / CHARACTERS_PER_TOKEN) for call in calls)
    read += sum(image_tokens(call.image, model) for call in calls if call.image)
    thought = _REASONING_TOKENS if model.rsplit("/", 1)[-1].startswith(_REASONING) else 0
    written = sum(WRITTEN_TOKENS[call.kind] + thought for call in calls)
    cost = None if price is None else (read * price[0] + written * price[1]) / 1e6
    return Estimate(len(calls), read, written, cost)


def announce(
    dataset: str,
    found: Estimate,
    model: str,
    base_url: str,
    budget: float | None,
    account: Account,
) -> None:
    """Print an estimate; InputError if it and what the job has spent so far pass the budget."""
    line = (
        f"{dataset}: {found.calls} calls to {model} at {base_url}, about {found.read} tokens read "
        f"and {found.written} written (estimate: {CHARACTERS_PER_TOKEN} characters a token, images "
        "by size or at low detail, one try each)"
    )
    if found.cost is None:
        print(f"{line}; no price given", flush=True)
        return
    total = account.spent + found.cost
    print(f"{line}: about {found.cost:.2f}, {total:.2f} in this job", flush=True)
    if _above(total, budget):
        raise InputError(
            f"evaluation.grader.budget: {dataset} brings the estimate of this job to {total:.2f}, "
            f"which is above {budget:g}; raise the budget, set evaluation.limit, or leave {dataset} "
            f"out; nothing was asked about {dataset}"
        )
