"""A sheet of examples: what Dense and a pruned model said to the same questions, and whether it counted.

A few samples per benchmark, those whose credit changed most first. Questions and pictures come from
the benchmarks' TSVs, answers and predictions from the outcomes beside each result.
"""

import ast
import base64
import binascii
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from interlace.data.images import ImageDecodeError, decode_image
from interlace.errors import InputError
from interlace.evaluation.benchmarks import Benchmark, get_benchmark
from interlace.evaluation.outcomes import read_outcomes_file
from interlace.io import digest, read_json
from interlace.reporting.timings import get_key, get_number

# A row of HR-Bench 8K holds a picture of megabytes; pandas keeps the text of a whole chunk.
_ROWS_AT_ONCE = 16
# VLMEvalKit's: a shorter cell is the index of the row that has the picture.
_LONGEST_REFERENCE = 64
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_THUMBNAIL = 256  # pixels of the longer side


@dataclass(frozen=True)
class Said:
    """What one model said; `hit` is its credit, None where a grader's answer could not be read."""

    text: str
    hit: float | None
    new_tokens: int | None
    finished: bool | None


@dataclass(frozen=True)
class Example:
    """One question with both predictions.

    `picture` is a JPEG of at most 256 pixels, `size` the width and height of the image itself.
    """

    index: str
    question: str
    hint: str
    options: dict[str, str]
    answer: str
    picture: bytes
    size: tuple[int, int]
    dense: Said
    pruned: Said


@dataclass(frozen=True)
class Comparison:
    """A benchmark's examples, the scores of Dense and the pruned model, and how many hits they share.

    `counts`: samples with full credit of `dense` alone, of `pruned` alone, of `both`, of `neither`.
    """

    benchmark: Benchmark
    examples: list[Example]
    scores: tuple[float, float]
    counts: dict[str, int]
    partial: bool
    grader: str | None
    max_new_tokens: int | None


def compare(
    dense: Sequence[Path], pruned: Sequence[Path], data_root: Path, samples: int
) -> list[Comparison]:
    """Return each benchmark's comparison with at most `samples` examples.

    `dense` and `pruned` are result files of the same benchmarks, their outcomes beside them;
    `data_root` holds the prepared benchmarks. Raises InputError where the two were not asked the
    same, or the TSV is not the one that they were asked from.
    """
    second = {path.stem: path for path in pruned}
    if [path.stem for path in dense] != list(second):
        raise InputError(
            f"{', '.join(path.stem for path in dense)} of Dense and {', '.join(second)} of the "
            "pruned model: not the same benchmarks; evaluate both on the same"
        )
    return [_compare(path, second[path.stem], data_root, samples) for path in dense]


def _compare(dense: Path, pruned: Path, data_root: Path, samples: int) -> Comparison:
    bodies = [read_json(path) for path in (dense, pruned)]
    benchmark = get_benchmark(get_key(bodies[0], "benchmark", dense))
    place = data_root / f"{benchmark.dataset}.json"
    md5 = get_key(read_json(place), "md5", place)
    for path, body in zip((dense, pruned), bodies, strict=True):
        if get_key(get_key(body, "tsv", path), "md5", path) != md5:
            raise InputError(
                f"{path}: made from another {benchmark.dataset}.tsv than the one in {data_root}; "
                "run the evaluation again"
            )
    tables = [read_outcomes_file(path.with_suffix(".parquet")) for path in (dense, pruned)]
    both = tables[0].merge(tables[1], on="index", suffixes=("_dense", "_pruned"))
    if not len(both) == len(tables[0]) == len(tables[1]):
        raise InputError(
            f"{pruned}: its samples are not those of {dense}; run both evaluations with the same "
            "evaluation.limit"
        )
    rows = choose(both, benchmark.name, samples)
    columns = read_rows(data_root / f"{benchmark.dataset}.tsv", [row["index"] for row in rows])
    dense_hit, pruned_hit = both["hit_dense"] >= 1, both["hit_pruned"] >= 1
    return Comparison(
        benchmark=benchmark,
        examples=[
            _example(row, columns[row["index"]], benchmark, data_root / f"{benchmark.dataset}.tsv")
            for row in rows
        ],
        scores=(get_number(bodies[0], "score", dense), get_number(bodies[1], "score", pruned)),
        counts={
            "dense": int((dense_hit & ~pruned_hit).sum()),
            "pruned": int((~dense_hit & pruned_hit).sum()),
            "both": int((dense_hit & pruned_hit).sum()),
            "neither": int((~dense_hit & ~pruned_hit).sum()),
        },
        partial=any(body.get("partial") for body in bodies),
        grader=(bodies[1].get("grader") or {}).get("model"),
        max_new_tokens=(bodies[0].get("generation") or {}).get("max_new_tokens"),
    )


