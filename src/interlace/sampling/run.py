"""The whole sampling in one process, for callers without Snakemake."""

from pathlib import Path
from typing import Any

from interlace.io import claimed, digest, disk_full_told, remove, write_text
from interlace.sampling.merge import merge_samples
from interlace.sampling.plan import PLAN, plan_samples, subset_names
from interlace.sampling.settings import complete, sample_settings
from interlace.sampling.subset import draw_subset


def draw_samples(
    source: str | Path,
    out: str | Path,
    settings: dict[str, Any],
    seed: int,
    config_digest: str | None = None,
) -> None:
    """Write a sample of every subset of `source` to the folder `out`: plan, fetch, merge.

    `source`: a folder with `<subset>/*.parquet`, an address that fsspec knows, or a hub dataset
    (`hf://datasets/<org>/<name>[@<revision>]`). `settings`: keys of `data` in the configuration,
    their defaults where left out. A killed call goes on where it was; finished subsets are not
    fetched again. Raises `InputError` for a source or a setting that cannot be used, a disk that is
    full and an `out` that another process draws to.
    """
    out = Path(out)
    work = out.with_name(f".{out.name}.sampling")
    way_out = "what was fetched is kept; free some space or lower data.fraction, and run again"
    with disk_full_told(str(out), way_out), claimed(work):
        _draw_samples(source, out, work, settings, seed, config_digest)


def _draw_samples(
    source: str | Path,
    out: Path,
    work: Path,
    settings: dict[str, Any],
    seed: int,
    config_digest: str | None,
) -> None:
    begun = work / "begun"
    mark = digest([str(source), seed, sample_settings(complete(settings))])
    if not begun.exists() or begun.read_text(encoding="utf-8") != mark:
        remove(work)
        write_text(begun, mark)
    if not (work / "plan" / PLAN).exists():
        plan_samples(source, work / "plan", settings, seed, config_digest)
    folders = {name: work / "subsets" / name for name in subset_names(work / "plan" / PLAN)}
    for name, folder in folders.items():
        if not folder.exists():
            draw_subset(work / "plan", name, folder, work / "spool" / name, settings, seed)
    merge_samples(work / "plan", folders, out, settings, seed, config_digest)
    remove(work)
