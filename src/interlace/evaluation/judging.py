"""The judge that vlmeval's evaluate() talks to: its prompts and its reading, our calls.

vlmeval's own client swallows every error, retries without a bound on the time, logs its key and
takes a failure's text for an answer; where a choice cannot be read it draws one at random. Here
`build_judge` is replaced for the time of a scoring: prompts, pictures and the reading of replies
stay vlmeval's, calls are `grader_client`'s, and replies that can be read are kept on disk.
"""

import base64
import contextlib
import functools
import io
import itertools
import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from interlace.evaluation import cost
from interlace.evaluation.benchmarks import Benchmark
from interlace.evaluation.grader_client import CallFailed
from interlace.evaluation.grading import Grader
from interlace.evaluation.scores import total_grade
from interlace.io import digest
from interlace.provenance import versions

UNREADABLE_CALLS = 10
"""So many calls in a row whose reply cannot be read, or that are refused, end the others as well."""
_HOTTEST = 1.0  # temperature of further tries: 0.5, then this
_SCORE = re.compile(
    r"(?:score of component (\d+)|total score)[*_\s]*:[*_\s]*(\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)",
    re.IGNORECASE,
)
_SEPARATOR = re.compile(r"[\s,;.*_-]*(?:and\s+)?(?:the\s+)?[*_]*", re.IGNORECASE)
_NOTHING = ("Z", "Unknown")  # a grader's honest answer that there is no choice, or no yes or no


@dataclass(frozen=True)
class Question:
    """What the grader is asked about the row `index`.

    `read` returns what vlmeval reads out of a reply: a grade, an option (Z: none of them), yes, no
    or unknown; None if it cannot read it. `told` returns the reply as vlmeval gets it.
    """

    index: str
    key: str
    read: Callable[[str], Any]
    call: cost.Call
    told: Callable[[str], str] = str


def questions(benchmark: Benchmark, dataset: Any, table: Path, model: str) -> list[Question]:
    """Return what evaluate() may ask the grader about the predictions in `table`, by its own code.

    MIA-Bench: every row. Otherwise the rows that exact matching cannot read; of MMBench only those
    of questions which are not decided without them.
    """
    from vlmeval.smp import load

    data = load(str(table))
    if benchmark.needs_grader:
        return list(_grades(dataset, data, model))
    data["prediction"] = [str(text) for text in data["prediction"]]
    if benchmark.name == "POPE":
        return list(_yes_no(data, model))
    return list(_choices(benchmark, dataset, _with_kit_columns(data), model))


def _grades(dataset: Any, data: pd.DataFrame, model: str) -> Iterator[Question]:
    from vlmeval.dataset.miabench import generate_prompt

    images = dict(zip(dataset.data["index"], dataset.data["image"], strict=True))
    for _, row in data.iterrows():
        prompt, image = generate_prompt(row), images[row["index"]]
        message = [
            {"type": "text", "value": prompt},
            {"type": "image", "value": f"data:image/jpeg;base64,{image}"},
        ]
        number, kinds = int(row["num_of_component"]), row["component_type"]
        form = {"components": number, "component_type": kinds}
        read, told = (functools.partial(each, **form) for each in (grade_of, grade_told))
        call = cost.Call(len(prompt), _picture(image).size, "grade")
        yield Question(str(row["index"]), _key(model, message), read, call, told)


def _yes_no(data: pd.DataFrame, model: str) -> Iterator[Question]:
    from vlmeval.dataset.utils.yorn import YOrN_Extraction, YOrN_match_prompt

    for _, row in data.iterrows():
        if YOrN_Extraction(row["prediction"]) == "Unknown":
            prompt = YOrN_match_prompt(row)
            call = cost.Call(len(prompt), None, "extract")
            yield Question(str(row["index"]), _key(model, prompt), yes_no_of, call)


