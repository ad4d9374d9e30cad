"""Batched generation against VLMEvalKit's own loop, in turns on the demo's model and benchmarks.

Prints the ratio of generation times, loop / batched, last. Bar for --check: 2.0, and the scores
of both engines equal.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from interlace.demo.benchmarks import write_benchmarks
from interlace.demo.models import write_base_model
from interlace.evaluation.benchmarks import get_benchmark
from interlace.evaluation.prepare import prepare_benchmark
from interlace.evaluation.run import evaluate
from interlace.io import read_json

BAR = 2.0
BENCHMARKS = ["MMBench", "TextVQA", "HRBench4K"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 below the bar")
    parser.add_argument("--rows", type=int, default=32, help="questions per benchmark")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each engine")
    args = parser.parse_args()
    seconds = {"batched": [], "vlmevalkit": []}
    scores = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_base_model("standin_8b", folder / "base")
        write_benchmarks(folder / "benchmarks", rows=args.rows, seed=1)
        for benchmark in BENCHMARKS:
            prepare_benchmark(get_benchmark(benchmark).dataset, folder / "benchmarks", "demo")
        for turn in range(args.rounds):
            for engine in seconds:
                out = folder / f"{engine}{turn}"
                settings = {
                    "modes": {"limited": 50},
                    "engine": engine,
                    "batch_size": 32,
                    "grader": {"kind": "none"},
                }
                start = time.perf_counter()
                evaluate(
                    folder / "base", BENCHMARKS, folder / "benchmarks", out, settings,
                    model="standin_8b", variant="dense", mode="limited", seed=0,
                )  # fmt: skip
                print(f"{engine}: {time.perf_counter() - start:.1f} s in all", flush=True)
                results = [read_json(out / f"{b}.json") for b in BENCHMARKS]
                seconds[engine].append(sum(r["seconds"] for r in results))
                scores[engine] = [r["score"] for r in results]
    equal = scores["batched"] == scores["vlmevalkit"]
    print(f"scores equal: {equal} {scores}")
    for engine, times in seconds.items():
        print(f"{engine}: generation {min(times):.1f} s, best of {args.rounds}")
    ratio = min(seconds["vlmevalkit"]) / min(seconds["batched"])
    print(f"ratio loop / batched: {ratio:.2f}")
    return int(args.check and not (equal and ratio >= BAR))


if __name__ == "__main__":
    sys.exit(main())
