"""What vlmeval's evaluate() would ask a grader about predictions: its prompts, by its own code."""

import base64
import functools
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from interlace.evaluation import cost
from interlace.evaluation.benchmarks import Benchmark
from interlace.evaluation.reading import grade_of, grade_told, option_of, yes_no_of
from interlace.io import digest
from interlace.provenance import versions

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
        yield Question(str(row["index"]), question_key(model, message), read, call, told)


def _yes_no(data: pd.DataFrame, model: str) -> Iterator[Question]:
    from vlmeval.dataset.utils.yorn import YOrN_Extraction, YOrN_match_prompt

    for _, row in data.iterrows():
        if YOrN_Extraction(row["prediction"]) == "Unknown":
            prompt = YOrN_match_prompt(row)
            call = cost.Call(len(prompt), None, "extract")
            yield Question(str(row["index"]), question_key(model, prompt), yes_no_of, call)


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
        yield Question(str(row["index"]), question_key(model, recorder.prompt), read, call)


class _Recorder:
    """Takes the place of a judge to see the prompt that it would get."""

    def generate(self, prompt: str) -> str:
        self.prompt = prompt
        return "Z"


def _with_kit_columns(data: pd.DataFrame) -> pd.DataFrame:
    """Return a table of choices with its columns named as evaluate() names them."""
    upper = set("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    return data.rename(columns={name: name if name in upper else name.lower() for name in data})


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


def question_key(model: str, message: Any) -> str:
    """Return what a question to the grader `model` is known by."""
    return digest([model, message])


def decoded(image: str) -> bytes:
    """Return the bytes of a picture in base64."""
    return base64.b64decode(image)


def _picture(image: str) -> Image.Image:
    return Image.open(io.BytesIO(decoded(image)))
