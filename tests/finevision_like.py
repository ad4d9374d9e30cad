"""FineVision in small: its 185 names, its row counts scaled down, its schema, row groups of 100.

Two ways to have it: `write_scaled` writes rows that can be read and trained on; `write_hollow`
writes shards of the true sizes and true row counts whose image bytes are holes in the file, for
whatever reads footers only.
"""

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from interlace.data.seeds import derive_seed
from interlace.demo.finevision import RATINGS, ROW_GROUP, SCHEMA
from tests.published import published_rows

REPO = "HuggingFaceM4/FineVision"
TEXT_ONLY = "text_"  # how the names of the 16 subsets without images begin
SHARD_ROWS = 2000  # 24.2 M rows in 12,000 shards
POOL = 2048  # different images; a page of 100 rows seldom holds one twice
STATISTICS = [  # of image bytes a real footer has none: they are longer than its limit of 4 kB
    "texts.list.element.user",
    "texts.list.element.assistant",
    "source",
    *(f"{rating}_ratings.list.element" for rating in RATINGS),
    *(f"{rating}_min" for rating in RATINGS),
]


def scaled_rows(divisor: int, names: Iterable[str] | None = None) -> dict[str, int]:
    """Return rows per subset: the published counts over `divisor`, rounded, at least one."""
    counts = published_rows()
    return {name: max(1, round(counts[name] / divisor)) for name in names or counts}


