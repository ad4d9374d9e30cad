"""Predictions on disk: each process appends to a file of its own, and all files count."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_NAME = re.compile(r"predictions-(\d+)-(\d+)\.jsonl")


@dataclass(frozen=True)
class Prediction:
    """What a model answered to one row.

    `new_tokens` counts what was generated, the token that ended it included; `finished` is False
    where `max_new_tokens` cut the answer. Both are None where the engine does not tell.
    """

    text: str
    new_tokens: int | None
    finished: bool | None


class PredictionStore:
    """The predictions of one benchmark, in `predictions-<attempt>-<replica>.jsonl` of a folder.

    Every line is a batch, written and synchronised before the next, so that a kill costs at most
    what was at work. An attempt is one start of the generation, by one or several replicas; each
    writes its own file, and no file is written by a later attempt. Rows are found by their index,
    whichever file they are in, so that an attempt may have any number of replicas.
    """

    def __init__(self, folder: Path, attempt: int | None = None, replica: int = 0) -> None:
        """Read what is in `folder`, and add to the file of `replica` in `attempt` (None: the next).

        A line that was being written when its process died is dropped, with a printed line; its
        rows count as missing.
        """
        self.folder = Path(folder)
        self.predictions: dict[str, Prediction] = {}
        self._seconds: dict[tuple[int, int], float] = {}
        self._handle: BinaryIO | None = None
        attempts = [0]
        for path in sorted(self.folder.glob("predictions-*.jsonl")):
            if match := _NAME.fullmatch(path.name):
                of = int(match[1]), int(match[2])
                attempts.append(of[0])
                self._read(path, of)
        self.attempt = attempt or max(attempts) + 1
        self.replica = replica

    @property
    def seconds(self) -> float:
        """Wall time of generation: of each attempt the replica that took longest, all attempts."""
        longest: dict[int, float] = {}
        for (attempt, _), seconds in self._seconds.items():
            longest[attempt] = max(longest.get(attempt, 0.0), seconds)
        return sum(longest.values())

    def _read(self, path: Path, of: tuple[int, int]) -> None:
        with path.open("rb") as handle:
            for number, line in enumerate(handle, 1):
                batch = _batch(line)
                if batch is None:
                    print(f"{path}: line {number} is torn; its rows are generated again")
                else:
                    self._take(*batch, of)

    def _take(self, batch: dict[str, Prediction], seconds: float, of: tuple[int, int]) -> None:
        self.predictions.update(batch)
        self._seconds[of] = self._seconds.get(of, 0.0) + seconds

    def add(self, predictions: dict[str, Prediction], seconds: float) -> None:
        """Append a batch, generated in `seconds`, and wait until it is on the disk."""
        rows = {k: [v.text, v.new_tokens, v.finished] for k, v in predictions.items()}
        if self._handle is None:
            name = f"predictions-{self.attempt:03d}-{self.replica}.jsonl"
            # Exclusive: an attempt's file that is there already would be another process' own.
            self._handle = (self.folder / name).open("xb")
        line = json.dumps({"seconds": round(seconds, 4), "predictions": rows})
        self._handle.write(line.encode() + b"\n")
        self._handle.flush()
        os.fsync(self._handle.fileno())
        self._take(predictions, seconds, (self.attempt, self.replica))

    def close(self) -> None:
        """Close the file that was added to; what is read stays."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None
            self.attempt += 1


def _batch(line: bytes) -> tuple[dict[str, Prediction], float] | None:
    """Return a line's predictions and seconds; None if it is not a whole line of `add`."""
    if not line.endswith(b"\n"):  # torn even where it reads well
        return None
    try:
        batch = json.loads(line)
    except ValueError:
        return None
    if not isinstance(batch, dict):
        return None
    rows, seconds = batch.get("predictions"), batch.get("seconds")
    if not isinstance(rows, dict) or not isinstance(seconds, int | float):
        return None
    if not all(isinstance(row, list) and len(row) == 3 for row in rows.values()):
        return None
    read = {index: Prediction(*row) for index, row in rows.items()}
    return (read, seconds) if all(map(_has_types, read.values())) else None


def _has_types(read: Prediction) -> bool:
    is_count = read.new_tokens is None or type(read.new_tokens) is int  # True is an int, too
    return isinstance(read.text, str) and is_count and isinstance(read.finished, bool | None)
