"""A hub on 127.0.0.1 that takes uploads of models: what huggingface_hub asks without its Xet library.

Repositories are made, files judged (weights go to the large file store, everything else into the
commit), objects put, commits made. Set HF_ENDPOINT to `UploadHub.url` and HF_HUB_DISABLE_XET before
huggingface_hub is imported.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

REPO = r"(?P<repo>[^/]+/[^/]+)"
ROUTES = {
    ("POST", r"/api/repos/create"): "create",
    ("POST", r"/api/validate-yaml"): "validate",
    ("GET", rf"/api/models/{REPO}(/revision/main)?"): "info",
    ("GET", rf"/api/models/{REPO}/tree/main"): "tree",
    ("POST", rf"/api/models/{REPO}/preupload/main"): "preupload",
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch"): "batch",
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})"): "put",
    ("POST", r"/lfs/verify"): "verify",
    ("POST", rf"/api/models/{REPO}/commit/main"): "commit",
}


class Repository:
    """Files by path: bytes, and the commit and visibility they have."""

    def __init__(self, private: bool) -> None:
        self.private = private
        self.files: dict[str, bytes] = {".gitattributes": b"*.safetensors filter=lfs\n"}
        self.messages: list[str] = []

    @property
    def sha(self) -> str:
        return hashlib.sha1(str([len(self.messages), sorted(self.files)]).encode()).hexdigest()


class UploadHub:
    """The server; a context manager. Without `token` in the Authorization header: 401.

    `stall_on`: a PUT of an object that starts with these bytes is never answered, until it is None.
    `refuse`: every commit is refused with this status, and told the request's own token.
    """

    def __init__(self, token: str) -> None:
        self.token = token
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.log: list[tuple[str, str]] = []  # method and path
        self.tokens: set[tuple[str, str | None]] = set()  # route and what it was authorised by
        self.stall_on: bytes | None = None
        self.refuse: int | None = None
        self.stalled, self.closing = threading.Event(), threading.Event()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "UploadHub":
        return self

    def __exit__(self, *error: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def puts(self) -> list[str]:
        """Return the objects that were sent, by their SHA-256, in order."""
        return [path.rpartition("/")[2] for method, path in self.log if method == "PUT"]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address) -> None:
        """Say nothing of clients that went away."""


class _Handler(BaseHTTPRequestHandler):
    hub: UploadHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Keep standard error for the tests."""

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self._bytes = self._read()
        found = [
            (name, match)
            for (method, pattern), name in ROUTES.items()
            if method == self.command and (match := re.fullmatch(pattern, path))
        ]
        if not found:
            self._send(404, {"error": f"no such route {path}"})
            return
        name, match = found[0]
        given = self.headers.get("Authorization")
        self.hub.tokens.add((name, given))
        # Objects go to a store of their own: an address with a signature, no token.
        if name != "put" and given != f"Bearer {self.hub.token}":
            self._send(401, {"error": "Invalid credentials in Authorization header"})
            return
        groups = match.groupdict()
        self.repo = self.hub.repositories.get(groups.get("repo") or "")
        if groups.get("repo") and self.repo is None:
            self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return
        getattr(self, f"_{name}")(**groups)
        self.hub.log.append((self.command, path))

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        headers = {"Content-Type": "application/json"} | (headers or {})
        for name, value in (headers | {"Content-Length": str(len(text))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)

    def _create(self) -> None:
        asked = json.loads(self._bytes)
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repositories:
            self._send(
                409,
                {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"},
            )
            return
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repositories[name] = Repository(private)
        self._send(200, {"url": f"{self.hub.url}/{name}"})

    def _validate(self) -> None:
        content = json.loads(self._bytes)["content"]
        head = yaml.safe_load(content.split("---")[1])
        wrong = [key for key in ("library_name", "tags") if key not in head]
        errors = [{"message": f"{key} is missing"} for key in wrong]
        self._send(400 if wrong else 200, {"errors": errors, "warnings": []})

    def _info(self, repo: str) -> None:
        self._send(
            200,
            {
                "id": repo,
                "sha": self.repo.sha,
                "private": self.repo.private,
                "tags": [],
                "siblings": [{"rfilename": name} for name in self.repo.files],
            },
        )

    def _tree(self, repo: str) -> None:
        files = self.repo.files.items()
        self._send(
            200,
            [
                {"type": "file", "path": name, "size": len(body), "oid": _git_hash(body)}
                for name, body in files
            ],
        )

    def _preupload(self, repo: str) -> None:
        answers = []
        for file in json.loads(self._bytes)["files"]:
            large = file["path"].endswith(".safetensors")
            answer = {"path": file["path"], "uploadMode": "lfs" if large else "regular"}
            body = self.repo.files.get(file["path"])
            if body is not None:
                answer["oid"] = hashlib.sha256(body).hexdigest() if large else _git_hash(body)
            answers.append(answer | {"shouldIgnore": False})
        self._send(200, {"files": answers})

    def _batch(self, repo: str) -> None:
        objects = []
        for item in json.loads(self._bytes)["objects"]:
            if item["oid"] not in self.hub.objects:
                item["actions"] = {
                    "upload": {"href": f"{self.hub.url}/lfs/{item['oid']}?signature=secret"},
                    "verify": {"href": f"{self.hub.url}/lfs/verify"},
                }
            objects.append(item)
        self._send(200, {"transfer": "basic", "objects": objects})

    def _put(self, oid: str) -> None:
        if self.hub.stall_on is not None and self._bytes.startswith(self.hub.stall_on):
            self.hub.stalled.set()
            self.hub.closing.wait(60)
            self.close_connection = True
            return
        if hashlib.sha256(self._bytes).hexdigest() != oid:
            self._send(400, {"error": "other bytes than announced"})
            return
        self.hub.objects[oid] = self._bytes
        self._send(200, {})

    def _verify(self) -> None:
        known = json.loads(self._bytes)["oid"] in self.hub.objects
        self._send(200 if known else 404, {})

    def _commit(self, repo: str) -> None:
        if self.hub.refuse is not None:
            message = f"no commit for {self.headers.get('Authorization')}"
            self._send(self.hub.refuse, {"error": message}, {"X-Error-Message": message})
            return
        for line in self._bytes.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                self.repo.messages.append(value["summary"])
            elif item["key"] == "file":
                self.repo.files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                self.repo.files[value["path"]] = self.hub.objects[value["oid"]]
            elif item["key"] == "deletedFile":
                del self.repo.files[value["path"]]
        sha = self.repo.sha
        self._send(200, {"commitUrl": f"{self.hub.url}/{repo}/commit/{sha}", "commitOid": sha})


def _git_hash(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
