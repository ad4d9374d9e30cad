"""Calls to an OpenAI-compatible grading model: bounded in time and size, retried, told plainly.

Nothing here follows a redirect, which would carry the key to another host, and the key is cut out
of whatever comes back before anyone else sees it. Loads without torch or vlmeval.
"""

import contextlib
import email.utils
import functools
import http.client
import json
import re
import socket
import ssl
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from interlace.evaluation.benchmarks import is_loopback

FIRST_WAIT_S = 1.0
"""Wait before the first further try; doubled for each next one."""
LONGEST_WAIT_S = 120.0
"""No wait is longer; a grader that asks for a longer one is given up."""
LOST_CALLS = 3
"""So many calls in a row that failed in all their tries end the others as well."""
SHORTEST_KEY = 8
"""Characters; cutting "1" or "none" out of a grade would spoil it."""
_LARGEST_BODY = 16 * 2**20  # bytes
_SHOWN = 300  # characters of a server's message
# A key as servers mask it ("sk-proj-ab******yz"), which shows where it begins and ends.
_MASKED = re.compile(r"[\w.-]*(?:\*{3,}|\u2022{3,})[\w.*\u2022-]*")
_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,39}")
_TRY_AGAIN = (408, 409, 425, 429)  # and every 5xx


def shown_name(key_env: str) -> str:
    """Return how a message may call the variable that `evaluation.grader.key_env` names.

    What does not look like the name of a variable, in capitals, may be the key itself.
    """
    if _NAME.fullmatch(key_env):
        return f"{key_env}, the variable that evaluation.grader.key_env names"
    return "the variable that evaluation.grader.key_env names"