def write_scaled(
    root: Path,
    rows: dict[str, int],
    seed: int = 0,
    pixels: tuple[int, int] = (8, 20),
    excess: float = 0.02,
    shard_rows: int = SHARD_ROWS,
    group_rows: int = ROW_GROUP,
    **options: Any,
) -> Path:
    """Write a dataset of these rows per subset below `root`/<REPO> and return that folder.

    Each image is square noise with a side of `pixels` (least, most), about three bytes a pixel.
    A share `excess` of the rows is over the limits: six turns, or four images for a quarter of them.
    `options` go to pyarrow's `write_table`.
    """
    folder = root / REPO
    images, texts = _images(seed, pixels), _texts(seed)
    for name, count in rows.items():
        (folder / name).mkdir(parents=True)
        shards = -(-count // shard_rows)
        for shard in range(shards):
            start, stop = (count * edge // shards for edge in (shard, shard + 1))
            rng = np.random.default_rng(derive_seed(seed, name, str(shard)))
            table = _table(name, start, stop - start, images, texts, excess, rng)
            pq.write_table(
                table,
                folder / name / f"train-{shard:05d}-of-{shards:05d}.parquet",
                row_group_size=group_rows,
                write_statistics=STATISTICS,
                **options,
            )
    _write_card(folder, rows)
    return folder


def write_hollow(root: Path, rows: dict[str, int], row_bytes: int) -> tuple[Path, int]:
    """Write shards of `row_bytes` per row below `root`/<REPO>; return that folder and their number.

    A subset is cut into shards of `SHARD_ROWS` and, for what is left, of 1600, 800, 400, 200, 100
    and fewer rows, so that few files need to be made: the rest are hard links.
    """
    folder = root / REPO
    shapes = root / "shapes"
    shapes.mkdir(parents=True)
    number = 0
    for name, count in rows.items():
        (folder / name).mkdir(parents=True)
        sizes = _cut(count)
        for shard, size in enumerate(sizes):
            shape = shapes / f"{size}.parquet"
            if not shape.exists():
                _write_shape(shape, size, row_bytes)
            os.link(shape, folder / name / f"train-{shard:05d}-of-{len(sizes):05d}.parquet")
        number += len(sizes)
    _write_card(folder, rows)
    return folder, number


def _cut(count: int) -> list[int]:
    sizes = [SHARD_ROWS] * (count // SHARD_ROWS)
    left = count % SHARD_ROWS
    for size in (1600, 800, 400, 200, 100):
        if left >= size:
            sizes.append(size)
            left -= size
    return [*sizes, left] if left else sizes


def _images(seed: int, pixels: tuple[int, int]) -> pa.Array:
    rng = np.random.default_rng(derive_seed(seed, "images"))
    pool = []
    for _ in range(POOL):
        side = int(rng.integers(pixels[0], pixels[1] + 1))
        buffer = io.BytesIO()
        noise = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(noise).save(buffer, "PNG", compress_level=0)
        pool.append(buffer.getvalue())
    return pa.array(pool, pa.binary())


def _texts(seed: int) -> pa.Array:
    rng = np.random.default_rng(derive_seed(seed, "texts"))
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz    "))
    lengths = rng.integers(50, 400, POOL)
    return pa.array(["x" + "".join(rng.choice(letters, length)) for length in lengths])


def _lists(values: pa.Array, lengths: np.ndarray, mask: np.ndarray | None = None) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    nulls = None if mask is None else pa.array(mask)
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=nulls)


def _table(
    name: str,
    start: int,
    count: int,
    images: pa.Array,
    texts: pa.Array,
    excess: float,
    rng: np.random.Generator,
) -> pa.Table:
    """Return rows `start`.. of a subset; the same columns as `interlace.demo.finevision` writes."""
    chance = rng.random(count)
    bare = name.startswith(TEXT_ONLY)
    num_images = np.where(chance < excess / 4, 4, 1) if not bare else np.zeros(count, int)
    chosen = images.take(pa.array(rng.integers(0, len(images), num_images.sum())))
    # Readers pass over what follows an image's end; no two are the same, as in the real one.
    ends = pa.array([f"{start} {i}".encode() for i in range(len(chosen))], pa.binary())
    pictures = pa.StructArray.from_arrays(
        [
            pc.binary_join_element_wise(chosen, ends, pa.scalar(b"", pa.binary())),
            pa.array([f"{name}.png"] * int(num_images.sum()), pa.string()),
        ],
        fields=list(SCHEMA.field("images").type.value_type),
    )
    wordy = (chance < excess) & (num_images < 4)
    num_turns = np.where(wordy, 6, rng.integers(1, 4, count))
    owners = np.repeat(np.arange(start, start + count), num_turns)
    turns = pa.StructArray.from_arrays(
        [
            pa.array([f"What is in row {row} of {name}?" for row in owners]),
            texts.take(pa.array(rng.integers(0, len(texts), len(owners)))),
        ],
        fields=list(SCHEMA.field("texts").type.value_type),
    )
    columns = [
        _lists(pictures, num_images, np.full(count, bare)),
        _lists(turns, num_turns),
        pa.array([name] * count),
    ]
    for rating in RATINGS:
        missing = rng.random(count) < 0.05
        lengths = np.where(missing, 0, num_turns)
        stars = pa.array(rng.integers(3, 6, lengths.sum()), pa.int64())
        columns.append(_lists(stars, lengths, missing))
        columns.append(pa.array(np.full(count, 3), pa.int64(), mask=missing))
        assert SCHEMA.names[len(columns) - 1] == f"{rating}_min"
    return pa.table(columns, schema=SCHEMA)


class _HollowFile(io.RawIOBase):
    """A file to write in which long writes become holes."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)

    def writable(self) -> bool:
        """Tell pyarrow that this is for writing."""
        return True

    def write(self, data: bytes) -> int:
        """Write, or pass over, `data`."""
        if len(data) > 100_000:
            self._file.seek(len(data), os.SEEK_CUR)
        else:
            self._file.write(data)
        return len(data)

    def tell(self) -> int:
        """Return the position."""
        return self._file.tell()

    def close(self) -> None:
        """End the file where the last write ended."""
        self._file.close()
        super().close()


def _write_shape(path: Path, count: int, row_bytes: int) -> None:
    size = min(count, ROW_GROUP)
    zeros = pa.Array.from_buffers(
        pa.binary(),
        size,
        [
            None,
            pa.py_buffer(np.arange(size + 1, dtype=np.int32) * np.int32(row_bytes)),
            pa.py_buffer(bytes(size * row_bytes)),
        ],
    )
    texts = pa.array(["x"])
    table = _table("hollow", 0, size, pa.array([b"x"]), texts, 0.0, np.random.default_rng(0))
    pictures = pa.StructArray.from_arrays(
        [zeros, pa.array(["x.png"] * size)], fields=list(SCHEMA.field("images").type.value_type)
    )
    table = table.set_column(0, SCHEMA.field("images"), _lists(pictures, np.ones(size, int)))
    with (
        _HollowFile(path) as file,
        pq.ParquetWriter(
            file, SCHEMA, compression="none", use_dictionary=False, write_statistics=STATISTICS
        ) as writer,
    ):
        for start in range(0, count, size):
            writer.write_table(table.slice(0, min(size, count - start)))


def _write_card(folder: Path, rows: dict[str, int]) -> None:
    """Write the card's head, from which `datasets` knows the subsets."""
    lines = ["---", "configs:"]
    for name in rows:
        lines += [f"- config_name: {name}", "  data_files:"]
        lines += ["  - split: train", f"    path: {name}/train-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")
