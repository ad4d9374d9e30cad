"""The drawn samples as conversations: records read lazily, and their chat messages."""

import bisect
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from interlace.data.images import decode_image
from interlace.errors import InputError

CACHE_BYTES = 256 * 1024**2


@dataclass(frozen=True)
class Record:
    """One sample: its images (RGB) and its turns, each `{"user": ..., "assistant": ...}`."""

    id: str
    subset: str
    images: list[Image.Image]
    turns: list[dict[str, str]]


def to_messages(record: Record) -> list[dict[str, Any]]:
    """Return `record` as chat messages: all images, then the text, in the first user turn."""
    messages: list[dict[str, Any]] = []
    for number, turn in enumerate(record.turns):
        images = record.images if number == 0 else []
        content = [{"type": "image", "image": image} for image in images]
        messages.append({"role": "user", "content": [*content, _text(turn["user"])]})
        messages.append({"role": "assistant", "content": [_text(turn["assistant"])]})
    return messages


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


class SampleDataset:
    """The samples under `<samples>/<subset>/*.parquet` by index; images are decoded on access.

    Subsets in the order of their names, rows in the order of the files. Row groups are read when
    first needed and kept up to `CACHE_BYTES`, so a shuffled pass over a set larger than memory
    works. It holds no open file and can be sent to worker processes.
    """

    def __init__(self, samples: str | Path, ids: set[str] | None = None) -> None:
        """Index the samples, only those named in `ids` if that is given.

        Raises `InputError` for a folder without samples, or where ids are missing from it.
        """
        self._groups: list[tuple[Path, int]] = []
        self._rows: list[tuple[int, int]] = []  # (position in _groups, row in that row group)
        self.ids: list[str] = []
        self.subsets: list[str] = []
        for path in sorted(Path(samples).glob("*/*.parquet")):
            self._index(path, ids)
        if not self.ids:
            raise InputError(f"{samples}: holds no samples; run the stage `samples` first")
        if ids is not None and len(self.ids) != len(ids):
            missing = min(ids - set(self.ids))
            raise InputError(f"{samples}: sample {missing} of the manifest is missing; draw again")
        self._cache: OrderedDict[int, pa.Table] = OrderedDict()

    def _index(self, path: Path, ids: set[str] | None) -> None:
        try:
            file = pq.ParquetFile(path)
            names = file.read(columns=["id"])["id"].to_pylist()
        except (pa.ArrowInvalid, OSError, KeyError) as error:
            raise InputError(f"{path}: not a readable samples file ({_line(error)})") from error
        ends: list[int] = []
        for group in range(file.num_row_groups):
            ends.append((ends[-1] if ends else 0) + file.metadata.row_group(group).num_rows)
        first_group = len(self._groups)
        self._groups += [(path, group) for group in range(file.num_row_groups)]
        for row, name in enumerate(names):
            if ids is None or name in ids:
                group = bisect.bisect_right(ends, row)
                start = ends[group - 1] if group else 0
                self._rows.append((first_group + group, row - start))
                self.ids.append(name)
                self.subsets.append(path.parent.name)

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Record:
        """Return one record; raises IndexError, or `ImageDecodeError` for a damaged image."""
        group, row = self._rows[index]
        values = self._table(group).slice(row, 1).to_pylist()[0]
        return Record(
            id=self.ids[index],
            subset=self.subsets[index],
            images=[decode_image(image["bytes"]) for image in values["images"] or []],
            turns=[{key: turn[key] for key in ("user", "assistant")} for turn in values["texts"]],
        )

    def _table(self, group: int) -> pa.Table:
        if group not in self._cache:
            path, number = self._groups[group]
            try:
                table = pq.ParquetFile(path).read_row_group(number, columns=["images", "texts"])
            except (pa.ArrowException, OSError) as error:
                raise InputError(
                    f"{path}: row group {number} is not readable ({_line(error)}); draw again"
                ) from error
            self._cache[group] = table
            while (
                len(self._cache) > 1 and sum(t.nbytes for t in self._cache.values()) > CACHE_BYTES
            ):
                self._cache.popitem(last=False)
        self._cache.move_to_end(group)
        return self._cache[group]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": OrderedDict()}


def load_records(samples: str | Path, calibration_only: bool = False) -> SampleDataset:
    """Return the samples below `samples` to fine-tune on, or those marked for calibration.

    The former are all kept ones, without the latter where they are held out. Raises `InputError`
    where the manifest or the samples are missing, or no row is marked.
    """
    if not calibration_only:
        return SampleDataset(samples, finetune_ids(samples))
    ids = _marked(samples, "calibration")
    if not ids:
        raise InputError(
            f"{Path(samples) / 'manifest.parquet'}: no sample is marked for calibration; "
            "raise data.calibration_fraction or data.fraction"
        )
    return SampleDataset(samples, ids)


def finetune_ids(samples: str | Path) -> set[str] | None:
    """Return the ids that `<samples>/manifest.parquet` marks for fine-tuning.

    None where it tells of no difference. Raises `InputError` where it is missing or torn.
    """
    return _marked(samples, "finetune")


def _marked(samples: str | Path, column: str) -> set[str] | None:
    """Return the ids of the manifest's rows with a true `column`; None where there is no such."""
    path = Path(samples) / "manifest.parquet"
    try:
        if column not in pq.read_schema(path).names:
            return None
        table = pq.read_table(path, columns=["id", column])
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; run the stage `samples` first") from None
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable manifest ({_line(error)})") from error
    return set(table.filter(table[column])["id"].to_pylist())


def _line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
