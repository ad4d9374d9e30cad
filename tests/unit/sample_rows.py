"""Rows to draw from, and what is drawn from them."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from interlace.sampling import run
from tests.tiny import SCHEMA


def png(size=(8, 6)):
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, "PNG")
    return buffer.getvalue()


def row(images=1, turns=1, data=None, user="q", assistant="a"):
    pictures = [{"bytes": png() if data is None else data, "path": None}] * images
    return {
        "images": pictures or None,
        "texts": [{"user": user, "assistant": assistant}] * turns,
        "source": "here",
    }


def write(folder, rows, shards=1, row_group_size=3):
    folder.mkdir(parents=True)
    size = -(-len(rows) // shards) if rows else 1
    for index in range(shards):
        part = rows[index * size : (index + 1) * size]
        file = folder / f"train-{index:05d}-of-{shards:05d}.parquet"
        table = pa.Table.from_pylist(part, schema=SCHEMA)
        pq.write_table(table, file, row_group_size=row_group_size)


def manifest(out):
    return pq.read_table(out / "manifest.parquet").to_pylist()


def draw_samples(source, out, settings, seed):
    """Draw with one worker if not told otherwise, which keeps its decoder from draw to draw."""
    run.draw_samples(source, out, {"workers": 1} | settings, seed)
