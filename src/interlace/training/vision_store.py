"""A folder of vision features: what it holds, what they were made of, and reading them.

Shapes: n image tokens of a sample, F features of a token, D hidden size of the decoder, I images of
a sample; see `interlace.training.vision_tower`.

    vision.json              what the features were made of, the chunks and their sizes
    index.parquet            a row per sample: its chunk, its tokens in there, its images' grids
    chunk000000.safetensors  `features` (N, F, D), the tokens of the chunk's samples in their order
"""

import hashlib
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open

from interlace.data.chat import Record, SampleDataset
from interlace.data.stamp import samples_digest
from interlace.errors import InputError
from interlace.io import atomic_path, digest, read_json
from interlace.provenance import versions
from interlace.stamps import WEIGHTS, file_stamps
from interlace.training.vision_tower import stand_in

RECORD, INDEX = "vision.json", "index.parquet"
_OPEN_FILES = 32  # chunks held open at once; each is a mapping, not memory
_TEXT_BYTES = 64 * 1024**2
_SAID = {
    "weights": "another vision tower",
    "tower": "a vision tower that is built otherwise",
    "images": "images of other settings",
    "dtype": "another number format",
    "samples": "other samples",
    "transformers": "another version of transformers",
}


def made_of(
    base: str | Path, processor: Any, dtype: str, samples: str | Path, ids: list[str]
) -> dict[str, Any]:
    """Return what the features of the samples `ids` depend on, without reading weights or images.

    `samples` is the folder of the samples; see `samples_digest`.
    """
    config = read_json(Path(base) / "config.json")
    images = {**processor.image_processor.to_dict()}
    return {
        "model_files": file_stamps(base, f"**/{WEIGHTS}"),
        "tower": digest([config.get("model_type"), config.get("vision_config")]),
        "images": json.loads(json.dumps(images, sort_keys=True, default=str)),
        "dtype": dtype,
        "samples": samples_digest(samples, ids),
        "transformers": versions()["transformers"],
    }


def tower_digest(base: str | Path) -> str:
    """Return the SHA-256 (hex, 16 characters) of names, shapes and bytes of the tower's weights.

    Raises `InputError` where the checkpoint holds none.
    """
    places: dict[str, Path] = {}
    for path in sorted(Path(base).glob(WEIGHTS)):
        with safe_open(path, "pt") as file:
            names = file.keys()
        places |= {name: path for name in names if "visual" in name.split(".")}
    if not places:
        raise InputError(f"{base}: holds no weights of a vision tower")
    found = hashlib.sha256()
    for name in sorted(places):
        with safe_open(places[name], "pt") as file:
            weight = file.get_tensor(name).contiguous()
        found.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        found.update(weight.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()[:16]


def features_digest(features: torch.Tensor) -> str:
    """Return the SHA-256 (hex, 16 characters) of the bytes of a sample's features."""
    data = features.contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(data).hexdigest()[:16]


def read_chunk(path: Path) -> dict[str, Any] | None:
    """Return what a chunk says of its samples (`run`, `samples`, `left_out`); None if it is torn."""
    try:
        with safe_open(path, "pt") as file:
            return json.loads(file.metadata()["interlace"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None


def write_index(folder: Path, chunks: list[tuple[str, dict[str, Any]]]) -> None:
    """Write `index.parquet` of chunks given by name and what `read_chunk` returned."""
    rows = []
    for number, (_, chunk) in enumerate(chunks):
        start = 0
        for name, tokens, grids, mark in chunk["samples"]:
            row = {"id": name, "chunk": number, "start": start, "tokens": tokens, "grids": grids}
            rows.append({**row, "digest": mark})
            start += tokens
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("chunk", pa.int32()),
            ("start", pa.int64()),
            ("tokens", pa.int32()),
            ("grids", pa.list_(pa.list_(pa.int32(), 3))),
            ("digest", pa.string()),
        ]
    )
    with atomic_path(folder / INDEX) as partial:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), partial)


