"""A grader for the demo that needs no language model: rules behind an OpenAI address.

MIA-Bench asks a judge to score each component of an instruction. The components of the demo's
MIA-Bench can be checked by rules, so a loopback server reads the judge's prompt and answers in the
form VLMEvalKit parses. In the same way it reads a choice, or yes or no, out of an answer that exact
matching could not. It says in its name what it is, and refuses what it can not check.

    python -m interlace.demo.grader --port-file FILE
"""

import argparse
import contextlib
import json
import re
import signal
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from interlace.demo.drawing import COLOURS, SHAPES
from interlace.io import write_text

MODEL = "demo-rules-grader"
ABOUT = "rule-based stand-in made by interlace's demo; no language model"
LARGEST_REQUEST = 64 * 2**20  # bytes; MIA-Bench sends the picture along
COUNTS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}


class UnknownComponent(ValueError):
    """A request that the rules can not grade."""


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _names(what: str, word: str, response: str) -> float:
    """The word is there and, for colors and shapes, no other color or shape is."""
    kinds = {"color": tuple(COLOURS), "shape": SHAPES}.get(what, (word,))
    return float({w for w in _words(response) if w in kinds} == {word})


def _in_order(wanted: str, response: str) -> float:
    """Share of places at which the colors named agree with the wanted list."""
    expected = wanted.split()
    named = [word for word in _words(response) if word in COLOURS]
    same = sum(a == b for a, b in zip(expected, named, strict=False))
    return same / max(len(expected), len(named))


def _separated(response: str) -> float:
    """A comma between all words."""
    words = len(_words(response))
    return float(words > 0 and response.count(",") == words - 1)


RULES: list[tuple[str, Callable[..., float]]] = [
    (r"names the (color|shape|text) (\w+)", _names),
    (r"names the colors ([\w ]+) in this order", _in_order),
    (r"separates by commas", _separated),
    (r"is in square brackets", lambda r: float(bool(re.fullmatch(r"\[[^\[\]]+\]", r)))),
    (r"has exactly (\w+) words", lambda n, r: float(len(_words(r)) == COUNTS.get(n))),
    (r"ends with a period", lambda r: float(len(r) > 1 and r.endswith("."))),
    (r"starts with the word (\w+)", lambda w, r: float(_words(r)[:1] == [w.lower()])),
]


def check(component: str, response: str) -> float:
    """How far a response meets a component, 0 to 1. Raises UnknownComponent."""
    for pattern, rule in RULES:
        match = re.fullmatch(pattern, component)
        if match:
            return rule(*match.groups(), response.strip())
    raise UnknownComponent(f"no rule for the component {component!r}")


def grade(prompt: str) -> str:
    """Answer MIA-Bench's judge prompt (vlmeval.dataset.miabench.generate_prompt).

    Returns "score of component 1: 6/6, ..., total score: 10/10. ..." with integer scores. Raises
    UnknownComponent for a prompt or a component that the rules do not know.
    """
    response = re.search(
        r"The response is: '(.*)'\. You need to score the response and be strict", prompt, re.DOTALL
    )
    before = prompt[: response.start()] if response else ""
    components = re.findall(r"component is:? '([^']*)'", before)
    worth = re.search(r"worth:? ([\d, and]+?) scores", prompt[response.end() :] if response else "")
    weights = [int(number) for number in re.findall(r"\d+", worth[1])] if worth else []
    if not components or len(components) != len(weights):
        raise UnknownComponent("this is not a judge prompt of MIA-Bench")
    scores = [
        int(check(component, response[1]) * weight)
        for component, weight in zip(components, weights, strict=True)
    ]
    parts = [
        f"score of component {i}: {score}/{weight}"
        for i, (score, weight) in enumerate(zip(scores, weights, strict=True), start=1)
    ]
    total = f"total score: {sum(scores)}/{sum(weights)}"
    return ", ".join([*parts, total]) + f". Graded by rules ({ABOUT})."


