"""The samples of all subsets as one folder: their manifest, their counts, the calibration split."""

import os
import shutil
import sys
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from interlace.data.seeds import derive_seed
from interlace.errors import InputError
from interlace.io import atomic_path, digest, read_json, write_json
from interlace.provenance import stamp
from interlace.sampling.plan import PLAN
from interlace.sampling.rows import REASONS
from interlace.sampling.schemas import rewrite, unify
from interlace.sampling.settings import complete, sample_settings
from interlace.sampling.subset import FILE, MANIFEST

RULES = {
    "row": "uniform without replacement within each subset: floor(fraction * rows), at least "
    "min_per_subset; rejected rows replaced by the next of the same random order, so that what is "
    "kept is uniform among the rows that are not rejected",
    "row_group": "within each subset row groups on a circle in random order, rows within them in "
    "random order; a row drawn uniformly, again while it is a rejected one, and what follows it both "
    "ways until floor(fraction * rows), at least min_per_subset, are kept, so that what is kept is "
    "uniform among the rows that are not rejected, however rejections that the footers foretell "
    "gather in some row groups; rows lost to damage that is found on reading make the others of their "
    "row group somewhat less likely",
    "first": "the first rows of each subset, as the released code takes them: floor(fraction * "
    "rows), at least min_per_subset; rejected rows replaced by those that follow",
}


def merge_samples(
    planned: Path,
    subsets: Mapping[str, Path],
    out: Path,
    settings: dict[str, Any],
    seed: int,
    config_digest: str | None = None,
) -> None:
    """Gather the folders that `draw_subset` wrote, by subset, into the folder `out`.

    Writes `<subset>/*.parquet` (hard links where the file system has them; see `_place`),
    `manifest.parquet` (a row per sample and per rejected row; `calibration` marks the split that
    scores are measured on, `finetune` the samples that models are tuned on) and `samples.json`
    (counts and settings). Raises `InputError` where no row was kept.
    """
    settings = complete(settings)
    body = read_json(planned / PLAN)
    counts = {name: read_json(folder / "counts.json") for name, folder in subsets.items()}
    tables = [pq.read_table(folder / "manifest.parquet") for folder in subsets.values()]
    table = pa.concat_tables([MANIFEST.empty_table(), *tables])
    kept = pc.equal(table["status"], "kept").to_numpy()
    if not kept.any():
        raise InputError(
            f"{body['source']}: no row was kept; raise data.fraction, data.min_per_subset, "
            f"data.max_images or data.max_turns ({_rejections(table)})"
        )
    names = np.array(table["subset"].to_pylist(), dtype=object)
    rows = _source_rows(table)
    fraction = settings["calibration_fraction"]
    chosen = calibration_split(names, rows, kept, fraction, seed)
    wanted = calibration_quota(names, kept, fraction)
    tuned = kept & ~chosen if settings["calibration_held_out"] else kept
    if not tuned.any():
        raise InputError(
            "data.calibration_held_out: every kept sample is in the calibration split; lower "
            "data.calibration_fraction or raise data.fraction"
        )
    if settings["calibration_held_out"]:
        assert not set(rows[chosen]) & set(rows[tuned]), "a source row on both sides of the split"
    _check_unique(table, kept)
    table = table.append_column("calibration", pa.array(chosen))
    table = table.append_column("finetune", pa.array(tuned))
    marked = Counter(table.filter(table["calibration"])["subset"].to_pylist())
    with atomic_path(out, directory=True) as partial:
        body["apart"] = _place(subsets, partial, {name: c["kept"] for name, c in counts.items()})
        for path in partial.glob(f"*/{FILE}"):
            counts[path.parent.name]["bytes_kept"] = path.stat().st_size
        body["subsets"] = {
            name: _finished(entry, counts.get(name), marked[name], wanted.get(name, 0))
            for name, entry in body["subsets"].items()
        }
        pq.write_table(table, partial / "manifest.parquet")
        write_json(partial / "samples.json", _summary(body, settings, seed, config_digest))
    for name, count in body["subsets"].items():
        if count["short"]:
            print(
                f"{name}: {count['kept']} of {count['target']} samples; no row is left to replace "
                f"the {count['drawn'] - count['kept']} rejected ones",
                file=sys.stderr,
            )
    for name, why in body["apart"].items():
        print(f"{name}: to be loaded apart from the other subsets; {why}", file=sys.stderr)


