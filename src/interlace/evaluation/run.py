"""Evaluate one checkpoint in one mode on any of the twelve benchmarks, scored by VLMEvalKit."""

import csv
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from interlace.errors import InputError
from interlace.evaluation.benchmarks import Benchmark, get_benchmark
from interlace.evaluation.intervals import bootstrap_interval
from interlace.evaluation.outcomes import write_outcomes
from interlace.evaluation.prepare import read_record
from interlace.evaluation.settings import check_settings, deciding, generation
from interlace.io import atomic_path, claimed, digest, disk_full_told, read_json, write_json
from interlace.provenance import stamp, versions
from interlace.stamps import checkpoint_digest


def evaluate(
    checkpoint: Path,
    benchmarks: Sequence[str],
    data_root: Path,
    out_dir: Path,
    settings: dict[str, Any],
    *,
    model: str,
    variant: str,
    mode: str,
    seed: int,
    sampling_seed: int | None = None,
) -> None:
    """Write `out_dir/<benchmark>.parquet`, an outcome per sample, and `.json` for each benchmark.

    `settings` is the config's `evaluation` section; `dtype` (float32) and `attention` (sdpa) say how
    the checkpoint is loaded, `modes[mode]` how many tokens it may generate. `seed` draws the
    intervals, `sampling_seed` (by default the same) what is sampled. Predictions lie under `work/`
    in `out_dir`, keyed by checkpoint, benchmark and settings, and are not generated twice. Results of
    these benchmarks that are of another checkpoint or of other settings are deleted first.

    Raises InputError before any work for a benchmark that is unknown, not prepared or without its
    grader, where another process is at work on the same predictions, and after grading for rows
    that stayed ungraded.
    """
    from interlace.evaluation import grading
    from interlace.evaluation.predictor import Predictor

    chosen = [get_benchmark(name) for name in benchmarks]
    check_settings(benchmarks, settings, mode)
    records = {b.name: read_record(b.dataset, data_root) for b in chosen}
    grader = grading.connect(settings.get("grader"), benchmarks)
    seeds = (seed, seed if sampling_seed is None else sampling_seed)
    revision = checkpoint_digest(checkpoint)
    made_with = {"config_digest": digest(deciding(settings)), "model_revision": revision}
    # Else one that fails, or is killed, leaves results of another checkpoint beside its own.
    for benchmark in chosen:
        _remove_unlike(out_dir / f"{benchmark.name}.json", made_with)
    # The key is the grader's own from here on: no child of this process needs it.
    with (
        grading.key_hidden(settings.get("grader")),
        disk_full_told(str(out_dir), "free some space and run again; what was predicted is kept"),
        Predictor(checkpoint, settings, mode, seeds[1]) as predictor,
    ):
        job = _Job(predictor, revision, data_root.resolve(), out_dir, settings, mode, seeds)
        for benchmark in chosen:
            outcomes, result = job.evaluate(benchmark, records[benchmark.name], grader)
            file = out_dir / f"{benchmark.name}.json"
            file.unlink(missing_ok=True)  # not to stand beside other outcomes than its own
            write_outcomes(file.with_suffix(".parquet"), outcomes)
            provenance = stamp(
                "evaluation",
                seed=seed,
                num_samples=result["num_samples"],
                **made_with,
            )
            body = {"model": model, "variant": variant, "mode": mode, "benchmark": benchmark.name}
            write_json(file, {"provenance": provenance, **body, **result})
            print(f"{model} {variant} {mode} {benchmark.name}: {result['score']:.2f}", flush=True)


def _remove_unlike(result: Path, made_with: dict[str, str]) -> None:
    """Remove a result with its outcomes unless its provenance agrees with `made_with`."""
    try:
        provenance = read_json(result)["provenance"]
        if all(provenance[key] == value for key, value in made_with.items()):
            return
    except (InputError, OSError, LookupError, TypeError):
        pass  # missing, or nothing that we wrote
    result.unlink(missing_ok=True)
    result.with_suffix(".parquet").unlink(missing_ok=True)