def choose(options: dict[str, str], response: str) -> str:
    """Return the letter of the one option that a response names in whole words, or Z."""
    said = f" {' '.join(_words(response))} "
    named = [
        letter
        for letter, option in options.items()
        if _words(option) and f" {' '.join(_words(option))} " in said
    ]
    return named[0] if len(named) == 1 else "Z"


def agree(response: str) -> str:
    """Return No where a response negates, Yes where it affirms, else Unknown."""
    text = response.lower()
    if re.search(r"\b(no|not|none|never|nothing|cannot|\w+n't)\b", text):
        return "No"
    return "Yes" if re.search(r"\b(yes|there (is|are)|it is|correct|true)\b", text) else "Unknown"


def reply(prompt: str) -> str:
    """Answer a prompt of VLMEvalKit's judges: a choice, yes or no, or `grade`.

    The first two are vlmeval's `build_prompt` (dataset.utils.multiple_choice) and
    `YOrN_match_prompt` (dataset.utils.yorn). Raises UnknownComponent for any other prompt.
    """
    asked = prompt.partition("Example 3: \n")[2]
    choice = re.fullmatch(
        r"Question: .*\?\nOptions: There are several options: \n((?:[A-Z]\. .*\n)+)"
        r"\nAnswer: (.*)\nYour output: ",
        asked,
        re.DOTALL,
    )
    if choice:
        lines = re.findall(r"^([A-Z])\. (.*)$", choice[1], re.MULTILINE)
        return choose(dict(lines), choice[2])
    yes_no = re.fullmatch(r"Question: .*\?\nAnswer: (.*)\nYour output: ", asked, re.DOTALL)
    return agree(yes_no[1]) if yes_no else grade(prompt)


def _prompt_of(body: dict) -> str:
    """The text of the last user message; content is a string or a list of parts."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise UnknownComponent("the request has no messages")
    content = messages[-1].get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(part.get("text", "") for part in parts if part.get("type") == "text")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent; requests carry pictures and there is nothing to tell."""

    def _send(self, status: int, body: dict) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _refuse(self, status: int, message: str) -> None:
        self._send(status, {"error": {"message": message, "type": "invalid_request_error"}})

    def do_GET(self) -> None:
        if self.path.rstrip("/") != "/v1/models":
            return self._refuse(404, f"no such path: {self.path}")
        model = {"id": MODEL, "object": "model", "owned_by": "interlace", "description": ABOUT}
        self._send(200, {"object": "list", "data": [model]})
        return None

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if length > LARGEST_REQUEST:
            self.close_connection = True
            return self._refuse(413, f"{length} bytes is more than {LARGEST_REQUEST}")
        raw = self.rfile.read(length)
        if self.path.rstrip("/") != "/v1/chat/completions":
            return self._refuse(404, f"no such path: {self.path}")
        try:
            answer = reply(_prompt_of(json.loads(raw)))
        except json.JSONDecodeError as error:
            return self._refuse(400, f"the request is not JSON: {error}")
        except UnknownComponent as error:
            return self._refuse(400, str(error))
        message = {"role": "assistant", "content": answer}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        self._send(
            200,
            {
                "id": "demo",
                "object": "chat.completion",
                "created": 0,
                "model": MODEL,
                "choices": [choice],
                "usage": usage,
            },
        )
        return None


def make_server(port: int = 0) -> ThreadingHTTPServer:
    """A server on the loopback address; port 0 lets the system choose (`server_port`)."""
    server = ThreadingHTTPServer(("127.0.0.1", port), _Handler)
    server.daemon_threads = True
    return server


@contextlib.contextmanager
def running_grader() -> Iterator[tuple[str, str]]:
    """Serve in the background; yields (base URL ending in /v1, model name)."""
    server = make_server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", MODEL
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def main() -> None:
    """Serve until interrupted; the port is written to --port-file once requests are taken."""
    parser = argparse.ArgumentParser(description=ABOUT)
    parser.add_argument("--port-file", type=Path, required=True)
    args = parser.parse_args()
    server = make_server()

    def stop(*_: object) -> None:
        threading.Thread(target=server.shutdown).start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    write_text(args.port_file, f"{server.server_port}\n")
    server.serve_forever()
    server.server_close()


if __name__ == "__main__":
    main()
