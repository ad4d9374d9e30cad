"""Small shards, and their footers as planning reads them."""

import pyarrow as pa
import pyarrow.parquet as pq

from interlace.sampling.footers import read_footers
from interlace.sampling.ranges import RangeReader
from interlace.sampling.settings import complete
from interlace.sampling.source import list_shards, open_source
from tests.tiny import SCHEMA

SETTINGS = complete({})
IMAGES, TEXTS = SCHEMA.field("images").type, SCHEMA.field("texts").type


def read(address, cache, settings=SETTINGS):
    source = open_source(str(address))
    shards, _ = list_shards(source)
    reader = RangeReader(source.filesystem, retries=0)
    return {s.name: s for s in read_footers(source, shards, settings, reader, cache)}, reader


def shard(folder, name, columns, rows=4, group=3, subset="s"):
    """Write a shard of null columns of these types."""
    table = pa.table({key: pa.nulls(rows, kind) for key, kind in columns.items()})
    path = folder / subset / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)
    return path


def footer_of(path):
    data = path.read_bytes()
    return data[-int.from_bytes(data[-8:-4], "little") - 8 :]