class VisionStore:
    """The features of all samples of a folder, read where they lie; for any number of processes.

    `left_out` are the samples without features, as `interlace.training.vision_cache` notes them.
    """

    def __init__(self, folder: str | Path) -> None:
        """Read the index of a whole folder; raises `InputError` for any other. See `open`."""
        self._folder = Path(folder)
        self.record = read_json(self._folder / RECORD)
        if self.record.get("why_not"):
            raise InputError(
                f"{folder}: {self.record['why_not']}; set finetune.levers.vision to live"
            )
        self.left_out: list[dict[str, Any]] = self.record["left_out"]
        for name, size in self.record["chunks"]:
            path = self._folder / name
            if not path.is_file() or path.stat().st_size != size:
                raise InputError(
                    f"{path}: not whole ({size} bytes expected); {_remake(self._folder)}"
                )
        try:
            table = pq.read_table(self._folder / INDEX)
        except (pa.ArrowException, OSError) as error:
            said = str(error).splitlines()[0]
            raise InputError(
                f"{self._folder / INDEX}: not readable ({said}); {_remake(self._folder)}"
            ) from None
        self._row = {name: row for row, name in enumerate(table["id"].to_pylist())}
        self._chunk, self._start, self._tokens = (
            table[name].to_numpy() for name in ("chunk", "start", "tokens")
        )
        self._digests = table["digest"].to_pylist()
        grids = table["grids"].combine_chunks()
        self._images = grids.offsets.to_numpy()
        self._grids = grids.flatten().flatten().to_numpy().reshape(-1, 3)
        self._open: OrderedDict[int, Any] = OrderedDict()

    @classmethod
    def open(
        cls,
        folder: str | Path,
        base: str | Path,
        processor: Any,
        dtype: str,
        samples: str | Path,
        ids: list[str],
    ) -> "VisionStore":
        """Open the folder of the features that `base` gives for the samples `ids` below `samples`.

        `processor` has the run's image sizes, `dtype` is the name of the run's number format.
        Raises `InputError` where the folder is not whole, or was made of anything else. The weights
        are read only where their files' sizes and times differ from those recorded.
        """
        store = cls(folder)
        wanted = made_of(base, processor, dtype, samples, ids)
        recorded = store.record["made_of"]
        same_files = recorded["model_files"] == wanted.pop("model_files")
        if not same_files:
            wanted["weights"] = tower_digest(base)
        for key, value in wanted.items():
            if recorded[key] != value:
                told = _difference(recorded[key], value)
                raise InputError(f"{folder}: made of {_SAID[key]} ({told}); {_remake(folder)}")
        return store

    def __contains__(self, name: str) -> bool:
        """Say whether the sample was processed; one of text only was, and has no tokens."""
        return name in self._row

    def grids(self, name: str) -> np.ndarray:
        """Return the grids (I, 3) of the sample's images: frames, patches down, patches across."""
        row = self._known(name)
        return self._grids[self._images[row] : self._images[row + 1]]

    def features(self, name: str) -> torch.Tensor:
        """Return the sample's features (n, F, D), mapped from its file: not to be written to.

        Raises `InputError` where they are not the bytes that were written.
        """
        row = self._known(name)
        if not self._tokens[row]:
            return torch.empty(0)
        chunk, start = int(self._chunk[row]), int(self._start[row])
        features = self._file(chunk).get_slice("features")[start : start + int(self._tokens[row])]
        if features_digest(features) != self._digests[row]:
            raise InputError(
                f"{self._folder / self.record['chunks'][chunk][0]}: the features of sample {name} are"
                f" not those that were written; {_remake(self._folder)}"
            )
        return features

    def add_features(self, name: str, sample: dict[str, Any]) -> dict[str, Any]:
        """Return an encoded sample with its features as `pixel_values`, whatever was there.

        Raises `InputError` where the sample's images are not those that were stored.
        """
        grids = sample.get("image_grid_thw", np.empty((0, 3), np.int64))
        if not np.array_equal(np.asarray(grids), self.grids(name)):
            raise InputError(
                f"{self._folder}: sample {name} has images of other sizes than it had; "
                + _remake(self._folder)
            )
        return sample if not len(grids) else {**sample, "pixel_values": self.features(name)}

    def zeros(self, tokens: int) -> torch.Tensor:
        """Return features (tokens, F, D) of a picture that teaches nothing.

        Ranks that share weights must go through the same modules, whether or not a batch has images.
        """
        like = self._file(0).get_slice("features")[:0]
        return like.new_zeros(tokens, *like.shape[1:])

    def _known(self, name: str) -> int:
        if name not in self._row:
            raise InputError(f"{self._folder}: holds no sample {name}; {_remake(self._folder)}")
        return self._row[name]

    def _file(self, chunk: int) -> Any:
        if chunk not in self._open:
            name = self.record["chunks"][chunk][0]
            self._open[chunk] = safe_open(self._folder / name, "pt")
            if len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)
        self._open.move_to_end(chunk)
        return self._open[chunk]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}


class StoredSamples(SampleDataset):
    """The samples of `store` without their images: stand-ins, of which `without_pixels` makes the
    same tokens. A sample that was left out is read as ever, to fail as ever."""

    def __init__(self, samples: str | Path, ids: list[str], store: VisionStore) -> None:
        """Index the samples `ids` of the folder `samples`; raises what `SampleDataset` raises."""
        super().__init__(samples, set(ids))
        self._store = store
        self._texts: OrderedDict[int, pa.ChunkedArray] = OrderedDict()

    def __getitem__(self, index: int) -> Record:
        """Return one record; raises IndexError, or `ImageDecodeError` for a damaged image."""
        name = self.ids[index]
        if name not in self._store:
            return super().__getitem__(index)
        group, row = self._rows[index]
        turns = self._turns(group)[row].as_py()
        return Record(
            id=name,
            subset=self.subsets[index],
            images=[stand_in(grid) for grid in self._store.grids(name)],
            turns=[{key: turn[key] for key in ("user", "assistant")} for turn in turns],
        )

    def _turns(self, group: int) -> pa.ChunkedArray:
        if group not in self._texts:
            path, number = self._groups[group]
            self._texts[group] = pq.ParquetFile(path).read_row_group(number, ["texts"])["texts"]
            while (
                len(self._texts) > 1 and sum(t.nbytes for t in self._texts.values()) > _TEXT_BYTES
            ):
                self._texts.popitem(last=False)
        self._texts.move_to_end(group)
        return self._texts[group]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_texts": OrderedDict()}


def _difference(recorded: Any, wanted: Any) -> str:
    """Return what differs in words: the first differing entry of a dict, else both values."""
    if isinstance(recorded, dict):
        keys = sorted(recorded.keys() | wanted.keys())
        key = next(key for key in keys if recorded.get(key) != wanted.get(key))
        return f"{key} {recorded.get(key)}, not {wanted.get(key)}"
    return f"{recorded}, not {wanted}"


def _remake(folder: str | Path) -> str:
    return f"delete {folder} and run the stage again"
