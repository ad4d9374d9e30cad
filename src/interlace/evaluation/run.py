"""Evaluate one checkpoint in one mode on any of the twelve benchmarks, scored by VLMEvalKit."""

import csv
import functools
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from interlace.errors import InputError
from interlace.evaluation.benchmarks import (
    OCRBENCH_MIN_PIXELS,
    Benchmark,
    check_graders,
    get_benchmark,
    is_loopback,
)
from interlace.evaluation.prepare import read_record
from interlace.io import atomic_path, digest, file_digest, read_json, remove, write_json
from interlace.provenance import stamp, versions

# Prompt tokens of a batch, padding included: bounds the memory of a prefill.
BATCH_TOKENS = 65536


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
) -> None:
    """Write `out_dir/<benchmark>.json` for each of `benchmarks`.

    `settings` is the config's `evaluation` section; `dtype` (float32) and `attention` (sdpa) say how
    the checkpoint is loaded, `modes[mode]` how many tokens it may generate. Predictions lie under
    `work/` in `out_dir`, keyed by checkpoint, benchmark and settings, and are not generated twice.

    Raises InputError before any work for a benchmark that is unknown, not prepared or without its
    grader, and after grading for rows that stayed ungraded.
    """
    chosen = [get_benchmark(name) for name in benchmarks]
    check_settings(benchmarks, settings, mode)
    records = {b.name: read_record(b.dataset, data_root) for b in chosen}
    grader = None
    if any(b.needs_grader for b in chosen):
        from interlace.evaluation import grading

        grader = grading.connect(settings["grader"])
    job = _Job(checkpoint, data_root, out_dir, settings, mode, seed)
    for benchmark in chosen:
        result = job.evaluate(benchmark, records[benchmark.name], grader)
        body = {"model": model, "variant": variant, "mode": mode, "benchmark": benchmark.name}
        provenance = stamp(
            "evaluation",
            config_digest=digest(_without_address(settings)),
            seed=seed,
            num_samples=result["num_samples"],
            model_revision=job.checkpoint_digest,
        )
        write_json(out_dir / f"{benchmark.name}.json", {"provenance": provenance, **body, **result})
        print(f"{model} {variant} {mode} {benchmark.name}: {result['score']:.2f}", flush=True)


def check_settings(benchmarks: Sequence[str], settings: dict[str, Any], mode: str) -> None:
    """Raise InputError for evaluation settings that cannot work, before anything is loaded."""
    check_graders(benchmarks, settings.get("grader"))
    if mode not in settings["modes"]:
        raise InputError(
            f"evaluation.modes: '{mode}' is unknown (possible: {', '.join(settings['modes'])})"
        )
    for key, possible in (
        ("engine", ("batched", "vlmevalkit")),
        ("prompt", ("dataset", "custom")),
    ):
        if settings.get(key, possible[0]) not in possible:
            raise InputError(
                f"evaluation.{key}: '{settings[key]}' is unknown (possible: {', '.join(possible)})"
            )
    check_pixels(benchmarks, settings)
    if settings.get("do_sample") and not settings.get("temperature"):
        raise InputError("evaluation.temperature: sampling needs one, for example 0.7")


def check_pixels(benchmarks: Sequence[str], settings: dict[str, Any]) -> None:
    """Raise InputError for limits on image sizes that exclude each other or OCRBench."""
    low, high = settings.get("min_pixels"), settings.get("max_pixels")
    if low and high and low > high:
        raise InputError(f"evaluation.min_pixels: {low} is more than max_pixels, {high}")
    if "OCRBench" in benchmarks and high and high < OCRBENCH_MIN_PIXELS:
        raise InputError(
            f"evaluation.max_pixels: {high} is below {OCRBENCH_MIN_PIXELS}, which VLMEvalKit gives "
            "OCRBench's images at least; raise it or leave OCRBench out"
        )


