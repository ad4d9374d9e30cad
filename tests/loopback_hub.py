"""A hub on 127.0.0.1: what huggingface_hub and datasets ask of the real one, with faults on demand.

Serves the folders `<root>/<namespace>/<name>/` as datasets at their branch `main` and at a commit
made from their files' names and sizes. It answers repository info, tree listings (recursive,
paged), paths-info and `resolve` with ranges, over HTTP/1.1 with a thread per connection, and keeps
a log of what it sent. Set HF_ENDPOINT to `Hub.url` before huggingface_hub is imported.
"""

import random
import threading
from collections import Counter
from collections.abc import Sequence
from http.server import ThreadingHTTPServer
from pathlib import Path

from tests.hub_dataset import Dataset, scan
from tests.hub_handler import Handler, Request

FAULTS = ("408", "429", "500", "503", "reset", "cut", "short", "stall")
"""cut: the body ends before its Content-Length. short: a correct answer for the first half of the
range. stall: half the body, then silence for `Hub.stall_s` and a closed connection. Others that
may be asked for: `whole` (the range is ignored), `flipped` (one byte is changed), `elsewhere` (the
range one byte further, as Content-Range says), `trickle` (a byte each `Hub.trickle_s`)."""


class Hub:
    """The server; a context manager. `with Hub(root) as hub:` and HF_ENDPOINT=hub.url.

    `token`: without it in the Authorization header, 401. `fault_share` of all requests fail, in
    turn in the ways of `faults`; which ones follows from `seed` and the order of requests.
    `fault_from` bytes: only ranges of at least that many fail; `fault_once`: each but once.
    `cdn`: `resolve` redirects to another origin, as the real one does for large files.
    """

    def __init__(
        self,
        root: Path,
        *,
        token: str | None = None,
        fault_share: float = 0.0,
        faults: Sequence[str] = FAULTS,
        fault_from: int = 0,
        fault_once: bool = False,
        seed: int = 0,
        retry_after_s: int = 1,
        stall_s: float = 3.0,
        trickle_s: float = 0.05,
        page: int = 1000,
        cdn: bool = False,
    ) -> None:
        self.root, self.token, self.page = root, token, page
        self.fault_share, self.faults, self.fault_from = fault_share, tuple(faults), fault_from
        self.retry_after_s, self.stall_s, self.trickle_s = retry_after_s, stall_s, trickle_s
        self.log: list[Request] = []
        self.closing = threading.Event()
        self._lock = threading.Condition()
        self._busy = 0  # requests that are being answered
        self._waiting, self._hold_at = 0, None  # see `hold`
        self._random, self._failed = random.Random(seed), 0
        self._spared: set[tuple[str, tuple[int, int]]] | None = set() if fault_once else None
        self._datasets: dict[str, Dataset] = {}
        self._server = _serve(self, "hub")
        self._cdn = _serve(self, "cdn") if cdn else None

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def cdn_url(self) -> str | None:
        """The origin that large files are redirected to, if there is one."""
        return self._cdn and f"http://127.0.0.1:{self._cdn.server_address[1]}"

    def __enter__(self) -> "Hub":
        return self

    def __exit__(self, *error: object) -> None:
        self.closing.set()
        for server in (self._server, self._cdn):
            if server is not None:
                server.shutdown()
                server.server_close()

    def dataset(self, repo: str) -> Dataset | None:
        """Return a dataset as it was when first asked for, or None."""
        with self._lock:
            if repo not in self._datasets and (self.root / repo).is_dir():
                self._datasets[repo] = scan(self.root / repo)
            return self._datasets.get(repo)

    def next_fault(self, path: str, span: tuple[int, int] | None = None) -> str | None:
        """Decide whether the next request fails, and how. `span`: of a file, first byte and end."""
        size = span[1] - span[0] if span else 0
        with self._lock:
            if self._random.random() >= self.fault_share or size < self.fault_from:
                return None
            if self._spared is not None and span:
                if (path, span) in self._spared:
                    return None
                self._spared.add((path, span))
            self._failed += 1
            return self.faults[(self._failed - 1) % len(self.faults)]

    def hold(self, count: int | None) -> None:
        """Answer `count` more requests and no others until told otherwise; None: go on."""
        with self._lock:
            self._hold_at = None if count is None else len(self.log) + self._busy + count
            self._lock.notify_all()

    def holding(self) -> bool:
        """Whether all that `hold` allows has been answered and another request waits."""
        with self._lock:
            return (
                self._hold_at is not None and len(self.log) >= self._hold_at and self._waiting > 0
            )

    def begin(self) -> None:
        """Count a request as being answered, once it may be."""
        with self._lock:
            self._waiting += 1
            while self._hold_at is not None and len(self.log) + self._busy >= self._hold_at:
                self._lock.wait(1.0)
                if self.closing.is_set():
                    break
            self._waiting -= 1
            self._busy += 1

    def record(self, request: Request) -> None:
        """Add to the log."""
        with self._lock:
            self._busy -= 1
            self.log.append(request)
            self._lock.notify_all()

    def requests(self) -> list[Request]:
        """Return the log once nothing is being answered, or as it is after a second."""
        with self._lock:
            self._lock.wait_for(lambda: not self._busy, timeout=1.0)
            return list(self.log)

    def clear(self) -> None:
        """Forget the log."""
        with self._lock:
            self.log.clear()

    def sent(self) -> int:
        """Bytes of all bodies sent since the last `clear`."""
        return sum(request.sent for request in self.requests())

    def counts(self) -> Counter:
        """Requests per (path, status)."""
        return Counter((request.path, request.status) for request in self.requests())

    def served(self) -> Counter:
        """How many times each (file, range) was answered wholly and rightly."""
        return Counter(
            (request.path, request.range)
            for request in self.requests()
            if request.complete and request.method == "GET" and request.range
        )


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address) -> None:
        """Say nothing of clients that went away."""


def _serve(hub: Hub, host: str) -> _Server:
    handler = type("Handler", (Handler,), {"hub": hub, "host": host})
    server = _Server(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server
