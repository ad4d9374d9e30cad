"""Progress with rate and ETA where a person waits, plain lines where no terminal is."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def track(
    items: Iterable[T],
    description: str,
    total: int | None = None,
    unit: str = "it",
    every_s: float = 10.0,
) -> Iterator[T]:
    """Yield `items` and report how far along they are on standard error.

    On a terminal this is a tqdm bar. In a log it is a plain line at most every `every_s` seconds,
    and one at the end.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, desc=description, total=total, unit=unit)
        return
    start = last = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        if now - last >= every_s and done != total:
            last = now
            _line(description, done, total, unit, now - start)
    _line(description, done, total, unit, time.monotonic() - start)


def _line(description: str, done: int, total: int | None, unit: str, elapsed: float) -> None:
    rate = done / elapsed if elapsed > 0 else 0.0
    of = f"/{total}" if total is not None else ""
    eta = f", {(total - done) / rate:.0f} s left" if total is not None and rate > 0 else ""
    message = f"{description}: {done}{of} {unit} in {elapsed:.0f} s ({rate:.2f} {unit}/s{eta})"
    print(message, file=sys.stderr, flush=True)