def _choices(
    benchmark: Benchmark, dataset: Any, data: pd.DataFrame, model: str
) -> Iterator[Question]:
    from vlmeval.dataset.utils import multiple_choice as kit

    if benchmark.name == "MMBench":
        truth = dict(zip(dataset.data["index"], dataset.data["answer"], strict=True))
        data = data.assign(GT=[truth[index] for index in data["index"]])
        groups = [group for _, group in data.groupby(data["index"] % 1_000_000, sort=False)]
        open_ones = [g for g in groups if kit.prefetch_circular_group(g) is None]
        data = pd.concat(open_ones) if open_ones else data.iloc[:0]
    for _, row in data.iterrows():
        if kit.prefetch_answer(row):
            continue
        recorder = _Recorder()
        kit.extract_answer_from_item(recorder, row, benchmark.dataset)
        call = cost.Call(len(recorder.prompt), None, "extract")
        read = functools.partial(option_of, row)
        yield Question(str(row["index"]), _key(model, recorder.prompt), read, call)


class _Recorder:
    """Takes the place of a judge to see the prompt that it would get."""

    def generate(self, prompt: str) -> str:
        self.prompt = prompt
        return "Z"


def _with_kit_columns(data: pd.DataFrame) -> pd.DataFrame:
    """Return a table of choices with its columns named as evaluate() names them."""
    upper = set("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    return data.rename(columns={name: name if name in upper else name.lower() for name in data})


def grade_of(raw: Any, components: int, component_type: Any) -> float | None:
    """Return the total (0-1) of a grader's reply, None if it cannot be read.

    `components`: how many scores have to come before the total. vlmeval reads it, out of what
    `grade_told` returns.
    """
    return _kit_grade(grade_told(raw, components, component_type), components, component_type)


def grade_told(raw: Any, components: int, component_type: Any) -> str:
    """Return a reply as vlmeval can read it: as it is if it can, else its scores in the form asked for.

    Only how they are written changes: with decimals (2.5/6 becomes 5/12), in capitals, set in bold,
    or one a line. They have to come in their order, with nothing in between. A reply without them
    stays as it is.
    """
    raw = str(raw)
    if _kit_grade(raw, components, component_type) is not None:
        return raw
    found = list(_SCORE.finditer(raw))[: components + 1]
    names = [(match[1] or "total").lower() for match in found]
    between = [raw[a.end() : b.start()] for a, b in itertools.pairwise(found)]
    if names != [*map(str, range(1, components + 1)), "total"] or not all(
        _SEPARATOR.fullmatch(text) for text in between
    ):
        return raw
    if any(float(match[3]) == 0 for match in found):
        return raw
    shares = [Fraction(match[2]) / Fraction(match[3]) for match in found]
    written = [f"{share.numerator}/{share.denominator}" for share in shares]
    scores = [f"score of component {i}: {text}, " for i, text in enumerate(written[:-1], 1)]
    return f"{''.join(scores)}total score: {written[-1]}. {raw}"


def _kit_grade(raw: Any, components: int, component_type: Any) -> float | None:
    total = total_grade(raw, component_type)
    scores = str(raw).split(".")[0].count(",")
    good = total is not None and 0 <= total <= 1 and "total score" in str(raw)
    return total if good and components == scores else None


def option_of(row: Any, reply: str) -> str | None:
    """Return the option that vlmeval reads out of a reply (Z: none of them), None if it cannot."""
    from vlmeval.dataset.utils.multiple_choice import build_choices, can_infer

    return can_infer(reply, build_choices(row)) or None


def yes_no_of(reply: str) -> str | None:
    """Return Yes, No or Unknown as the prompt allows them, None if vlmeval can read neither."""
    from vlmeval.dataset.utils.yorn import YOrN_Extraction

    found = YOrN_Extraction(reply)
    return found if found != "Unknown" or "unknown" in reply.lower() else None


def unparsed(asked: Sequence[Question], replies: dict[str, str]) -> int:
    """Return about how many rows of `asked` the grader said that there is no choice, or yes or no."""
    return sum(q.key in replies and q.read(replies[q.key]) in _NOTHING for q in asked)


def prompt_version(benchmark: Benchmark) -> str:
    """Return VLMEvalKit's version and a digest of the prompts that it sends about a benchmark."""
    if benchmark.needs_grader:
        from vlmeval.dataset.miabench import generate_prompt

        row = {"question": "{q}", "prediction": "{p}", "component_weight": "[1, 2, 3, 4, 5]"}
        row["components"] = "['{1}', '{2}', '{3}', '{4}', '{5}']"
        prompts = [generate_prompt({**row, "num_of_component": n}) for n in range(1, 6)]
    elif benchmark.name == "POPE":
        from vlmeval.dataset.utils.yorn import YOrN_match_prompt

        prompts = [YOrN_match_prompt({"question": "{q}", "prediction": "{p}"})]
    else:
        from vlmeval.dataset.utils.multiple_choice import build_prompt, build_prompt_cn

        prompts = [build("{q}", "{o}", "{p}") for build in (build_prompt, build_prompt_cn)]
    return f"vlmeval {versions()['vlmeval']}, prompts {digest(prompts)}"


class Replies:
    """A grader's replies that could be read, kept in a file that a kill cannot spoil.

    `unreadable` counts the others, over all attempts.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self.found: dict[str, str] = {}
        self.unreadable = 0
        for line in path.read_bytes().splitlines() if path.exists() else ():
            with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):  # torn
                entry = json.loads(line)
                if entry.get("unreadable") is True:
                    self.unreadable += 1
                elif isinstance(entry["key"], str) and isinstance(entry["reply"], str):
                    self.found[entry["key"]] = entry["reply"]

    def add(self, key: str, reply: str) -> None:
        """Keep a reply, durably."""
        self._write({"key": key, "reply": reply})
        self.found[key] = reply

    def add_unreadable(self, key: str) -> None:
        """Count a reply that cannot be read, durably."""
        self._write({"key": key, "unreadable": True})

    def _write(self, entry: dict[str, Any]) -> None:
        line = json.dumps(entry)
        with self._lock, self._path.open("a+b") as handle:
            torn = handle.seek(0, os.SEEK_END) and not _ends_a_line(handle)
            handle.write((b"\n" if torn else b"") + line.encode() + b"\n")
            handle.flush()
            os.fsync(handle.fileno())
            self.unreadable += "unreadable" in entry


def _ends_a_line(handle: Any) -> bool:
    handle.seek(-1, os.SEEK_END)
    return handle.read(1) == b"\n"


class Judge:
    """What `build_judge` returns to evaluate(): answers from what is kept, else asks the grader.

    A question is asked once, at temperature 0: where vlmeval asks again (a choice three times, yes
    or no five times, at rising temperatures), it gets the same reply. Only a grade of MIA-Bench that
    cannot be read, which no rule could replace, is asked for again, up to `Grader.retries` times at
    rising temperatures. `UNREADABLE_CALLS` bounds what
    a grader that refuses can cost, `Grader.budget` what one that is billed can.

    Afterwards `replies` holds, by a question's key, what was said, `failures` why a call brought
    nothing, `calls` how many tries were sent and not answered with an error.
    """

    def __init__(self, grader: Grader, asked: Sequence[Question], kept: Replies) -> None:
        from vlmeval.api import OpenAIWrapper

        self._grader, self._kept = grader, kept
        self._client = grader.client()
        self._questions = {question.key: question for question in asked}
        self._turns = {key: threading.Lock() for key in self._questions}
        self._lock, self._unreadable = threading.Lock(), 0
        # It only puts messages together; the key stays here.
        self._kit = OpenAIWrapper(grader.model, key="-", api_base="http://localhost", verbose=False)
        self.replies: dict[str, str] = {}
        self.failures: dict[str, CallFailed] = {}
        self.calls = 0

    def working(self) -> bool:
        """Return that the grader answers, which `grading.connect` has seen."""
        return True

    def generate(self, message: Any, **_: Any) -> str:
        """Return the grader's reply to a prompt, or to a prompt with a picture.

        The first reply stands, as the first failure does, whatever temperature is given later.
        Raises `CallFailed`.
        """
        question = self._questions[_key(self._grader.model, message)]
        key = question.key
        with self._turns[key]:  # two rows may ask the same
            if key in self.failures:
                raise self.failures[key]
            if key not in self.replies:
                reply = self._kept.found.get(key)
                if reply is None or question.read(reply) is None:
                    reply = self._ask(question, message)
                self.replies[key] = reply
            return question.told(self.replies[key])

    def _ask(self, question: Question, message: Any) -> str:
        payload, charge = self._payload(message), self._charge(question.call)
        for tried in range(1 + (self._grader.retries if question.call.kind == "grade" else 0)):
            if tried and self._client.ended:
                break  # the reply says more than why nothing is asked any more
            if tried and "temperature" in payload:
                payload["temperature"] = min(0.5 * tried, _HOTTEST)
            try:
                reply = self._client.ask(payload, charge)
            except CallFailed as failed:
                self.failures[question.key] = failed
                if not (failed.again or failed.everywhere):
                    self._bound(readable=False)
                raise
            if question.read(reply) is not None:
                self._kept.add(question.key, reply)
                self._bound(readable=True)
                break
            self._kept.add_unreadable(question.key)
            self._bound(readable=False)
        return reply

    def _charge(self, call: cost.Call) -> Callable[[int], None]:
        """Return what adds the price of `call`'s tries to the job's account."""
        grader = self._grader
        price = cost.estimate([call], grader.model, grader.price).cost or 0.0

        def charge(tries: int) -> None:
            if grader.billed and not grader.account.add(tries * price, grader.budget):
                raise CallFailed(
                    f"the calls asked in this job are estimated at {grader.account.spent:.2f}, "
                    "further tries included, and one more would pass evaluation.grader.budget "
                    f"({grader.budget:g}); raise it",
                    everywhere=True,
                )
            with self._lock:
                self.calls += tries

        return charge

    def _bound(self, readable: bool) -> None:
        """End the calls after too many in a row that brought nothing readable."""
        with self._lock:
            self._unreadable = 0 if readable else self._unreadable + 1
            over = self._unreadable >= UNREADABLE_CALLS
        if over:
            self._client.end(
                CallFailed(f"not asked after {UNREADABLE_CALLS} unreadable replies in a row")
            )

    @property
    def ended(self) -> str | None:
        """Why the grader was not asked any more; None if it was to the end."""
        return self._client.ended.reason if self._client.ended else None

    def end(self) -> None:
        """Let the calls that are still to come fail at once."""
        self._client.end(CallFailed("interrupted"))

    def ungraded(self, asked: Sequence[Question]) -> list[tuple[str, str]]:
        """Return (index, reason) of every row that was asked about and got nothing readable."""
        found = []
        for question in asked:
            reply = self.replies.get(question.key)
            if question.key in self.failures:
                found.append((question.index, self.failures[question.key].reason))
            elif reply is not None and question.read(reply) is None:
                shown = " ".join(reply.split())
                found.append((question.index, f"it answered '{shown[:120]}', which cannot be read"))
        return found

    def _payload(self, message: Any) -> dict[str, Any]:
        """Return the request that vlmeval's client would send first."""
        parts = [{"type": "text", "value": message}] if isinstance(message, str) else message
        # vlmeval would write the picture to the shared folder of data first.
        parts = [
            {**p, "value": io.BytesIO(_decoded(p["value"].partition(",")[2]))}
            if p["type"] == "image"
            else p
            for p in parts
        ]
        kit, model = self._kit, self._grader.model
        payload = {"model": model, "messages": kit.prepare_inputs(parts)}
        if kit.is_max_completion_tokens:
            return {**payload, "max_completion_tokens": kit.max_tokens}
        if "gemini" in model:
            return {**payload, "temperature": 0, "reasoning_effort": "high"}
        return {**payload, "temperature": 0, "max_tokens": kit.max_tokens}


@contextlib.contextmanager
def judged_by(judge: Judge) -> Iterator[None]:
    """Let vlmeval's datasets get `judge` from `build_judge` within the block.

    An interrupt ends the judge's calls first: vlmeval would wait for all of them.
    """
    from vlmeval.dataset import image_mcq, image_yorn, miabench

    modules = (image_mcq, image_yorn, miabench)
    before, handler = [module.build_judge for module in modules], signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread() and callable(handler)

    def interrupted(number: int, frame: Any) -> None:
        judge.end()
        handler(number, frame)

    for module in modules:
        module.build_judge = lambda **_: judge
    if main:
        signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)
        for module, build in zip(modules, before, strict=True):
            module.build_judge = build


def _key(model: str, message: Any) -> str:
    return digest([model, message])


def _decoded(image: str) -> bytes:
    return base64.b64decode(image)


def _picture(image: str) -> Image.Image:
    return Image.open(io.BytesIO(_decoded(image)))