def calibration_quota(subsets: np.ndarray, kept: np.ndarray, fraction: float) -> dict[str, int]:
    """Return how many of the kept samples of each subset are wanted for calibration.

    round(fraction * kept) in all, at least one. Each subset gets floor(fraction * its kept samples);
    what is left of the total goes, one each, to the subsets with the largest fractional parts (ties:
    by name).
    """
    share = Fraction(str(fraction))
    names, sizes = np.unique(subsets[kept], return_counts=True)
    exact = {name: share * int(size) for name, size in zip(names, sizes, strict=True)}
    quota = {name: int(value) for name, value in exact.items()}
    total = max(1, round(share * int(kept.sum())))
    largest_first = sorted(exact, key=lambda name: (quota[name] - exact[name], name))
    for name in largest_first[: total - sum(quota.values())]:
        quota[name] += 1
    return quota


def calibration_split(
    subsets: np.ndarray, rows: np.ndarray, kept: np.ndarray, fraction: float, seed: int
) -> np.ndarray:
    """Return a mask of the calibration samples, spread over the subsets by `calibration_quota`.

    `subsets`, `rows`, `kept`: subset and source row of each manifest row, and whether it is a kept
    sample. The samples of one source row, the answers to one question about one image, fall on the
    same side: within a subset source rows are drawn uniformly, with a seed of its own, and those
    that would exceed the quota passed over; it is missed by less than a row's samples, and by none
    where every row gives one.
    """
    chosen = np.zeros(len(kept), dtype=bool)
    quota = calibration_quota(subsets, kept, fraction)
    for name, wanted in quota.items():
        members = np.flatnonzero(kept & (subsets == name))
        _, first, number = np.unique(rows[members], return_index=True, return_inverse=True)
        # Source rows numbered as they stand in the manifest.
        number = np.argsort(np.argsort(first))[number]
        sizes = np.bincount(number)
        generator = np.random.default_rng(derive_seed(seed, str(name), "calibration"))
        picked = _whole_rows(sizes, wanted, generator)
        chosen[members[np.isin(number, picked)]] = True
        missed = abs(int(sizes[picked].sum()) - wanted)
        assert missed < sizes.max(), "a calibration split of another size than was asked for"
    if not chosen.any():  # every row has more samples than are wanted
        name = max(quota, key=lambda name: (quota[name], name))
        first = rows[np.flatnonzero(kept & (subsets == name))[0]]
        chosen = kept & (subsets == name) & (rows == first)
    assert not (chosen & ~kept).any(), "a rejected row in the calibration split"
    assert not set(rows[chosen]) & set(rows[kept & ~chosen]), "a source row in part"
    return chosen


def _whole_rows(sizes: np.ndarray, wanted: int, generator: np.random.Generator) -> list[int]:
    """Return source rows, of `sizes` samples each, that have about `wanted` samples together."""
    order = generator.choice(len(sizes), size=min(wanted, len(sizes)), replace=False)
    if sizes.max() > 1:
        order = np.append(order, generator.permutation(np.setdiff1d(np.arange(len(sizes)), order)))
    picked, left = [], wanted
    for row in order.tolist():
        if sizes[row] <= left:
            picked.append(row)
            left -= int(sizes[row])
    # All others have more samples than are missing still.
    others = order[~np.isin(order, picked)].tolist() if left else []
    nearest = min(others, key=lambda row: sizes[row], default=None)
    if nearest is not None and sizes[nearest] - left < left:
        picked.append(nearest)
    return picked


def _source_rows(table: pa.Table) -> np.ndarray:
    """Return a name for the row of the source that each manifest row was made from."""
    columns = (table[name].to_pylist() for name in ("subset", "shard", "row_group", "row"))
    return np.array(["/".join(map(str, place)) for place in zip(*columns, strict=True)], object)


