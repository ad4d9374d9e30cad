"""Progress with rate and ETA where a person waits, plain lines where no terminal is."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total_fmt} {unit} [{elapsed}<{remaining}, {rate_fmt}]"


def track(
    items: Iterable[T],
    description: str,
    total: float | None = None,
    unit: str = "it",
    every_s: float = 10.0,
    amount: Callable[[T], float] = lambda item: 1,
) -> Iterator[T]:
    """Yield `items` and report how far along they are on standard error.

    On a terminal this is a tqdm bar. In a log it is a plain line at most every `every_s` seconds,
    and one at the end. `amount` says how many of the unit an item counts for.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(desc=description, total=total, unit=unit, bar_format=_BAR) as bar:
            for item in items:
                yield item
                bar.update(amount(item))
        return
    start = last = time.monotonic()
    done = 0.0
    for item in items:
        yield item
        done += amount(item)
        now = time.monotonic()
        if now - last >= every_s and done != total:
            last = now
            _line(description, done, total, unit, now - start)
    _line(description, done, total, unit, time.monotonic() - start)


def _line(description: str, done: float, total: float | None, unit: str, elapsed: float) -> None:
    rate = done / elapsed if elapsed > 0 else 0.0
    of = f"/{_number(total)}" if total is not None else ""
    eta = f", {(total - done) / rate:.0f} s left" if total is not None and rate > 0 else ""
    message = (
        f"{description}: {_number(done)}{of} {unit} in {elapsed:.0f} s ({rate:.2f} {unit}/s{eta})"
    )
    print(message, file=sys.stderr, flush=True)


def _number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) or value >= 100 else f"{value:.2f}"
