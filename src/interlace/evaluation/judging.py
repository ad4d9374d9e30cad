"""The judge that vlmeval's evaluate() talks to: its prompts and its reading, our calls.

vlmeval's own client swallows every error, retries without a bound on the time, logs its key and
takes a failure's text for an answer; where a choice cannot be read it draws one at random. Here
`build_judge` is replaced for the time of a scoring: prompts, pictures and the reading of replies
stay vlmeval's, calls are `grader_client`'s, and replies that can be read are kept on disk.
"""

import contextlib
import io
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from interlace.evaluation import cost
from interlace.evaluation.grader_client import CallFailed
from interlace.evaluation.grading import Grader
from interlace.evaluation.questions import Question, decoded, question_key
from interlace.evaluation.replies import Replies

UNREADABLE_CALLS = 10
"""So many calls in a row whose reply cannot be read, or that are refused, end the others as well."""
_HOTTEST = 1.0  # temperature of further tries: 0.5, then this


class Judge:
    """What `build_judge` returns to evaluate(): answers from what is kept, else asks the grader.

    A question is asked once, at temperature 0: where vlmeval asks again (a choice three times, yes
    or no five times, at rising temperatures), it gets the same reply. Only a grade of MIA-Bench that
    cannot be read, which no rule could replace, is asked for again, up to `Grader.retries` times at
    rising temperatures. `UNREADABLE_CALLS` bounds what a grader that refuses can cost,
    `Grader.budget` what one that is billed can.

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
        question = self._questions[question_key(self._grader.model, message)]
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
            {**p, "value": io.BytesIO(decoded(p["value"].partition(",")[2]))}
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
