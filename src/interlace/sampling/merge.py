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
from interlace.sampling.settings import complete, sample_settings
from interlace.sampling.subset import FILE, MANIFEST

RULES = {
    "row": "uniform without replacement within each subset: floor(fraction * rows), at least "
    "min_per_subset; rejected rows replaced by the next of the same random order",
    "row_group": "whole row groups drawn within each subset so that every row is as likely as any "
    "other, one of them in part: floor(fraction * rows), at least min_per_subset; rejected rows "
    "replaced from that one, then from row groups in random order",
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

    Writes `<subset>/*.parquet` (hard links where the file system has them), `manifest.parquet` (a
    row per sample and per rejected row; `calibration` marks the split that scores are measured on,
    `finetune` the samples that models are tuned on) and `samples.json` (counts and settings).
    Raises `InputError` where no row was kept.
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
    chosen = calibration_split(
        np.array(table["subset"].to_pylist(), dtype=object),
        kept,
        settings["calibration_fraction"],
        seed,
    )
    tuned = kept & ~chosen if settings["calibration_held_out"] else kept
    if not tuned.any():
        raise InputError(
            "data.calibration_held_out: every kept sample is in the calibration split; lower "
            "data.calibration_fraction or raise data.fraction"
        )
    _check_unique(table, kept)
    table = table.append_column("calibration", pa.array(chosen))
    table = table.append_column("finetune", pa.array(tuned))
    marked = Counter(table.filter(table["calibration"])["subset"].to_pylist())
    body["subsets"] = {
        name: _finished(entry, counts.get(name), marked[name])
        for name, entry in body["subsets"].items()
    }
    with atomic_path(out, directory=True) as partial:
        for name, folder in subsets.items():
            if (folder / FILE).exists():
                (partial / name).mkdir()
                _link(folder / FILE, partial / name / FILE)
        pq.write_table(table, partial / "manifest.parquet")
        write_json(partial / "samples.json", _summary(body, settings, seed, config_digest))
    for name, count in body["subsets"].items():
        if count["short"]:
            print(
                f"{name}: {count['kept']} of {count['target']} samples; no row is left to replace "
                f"the {count['drawn'] - count['kept']} rejected ones",
                file=sys.stderr,
            )


def calibration_split(
    subsets: np.ndarray, kept: np.ndarray, fraction: float, seed: int
) -> np.ndarray:
    """Return a mask of round(fraction * kept) kept samples, at least one, spread over the subsets.

    `subsets`, `kept`: subset of each manifest row and whether it is a kept sample. Each subset
    gets floor(fraction * its kept samples); what is left of the total goes, one each, to the
    subsets with the largest fractional parts (ties: by name). Within a subset the samples are drawn
    uniformly with a seed of its own.
    """
    members = {name: np.flatnonzero(kept & (subsets == name)) for name in np.unique(subsets[kept])}
    share = Fraction(str(fraction))
    exact = {name: share * len(group) for name, group in members.items()}
    quota = {name: int(value) for name, value in exact.items()}
    total = max(1, round(share * int(kept.sum())))
    largest_first = sorted(exact, key=lambda name: (quota[name] - exact[name], name))
    for name in largest_first[: total - sum(quota.values())]:
        quota[name] += 1
    chosen = np.zeros(len(kept), dtype=bool)
    for name, group in members.items():
        generator = np.random.default_rng(derive_seed(seed, str(name), "calibration"))
        chosen[group[generator.choice(len(group), size=quota[name], replace=False)]] = True
    assert int(chosen.sum()) == total, "a calibration split of another size than was asked for"
    assert not (chosen & ~kept).any(), "a rejected row in the calibration split"
    return chosen


def _check_unique(table: pa.Table, kept: np.ndarray) -> None:
    ids = table["id"].filter(pa.array(kept))
    assert len(ids.unique()) == len(ids), "two samples of one id"


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
    planned: dict[str, Any], counted: dict[str, Any] | None, calibration: int
) -> dict[str, Any]:
    """Return a subset's numbers; zeros for one that the plan draws nothing from."""
    if counted is None:
        rejected = {"rejected": dict.fromkeys(REASONS, 0)}
        counted = {"rows": planned["rows"], "target": 0} | _NONE | rejected
    return counted | {
        "calibration": calibration,
        "footer_bytes": planned["footer_bytes"],
        "shards": planned["shards"],
        "refused_shards": len(planned["refused"]),
        "refused": planned["refused"],
    }


def _summary(
    body: dict[str, Any], settings: dict[str, Any], seed: int, config_digest: str | None
) -> dict[str, Any]:
    counts = body["subsets"]
    numbers = [key for key, value in next(iter(counts.values())).items() if isinstance(value, int)]
    total: dict[str, Any] = {key: sum(count[key] for count in counts.values()) for key in numbers}
    total["rejected"] = {
        reason: sum(count["rejected"][reason] for count in counts.values()) for reason in REASONS
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
        "rule": f"{RULES[settings['unit']]}; calibration stratified by largest remainders",
        "expected": body["units"],
        "passed_over": body["passed_over"],
        "total": total,
        "subsets": counts,
    }


def _rejections(table: pa.Table) -> str:
    reasons = Counter(table["reason"].to_pylist())
    return f"{len(table)} drawn" + "".join(f", {n} {reason}" for reason, n in reasons.items())
