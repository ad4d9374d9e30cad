"""Draw a uniform sample of every subset of a FineVision-shaped folder of Parquet files.

The folder holds one folder per subset, each with `*.parquet` shards whose columns include
`images` (a list of `{bytes, path}`, may be null) and `texts` (a list of `{user, assistant}`).
Reading needs pyarrow and Pillow only.
"""

import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from interlace.data.images import ImageDecodeError, decode_image
from interlace.data.seeds import derive_seed
from interlace.data.shards import Subset, list_subsets, read_rows
from interlace.errors import InputError
from interlace.io import atomic_path, digest, write_json
from interlace.progress import track
from interlace.provenance import stamp

REASONS = ("too_many_images", "too_many_turns", "unusable_text", "undecodable_image")
GROUP_BYTES = 2 * 1024**2  # of a row group of the samples: small, since training reads at random

MANIFEST = pa.schema(
    [
        ("id", pa.string()),
        ("subset", pa.string()),
        ("shard", pa.string()),
        ("row_group", pa.int32()),
        ("row", pa.int32()),  # within the row group
        ("draw", pa.int64()),  # rank in the subset's random order
        ("status", pa.string()),  # kept | rejected
        ("reason", pa.string()),  # one of REASONS, null where kept
        ("detail", pa.string()),
        ("num_images", pa.int32()),
        ("num_turns", pa.int32()),
        ("num_chars", pa.int64()),
        ("image_sizes", pa.list_(pa.list_(pa.int32()))),  # [width, height] in pixels
        ("calibration", pa.bool_()),
    ]
)


def draw_samples(
    source: str | Path,
    out: str | Path,
    settings: dict[str, Any],
    seed: int,
    config_digest: str | None = None,
) -> None:
    """Write a sample of every subset of `source` to the folder `out`.

    `settings`: `fraction` of each subset's rows, drawn uniformly without replacement;
    `min_per_subset`; `max_images` and `max_turns` above which a row is left out;
    `calibration_fraction` of the kept rows. A rejected row is replaced by the next of the
    subset's random order until the count is met or the subset is exhausted.

    Writes `<subset>/train-00000-of-00001.parquet` (the original columns and `id`),
    `manifest.parquet` (a row per drawn row, kept or rejected) and `samples.json` (counts).
    Raises `InputError` for a folder, a shard or a setting that cannot be used.
    """
    subsets = list_subsets(source)
    _check(settings)
    rows: list[dict[str, Any]] = []
    counts: dict[str, dict[str, Any]] = {}
    with atomic_path(out, directory=True) as partial:
        for subset in track(subsets, "drawing samples", unit="subset"):
            target = sample_size(subset.num_rows, settings)
            drawn = _draw_subset(subset, target, settings, seed, partial / subset.name)
            rows += drawn
            counts[subset.name] = _counts(subset, target, drawn)
        if not any(row["status"] == "kept" for row in rows):
            raise InputError(
                f"{source}: no row was kept; raise data.fraction, data.min_per_subset, "
                f"data.max_images or data.max_turns ({_rejections(rows)})"
            )
        _mark_calibration(rows, float(settings["calibration_fraction"]), seed)
        for name, count in counts.items():
            count["calibration"] = sum(r["calibration"] for r in rows if r["subset"] == name)
        pq.write_table(pa.Table.from_pylist(rows, schema=MANIFEST), partial / "manifest.parquet")
        write_json(
            partial / "samples.json", _summary(source, settings, seed, counts, config_digest)
        )
    for name, count in counts.items():
        if count["short"]:
            print(
                f"{name}: {count['kept']} of {count['target']} samples; no row is left to replace "
                f"the {count['drawn'] - count['kept']} rejected ones",
                file=sys.stderr,
            )


