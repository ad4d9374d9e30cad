"""The shipped base models on the demo's own benchmarks: good enough to lose something, not perfect."""

import pytest

from interlace.demo.benchmarks import write_benchmarks
from interlace.demo.grader import running_grader
from interlace.demo.models import BASE_MODELS, write_base_model
from interlace.evaluation.benchmarks import BENCHMARKS
from interlace.evaluation.prepare import prepare_benchmark
from interlace.evaluation.run import evaluate
from interlace.io import read_json

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    write_benchmarks(folder, rows=24, seed=1)
    for benchmark in BENCHMARKS.values():
        prepare_benchmark(benchmark.dataset, folder, "demo")
    return folder


@pytest.mark.parametrize("name", BASE_MODELS)
def test_dense_is_well_above_chance_and_below_the_ceiling(name, benchmarks, tmp_path):
    write_base_model(name, tmp_path / "base")
    with running_grader() as (address, grader):
        settings = {
            "modes": {"limited": 50},
            "batch_size": 32,
            "grader": {"kind": "demo", "base_url": address, "model": grader},
        }
        evaluate(
            tmp_path / "base", list(BENCHMARKS), benchmarks, tmp_path / "out", settings,
            model=name, variant="dense", mode="limited", seed=0,
        )  # fmt: skip
    scores = {n: read_json(tmp_path / "out" / f"{n}.json")["score"] for n in BENCHMARKS}
    for benchmark, score in scores.items():
        assert score >= BENCHMARKS[benchmark].chance + 15, (benchmark, score)
    mean = sum(scores.values()) / len(scores)
    assert 60 <= mean <= 90, scores
