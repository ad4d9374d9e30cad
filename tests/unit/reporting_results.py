"""Result files in the run's own formats, for the tests of reporting."""

import functools
import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy
import pandas

from interlace.evaluation.outcomes import write_outcomes
from interlace.io import write_json
from interlace.reporting.paper import load_paper

MODELS = {
    "big": {"label": "Qwen3-VL-8B stand-in", "paper": "8B"},
    "small": {"label": "Qwen3-VL-4B stand-in", "paper": "4B"},
    "own": {"label": "My model", "paper": None},
}
EXPERIMENTS = {
    "primary": "big",
    "method": "interlace",
    "ratios": [10, 15, 20, 25],
    "ratio": 25,
    "baselines": ["wanda_2_4", "magnitude_2_4", "sleb"],
    "ablations": ["consecutive", "random", "interlace_oa", "interlace_tn"],
}
STANDIN = ["stand-in models", "stand-in benchmarks"]


def write_score(
    root: Path, model: str, variant: str, mode: str, benchmark: str, score: float, /, **changes
) -> Path:
    """Write one evaluation file; `changes` replace keys of its body."""
    body = {
        "provenance": {"schema": "interlace/evaluation/1"},
        "model": model,
        "variant": variant,
        "mode": mode,
        "benchmark": benchmark,
        "score": score,
        "num_samples": 64,
        "interval": [max(0.0, score - 5), min(100.0, score + 5)],
        "grader": {"kind": "exact_matching", "model": None, "ungraded": 0},
        "fixture": False,
        "partial": False,
    }
    path = root / model / "evaluation" / variant / mode / f"{benchmark}.json"
    write_json(path, body | changes)
    return path


def write_hits(
    root: Path,
    model: str,
    variant: str,
    mode: str,
    benchmark: str,
    hits: Sequence[float],
    /,
    questions: Sequence[str] | None = None,
    **changes,
) -> Path:
    """Write one evaluation file and its outcomes; `hits` (0-1) are those of the rows.

    `questions` of the rows; each is of its own by default.
    """
    names = [f"q{i}" for i in range(len(hits))] if questions is None else list(questions)
    score = 100 * sum(hits) / len(hits)
    path = write_score(
        root, model, variant, mode, benchmark, score, **{"num_samples": len(hits)} | changes
    )
    table = pandas.DataFrame(
        {
            "index": [str(i) for i in range(len(hits))],
            "question": names,
            "prediction": "A",
            "answer": "A",
            "hit": [float(hit) for hit in hits],
            "value": [float(hit) for hit in hits],
            "weight": 1.0,
            "empty": False,
            "new_tokens": pandas.array([1] * len(hits), dtype="Int32"),
            "finished": pandas.array([True] * len(hits), dtype="boolean"),
        }
    )
    write_outcomes(path.with_suffix(".parquet"), table)
    return path


def write_run(root: Path, *, num_rows: int) -> list[Path]:
    """Write what a run of all tables leaves behind, with outcomes: the evaluation files.

    Questions have a difficulty that all variants share, as real ones do.
    """
    skills = {"dense": 0.9, "dense-ft": 0.92, "wanda_2_4": 0.5, "magnitude_2_4": 0.45}
    skills |= {"sleb-25": 0.4, "sleb-25-ft": 0.55, "consecutive-25-ft": 0.6, "random-25-ft": 0.65}
    skills |= {"interlace_oa-25-ft": 0.78, "interlace_tn-25-ft": 0.8}
    skills |= {f"interlace-{ratio}-ft": 1 - ratio / 150 for ratio in (10, 15, 20, 25)}
    limited = {"dense", "dense-ft", "wanda_2_4", "magnitude_2_4", "sleb-25", "sleb-25-ft"}
    files = []
    for model in ("big", "small"):
        for variant, skill in skills.items():
            if model == "small" and variant != "dense" and "interlace-" not in variant:
                continue
            modes = ["limited"] * (variant in limited or variant == "interlace-25-ft")
            modes += ["cot"] * (variant not in limited or variant.startswith("dense"))
            for mode in modes if model == "big" else ["cot"]:
                for position, name in enumerate(load_paper().names):
                    difficulty = numpy.random.default_rng(position).random(num_rows)
                    luck = numpy.random.default_rng([position, *variant.encode()])
                    noise = luck.normal(0, 0.1, num_rows)
                    hits = difficulty + noise < skill * (0.75 + 0.02 * position)
                    files.append(write_hits(root, model, variant, mode, name, hits))
    return files


