"""The grid of experiments is the paper's."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from interlace.config import complete, load_schema
from interlace.config_docs import SCHEMA
from interlace.evaluation.benchmarks import BENCHMARKS, cost, shared_out
from interlace.grid import Grid
from interlace.selection.registry import METHODS, PRUNERS
from interlace.variants import plan_id, split_plan_id, split_seed, variant_id

ROOT = Path(__file__).resolve().parents[2]


def make(monkeypatch, **changes):
    monkeypatch.chdir(ROOT)
    config = yaml.safe_load((ROOT / "config" / "paper.yaml").read_text()) | changes
    return Grid(complete(config, load_schema(SCHEMA)))


@pytest.fixture
def paper(monkeypatch):
    return make(monkeypatch)


def test_the_paper_takes_22_evaluations_and_17_checkpoints(paper):
    assert len(paper.all_cells()) == 22
    assert len(paper.checkpoints_wanted()) == 17
    assert len(paper.evaluation_files()) == 22 * 12
    assert len(paper.all_ttft()) == 13


def test_table_1_is_two_models_at_four_ratios_beside_dense(paper):
    cells = paper.cells(1)
    assert len(cells) == 2 * (1 + 4)
    assert {c.mode for c in cells} == {"cot"}


def test_table_2_has_the_papers_seven_rows_in_limited_mode(paper):
    assert [c.variant for c in paper.cells(2)] == [
        "dense", "dense-ft", "wanda_2_4", "magnitude_2_4", "sleb-25", "sleb-25-ft", "interlace-25-ft",
    ]  # fmt: skip
    assert {c.mode for c in paper.cells(2)} == {"limited"}


def test_only_what_the_wanted_tables_need(monkeypatch):
    grid = make(monkeypatch, tables=[6])
    assert grid.checkpoints_wanted() == [("qwen3_vl_8b", "dense-ft")]
    assert grid.all_ttft() == []
    assert len(grid.all_cells()) == 4


def test_ttft_groups_cover_every_variant_once(monkeypatch):
    grid = make(monkeypatch, ttft={"variants_per_job": 4})
    groups = grid.ttft_groups()
    assert max(len(v) for _, v in groups) == 4
    assert sorted((m, v) for m, vs in groups for v in vs) == sorted(grid.all_ttft())


def test_a_ttft_job_measures_all_of_a_model_unless_told(paper):
    groups = paper.ttft_groups()
    assert [model for model, _ in groups] == ["qwen3_vl_8b", "qwen3_vl_4b"]
    assert {"interlace-25-ft", "sleb-25", "sleb-25-ft"} <= {*groups[0][1]}


def test_accuracy_stands_against_ttft_in_every_mode_with_a_timed_variant(paper):
    found = {(c.mode, c.variant) for c in paper.accuracy_cells()}
    assert {("cot", v) for v in ["dense", *paper.ladder()]} <= found
    assert {("limited", v) for v in paper.comparison()} <= found
    assert not {v for _, v in found} & {"random-25-ft", "interlace_oa-25-ft"}  # not timed
    assert {c.model for c in paper.accuracy_cells()} == {paper.primary}


def test_a_plan_is_made_from_what_its_method_needs(monkeypatch):
    grid = make(monkeypatch, tables=[2], experiments={"baselines": list(PRUNERS)})
    files = {"windows": "windows.parquet", "sleb": "sleb.json", "losses": "block_losses.json"}
    for method, entry in METHODS.items():
        inputs = grid.plan_inputs("qwen3_vl_8b", f"{method}-25")
        needs = {
            "windows": entry.needs_scores, "sleb": entry.needs_sleb, "losses": entry.needs_losses,
        }  # fmt: skip
        wanted = {
            name: f"results/paper/qwen3_vl_8b/scores/{files[name]}" for name in files if needs[name]
        }
        assert inputs == {"base": "results/paper/qwen3_vl_8b/base"} | wanted
        assert set(wanted.values()) <= set(grid.score_files())
    assert grid.plan_inputs("qwen3_vl_8b", "random-25").keys() == {"base"}


def test_scores_that_no_plan_needs_are_not_measured(monkeypatch):
    grid = make(monkeypatch, tables=[3], experiments={"method": "random", "ablations": ["sleb"]})
    assert grid.score_files() == ["results/paper/qwen3_vl_8b/scores/sleb.json"]
    grid = make(monkeypatch, tables=[6])
    assert grid.score_files() == []


def test_every_plan_has_a_figure(paper):
    names = [n for n in paper.figure_names() if n.startswith("figure2_")]
    assert names == [f"figure2_{plan}_{model}" for model, plan in paper.plans_wanted()]
    assert len(names) == 14
    assert "results/paper/figures/figure2_sleb-25_qwen3_vl_8b.png" in paper.plan_figure_files()
    assert len(paper.plan_figure_files()) == 3 * 14
    assert set(paper.plan_figure_files()) < set(paper.figure_files())


def test_seeds_repeat_what_chance_has_a_part_in(monkeypatch):
    seeds = {"seeds": [1, 7], "baselines": ["wanda_2_4", "random", "sleb"], "ablations": ["random"]}
    grid = make(monkeypatch, experiments=seeds, tables=[2])
    variants = [cell.variant for cell in grid.cells(2)]
    assert variants == [
        "dense", "dense-ft", "dense-ft-s1", "dense-ft-s7", "wanda_2_4",
        "random-25", "random-25-s1", "random-25-s7", "random-25-ft", "random-25-ft-s1",
        "random-25-ft-s7", "sleb-25", "sleb-25-ft", "sleb-25-ft-s1", "sleb-25-ft-s7",
        "interlace-25-ft", "interlace-25-ft-s1", "interlace-25-ft-s7",
    ]  # fmt: skip
    plans = [plan for _, plan in grid.plans_wanted()]
    assert "random-25-s7" in plans
    assert "sleb-25-s7" not in plans
    assert (grid.seed("random-25-ft-s7"), grid.seed("random-25-ft")) == (7, 0)
    assert grid.plan_file("m", "random-25-ft-s7").endswith("plans/random-25-s7.json")
    assert grid.plan_file("m", "sleb-25-ft-s7").endswith("plans/sleb-25.json")
    assert grid.checkpoint("m", "random-25-s7").endswith("checkpoints/random-25-s7")
    assert not any(split_seed(variant)[1] for _, variant in grid.all_ttft())
    assert set(grid.checkpoints_wanted()) == {("qwen3_vl_8b", v) for v in variants[1:]}
    sampled = make(
        monkeypatch,
        experiments=seeds,
        tables=[2],
        evaluation={"decoding": "released", "benchmarks": ["AI2D"]},
    )
    assert "dense-s7" in [cell.variant for cell in sampled.cells(2)]
    assert sampled.checkpoint("m", "dense-s7").endswith("m/base")
    assert sampled.checkpoint("m", "sleb-25-s7").endswith("checkpoints/sleb-25")
    assert sampled.checkpoints_wanted() == grid.checkpoints_wanted()


@given(
    names=st.lists(st.sampled_from(list(BENCHMARKS)), unique=True, min_size=1),
    groups=st.integers(1, 12),
)
def test_benchmarks_are_shared_out_whole_and_once(names, groups):
    found = shared_out(names, groups)
    assert sorted(name for group in found for name in group) == sorted(names)
    assert len(found) == min(groups, len(names))
    assert all(group == [name for name in names if name in group] for group in found)


def test_groups_of_the_paper_are_balanced(paper):
    groups = paper.benchmark_groups()
    costs = [sum(cost(name) for name in group) for group in groups]
    assert len(groups) == 4
    assert max(costs) < 1.25 * min(costs)


def test_a_benchmark_more_or_less_leaves_the_others_in_their_jobs(monkeypatch):
    def groups(*names):
        evaluation = {"benchmarks": list(names), "grader": {"kind": "demo"}}
        found = make(monkeypatch, evaluation=evaluation).benchmark_groups()
        return {frozenset(group) for group in found}

    every = groups(*BENCHMARKS)
    assert len(every) == 4
    left = {group - {"POPE"} for group in every} - {frozenset()}
    assert groups(*(name for name in BENCHMARKS if name != "POPE")) == left
    assert groups("AI2D", "POPE") == {frozenset({"AI2D"}), frozenset({"POPE"})}


def test_local_files_are_what_a_run_starts_from(monkeypatch, tmp_path):
    grid = make(monkeypatch)
    assert grid.base_inputs("qwen3_vl_8b") == grid.sample_inputs() == []
    for name in ("m/config.json", "m/model.safetensors", "m/notes.md", "d/s/0.parquet", "d/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    grid = make(
        monkeypatch,
        models={"m": {"source": "local", "path": str(tmp_path / "m")}},
        experiments={},
        data={"source": "local", "path": str(tmp_path / "d")},
    )
    names = ("m/config.json", "m/model.safetensors")
    assert grid.base_inputs("m") == [str(tmp_path / name) for name in names]
    assert grid.sample_inputs() == [str(tmp_path / "d/s/0.parquet")]


def test_ids_round_trip():
    assert variant_id("interlace", 25, tuned=True) == "interlace-25-ft"
    assert plan_id("interlace-25-ft") == "interlace-25"
    assert split_plan_id("interlace-25") == ("interlace", 25)
    assert split_plan_id(plan_id("dense-ft")) == ("dense", None)


def test_config_and_grid_load_without_torch():
    code = "import sys, interlace.grid, interlace.config, interlace.demo.models; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
