"""Twelve made-up TSVs with the columns of VLMEvalKit's datasets, a few rows each."""

import base64
import contextlib
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

COLORS = ("red", "green", "blue", "yellow")
SIZES = {"OCRBench": (96, 64), "HRBench4K": (192, 160), "HRBench8K": (224, 192)}
DATASETS = (
    *("AI2D_TEST", "ChartQA_TEST", "OCRBench", "TextVQA_VAL", "MMBench_DEV_EN_V11", "POPE"),
    *("RealWorldQA", "HRBench4K", "HRBench8K", "VStarBench", "MIA-Bench", "ScienceQA_TEST"),
)


def make_tiny_benchmarks(root: Path, questions: int = 2, datasets=DATASETS, seed: int = 0) -> Path:
    """Write `<dataset>.tsv` with `questions` questions each below `root`; return `root`.

    MMBench and HR-Bench have four rows per question. The answer is the colour of the picture, or
    yes; option letters rotate.
    """
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    for number, dataset in enumerate(datasets):
        rng = np.random.default_rng([seed, number])
        rows = [row for q in range(questions) for row in _rows(dataset, q, rng)]
        for index, row in enumerate(rows):
            row.setdefault("index", index)
        pd.DataFrame(rows).to_csv(root / f"{dataset}.tsv", sep="\t", index=False)
    return root


def picture(color: str, size: tuple[int, int], rng: np.random.Generator) -> str:
    """Return a base64 PNG: noise tinted with a colour."""
    pixels = rng.integers(0, 60, (size[1], size[0], 3))
    tint = {"red": (190, 0, 0), "green": (0, 190, 0), "blue": (0, 0, 190), "yellow": (190, 190, 0)}
    buffer = io.BytesIO()
    Image.fromarray((pixels + tint[color]).astype(np.uint8)).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _rows(dataset: str, question: int, rng: np.random.Generator) -> list[dict[str, object]]:
    color = COLORS[int(rng.integers(4))]
    size = SIZES.get(dataset, (64 + 32 * (question % 2), 64))
    base = {"image": picture(color, size, rng), "question": "What is the color of the picture?"}
    if dataset == "ChartQA_TEST":
        return [{**base, "answer": color, "split": ("test_human", "test_augmented")[question % 2]}]
    if dataset == "TextVQA_VAL":
        return [{**base, "answer": str([color] * 10)}]
    if dataset == "OCRBench":
        return [{**base, "answer": str([color]), "category": "Regular Text Recognition"}]
    if dataset == "POPE":
        category = ("random,popular,adversarial", "random")[question % 2]
        shown = color if question % 2 == 0 else COLORS[COLORS.index(color) - 1]
        return [
            {
                **base,
                "question": f"Is the picture {shown}?",
                "answer": "Yes" if shown == color else "No",
                "category": category,
            }
        ]
    if dataset == "MIA-Bench":
        return [
            {
                **base,
                "question": "Name the color of the picture, in capital letters.",
                "num_of_component": 2,
                "components": str([f"names the colour {color}", "is in capital letters"]),
                "component_weight": str([6, 4]),
                "component_type": str(["describe", "format"]),
            }
        ]
    rotations = 4 if dataset.startswith(("MMBench", "HRBench")) else 1
    return [_choice(dataset, base, color, question, turn) for turn in range(rotations)]


def _choice(
    dataset: str, base: dict[str, object], color: str, question: int, turn: int
) -> dict[str, object]:
    options = COLORS[(question + turn) % 4 :] + COLORS[: (question + turn) % 4]
    row = {
        **base,
        "answer": "ABCD"[options.index(color)],
        **dict(zip("ABCD", options, strict=True)),
    }
    if dataset == "MMBench_DEV_EN_V11":
        row |= {"index": question + turn * 1_000_000, "hint": None, "split": "dev"}
        row |= {"category": "color", "l2-category": "attribute_reasoning"}
        if turn:
            row["image"] = str(question)  # the index of the row that has the picture
    if dataset.startswith("HRBench"):
        row |= {"category": ("single", "cross")[question % 2], "cycle_category": str(turn)}
    if dataset in ("VStarBench", "ScienceQA_TEST"):
        row["category"] = "color"
    if dataset == "ScienceQA_TEST":
        row["hint"] = "The picture has one color."
    return row


def take_for_long(monkeypatch) -> None:
    """Let vlmeval take every TSV for one above 1 GB, and decode its pictures in this process."""
    from interlace.evaluation import kit

    kit.load_vlmeval()
    monkeypatch.setattr("vlmeval.dataset.image_base.file_size", lambda *_: 2)
    monkeypatch.setattr("vlmeval.smp.file.mp.Pool", lambda _: ThreadPool(1))


class GraderHandler(BaseHTTPRequestHandler):
    """An OpenAI-compatible stub: answers `server.answer`, remembers keys and the number of calls."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._reply(200, {"data": [{"id": "stub-grader"}]})

    def do_POST(self) -> None:
        self.server.keys.add(self.headers["Authorization"])
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.models.add(request["model"])
        self.server.calls += 1
        answer = self.server.answer(self.server.calls)
        if answer is None:
            self._reply(400, {"error": {"message": "cannot grade this"}})
        else:
            self._reply(200, {"choices": [{"message": {"content": answer}}]})

    def _reply(self, status: int, body: dict) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


GRADE = "score of component 1: 3/6, score of component 2: 2/4, total score: 5/10. It is so."


@contextlib.contextmanager
def stub_grader(answer=lambda call: GRADE):
    """Run a grader on loopback; yield the server, whose address is `server.base_url`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), GraderHandler)
    server.answer, server.keys, server.models, server.calls = answer, set(), set(), 0
    server.base_url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
