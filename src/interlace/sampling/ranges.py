"""Byte ranges of remote or local files, with patience for what a network does to them."""

import datetime
import email.utils
import hashlib
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from interlace.errors import InputError
from interlace.secrets import one_line

T = TypeVar("T")

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 30.0
LONGEST_RETRY_AFTER_S = 300.0  # a hub's rate limit is over in five minutes
_RETRIED = (408, 429)  # and every 5xx
_NETWORK_LIBRARIES = ("httpx2", "httpx", "httpcore", "aiohttp", "botocore", "urllib3", "requests")


class ShortBody(OSError):
    """A server that sent fewer bytes than were asked for."""


class OtherRange(OSError):
    """A server that says that it sent other bytes than were asked for."""


def fingerprint(data: bytes) -> str:
    """Return what tells bytes from any other, spoiled or of another version of their file."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def range_ignored(path: str, start: int, end: int, answer: str) -> InputError:
    """Return what is said of a server that sends more than the bytes from `start` to `end`."""
    return InputError(
        f"{path}: bytes {start} to {end}: {answer}; the server does not answer range requests, "
        "without which whole shards would be fetched: use another (HF_ENDPOINT, data.path) or a "
        "local copy"
    )


class RangeReader:
    """Reads byte ranges through one fsspec filesystem; safe to share between threads.

    `requests` counts every attempt, `received` the bytes of whole bodies, `failed` the attempts
    that were tried again, be it for a body of no use.
    """

    def __init__(self, filesystem: Any, retries: int = 8) -> None:
        """Read through `filesystem`; an attempt that fails is followed by at most `retries` more."""
        self._filesystem = filesystem
        self._retries = retries
        # fsspec's buffered files read ahead by megabytes unless told otherwise; its asynchronous
        # filesystems ask for the range itself and know no such option, those that keep blocks on
        # disk set it themselves.
        from fsspec.implementations.cached import CachingFileSystem

        own = filesystem.async_impl or isinstance(filesystem, CachingFileSystem)
        self._options = {} if own else {"cache_type": "none"}
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self.requests = self.received = self.failed = 0

    def read(self, path: str, start: int, length: int) -> bytes:
        """Return `length` bytes of `path` from `start`.

        Raises `InputError` where the server refuses, sends more than that or every attempt failed,
        with one line that names the file, the range and the cause.
        """
        if length == 0:
            return b""

        def attempt() -> bytes:
            with self._lock:
                self.requests += 1
            data = self._filesystem.cat_file(path, start=start, end=start + length, **self._options)
            if len(data) > length:
                raise range_ignored(path, start, start + length, f"{len(data)} bytes came")
            if len(data) < length:
                raise ShortBody(f"{len(data)} bytes for {length}")
            with self._lock:
                self.received += length
            return data

        def note() -> None:
            with self._lock:
                self.failed += 1

        return persist(
            attempt,
            f"{path}: bytes {start} to {start + length}",
            self._retries,
            failed=note,
            wait=self._stopped.wait,
        )

    def bodies(
        self, what: str, read: Callable[[], bytes], seen: str | None = None
    ) -> Iterator[bytes]:
        """Yield `read()`, and again each time that the caller could make no use of the last.

        A network may spoil bytes and keep their number. Ends where a body is the one before it, or
        at first has the `fingerprint` `seen`: so it lies there. Raises `InputError`, one line that
        begins with `what`, where none is after as many more as there are retries, at least one,
        since one body alone tells nothing.
        """
        again = max(1, self._retries)
        for number in range(again + 1):
            data = read()
            if seen is not None and fingerprint(data) == seen:
                return
            yield data
            if number == again:
                break
            seen = fingerprint(data)
            with self._lock:
                self.failed += 1
            # The second is asked for at once: most often it is the first again.
            if number and self._stopped.wait(_backoff(number - 1)):
                break
        raise InputError(
            f"{what}: {number + 1} answers of the right length, each with other bytes and none of "
            "use; what is between here and the server spoils them: run again to go on from here, "
            "raise data.retries or use a local copy"
        )

    def stop(self) -> None:
        """Wait no longer: what failed and would be tried again, in any thread, fails for good."""
        self._stopped.set()


def persist(
    attempt: Callable[[], T],
    what: str,
    retries: int,
    failed: Callable[[], None] | None = None,
    wait: Callable[[float], bool | None] | None = None,
) -> T:
    """Return `attempt()`, tried again after a passing failure, at most `retries` times.

    Passing are 408, 429, 5xx, broken connections, time-outs and short bodies. The wait doubles
    from `FIRST_WAIT_S` to `LONGEST_WAIT_S` with jitter, unless the server names one (Retry-After
    in seconds or as a date, or the hub's RateLimit header). `failed` is called at each of them,
    `wait` in place of `time.sleep`; if it returns True, that was the last attempt.

    Raises `InputError`, one line that begins with `what`: at once for a file that is not there,
    that may not be read or that the server refuses otherwise, else for the last failure. Other
    errors pass through. No cause is chained to it, since that may name a signed address.
    """
    for number in range(retries + 1):
        try:
            return attempt()
        except InputError:
            raise
        except Exception as error:  # fsspec lets every backend raise its own; sorted out below
            status = _status(error)
            if status in (401, 403) or isinstance(error, PermissionError):
                raise InputError(
                    f"{what}: not allowed ({one_line(error)}); check the address, or set HF_TOKEN "
                    "to a token that may read it"
                ) from None
            if status in (404, 410) or isinstance(error, FileNotFoundError):
                raise InputError(
                    f"{what}: not found ({one_line(error)}); check data.path and data.revision"
                ) from None
            if not _passing(error, status):
                if status is None or status < 400:
                    raise
                raise InputError(
                    f"{what}: refused with HTTP {status} ({one_line(error)}); check data.path and "
                    "data.revision, or use a local copy"
                ) from None
            last = number == retries
            if not last:
                if failed is not None:
                    failed()
                last = (wait or time.sleep)(_wait(error, number))
            if last:
                tries = f"{number + 1} attempts" if number else "1 attempt"
                raise InputError(
                    f"{what}: {tries} failed, the last with {one_line(error)}; run again to go on "
                    "from here, or raise data.retries"
                ) from None
    raise AssertionError("unreachable: the last attempt returns or raises")


def _status(error: BaseException) -> int | None:
    """Return the HTTP status behind an error of any client, or None."""
    for value in (
        getattr(getattr(error, "response", None), "status_code", None),
        getattr(error, "status", None),
    ):
        if isinstance(value, int):
            return value
    return None


def _passing(error: BaseException, status: int | None) -> bool:
    if status is not None and status >= 400:
        return status in _RETRIED or status >= 500
    if type(error).__module__.split(".")[0] in _NETWORK_LIBRARIES:
        return True
    return isinstance(error, OSError | EOFError) and not isinstance(error, IsADirectoryError)


def _wait(error: BaseException, number: int) -> float:
    headers = getattr(getattr(error, "response", None), "headers", None)
    headers = headers if headers is not None else getattr(error, "headers", None)
    asked = _asked_for(headers) if headers else None
    if asked is not None:
        return min(asked, LONGEST_RETRY_AFTER_S) + random.uniform(0, FIRST_WAIT_S)
    return _backoff(number)


def _backoff(number: int) -> float:
    return min(FIRST_WAIT_S * 2**number, LONGEST_WAIT_S) * random.uniform(0.5, 1)


def _asked_for(headers: Any) -> float | None:
    """Return the seconds that a server asks to be left alone for, or None."""
    after = headers.get("Retry-After")
    if after is not None:
        if after.strip().isdecimal():
            return float(after)
        try:
            date = email.utils.parsedate_to_datetime(after)
        except (ValueError, OverflowError):
            return None
        if date.tzinfo is None:  # "-0000": UTC of no stated place
            date = date.replace(tzinfo=datetime.UTC)
        return max(0.0, date.timestamp() - time.time())
    limit = re.search(r";\s*r=0\s*;\s*t=(\d+)", headers.get("RateLimit") or "")
    return float(limit[1]) if limit else None