def sample_size(num_rows: int, settings: dict[str, Any]) -> int:
    """Return floor(fraction * rows), at least `min_per_subset`, at most the rows there are.

    The fraction counts as the decimal that is written: 0.29 of 100 rows is 29, not 28.
    """
    share = Fraction(str(settings["fraction"])) * num_rows
    return min(num_rows, max(share.numerator // share.denominator, settings["min_per_subset"]))


def random_order(subset: Subset, seed: int) -> np.ndarray:
    """Return the rows of `subset` in the order they are drawn; independent of other subsets."""
    return np.random.default_rng(derive_seed(seed, subset.name)).permutation(subset.num_rows)


def _check(settings: dict[str, Any]) -> None:
    for key in ("fraction", "calibration_fraction"):
        if not 0 < float(settings[key]) <= 1:
            raise InputError(f"data.{key}: {settings[key]} is not above 0 and at most 1")
    for key in ("min_per_subset", "max_images", "max_turns"):
        if int(settings[key]) < 0:
            raise InputError(f"data.{key}: {settings[key]} is negative")


def _draw_subset(
    subset: Subset, target: int, settings: dict[str, Any], seed: int, folder: Path
) -> list[dict[str, Any]]:
    """Write the kept rows of one subset below `folder`; return the manifest rows of all drawn."""
    order = random_order(subset, seed)
    drawn: list[dict[str, Any]] = []
    with _Writer(folder, subset.schema) as writer:
        position = kept = 0
        while kept < target and position < len(order):
            ranks = {
                int(row): position + i for i, row in enumerate(order[position:][: target - kept])
            }
            position += len(ranks)
            for group, number, values in read_rows(subset, sorted(ranks)):
                entry = _examine(values, settings)
                entry |= {
                    "id": f"{subset.name}/{PurePosixPath(group.shard).stem}/{group.number}/{number}",
                    "subset": subset.name,
                    "shard": PurePosixPath(group.shard).name,
                    "row_group": group.number,
                    "row": number,
                    "draw": ranks[group.start + number],
                    "calibration": False,
                }
                if entry["status"] == "kept":
                    writer.add(values, entry["id"])
                    kept += 1
                drawn.append(entry)
    return sorted(drawn, key=lambda entry: entry["draw"])


def _examine(values: pa.Table, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest fields that follow from a row's content."""
    entry: dict[str, Any] = {
        "status": "rejected",
        "reason": None,
        "detail": None,
        "num_images": None,
        "num_turns": None,
        "num_chars": None,
        "image_sizes": None,
    }

    def rejected(reason: str, detail: str) -> dict[str, Any]:
        assert reason in REASONS
        return entry | {"reason": reason, "detail": detail}

    images = values["images"][0].as_py() or []
    entry["num_images"] = len(images)
    if len(images) > settings["max_images"]:
        return rejected("too_many_images", f"{len(images)} images")
    try:
        turns = values["texts"][0].as_py() or []
    except UnicodeDecodeError as error:
        return rejected("unusable_text", f"not UTF-8: {error.reason}")
    entry["num_turns"] = len(turns)
    if len(turns) > settings["max_turns"]:
        return rejected("too_many_turns", f"{len(turns)} turns")
    if not turns:
        return rejected("unusable_text", "no turn")
    for number, turn in enumerate(turns):
        for key in ("user", "assistant"):
            if not ((turn or {}).get(key) or "").strip():
                return rejected("unusable_text", f"turn {number}: {key} is empty")
    entry["num_chars"] = sum(len(turn["user"]) + len(turn["assistant"]) for turn in turns)
    sizes = []
    for number, image in enumerate(images):
        try:
            sizes.append(list(decode_image((image or {}).get("bytes")).size))
        except ImageDecodeError as error:
            return rejected("undecodable_image", f"image {number}: {error}")
    return entry | {"status": "kept", "image_sizes": sizes}


class _Writer:
    """Gathers one-row tables into one Parquet file of row groups of about `GROUP_BYTES`."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        """Write below `folder`; the columns are those of `schema` and `id`."""
        self._path = folder / "train-00000-of-00001.parquet"
        if "id" in schema.names:
            schema = schema.remove(schema.get_field_index("id"))
        self._schema = schema
        self._file: pq.ParquetWriter | None = None
        self._rows: list[pa.Table] = []
        self._ids: list[str] = []
        self._bytes = 0

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *error: object) -> None:
        if error == (None, None, None):
            self._flush()
        if self._file is not None:
            self._file.close()

    def add(self, values: pa.Table, name: str) -> None:
        """Append one row under the id `name`."""
        if "id" in values.column_names:
            values = values.drop_columns("id")
        self._rows.append(values)
        self._ids.append(name)
        self._bytes += values.nbytes
        if self._bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        tables = [self._schema.empty_table(), *self._rows]
        table = pa.concat_tables(tables, promote_options="permissive").cast(self._schema)
        table = table.append_column("id", pa.array(self._ids, pa.string()))
        if self._file is None:
            self._path.parent.mkdir(parents=True)
            self._file = pq.ParquetWriter(self._path, table.schema)
        self._file.write_table(table)
        self._rows, self._ids, self._bytes = [], [], 0


def _mark_calibration(rows: list[dict[str, Any]], fraction: float, seed: int) -> None:
    """Mark round(fraction * kept) rows, at least one, spread over the subsets by their size.

    Each subset gets floor(fraction * its kept rows); what is left of the total goes, one each, to
    the subsets with the largest fractional parts (ties: by name). Within a subset the rows are
    drawn uniformly with a seed of their own.
    """
    kept: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["status"] == "kept":
            kept.setdefault(row["subset"], []).append(row)
    share = Fraction(str(fraction))
    exact = {name: share * len(group) for name, group in kept.items()}
    quota = {name: int(value) for name, value in exact.items()}
    total = max(1, round(share * sum(len(group) for group in kept.values())))
    largest_first = sorted(exact, key=lambda name: (quota[name] - exact[name], name))
    for name in largest_first[: total - sum(quota.values())]:
        quota[name] += 1
    for name, group in kept.items():
        generator = np.random.default_rng(derive_seed(seed, name, "calibration"))
        for position in generator.choice(len(group), size=quota[name], replace=False):
            group[position]["calibration"] = True


def _counts(subset: Subset, target: int, drawn: list[dict[str, Any]]) -> dict[str, Any]:
    reasons = Counter(row["reason"] for row in drawn if row["status"] == "rejected")
    kept = len(drawn) - reasons.total()
    return {
        "rows": subset.num_rows,
        "target": target,
        "drawn": len(drawn),
        "kept": kept,
        "rejected": {reason: reasons[reason] for reason in REASONS},
        "short": target - kept,
        "images": sum(row["num_images"] for row in drawn if row["status"] == "kept"),
    }


def _summary(
    source: str | Path,
    settings: dict[str, Any],
    seed: int,
    counts: dict[str, dict[str, Any]],
    config_digest: str | None,
) -> dict[str, Any]:
    numbers = [key for key in next(iter(counts.values())) if key != "rejected"]
    total = {key: sum(count[key] for count in counts.values()) for key in numbers}
    total["rejected"] = {
        reason: sum(count["rejected"][reason] for count in counts.values()) for reason in REASONS
    }
    return {
        "provenance": stamp(
            "samples",
            config_digest=config_digest or digest(settings),
            seed=seed,
            num_samples=total["kept"],
        ),
        "source": str(source),
        "settings": settings,
        "rule": "uniform without replacement within each subset: floor(fraction * rows), at least "
        "min_per_subset; rejected rows replaced by the next of the same random order; calibration "
        "stratified by largest remainders",
        "total": total,
        "subsets": counts,
    }


def _rejections(rows: list[dict[str, Any]]) -> str:
    reasons = Counter(row["reason"] for row in rows)
    return f"{len(rows)} drawn" + "".join(f", {n} {reason}" for reason, n in reasons.items())
