"""How the loopback hub answers: the hub's routes, ranges, refusals, and answers that are spoiled."""

import json
import re
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub_dataset import Dataset

if TYPE_CHECKING:
    from tests.loopback_hub import Hub

API = re.compile(
    r"/api/datasets/(?P<repo>[^/]+/[^/]+)"
    r"(?:/(?P<kind>revision|tree|paths-info)/(?P<revision>[^/]+)(?:/(?P<path>.*))?)?"
)
RESOLVE = re.compile(r"/datasets/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
RANGES_SPOILED = ("short", "whole", "flipped", "elsewhere", "trickle")
RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass(frozen=True)
class Request:
    """What was answered. `sent`: bytes of the body handed to the client's connection."""

    method: str
    path: str
    range: tuple[int, int] | None  # first byte and one past the last
    status: int  # 0 where the connection was closed without an answer
    sent: int
    fault: str | None
    complete: bool  # the whole right answer was handed over
    token: str | None  # what the Authorization header held
    host: str  # "hub" or "cdn"


class Handler(BaseHTTPRequestHandler):
    hub: "Hub"
    host: str
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each small answer waits 40 ms for an acknowledgement

    def log_message(self, *_: object) -> None:
        """Keep standard error for the tests."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.hub.begin()
        length = int(self.headers.get("Content-Length") or 0)
        self._form = parse_qs(self.rfile.read(length).decode()) if length else {}
        parts = urlsplit(self.path)
        self._path, self._query = unquote(parts.path), parse_qs(parts.query)
        self._range: tuple[int, int] | None = None
        self._fault: str | None = None
        refusal = self._refusal()
        if refusal:
            self._json(401, {"error": refusal[1]}, refusal)
        elif match := RESOLVE.fullmatch(parts.path):
            self._resolve(*(unquote(match[name]) for name in ("repo", "revision", "path")))
        elif match := API.fullmatch(parts.path):
            self._api(match)
        else:
            self._json(404, {"error": "no such route"})

    def _refusal(self) -> tuple[str, str] | None:
        """Return the error code and message for a request without the right token."""
        if self.hub.token is None or self.host == "cdn":
            return None
        given = self.headers.get("Authorization")
        if given is None:
            return "RepoNotFound", "Repository not found"
        if given != f"Bearer {self.hub.token}":
            return "", "Invalid credentials in Authorization header"
        return None

    def _find(self, repo: str, revision: str | None) -> Dataset | None:
        """Return the dataset at a revision, or answer 404 and return None."""
        dataset = self.hub.dataset(repo)
        if dataset is None:
            self._json(404, {"error": "no such dataset"}, ("RepoNotFound", "Repository not found"))
            return None
        if revision not in (None, "main", dataset.commit):
            message = f"Invalid rev id: {revision}"
            self._json(404, {"error": message}, ("RevisionNotFound", message))
            return None
        return dataset

    def _api(self, match: re.Match) -> None:
        repo, kind, revision, path = (
            value and unquote(value) for value in match.group("repo", "kind", "revision", "path")
        )
        dataset = self._find(repo, revision)
        if dataset is None:
            return
        self._fault = self.hub.next_fault(self._path)
        if kind == "tree":
            self._tree(dataset, path or "")
        elif kind == "paths-info":
            names = self._form.get("paths", [])
            known = [n for n in names if n in dataset.files or n in dataset.folders]
            self._json(200, [dataset.entry(name) for name in known])
        else:
            self._json(
                200,
                {
                    "id": repo,
                    "author": repo.split("/")[0],
                    "sha": dataset.commit,
                    "lastModified": "2026-01-01T00:00:00.000Z",
                    "createdAt": "2026-01-01T00:00:00.000Z",
                    "private": False,
                    "gated": False,
                    "disabled": False,
                    "tags": [],
                    "siblings": [{"rfilename": name} for name in dataset.files],
                },
            )

    def _tree(self, dataset: Dataset, path: str) -> None:
        entries = dataset.entries(path, self._query.get("recursive", [""])[0].lower() == "true")
        if entries is None:
            message = f"{path} does not exist on main"
            self._json(404, {"error": message}, ("EntryNotFound", message))
            return
        start = int(self._query.get("cursor", ["0"])[0])
        expanded = self._query.get("expand", [""])[0].lower() == "true"
        stop = start + (min(50, self.hub.page) if expanded else self.hub.page)
        headers = {}
        if stop < len(entries):
            base, _, query = self.path.partition("?")
            kept = "&".join(part for part in query.split("&") if not part.startswith("cursor="))
            headers["Link"] = f'<{self.hub.url}{base}?{kept}&cursor={stop}>; rel="next"'
        self._json(200, entries[start:stop], headers=headers)

    def _resolve(self, repo: str, revision: str, name: str) -> None:
        dataset = self._find(repo, revision)
        if dataset is None:
            return
        headers = {"X-Repo-Commit": dataset.commit, "Accept-Ranges": "bytes"}
        if name not in dataset.files:
            message = f"{name} does not exist on {revision}"
            self._json(404, {"error": message}, ("EntryNotFound", message), headers)
            return
        size = dataset.files[name]
        headers["ETag"] = f'"{dataset.oid(name)}"'
        if self.hub.cdn_url and self.host == "hub":
            headers |= {"X-Linked-Size": str(size), "X-Linked-ETag": headers["ETag"]}
            headers["Location"] = f"{self.hub.cdn_url}{self.path}"
            self._fault = self.hub.next_fault(self._path)
            self._send(302, headers, b"")
            return
        start, stop, status = 0, size, 200
        if match := RANGE.fullmatch(self.headers.get("Range") or ""):
            start, stop = int(match[1]), min(size, int(match[2]) + 1 if match[2] else size)
            status = 206
            if start >= size:
                self._send(416, headers | {"Content-Range": f"bytes */{size}"}, b"")
                return
            self._range = (start, stop)
        self._fault = self.hub.next_fault(name, (start, stop) if self.command == "GET" else None)
        if self._fault == "whole":
            start, stop, status = 0, size, 200
        elif self._fault == "short" and status == 206 and stop - start > 1:
            stop = start + (stop - start) // 2
        elif self._fault == "elsewhere" and status == 206:
            start, stop = start + 1, min(size, stop + 1)
        if status == 206:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        headers["Content-Type"] = "application/octet-stream"
        right = self._fault not in ("short", "whole", "elsewhere")
        self._send(status, headers, (dataset.folder / name, start, stop), right)

    def _json(
        self,
        status: int,
        body: object,
        error: tuple[str, str] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        headers = {"Content-Type": "application/json; charset=utf-8"} | (headers or {})
        if error:
            code, message = error
            headers |= {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._send(status, headers, json.dumps(body).encode())

    def _send(
        self,
        status: int,
        headers: dict[str, str],
        body: bytes | tuple[Path, int, int],
        right: bool = True,
    ) -> None:
        """Send an answer, spoiled by the fault of this request, and put it in the log."""
        fault = self._fault
        if isinstance(body, bytes) and fault in RANGES_SPOILED:
            fault = self._fault = "500"  # these are ways to spoil a range
        length = len(body) if isinstance(body, bytes) else body[2] - body[1]
        sent, shown = 0, status
        try:
            if fault == "reset":
                shown = 0
                self.connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
                self.close_connection = True
                self.connection.close()
            elif fault in ("408", "429", "500", "503"):
                shown, text = int(fault), b'{"error": "try again"}'
                extra = {"Retry-After": str(self.hub.retry_after_s)} if shown == 429 else {}
                self._head(shown, extra | {"Content-Type": "application/json"}, len(text))
                sent = self._body(text, len(text))
            else:
                self._head(status, headers, length)
                part = length // 2 if fault in ("cut", "stall") else length
                sent = self._body(body, part)
                self.close_connection = self.close_connection or part < length
        except OSError:
            self.close_connection = True
            fault = fault or "client left"
        self.hub.record(
            Request(
                method=self.command,
                path=self._path,
                range=self._range,
                status=shown,
                sent=sent,
                fault=fault,
                complete=fault is None and right,
                token=self.headers.get("Authorization"),
                host=self.host,
            )
        )
        if fault == "stall":
            self.close_connection = True
            self.hub.closing.wait(self.hub.stall_s)

    def _head(self, status: int, headers: dict[str, str], length: int) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _body(self, body: bytes | tuple[Path, int, int], length: int) -> int:
        """Send the first `length` bytes of the body; return how many were sent."""
        if self.command == "HEAD" or not length:
            return 0
        if isinstance(body, bytes):
            self.wfile.write(body[:length])
            return length
        path, start, _ = body
        with path.open("rb") as file:
            if self._fault == "flipped":
                file.seek(start)
                data = bytearray(file.read(length))
                data[length // 2] ^= 0xFF
                self.wfile.write(data)
                return length
            if self._fault == "trickle":
                file.seek(start)
                for byte in file.read(length):
                    self.wfile.write(bytes([byte]))
                    self.hub.closing.wait(self.hub.trickle_s)
                return length
            sent = 0
            with suppress(ConnectionError):
                sent = self.connection.sendfile(file, start, length)
        if sent < length:
            raise ConnectionError("the client left")
        return sent
