"""VLMEvalKit's own command line over one of our checkpoints and our TSVs: a check of our results.

    python -m interlace.evaluation.cli CHECKPOINT DATA_ROOT WORK_DIR --benchmarks AI2D POPE

`vlmeval/run.py` is run as it stands, with `--config` and `--judge exact_matching`. Two things are
told to VLMEvalKit before, both of which it offers no other way in for: the class of the model, and
that a TSV that is not the official one is not to be overwritten by a download. Nothing is fetched.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from interlace.errors import InputError
from interlace.evaluation.benchmarks import BENCHMARKS, Benchmark, get_benchmark
from interlace.evaluation.prepare import read_record
from interlace.evaluation.settings import check_pixels
from interlace.io import read_json, write_json

# What VLMEvalKit calls the model: its files are WORK_DIR/local/local_<dataset>*.
MODEL, CLASS = "local", "LocalQwen3VL"


def run_vlmevalkit(
    checkpoint: Path,
    data_root: Path,
    work_dir: Path,
    benchmarks: Sequence[str],
    *,
    max_new_tokens: int,
    settings: dict[str, Any] | None = None,
) -> dict[str, float]:
    """Let `vlmeval/run.py` predict greedily and score `benchmarks`; return scores (0-100) by name.

    `data_root` is the LMUData root of `prepare_benchmarks`. `settings` are the keys dtype,
    attention, device, prompt, min_pixels and max_pixels of the config's `evaluation` section. All
    files of VLMEvalKit are left in `work_dir`, and `scores.json` beside them.

    Raises InputError for a benchmark that is unknown, not prepared or needs a grader, for `pixels`
    (limits of single benchmarks: VLMEvalKit builds one model for all of them), for a
    `work_dir` that is not empty (VLMEvalKit takes whatever score it finds there for its own), and,
    with the reason, if VLMEvalKit has skipped a benchmark: its own exit status is 0 then.
    """
    settings = settings or {}
    chosen = [get_benchmark(name) for name in benchmarks]
    for benchmark in chosen:
        if benchmark.needs_grader:
            raise InputError(
                f"--benchmarks: {benchmark.name} needs a grader and the judge is exact matching; "
                "leave it out"
            )
        read_record(benchmark.dataset, data_root)
    if settings.get("pixels"):
        raise InputError(
            "evaluation.pixels: VLMEvalKit's command line has one model for all benchmarks; run each "
            "benchmark by itself with min_pixels and max_pixels"
        )
    check_pixels(benchmarks, settings)
    work_dir = Path(work_dir).resolve()
    if work_dir.exists() and any(work_dir.iterdir()):
        raise InputError(f"{work_dir}: not empty; name a new folder, or remove what is in it")
    work_dir.mkdir(parents=True, exist_ok=True)

    from interlace.evaluation import kit

    vlmeval = kit.load_vlmeval()
    config = {
        "model": {
            MODEL: {
                "class": CLASS,
                "checkpoint": str(checkpoint),
                "max_new_tokens": max_new_tokens,
                "settings": settings,
            }
        },
        "data": {b.dataset: {"class": _class(b), "dataset": b.dataset} for b in chosen},
    }
    write_json(work_dir / "config.json", config)
    setattr(vlmeval.vlm, CLASS, _local_model)
    arguments = ["--config", str(work_dir / "config.json"), "--work-dir", str(work_dir)]
    log, before = logging.getLogger("vlmeval"), sys.argv
    handlers, level = list(log.handlers), log.level
    with kit.kit_environment(data_root), kit.circular_table_in(work_dir):
        for benchmark in chosen:
            kit.accept_local_tsv(benchmark.dataset)
        from vlmeval import run

        try:
            sys.argv = [str(run.__file__), *arguments, "--judge", "exact_matching"]
            run.main()
        finally:
            sys.argv = before
            for handler in set(log.handlers) - set(handlers):
                handler.close()
            log.handlers[:] = handlers
            log.setLevel(level)
    scores = {b.name: _score(b, work_dir) for b in chosen}
    write_json(work_dir / "scores.json", scores)
    return scores


def prediction_file(work_dir: Path, benchmark: str) -> Path:
    """Return where VLMEvalKit left the predictions of a benchmark: a TSV."""
    return Path(work_dir) / MODEL / f"{MODEL}_{get_benchmark(benchmark).dataset}.tsv"


def _local_model(checkpoint: str, max_new_tokens: int, settings: dict[str, Any]) -> Any:
    """What run.py builds from the config: it passes on what it reads there."""
    from interlace.evaluation.engine import Engine

    settings = {**settings, "modes": {CLASS: max_new_tokens}}
    return Engine(Path(checkpoint), settings, CLASS, seed=0).kit_model(None)


def _class(benchmark: Benchmark) -> str:
    from interlace.evaluation import kit

    classes = kit.load_vlmeval().dataset.DATASET_CLASSES
    return next(c.__name__ for c in classes if benchmark.dataset in c.supported_datasets())


def _score(benchmark: Benchmark, work_dir: Path) -> float:
    import pandas as pd

    from interlace.evaluation.scores import read_score

    table = prediction_file(work_dir, benchmark.name)
    status = read_json(work_dir / MODEL / "status.json")["datasets"].get(benchmark.dataset, {})
    reason = status.get("error_message") or status.get("skip_reason")
    if reason or status.get("status") != "done" or not table.exists():
        line = " ".join(str(reason or "it left no score").split())
        raise InputError(
            f"{benchmark.dataset}: VLMEvalKit skipped it ({line}); its log is in {work_dir}/logs"
        )
    rows = len(pd.read_csv(table, sep="\t", usecols=["index"]))
    return read_score(benchmark.dataset, table.with_suffix(""), rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; return 1, with one line on standard error, where it failed."""
    parser = argparse.ArgumentParser(
        prog="python -m interlace.evaluation.cli",
        description="Score a checkpoint by VLMEvalKit's own command line.",
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data_root", type=Path, help="prepared LMUData root of the run")
    parser.add_argument("work_dir", type=Path, help="a new folder for VLMEvalKit's files")
    able = [name for name, benchmark in BENCHMARKS.items() if not benchmark.needs_grader]
    parser.add_argument("--benchmarks", nargs="+", default=able, metavar="NAME")
    parser.add_argument("--max-new-tokens", type=int, default=50)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--device")
    parser.add_argument("--prompt", choices=("dataset", "custom"), default="dataset")
    parser.add_argument("--min-pixels", type=int)
    parser.add_argument("--max-pixels", type=int)
    given = vars(parser.parse_args(arguments))
    names = ("checkpoint", "data_root", "work_dir", "benchmarks", "max_new_tokens")
    own = {name: given.pop(name) for name in names}
    try:
        scores = run_vlmevalkit(**own, settings=given)
    except InputError as error:
        print(error, file=sys.stderr)
        return 1
    for name, score in scores.items():
        print(f"{name}: {score!r}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