@functools.cache
def shared_run(root: Path) -> list[Path]:
    """Return the files of a run below a session's `root`, written once; nobody may change them."""
    return write_run(root / "shared_run", num_rows=40)


def write_timing(
    root: Path, model: str, variant: str, benchmark: str, speedup: float, /, **changes
) -> Path:
    """Write one TTFT file; `changes` replace keys of its body."""
    decoder, vision = 0.080, 0.030 if not benchmark.startswith("HR") else 0.120
    pruned = (decoder + vision) / speedup
    body = {
        "provenance": {"schema": "interlace/ttft/1"},
        "model": model,
        "variant": variant,
        "benchmark": benchmark,
        "num_samples": 6,
        "dense": {"mean_s": decoder + vision + 0.004},
        "pruned": {"mean_s": pruned + 0.004},
        "speedup": speedup,
        "speedup_interval": [speedup - 0.03, speedup + 0.03],
        "split": {
            "dense": {"vision_s": vision, "decoder_s": decoder},
            "pruned": {"vision_s": vision, "decoder_s": pruned - vision},
        },
        "device": "cpu",
        "fixture": False,
    }
    path = root / model / "ttft" / variant / f"{benchmark}.json"
    write_json(path, body | changes)
    return path


def write_paper_as_results(root: Path) -> tuple[list[Path], list[Path]]:
    """Write the paper's own cells as if the 8B had been run: (evaluation files, TTFT files)."""
    paper, scores, timings = load_paper(), [], []
    columns = {
        "consecutive-25-ft": "Consecutive",
        "random-25-ft": "Random",
        "interlace_oa-25-ft": "INTERLACE-OA",
        "interlace_tn-25-ft": "INTERLACE-TN",
        "interlace-25-ft": "INTERLACE",
        "dense": "Dense",
    }
    for variant, column in columns.items():
        for name, value in paper.column(5, column, paper.names).items():
            scores.append(write_score(root, "big", variant, "cot", name, value))
    for name, value in paper.column(6, "cot_Dense-FT", paper.names).items():
        scores.append(write_score(root, "big", "dense-ft", "cot", name, value))
    for variant, column in (("dense", "limited_Dense"), ("dense-ft", "limited_Dense-FT")):
        for name, value in paper.column(6, column, paper.names).items():
            scores.append(write_score(root, "big", variant, "limited", name, value))
    for model, size in (("big", "8B"), ("small", "4B")):
        for ratio in (10, 15, 20, 25):
            for name, value in paper.column(4, f"{size}_{ratio}", paper.names).items():
                variant = f"interlace-{ratio}-ft"
                timings.append(write_timing(root, model, variant, name, value))
    return scores, timings


def make_pack(size: int, num_layers: int = 36, seed: int = 0) -> dict:
    """Return a pack body with a plausible rise and fall over depth."""
    rng = random.Random(seed)
    windows = []
    for start in range(num_layers - size + 1):
        depth = (start + size / 2) / num_layers
        mean = 1 - 0.02 * size - 0.35 * math.exp(-9 * depth) - 0.25 * math.exp(-14 * (1 - depth))
        value = mean + 0.012 * size * (rng.random() - 0.5)
        windows.append({"start": start, "token_mean": value, "sample_mean": value})
    return {"model": "big", "size": size, "num_layers": num_layers, "windows": windows}


def make_plan(num_layers: int = 36) -> dict:
    """Return a plan of nine disjoint triplets, as Algorithm 1 gives."""
    starts = [14, 17, 20, 11, 23, 26, 8, 29, 5]
    triplets = [
        {"start": s, "size": 3, "score": 0.9, "drop": s, "tune": s + 1, "anchor": s + 2}
        for s in starts
    ]
    drop, tune = sorted(t["drop"] for t in triplets), sorted(t["tune"] for t in triplets)
    return {
        "model": "big",
        "method": "interlace",
        "ratio": 25,
        "num_layers": num_layers,
        "num_dropped": 9,
        "drop": drop,
        "tune": tune,
        "freeze": [i for i in range(num_layers) if i not in {*drop, *tune}],
        "reading": "paper",
        "seed": 0,
        "how_reached": "by hand",
        "triplets": triplets,
        "order": [t["drop"] for t in triplets],
        "measures": [
            {
                "name": name,
                "unit": "cosine similarity",
                "size": size,
                "values": [w["token_mean"] for w in make_pack(size, num_layers)["windows"]],
            }
            for name, size in (("layer", 1), ("triplet", 3))
        ],
    }


def texts(figure) -> str:
    """Return all that is written in a figure."""
    return "\n".join(t.get_text() for t in figure.findobj(lambda o: hasattr(o, "get_text")))