class CallFailed(Exception):
    """A call that brought no answer; the text has the status and the server's words, not the key.

    `again`: another try may help, after `wait_s` seconds if the server asked for them.
    `everywhere`: every other call would end the same.
    """

    def __init__(
        self,
        reason: str,
        *,
        again: bool = False,
        everywhere: bool = False,
        wait_s: float | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason, self.again, self.everywhere, self.wait_s = reason, again, everywhere, wait_s


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: Any
    text: str


@dataclass
class Client:
    """One grading model at `base_url` (up to `/v1`); safe to use from several threads.

    A try takes `timeout_s` seconds at most, from connecting to the answer's last byte. A call takes
    at most `retries` + 1 tries with waits of `FIRST_WAIT_S`, twice that and so on between them, up
    to `LONGEST_WAIT_S`; a longer `Retry-After` within that limit is honoured.
    """

    base_url: str
    key: str = field(repr=False)
    key_env: str = ""
    timeout_s: float = 120
    retries: int = 5

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._end: CallFailed | None = None
        self._lost = 0

    @functools.cached_property
    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context()  # verifies, whatever an import did to the default

    def clean(self, text: str) -> str:
        """Return `text` without the key, as it is or as addresses and JSON write it.

        A key as short as local servers like it is no secret.
        """
        if len(self.key) < SHORTEST_KEY:
            return text
        written = json.dumps(self.key)[1:-1]
        quoted = urllib.parse.quote(self.key, safe="")
        for form in (self.key, written, written.replace("/", "\\/"), quoted, quoted.lower()):
            text = text.replace(form, "[key]")
        return text

    def models(self) -> list[str]:
        """Return the names at `/models`; none where a server has no such list.

        Raises `CallFailed` where nobody answers, the key is refused or the address redirects.
        """
        answer = self._tries(lambda: self._send("/models", None))
        if answer.status in (401, 403) or 300 <= answer.status < 400:
            raise self._failed(answer)
        try:
            return [self.clean(str(entry["id"])) for entry in json.loads(answer.text)["data"]]
        except (ValueError, LookupError, TypeError):
            return []

    def ask(self, payload: dict[str, Any], charge: Callable[[int], None] | None = None) -> str:
        """Return the model's answer to a chat completion request, never empty.

        A refusal is an answer. Raises `CallFailed`; after `LOST_CALLS` calls in a row that failed
        in all their tries, or one that shows that all will, every call fails at once. `charge(1)`
        comes before every try, and may raise `CallFailed`; `charge(-1)` after one that was
        answered with an error, which nobody bills.
        """
        body = json.dumps(payload).encode()
        try:
            text = self._tries(lambda: self._completion(body, charge or (lambda tries: None)))
        except CallFailed as failed:
            with self._lock:
                self._lost += failed.again
                lost = failed.everywhere or self._lost >= LOST_CALLS
            if lost:
                self.end(failed)
            raise
        with self._lock:
            self._lost = 0
        return text

    def end(self, failed: CallFailed) -> None:
        """Let every call that comes, or waits for its next try, fail with the first `failed`."""
        self._end = self._end or failed
        self._ended.set()

    @property
    def ended(self) -> CallFailed | None:
        """Why no call is sent any more; None while they are."""
        return self._end

    def _tries(self, once: Callable[[], Any]) -> Any:
        for tried in range(self.retries + 1):
            if self._end:
                raise self._end
            try:
                return once()
            except CallFailed as failed:
                if not failed.again:
                    raise
                last = failed
            asked = last.wait_s or 0
            if asked > LONGEST_WAIT_S:
                raise CallFailed(f"{last.reason}; it asks for a wait of {asked:.0f} s", again=True)
            if tried < self.retries:
                backoff = min(FIRST_WAIT_S * 2 ** min(tried, 20), LONGEST_WAIT_S)
                self._ended.wait(max(backoff, asked))
        times = "1 try" if self.retries == 0 else f"{self.retries + 1} tries"
        raise CallFailed(f"{last.reason}, in {times}", again=True)

    def _completion(self, body: bytes, charge: Callable[[int], None]) -> str:
        charge(1)
        answer = self._send("/chat/completions", body)
        if answer.status != 200:
            charge(-1)
            raise self._failed(answer)
        try:
            parsed = json.loads(answer.text)
            choice = parsed["choices"][0]
            message = choice["message"]
            text = message.get("content")
        except (ValueError, LookupError, TypeError, AttributeError):
            said = self._message(answer.text)
            raise CallFailed(f"HTTP 200 without a chat completion: {said}", again=True) from None
        if isinstance(text, list):  # of parts, as some servers answer
            text = "".join(str(p.get("text") or "") for p in text if isinstance(p, dict))
        text = (text if isinstance(text, str) else "").strip() or message.get("refusal")
        if isinstance(text, str) and text:
            return self.clean(text)
        if choice.get("finish_reason") == "content_filter":
            raise CallFailed("HTTP 200 with an empty answer (finish_reason content_filter)")
        raise CallFailed("HTTP 200 with an empty answer", again=True)

    def _failed(self, answer: _Answer) -> CallFailed:
        status = answer.status
        reason = f"HTTP {status}: {self._message(answer.text)}"
        if status in (401, 403):
            way_out = f"check the key in {shown_name(self.key_env)}"
            return CallFailed(f"{reason}; {way_out}", everywhere=True)
        if 300 <= status < 400:
            target = self._short(str(answer.headers.get("Location")))
            way_out = f"it redirects to {target}; give evaluation.grader.base_url the final address"
            return CallFailed(f"HTTP {status}: {way_out}", everywhere=True)
        if status in (402, 404, 405) or "insufficient_quota" in answer.text:
            return CallFailed(reason, everywhere=True)
        wait_s = _retry_after(answer.headers.get("Retry-After"))
        return CallFailed(reason, again=status >= 500 or status in _TRY_AGAIN, wait_s=wait_s)

    def _message(self, text: str) -> str:
        """Return what a server says in an error's body, on one line and not too long."""
        try:
            found = json.loads(text)
            found = found.get("error", found)
            found = found.get("message", found) if isinstance(found, dict) else found
            text = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
        except (ValueError, AttributeError):
            pass  # not JSON: the body itself is shown
        return self._short(text)

    def _short(self, text: str) -> str:
        line = " ".join(self.clean(text).split())  # clean first: a cut key would not be found
        line = _MASKED.sub("[key]", line)
        for end in range(len(self.key) - 1, SHORTEST_KEY - 1, -1):  # what a server cut itself
            line = line.replace(self.key[:end], "[key]")
        return (line[: _SHOWN - 3] + "..." if len(line) > _SHOWN else line) or "no message"

    def _send(self, path: str, body: bytes | None) -> _Answer:
        """Send one request; `CallFailed` unless a whole answer came within `timeout_s` seconds."""
        expired, sockets = threading.Event(), []

        def expire() -> None:
            expired.set()
            for open_socket in sockets:
                with contextlib.suppress(OSError):
                    open_socket.shutdown(socket.SHUT_RDWR)

        request = urllib.request.Request(
            self.base_url + path, body, {"Content-Type": "application/json"}
        )
        if self.key:
            request.add_unredirected_header("Authorization", f"Bearer {self.key}")
        opener = urllib.request.OpenerDirector()  # no redirects, no errors for statuses
        opener.add_handler(urllib.request.ProxyHandler({} if is_loopback(self.base_url) else None))
        opener.add_handler(_Handler(sockets, expired, self._tls))
        timer = threading.Timer(self.timeout_s, expire)
        timer.daemon = True
        timer.start()
        try:
            with opener.open(request, timeout=self.timeout_s) as response:
                data = bytearray()
                while len(data) <= _LARGEST_BODY and (part := response.read1(2**16)):
                    data += part
            status, headers = response.status, response.headers
        except (OSError, http.client.HTTPException, ValueError) as error:
            if expired.is_set() or isinstance(getattr(error, "reason", error), TimeoutError):
                raise self._late() from None
            reason = getattr(error, "reason", None) or error
            told = self._short(str(reason) or type(reason).__name__)
            raise CallFailed(f"no answer ({told})", again=True) from None
        finally:
            timer.cancel()
        if expired.is_set():
            raise self._late()
        if len(data) > _LARGEST_BODY:
            raise CallFailed(f"HTTP {status}: more than {_LARGEST_BODY} bytes", again=True)
        length = headers.get("Content-Length") or ""
        if length.isdigit() and len(data) < int(length):
            raise CallFailed(
                f"HTTP {status}: broken off after {len(data)} of {length} bytes", again=True
            )
        return _Answer(status, headers, data.decode("utf-8", "replace"))

    def _late(self) -> CallFailed:
        return CallFailed(f"no answer within {self.timeout_s:g} s", again=True)


class _Handler(urllib.request.AbstractHTTPHandler):
    """Opens http and https, and remembers the sockets so that they can be shut from outside."""

    def __init__(self, sockets: list[Any], expired: threading.Event, tls: ssl.SSLContext) -> None:
        super().__init__()
        self._sockets, self._expired, self._tls = sockets, expired, tls

    def _watched(self, kind: type[http.client.HTTPConnection]) -> type[http.client.HTTPConnection]:
        sockets, expired = self._sockets, self._expired

        class Connection(kind):  # type: ignore[misc, valid-type]
            def connect(self) -> None:
                super().connect()
                sockets.append(self.sock)
                if expired.is_set():
                    raise TimeoutError

        return Connection

    def http_open(self, request: urllib.request.Request) -> Any:
        """Open a connection without TLS."""
        return self.do_open(self._watched(http.client.HTTPConnection), request)

    def https_open(self, request: urllib.request.Request) -> Any:
        """Open a connection with TLS, certificates verified."""
        return self.do_open(self._watched(http.client.HTTPSConnection), request, context=self._tls)

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_


def _retry_after(value: str | None) -> float | None:
    """Return the seconds that a `Retry-After` header (seconds or a date) asks for, or None."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(0.0, seconds) if seconds == seconds else None  # NaN asks for nothing
