"""A grader on loopback that misbehaves as told: every way in which a hosted one has ever failed.

`act(call, prompt)` says what happens to the call with that number (from 1): `say`, `fail`, `raw`,
`drop`, `hang`, `drip` or `redirect`.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Act = Callable[["_Handler"], None]
GRADE = "score of component 1: 3/6, score of component 2: 2/4, total score: 5/10. It is so."


def fitting(prompt: str) -> str:
    """An answer in the form that VLMEvalKit's prompt asks for."""
    if "You need to grade if the response" in prompt:
        return GRADE
    return "Yes" if "The options are only Yes / No" in prompt else "A"


def say(text: str) -> Act:
    return lambda handler: handler.reply(200, _completion(text))


def fail(status: int, message: str = "overloaded", **headers: str) -> Act:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: handler.reply(status, {"error": {"message": message}}, named)


def body(value: object) -> Act:
    """HTTP 200 with any JSON."""
    return lambda handler: handler.reply(200, value)


def raw(data: bytes, status: int = 200) -> Act:
    return lambda handler: handler.send(status, data, {})


def drop(handler: "_Handler") -> None:
    """Break off in the middle of an answer."""
    data = json.dumps(_completion(GRADE)).encode()
    handler.send(200, data[: len(data) // 2], {"Content-Length": str(len(data))})
    handler.close_connection = True


def hang_up(handler: "_Handler") -> None:
    """Close without a word."""
    handler.close_connection = True


def hang(handler: "_Handler") -> None:
    """Say nothing until the test is over."""
    handler.server.over.wait(30)
    handler.close_connection = True


def drip(handler: "_Handler") -> None:
    """Send a byte now and then: each in time, all of them never."""
    handler.send(200, b"", {"Content-Length": "100000"})
    with contextlib.suppress(OSError):
        while not handler.server.over.wait(0.05):
            handler.wfile.write(b" ")
            handler.wfile.flush()
    handler.close_connection = True


def redirect(target: str) -> Act:
    return lambda handler: handler.send(302, b"", {"Location": target, "Content-Length": "0"})


def _completion(text: str | None) -> dict:
    return {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        self.server.listed(self)

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        request = json.loads(data)
        content = request["messages"][-1]["content"]
        prompt = content if isinstance(content, str) else content[0]["text"]
        with self.server.lock:
            self.server.requests.append(request)
            self.server.prompts.append(prompt)
            self.server.times.append(time.monotonic())
            self.server.keys.add(self.headers["Authorization"])
            call = len(self.server.requests)
        with contextlib.suppress(ConnectionError):
            self.server.act(call, prompt)(self)

    def reply(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
        self.send(status, json.dumps(value).encode(), headers or {})

    def send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


@contextlib.contextmanager
def faulty_grader(
    act: Callable[[int, str], Act] = lambda call, prompt: say(fitting(prompt)),
    listed: Act | None = None,
) -> Iterator[ThreadingHTTPServer]:
    """Run one; yields the server, with `base_url` and what it was asked so far."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.act, server.listed = act, listed or body({"data": [{"id": "faulty"}]})
    server.requests, server.prompts, server.times, server.paths = [], [], [], []
    server.keys, server.lock, server.over = set(), threading.Lock(), threading.Event()
    server.base_url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join()