def _without_address(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings without a loopback grader's address, whose port changes with every run."""
    grader = dict(settings.get("grader") or {})
    if is_loopback(grader.get("base_url") or ""):
        grader["base_url"] = "loopback"
    return {**settings, "grader": grader}


class _Job:
    """One checkpoint in one mode; the model is loaded when the first prediction is missing."""

    def __init__(
        self,
        checkpoint: Path,
        data_root: Path,
        out_dir: Path,
        settings: dict[str, Any],
        mode: str,
        seed: int,
    ) -> None:
        self.checkpoint, self.data_root, self.out_dir = checkpoint, data_root.resolve(), out_dir
        self.settings, self.seed = settings, seed
        self.max_new_tokens = int(settings["modes"][mode])
        self.checkpoint_digest = checkpoint_digest(checkpoint)

    def generation(self, benchmark: Benchmark) -> dict[str, Any]:
        """Return everything that decides what is generated, apart from checkpoint and benchmark."""
        get = self.settings.get
        sample = bool(get("do_sample", False))
        low = OCRBENCH_MIN_PIXELS if benchmark.name == "OCRBench" else get("min_pixels")
        return {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": sample,
            "temperature": get("temperature") if sample else None,
            "prompt": get("prompt", "dataset"),
            "min_pixels": low,
            "max_pixels": get("max_pixels"),
            "dtype": get("dtype", "float32"),
            "attention": get("attention", "sdpa"),
            "batch_size": int(get("batch_size", 1)),
            "engine": get("engine", "batched"),
        }

    @functools.cached_property
    def kit_model(self) -> Any:
        from interlace.decoder.load import default_device, load_model, load_processor
        from interlace.evaluation.model import LocalQwen3VL

        get = self.settings.get
        return LocalQwen3VL(
            load_model(
                self.checkpoint,
                get("dtype", "float32"),
                default_device(self.settings),
                get("attention", "sdpa"),
            ),
            load_processor(self.checkpoint),
            max_new_tokens=self.max_new_tokens,
            do_sample=bool(get("do_sample", False)),
            temperature=get("temperature"),
            custom_prompt=get("prompt", "dataset") == "custom",
            min_pixels=get("min_pixels"),
            max_pixels=get("max_pixels"),
        )

    def evaluate(
        self, benchmark: Benchmark, record: dict[str, Any], grader: Any | None
    ) -> dict[str, Any]:
        """Return a result's body for one benchmark."""
        from interlace.evaluation import kit

        generation = self.generation(benchmark)
        limit = self.settings.get("limit")
        key = {
            "checkpoint": self.checkpoint_digest,
            "dataset": benchmark.dataset,
            "md5": record["md5"],
            "limit": limit,
            "generation": generation,
            "seed": self.seed if generation["do_sample"] else None,
            "versions": versions(),
        }
        work = self.out_dir / "work" / f"{benchmark.name}-{digest(key)}"
        work.mkdir(parents=True, exist_ok=True)
        write_json(work / "settings.json", key)
        with kit.kit_environment(self.data_root):

            def build() -> Any:
                built = kit.build_dataset(benchmark.dataset)
                built.data = limited(built.data, benchmark, limit)
                return built

            predictions = self._predictions(benchmark, work, build)
            score, interval = self._score(benchmark, work, build(), grader)
        rows = predictions["rows"]
        kind = "exact_matching" if benchmark.exact_matching else "none"
        return {
            "dataset": benchmark.dataset,
            "score": score,
            "unit": benchmark.unit,
            "num_samples": rows,
            "interval": interval,
            "empty_predictions": predictions["empty"],
            "generation": generation,
            "grader": {
                "kind": "openai" if benchmark.needs_grader else kind,
                "model": grader.model if grader and benchmark.needs_grader else None,
                "ungraded": 0,
            },
            "tsv": {"md5": record["md5"], "official": record["official"]},
            "fixture": record["fixture"],
            "partial": rows < record["rows"],
            "seconds": predictions["seconds"],
        }

    def _predictions(
        self, benchmark: Benchmark, work: Path, build: Callable[[], Any]
    ) -> dict[str, Any]:
        """Generate what is missing, write `work/predictions.tsv`; return rows, empty, seconds."""
        summary = work / "predictions.json"
        if summary.exists():
            return read_json(summary)
        from interlace.evaluation import engine

        dataset = build()
        store = engine.PredictionStore(work / "predictions.jsonl")
        indices = [str(index) for index in dataset.data["index"]]
        if any(index not in store.predictions for index in indices):
            print(f"{benchmark.name}: {len(store.predictions)} of {len(indices)} rows predicted")
            if self.settings.get("engine", "batched") == "batched":
                engine.predict_batched(
                    self.kit_model,
                    dataset,
                    store,
                    batch_size=int(self.settings.get("batch_size", 1)),
                    batch_tokens=int(self.settings.get("batch_tokens") or BATCH_TOKENS),
                    seed=self.seed,
                )
            else:
                engine.predict_vlmevalkit(self.kit_model, build(), store, seed=self.seed)
        texts = [store.predictions[index] for index in indices]
        table = dataset.data.drop(columns="image").assign(prediction=texts)
        with atomic_path(work / "predictions.tsv") as partial:
            table.to_csv(partial, sep="\t", index=False, quoting=csv.QUOTE_ALL)
        found = {
            "rows": len(texts),
            "empty": sum(not text.strip() for text in texts),
            "seconds": store.seconds,
        }
        write_json(summary, found)
        return found

    def _score(
        self, benchmark: Benchmark, work: Path, dataset: Any, grader: Any | None
    ) -> tuple[float, list[float]]:
        """Let vlmeval score the predictions in a folder of their own; return score and interval."""
        from interlace.evaluation import kit, scores

        judge = "exact_matching"
        if benchmark.needs_grader:
            from interlace.evaluation import grading

            judge = grading.JUDGE
            folder = work / f"grades-{digest(grader.model)}"
        else:
            folder = work / "scores"
            remove(folder)  # vlmeval takes any score file it finds for its own
        folder.mkdir(exist_ok=True)
        # MMBench's evaluate() rewrites the table that it is given.
        table = folder / "predictions.tsv"
        shutil.copyfile(work / "predictions.tsv", table)
        rows = len(dataset.data)
        images = dataset.data["image"].map(digest)
        questions = pd.Series(
            [f"{q}|{i}" for q, i in zip(dataset.data["question"], images, strict=True)],
            index=[str(index) for index in dataset.data["index"]],
        )
        with kit.scoring_patches():
            if benchmark.needs_grader:
                grading.grade(dataset, table, grader, self.data_root)
            else:
                dataset.evaluate(str(table), model=judge, nproc=1)
        stem = table.with_suffix("")
        score = scores.read_score(benchmark.dataset, stem, rows, judge)
        outcomes = scores.read_outcomes(benchmark.dataset, stem, questions, judge)
        again = scores.ratio(outcomes)
        assert math.isclose(again, score, abs_tol=1e-6), (benchmark.name, score, again)
        return score, scores.bootstrap_interval(outcomes, self.seed)


def checkpoint_digest(checkpoint: Path) -> str:
    """Return a digest of what decides a checkpoint's answers: weights, config, processor.

    Its model card and `interlace.json` do not. InputError if there are no weights.
    """
    checkpoint = Path(checkpoint)
    if not any(checkpoint.glob("*.safetensors")):
        raise InputError(f"{checkpoint}: no *.safetensors here; it is not a checkpoint")
    files = sorted(
        path
        for path in checkpoint.iterdir()
        if path.is_file()
        and path.name not in ("README.md", "interlace.json")
        and path.name[0] != "."
    )
    return digest([[path.name, file_digest(path)] for path in files])


def limited(data: pd.DataFrame, benchmark: Benchmark, limit: int | None) -> pd.DataFrame:
    """Return the first `limit` rows (all if None); of MMBench whole questions with their rotations."""
    if limit is None or limit >= len(data):
        return data
    if benchmark.name != "MMBench":
        return data.iloc[:limit].copy()
    question = data["index"].astype(int) % 1_000_000
    size = question.map(question.value_counts())
    kept = question.drop_duplicates()
    taken = kept[size[kept.index].cumsum() <= max(limit, int(size[kept.index[0]]))]
    return data[question.isin(taken)].copy()