def _check_unique(table: pa.Table, kept: np.ndarray) -> None:
    ids = table["id"].filter(pa.array(kept))
    assert len(ids.unique()) == len(ids), "two samples of one id"


def _place(subsets: Mapping[str, Path], out: Path, rows: dict[str, int]) -> dict[str, str]:
    """Put the samples of each subset to `<out>/<subset>/`, so that all can be read as one table.

    `datasets` and `pyarrow.dataset` take the columns and types of the first file for those of all,
    fill up what others lack and widen their types. So the first gets the columns of all subsets and
    is written anew for it; the others are linked. In a conflict the columns of the most `rows` (of
    each subset) count. Returns subset -> why it cannot be read together with the others.
    """
    files = {name: folder / FILE for name, folder in subsets.items() if (folder / FILE).exists()}
    schemas = {name: pq.read_schema(files[name]) for name in files}
    alike = {
        n: sum(rows[other] for other in files if schemas[other].equals(schemas[n])) for n in files
    }
    most_first = sorted(files, key=lambda name: (-alike[name], name))
    common, contradicting = unify([schemas[name] for name in most_first])
    apart = {most_first[number]: why for number, why in contradicting.items()}
    # As Python sorts paths, and as strings are sorted: "a+b/" comes before "a/".
    together = [name for name in files if name not in apart]
    first = {min(together), min(together, key=lambda name: f"{name}/")}
    for name, file in files.items():
        (out / name).mkdir()
        widest = unify([schemas[name], common])[0] if name in first else schemas[name]
        if widest.equals(schemas[name]):
            _link(file, out / name / FILE)
        else:
            fields = [field.with_nullable(True) for field in widest]
            rewrite(file, out / name / FILE, pa.schema(fields, schemas[name].metadata))
    return apart


def _link(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it where the file system cannot."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


_NONE = dict.fromkeys(
    (
        "drawn",
        "kept",
        "records",
        "short",
        "cut",
        "images",
        "row_groups",
        "bytes_fetched",
        "bytes_kept",
    ),
    0,
)


def _finished(
    planned: dict[str, Any], counted: dict[str, Any] | None, calibration: int, wanted: int
) -> dict[str, Any]:
    """Return a subset's numbers; zeros for one that the plan draws nothing from."""
    if counted is None:
        rejected = {"rejected": dict.fromkeys(REASONS, 0)}
        counted = {"rows": planned["rows"], "target": 0} | _NONE | rejected
        counted["dropped_fields"] = []
    return counted | {
        "calibration": calibration,
        "calibration_wanted": wanted,
        "footer_bytes": planned["footer_bytes"],
        "shards": planned["shards"],
        "refused_shards": len(planned["refused"]),
        "refused_rows": planned.get("refused_rows", 0),  # no plan of before has it
        "refused": planned["refused"],
    }


def _summary(
    body: dict[str, Any], settings: dict[str, Any], seed: int, config_digest: str | None
) -> dict[str, Any]:
    counts = body["subsets"]
    numbers = [key for key, value in next(iter(counts.values())).items() if isinstance(value, int)]
    total: dict[str, Any] = {key: sum(count[key] for count in counts.values()) for key in numbers}
    total["rejected"] = {
        reason: sum(count["rejected"].get(reason, 0) for count in counts.values())
        for reason in REASONS
    }
    settings = sample_settings(settings)
    return {
        "provenance": stamp(
            "samples",
            config_digest=config_digest or digest(settings),
            seed=seed,
            num_samples=total["records"],
        ),
        "source": body["source"],
        "address": body["address"],
        "revision": body["revision"],
        "settings": settings,
        "rule": f"{RULES[settings['unit']]}; calibration stratified by "
        "largest remainders, whole source rows on one side",
        "expected": body["units"],
        "passed_over": body["passed_over"],
        "apart": body["apart"],
        "total": total,
        "subsets": counts,
    }


def _rejections(table: pa.Table) -> str:
    reasons = Counter(table["reason"].to_pylist())
    return f"{len(table)} drawn" + "".join(f", {n} {reason}" for reason, n in reasons.items())