def choose(both: pd.DataFrame, benchmark: str, samples: int) -> list[dict[str, Any]]:
    """Return the rows to show, at most one per question: what changed most comes first.

    Hits that were lost and won, in turns; then changes of credit, the larger first; then what did
    not change, other texts before equal ones. Which of several equals is decided by a digest, so
    that it is the same every time and not always the top of the file.
    """
    rows = both.assign(change=(both["hit_pruned"] - both["hit_dense"]).fillna(0.0))
    rows["same"] = rows["prediction_dense"] == rows["prediction_pruned"]
    rows["lot"] = [digest([benchmark, index]) for index in rows["index"]]
    rows["size"] = -rows["change"].abs()
    rows = rows.sort_values(["size", "same", "lot"]).drop_duplicates("question_dense")
    # The n-th lost and the n-th won stand together, before the (n+1)-th of either.
    rows["turn"] = rows.groupby(rows["change"].where(rows["size"] == -1, 0.0)).cumcount()
    rows.loc[rows["size"] > -1, "turn"] = 0
    rows = rows.sort_values(["size", "turn", "change", "same", "lot"])
    return rows.head(samples).to_dict("records")


def read_rows(tsv: Path, indices: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the TSV's rows with these indices, by index, their pictures filled in.

    Reads a few rows at a time, for a TSV may have gigabytes, and stops when it has all. InputError
    if a row is missing.
    """
    found = _find(tsv, set(indices))
    short = {row["image"] for row in found.values() if len(row["image"]) <= _LONGEST_REFERENCE}
    pictures = _find(tsv, short - set(found)) | found
    return {
        index: {**row, "image": pictures.get(row["image"], row)["image"]}
        for index, row in found.items()
    }


def _find(tsv: Path, indices: set[str]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    chunks: Iterator[pd.DataFrame] = pd.read_csv(
        tsv, sep="\t", dtype=str, keep_default_na=False, chunksize=_ROWS_AT_ONCE
    )
    with chunks:
        while len(found) < len(indices):
            chunk = next(chunks, None)
            if chunk is None:
                missing = sorted(indices - set(found))[0]
                raise InputError(f"{tsv}: no row has index {missing}, which was evaluated")
            wanted = chunk[chunk["index"].isin(indices)]
            found |= {row["index"]: row for row in wanted.to_dict("records")}
    return found


def _example(
    row: dict[str, Any], cells: dict[str, str], benchmark: Benchmark, tsv: Path
) -> Example:
    try:
        image = decode_image(base64.b64decode(cells["image"], validate=True))
    except (binascii.Error, ImageDecodeError) as error:
        raise InputError(
            f"{tsv}: the image of index {row['index']} does not decode ({error}); mend the row"
        ) from None
    options = {letter: cells[letter] for letter in _LETTERS if cells.get(letter)}
    return Example(
        index=row["index"],
        question=cells["question"],
        hint=cells.get("hint", ""),
        options=options,
        answer=_answer(cells, options, benchmark),
        picture=_thumbnail(image),
        size=image.size,
        dense=_said(row, "dense"),
        pruned=_said(row, "pruned"),
    )


def _thumbnail(image: Image.Image) -> bytes:
    small = image.copy()
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))  # which never enlarges
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=80)
    return buffer.getvalue()


def _answer(cells: dict[str, str], options: dict[str, str], benchmark: Benchmark) -> str:
    """Return the answer to read: an option's text with its letter, several texts with their number."""
    if benchmark.needs_grader:
        return "; ".join(_texts(cells["components"]))
    answer = cells["answer"]
    if answer in options:
        return f"{answer}. {options[answer]}"
    times = Counter(_texts(answer))
    return " | ".join(text if n == 1 else f"{text} (×{n})" for text, n in times.items())


def _texts(cell: str) -> list[str]:
    """Return the texts of a cell that holds a Python list, or the cell."""
    if not cell.startswith("["):
        return [cell]
    try:
        value = ast.literal_eval(cell)
    except (ValueError, SyntaxError):
        return [cell]
    return [str(item) for item in value] if isinstance(value, list) else [cell]


def _said(row: dict[str, Any], which: str) -> Said:
    hit, tokens, finished = (row[f"{key}_{which}"] for key in ("hit", "new_tokens", "finished"))
    return Said(
        text=row[f"prediction_{which}"],
        hit=None if pd.isna(hit) else float(hit),
        new_tokens=None if pd.isna(tokens) else int(tokens),
        finished=None if pd.isna(finished) else bool(finished),
    )