class _Job:
    """What the benchmarks of one evaluation share."""

    def __init__(
        self,
        predictor: Any,
        revision: str,
        data_root: Path,
        out_dir: Path,
        settings: dict[str, Any],
        mode: str,
        seeds: tuple[int, int],
    ) -> None:
        self.predictor, self.revision, self.data_root = predictor, revision, data_root
        self.out_dir, self.settings, self.mode = out_dir, settings, mode
        self.seed, self.sampling_seed = seeds

    def evaluate(
        self, benchmark: Benchmark, record: dict[str, Any], grader: Any | None
    ) -> tuple[pd.DataFrame, dict[str, Any]]:
        """Return a benchmark's outcomes and its result's body."""
        from interlace.decoder.load import default_device
        from interlace.evaluation import kit
        from interlace.evaluation.engine import BATCH_SIZE, BATCH_TOKENS

        made_with = generation(self.settings, self.mode, benchmark.name)
        device = default_device(self.settings).partition(":")[0]
        key = {
            "checkpoint": self.revision,
            "dataset": benchmark.dataset,
            "md5": record["md5"],
            "generation": made_with,
            "device": device,
            "seed": self.sampling_seed if made_with["do_sample"] else None,
            "versions": versions(),
        }
        work = self.out_dir / "work" / f"{benchmark.name}-{digest(key)}"
        work.mkdir(parents=True, exist_ok=True)
        with claimed(work), kit.kit_environment(self.data_root):
            write_json(work / "settings.json", key)
            dataset = kit.build_benchmark(benchmark, self.settings.get("limit"))
            store = self.predictor.predict(benchmark, dataset, work)
            said = _predictions(dataset, store)
            write_predictions(dataset, said["prediction"], work / "predictions.tsv")
            score, outcomes, graded = self._score(benchmark, work, dataset, grader)
        rows = len(said)
        finished = said["finished"].dropna()
        # A question of MMBench has one outcome, with what was said to its first rotation.
        return outcomes.join(said, on="index", validate="one_to_one"), {
            "dataset": benchmark.dataset,
            "score": score,
            "unit": benchmark.unit,
            "num_samples": rows,
            "interval": bootstrap_interval(outcomes, self.seed, benchmark.name),
            "empty_predictions": int(said["empty"].sum()),
            "finished_share": float(finished.mean()) if len(finished) else None,
            "seed": self.sampling_seed,
            "generation": made_with,
            "device": device,
            "batching": {
                "batch_size": int(self.settings.get("batch_size") or BATCH_SIZE),
                "batch_tokens": int(self.settings.get("batch_tokens") or BATCH_TOKENS),
            },
            "grader": graded,
            "outcomes": f"{benchmark.name}.parquet",
            "tsv": {"md5": record["md5"], "official": record["official"]},
            "fixture": record["fixture"],
            "partial": rows < record["rows"],
            "seconds": store.seconds,
        }

    def _score(
        self, benchmark: Benchmark, work: Path, dataset: Any, grader: Any | None
    ) -> tuple[float, pd.DataFrame, dict[str, Any]]:
        """Let vlmeval score the predictions in a folder of their own."""
        from interlace.evaluation import kit, scores, scoring

        if scoring.grades(benchmark, grader):
            # Answers of a grader are kept: a run that was cut off asks only for the others.
            folder = work / f"grades-{digest(grader.identity)}"
        else:
            folder = work / "scores"
        folder.mkdir(exist_ok=True)
        # MMBench's evaluate() rewrites the table that it is given.
        table = folder / "predictions.tsv"
        shutil.copyfile(work / "predictions.tsv", table)
        questions = kit.question_ids(dataset.data).set_axis(dataset.data["index"].map(str))
        graded = scoring.score_predictions(benchmark, dataset, folder, grader)
        stem = table.with_suffix("")
        score = scores.read_score(benchmark.dataset, stem, len(questions), graded["judge"])
        outcomes = scores.read_outcomes(benchmark.dataset, stem, questions, graded["judge"])
        again = scores.ratio(outcomes)
        assert math.isclose(again, score, abs_tol=1e-6), (benchmark.name, score, again)
        return score, outcomes, graded


def _predictions(dataset: Any, store: Any) -> pd.DataFrame:
    """Return what was said in the order of the dataset's rows, by index."""
    indices = [str(index) for index in dataset.data["index"]]
    found = [store.predictions[index] for index in indices]
    answers = dataset.data.get("answer", pd.Series("", dataset.data.index))
    return pd.DataFrame(
        {
            "prediction": [p.text for p in found],
            "answer": [str(answer) for answer in answers],
            "empty": [not p.text.strip() for p in found],
            "new_tokens": pd.array([p.new_tokens for p in found], dtype="Int32"),
            "finished": pd.array([p.finished for p in found], dtype="boolean"),
        },
        index=indices,
    )


def write_predictions(dataset: Any, texts: Sequence[str], path: Path) -> None:
    """Write a dataset's rows with predictions as the TSV that vlmeval's evaluate() reads."""
    table = dataset.data.drop(columns="image", errors="ignore").assign(prediction=list(texts))
    with atomic_path(path) as partial:
        table.to_csv(partial, sep="\t", index=False, quoting=csv.QUOTE_ALL)
