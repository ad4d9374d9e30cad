"""The plan of a sample: how many rows of which subset, and what fetching them will cost.

Made from footers alone, before a single image is fetched. Other stages read `plan.json`; the
sampling itself also `index.parquet`, in which all row groups are listed.
"""

import difflib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from interlace.errors import InputError
from interlace.io import claimed, digest, disk_full_told, read_json, remove, write_json
from interlace.provenance import stamp
from interlace.sampling.draw import expected, sample_size
from interlace.sampling.fetch import MOST_UNPACKED
from interlace.sampling.footer_store import move_footers
from interlace.sampling.footers import read_footers
from interlace.sampling.index import SubsetFooters, load_index, save_index
from interlace.sampling.ranges import RangeReader
from interlace.sampling.settings import UNITS, complete, plan_settings
from interlace.sampling.source import Source, cache_folder, list_shards, open_source
from interlace.secrets import masked

# ASSUME: at most so many subsets are fetched at the same time, each with a spool of its own.
JOBS = 8
PLAN, INDEX = "plan.json", "index.parquet"


def plan_samples(
    address: str | Path,
    out: Path,
    settings: dict[str, Any],
    seed: int,
    config_digest: str | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Write `plan.json` and `index.parquet` for a sample of `address` to the folder `out`.

    `say` gets a table of rows and bytes for every unit of drawing. Footers of a hub dataset are
    kept below HF_HOME by its commit (in `out` where that cannot be written) and not read again with
    the row groups; what is known of other sources is kept beside `out` until the plan is made.

    Raises `InputError` for an address without usable subsets, where no row would be drawn, where
    the disk that holds `out` is too small and where another process plans to `out`.
    """
    way_out = "what is known of footers is kept; free some space there, and run again"
    with disk_full_told(str(out), way_out), claimed(out):
        _plan_samples(address, out, complete(settings), seed, config_digest, say)


def _plan_samples(
    address: str | Path,
    out: Path,
    settings: dict[str, Any],
    seed: int,
    config_digest: str | None,
    say: Callable[[str], None],
) -> None:
    source = open_source(str(address), settings["retries"])
    shards, passed_over = list_shards(
        source, settings["subsets"], settings["retries"], settings["format"] != "finevision"
    )
    if source.snapshot:
        say(
            f"{source.address}: offline, {len(shards)} subsets of the local snapshot are all there is"
        )
    reader = RangeReader(source.filesystem, settings["retries"])
    work = out.with_name(f".{out.name}.footers")
    footers = read_footers(source, shards, settings, reader, _cache(source, work))
    _check_usable(source, footers)
    subsets = {subset.name: _subset(subset, settings) for subset in footers}
    if not any(entry["target"] for entry in subsets.values()):
        raise InputError(
            f"{address}: no row would be drawn; raise data.fraction or data.min_per_subset"
        )
    costs = {
        unit: [_cost(s, subsets[s.name]["target"], unit, source, settings, seed) for s in footers]
        for unit in UNITS
    }
    body = {
        "provenance": stamp(
            "sampling_plan",
            config_digest=config_digest or digest(plan_settings(settings)),
            seed=seed,
            num_samples=sum(entry["target"] for entry in subsets.values()),
        ),
        "source": masked(str(address)),
        "address": source.address,
        "revision": source.revision,
        "settings": plan_settings(settings),
        "footer_bytes": sum(entry["footer_bytes"] for entry in subsets.values()),
        "units": {unit: _total(parts) for unit, parts in costs.items()},
        "passed_over": passed_over,
        "subsets": subsets,
    }
    say(_table(body))
    for line in _remarks(body):
        say(line)
    _check_disk(out, costs[settings["unit"]], settings["unit"])
    out.mkdir(parents=True, exist_ok=True)
    save_index(out / INDEX, footers)
    move_footers(work, out)
    write_json(out / PLAN, body)
    remove(work)


def subset_names(plan: str | Path) -> list[str]:
    """Return the subsets that a plan.json draws rows from."""
    subsets = read_json(plan)["subsets"]
    return [name for name, entry in subsets.items() if entry["target"]]


def load(folder: Path, subset: str) -> tuple[dict[str, Any], SubsetFooters]:
    """Return a plan and the footers of one of its subsets.

    Raises `InputError` where the plan is missing or knows no such subset.
    """
    body = read_json(folder / PLAN)
    if subset not in body["subsets"]:
        near = difflib.get_close_matches(subset, body["subsets"], n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise InputError(f"{folder / PLAN}: no subset '{subset}' in it{hint}")
    return body, load_index(folder / INDEX, subset)[0]


def _cache(source: Source, work: Path) -> Path:
    """Return where footers are kept: for good only if a commit says that they never change."""
    folder = cache_folder(source)
    if folder is None:
        return work
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
    except OSError:
        print(f"{folder}: cannot be written; the footers are kept in {work} until the plan is made")
        return work
    return folder


def _check_usable(source: Source, footers: list[SubsetFooters]) -> None:
    if any(subset.num_rows for subset in footers):
        return
    for subset in footers:
        for shard, why in subset.refused.items():
            path = source.path(subset.name, shard)
            raise InputError(f"{path}: {why}; no shard of {source.address} is of use")
    raise InputError(f"{source.address}: all its shards are empty")


def _subset(subset: SubsetFooters, settings: dict[str, Any]) -> dict[str, Any]:
    footers = dict(
        zip(subset.table["shard"].to_pylist(), subset.table["footer"].to_pylist(), strict=True)
    )
    return {
        "rows": subset.num_rows,
        "target": sample_size(subset.num_rows, settings),
        "shards": subset.num_shards,
        "row_groups": len(subset.groups["rows"]),
        "bytes": int(subset.groups["length"].sum()),
        "footer_bytes": sum(footers.values()),
        "too_large": int((subset.groups["unpacked"] > MOST_UNPACKED).sum()),
        "refused": subset.refused,
        "refused_rows": subset.refused_rows,
        "fingerprint": subset.fingerprint,
    }


def _cost(
    subset: SubsetFooters,
    target: int,
    unit: str,
    source: Source,
    settings: dict[str, Any],
    seed: int,
) -> dict[str, int]:
    """Return what the first `target` rows of a subset take; replacements come on top.

    `bytes`: of the row groups that are read, in full (`SubsetFooters.bytes_of`).
    `bytes_kept`: the rows' share of their row groups. `bytes_unpacked`: what lies in the spool, as
    Arrow has it: of the row groups, or by `row` of the rows.
    """
    groups = subset.groups
    sizes, lengths = groups["rows"], groups["length"]
    taken, touched = expected(sizes, subset.sure(settings), target, unit, seed, subset.name)
    share = taken[touched] / sizes[touched]
    unpacked = np.where(groups["unpacked"] > MOST_UNPACKED, 0, groups["unpacked"])[touched]
    return {
        "rows": target,
        "row_groups": int(touched.sum()),
        "bytes": subset.bytes_of(np.flatnonzero(touched), source.revision),
        "bytes_kept": int(np.round(lengths[touched] * share).sum()),
        "bytes_unpacked": int((unpacked * share if unit == "row" else unpacked).sum()),
    }


def _total(parts: list[dict[str, int]]) -> dict[str, int]:
    return {key: sum(part[key] for part in parts) for key in parts[0]}


def _table(body: dict[str, Any]) -> str:
    """Return the units side by side, the one that is set marked."""
    subsets = body["subsets"].values()
    rows, size = (sum(entry[key] for entry in subsets) for key in ("rows", "bytes"))
    shards = sum(entry["shards"] for entry in subsets)
    lines = [
        f"{body['address']}: {len(subsets)} subsets, {shards} shards, {rows} rows, "
        f"{_size(size)}, footers of {_size(body['footer_bytes'])}",
        f"  {'unit':<12}{'rows':>10}{'row groups':>12}{'to fetch':>12}{'to keep':>12}{'ratio':>8}",
    ]
    for unit, cost in body["units"].items():
        mark = "*" if unit == body["settings"]["unit"] else " "
        ratio = (cost["bytes"] + body["footer_bytes"]) / max(1, cost["bytes_kept"])
        lines.append(
            f"{mark} {unit:<12}{cost['rows']:>10}{cost['row_groups']:>12}{_size(cost['bytes']):>12}"
            f"{_size(cost['bytes_kept']):>12}{ratio:>8.2f}"
        )
    return "\n".join(
        [
            *lines,
            "* data.unit of this run; the ratio counts the footers, which are read by now; "
            "replacements of rejected rows come on top",
        ]
    )


def _remarks(body: dict[str, Any]) -> list[str]:
    lines = [
        f"{name}/{shard}: left out: {why}"
        for name, entry in body["subsets"].items()
        for shard, why in entry["refused"].items()
    ]
    lines += [
        f"{name}: none of its {entry['shards']} shards has a usable row"
        for name, entry in body["subsets"].items()
        if not entry["rows"]
    ]
    lines += [
        f"{name}: {entry['too_large']} of its {entry['row_groups']} row groups announce more than "
        f"{_size(MOST_UNPACKED)} unpacked each; their rows cannot be read and are rejected"
        for name, entry in body["subsets"].items()
        if entry["too_large"]
    ]
    passed = body["passed_over"]
    if passed:
        lines.append(
            f"{len(passed)} shards of other splits or beside the subsets are passed over, first {passed[0]}"
        )
    return lines


def _check_disk(out: Path, parts: list[dict[str, int]], unit: str) -> None:
    """Check that the disk of `out` holds the sample and what the largest subsets spool meanwhile."""
    # By `row` a quarter more rows than are drawn are spooled, in case some are rejected.
    spools = [part["bytes_unpacked"] * (5 if unit == "row" else 4) // 4 for part in parts]
    needed = sum(part["bytes_kept"] for part in parts) + sum(sorted(spools)[-JOBS:])
    place = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise InputError(
            f"{out}: the sample needs {_size(needed)} with what is spooled meanwhile, and "
            f"{_size(free)} are free; lower data.fraction, name fewer data.subsets or free some"
        )


def _size(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"
