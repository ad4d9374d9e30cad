"""FineVision's published counts, and the small and the hollow copies of it that tests draw from."""

import io

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.finevision_like import SCHEMA, TEXT_ONLY, scaled_rows, write_hollow, write_scaled
from tests.published import published_rows


def test_the_published_counts_are_those_the_paper_draws_from():
    rows = published_rows()
    assert len(rows) == 185
    assert sum(rows.values()) == 24_243_243
    assert sum(count // 100 for count in rows.values()) == 242_343
    text_only = {name: count for name, count in rows.items() if name.startswith(TEXT_ONLY)}
    assert (len(text_only), sum(text_only.values())) == (16, 8_427_584)


def test_the_small_copy_has_the_asked_rows_in_groups_and_some_over_the_limits(tmp_path):
    rows = scaled_rows(1000, ["text_openorca", "captcha"])
    assert rows == {"text_openorca": 4234, "captcha": 113}
    folder = write_scaled(tmp_path, rows, excess=0.3)
    for name, count in rows.items():
        shards = sorted((folder / name).iterdir())
        tables = [pq.read_table(path) for path in shards]
        assert sum(len(table) for table in tables) == count
        assert all(table.schema.equals(SCHEMA) for table in tables)
        group = pq.read_metadata(shards[0]).row_group(0)
        assert group.num_rows == min(count, 100)
        num_images = [len(row or []) for row in tables[0]["images"].to_pylist()]
        num_turns = [len(row) for row in tables[0]["texts"].to_pylist()]
        assert set(num_images) == ({0} if name.startswith(TEXT_ONLY) else {1, 4})
        assert {1, 2, 3, 6} == set(num_turns)
    image = tables[0]["images"][0].as_py()[0]["bytes"]
    assert Image.open(io.BytesIO(image)).convert("RGB").size >= (8, 8)


@pytest.mark.parametrize("count", [50, 2000, 4321])
def test_the_hollow_copy_claims_true_rows_and_sizes_and_takes_no_room(tmp_path, count):
    folder, number = write_hollow(tmp_path, {"chartqa": count}, row_bytes=50_000)
    shards = [*(folder / "chartqa").iterdir()]
    assert len(shards) == number
    assert sum(pq.read_metadata(path).num_rows for path in shards) == count
    sizes = [path.stat() for path in shards]
    assert sum(size.st_size for size in sizes) == pytest.approx(50_000 * count, rel=0.02)
    assert sum(512 * size.st_blocks for size in sizes) < 0.05 * 50_000 * count
