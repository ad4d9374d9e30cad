"""evaluate() on a tiny random checkpoint: both engines, outcomes, resume, limits, grader and key."""

import errno
import logging
import os
import ssl
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from interlace.errors import InputError
from interlace.evaluation import kit
from interlace.evaluation.benchmarks import BENCHMARKS
from interlace.evaluation.engine import ordered
from interlace.evaluation.outcomes import read_outcomes_file
from interlace.evaluation.predictions import Prediction
from interlace.evaluation.prepare import prepare_benchmarks
from interlace.evaluation.run import evaluate
from interlace.io import claimed, read_json
from interlace.stamps import checkpoint_digest
from tests.tiny import make_tiny_checkpoint
from tests.tiny_benchmarks import (
    DATASETS,
    GRADE,
    make_tiny_benchmarks,
    stub_grader,
    take_for_long,
)

SETTINGS = {"modes": {"limited": 6}, "batch_size": 3, "prompt": "dataset", "limit": None}
CANARY = "sk-canary-0123456789abcdef"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluation")
    make_tiny_benchmarks(root / "tsv")
    prepare_benchmarks(DATASETS, root / "lmu", str(root / "tsv"))
    make_tiny_checkpoint(root / "model", layers=4)
    return root


def go(work, out, benchmarks, checkpoint=None, seed=0, sampling_seed=None, lmu=None, **settings):
    evaluate(
        checkpoint or work / "model",
        benchmarks,
        lmu or work / "lmu",
        out,
        {**SETTINGS, **settings},
        model="tiny",
        variant="dense",
        mode="limited",
        seed=seed,
        sampling_seed=sampling_seed,
    )
    return {name: read_json(out / f"{name}.json") for name in benchmarks}


def predictions(out, name):
    (file,) = out.glob(f"work/{name}-*/predictions.tsv")
    table = pd.read_csv(file, sep="\t", dtype=str, keep_default_na=False)
    return dict(zip(table["index"], table["prediction"], strict=True))


@pytest.fixture
def says(monkeypatch):
    """Put a model that says what `text(index)` returns in the place of the real one."""

    def replace(text):
        class Parrot:
            def __init__(self, *_):
                pass

            def __enter__(self):
                return self

            def __exit__(self, *_):
                pass

            def predict(self, benchmark, dataset, folder):
                indices = dataset.data["index"]
                said = {str(i): Prediction(text(int(i)), 3, int(i) % 2 == 0) for i in indices}
                return SimpleNamespace(predictions=said, seconds=1.0)

        monkeypatch.setattr("interlace.evaluation.predictor.Predictor", Parrot)

    return replace


def openai(server, **changes):
    return {
        "kind": "openai",
        "base_url": server.base_url,
        "model": "rules-1",
        "key_env": "TEST_GRADER_KEY",
        "retries": 0,
        **changes,
    }


def test_both_engines_say_and_score_the_same_on_all_twelve(work, tmp_path):
    with stub_grader() as server:
        found = {
            name: go(work, tmp_path / name, list(BENCHMARKS), engine=name, grader=openai(server))
            for name in ("batched", "vlmevalkit")
        }
    texts = []
    for name in BENCHMARKS:
        batched = predictions(tmp_path / "batched", name)
        assert batched == predictions(tmp_path / "vlmevalkit", name), name
        texts += batched.values()
        ours, reference = (found[e][name] for e in ("batched", "vlmevalkit"))
        for key in ("score", "interval", "num_samples", "empty_predictions"):
            assert ours[key] == reference[key], (name, key)
        outcomes = read_outcomes_file(tmp_path / "batched" / f"{name}.parquet")
        assert 100 * outcomes["value"].sum() / outcomes["weight"].sum() == pytest.approx(
            ours["score"]
        )
        assert set(outcomes["new_tokens"]) == {6}
        assert not outcomes["finished"].any()
        untold = read_outcomes_file(tmp_path / "vlmevalkit" / f"{name}.parquet")
        assert untold[["new_tokens", "finished"]].isna().all(axis=None)
        assert outcomes["prediction"].tolist() == [batched[i] for i in outcomes["index"]]
    assert len(set(texts)) > len(texts) / 4  # different pictures, different answers
    assert found["batched"]["MIABench"]["score"] == pytest.approx(50)
    graded = found["batched"]["MIABench"]["grader"]
    assert (graded["kind"], graded["model"], graded["ungraded"]) == ("openai", "rules-1", 0)


def test_a_result_says_where_it_comes_from(work, tmp_path):
    found = go(work, tmp_path, ["AI2D", "OCRBench"])
    result = found["AI2D"]
    assert (result["model"], result["variant"], result["mode"]) == ("tiny", "dense", "limited")
    assert (result["benchmark"], result["dataset"]) == ("AI2D", "AI2D_TEST")
    assert (result["num_samples"], result["fixture"], result["partial"]) == (2, True, False)
    assert (result["grader"]["kind"], result["grader"]["model"]) == ("exact_matching", None)
    assert result["generation"] == {
        "max_new_tokens": 6,
        "do_sample": False,
        "temperature": None,
        "top_p": None,
        "top_k": None,
        "prompt": "dataset",
        "min_pixels": None,
        "max_pixels": None,
        "dtype": "float32",
        "attention": "sdpa",
        "engine": "batched",
    }
    assert result["provenance"]["schema"] == "interlace/evaluation/1"
    assert result["tsv"]["official"] is False
    assert result["device"] == "cpu"
    (settings,) = tmp_path.glob("work/AI2D-*/settings.json")
    assert read_json(settings)["device"] == "cpu"  # part of the folder's key
    assert found["OCRBench"]["generation"]["min_pixels"] == 102400
    assert found["OCRBench"]["grader"]["kind"] == "none"


def test_empty_and_unfinished_answers_are_counted(work, tmp_path, says):
    said = ["", " \n", *["None"] * 6]
    says(lambda index: said[index % 1_000_000 + 2 * (index // 1_000_000)])
    result = go(work, tmp_path, ["MMBench"])["MMBench"]
    assert result["empty_predictions"] == 2
    assert result["finished_share"] == 0.5
    outcomes = read_outcomes_file(tmp_path / "MMBench.parquet")
    assert outcomes["index"].tolist() == ["0", "1"]  # a question with its rotations is one outcome
    assert outcomes["empty"].tolist() == [True, True]


def test_a_table_above_a_gigabyte_has_no_pictures_in_it(work, tmp_path, says, monkeypatch):
    says(lambda index: "ABCD"[index % 4])
    take_for_long(monkeypatch)
    prepare_benchmarks(["HRBench4K"], tmp_path / "lmu", str(work / "tsv"))
    with kit.kit_environment(tmp_path / "lmu"):
        assert "image" not in kit.build_benchmark(BENCHMARKS["HRBench4K"], None).data
    found = {}
    for name, root, limit in (
        ("whole", work, None),
        ("local", tmp_path, None),
        ("limited", tmp_path, 3),
    ):
        go(work, tmp_path / name, ["HRBench4K"], lmu=root / "lmu", limit=limit)
        found[name] = read_outcomes_file(tmp_path / name / "HRBench4K.parquet")
    assert found["local"]["question"].nunique() == found["whole"]["question"].nunique() == 2
    columns = ["index", "prediction", "hit", "value", "weight"]
    assert found["local"][columns].equals(found["whole"][columns])
    # Each row has a path of its own there, and rotations stay together all the same.
    assert found["limited"][columns[:3]].equals(found["whole"][columns[:3]].iloc[:4])


def test_what_is_predicted_is_not_predicted_again(work, tmp_path, monkeypatch):
    first = go(work, tmp_path, ["POPE"])

    def refuse(*_, **__):
        raise AssertionError("loaded again")

    monkeypatch.setattr("interlace.evaluation.engine.load_model", refuse)
    again = go(work, tmp_path, ["POPE"], batch_size=1, batch_tokens=100)
    assert again["POPE"].pop("batching") == {"batch_size": 1, "batch_tokens": 100}
    assert first["POPE"].pop("batching")["batch_size"] == 3
    assert again == first
    with pytest.raises(AssertionError, match="loaded again"):
        go(work, tmp_path, ["POPE"], modes={"limited": 5})


def test_another_checkpoint_is_another_folder(work, tmp_path):
    go(work, tmp_path / "out", ["AI2D"])
    other = make_tiny_checkpoint(tmp_path / "other", layers=4, seed=1)
    go(work, tmp_path / "out", ["AI2D"], checkpoint=other)
    folders = [path for path in (tmp_path / "out" / "work").glob("AI2D-*") if path.is_dir()]
    assert len(folders) == 2
    digest = checkpoint_digest(other)
    (other / "README.md").write_text("a model card")
    assert checkpoint_digest(other) == digest
    with pytest.raises(InputError, match="it is not a checkpoint"):
        checkpoint_digest(tmp_path)


def test_another_question_is_another_folder(work, tmp_path, capsys):
    root, file = tmp_path / "lmu", tmp_path / "tsv" / "AI2D_TEST.tsv"
    make_tiny_benchmarks(file.parent, datasets=("AI2D_TEST",))
    for generated in (True, False):
        prepare_benchmarks(["AI2D_TEST"], root, str(file.parent))
        go(work, tmp_path / "out", ["AI2D"], lmu=root)
        assert ("0 of 2 rows are predicted" in capsys.readouterr().out) == generated
    table = pd.read_csv(file, sep="\t")
    table.loc[0, "question"] = "What is to be seen?"
    table.to_csv(file, sep="\t", index=False)
    prepare_benchmarks(["AI2D_TEST"], root, str(file.parent))
    go(work, tmp_path / "out", ["AI2D"], lmu=root)
    assert "0 of 2 rows are predicted" in capsys.readouterr().out
    assert len([path for path in (tmp_path / "out/work").glob("AI2D-*") if path.is_dir()]) == 2


@pytest.mark.parametrize("engine", ["batched", "vlmevalkit"])
def test_a_torn_picture_is_named(work, tmp_path, engine):
    prepare_benchmarks(["AI2D_TEST"], tmp_path / "lmu", str(work / "tsv"))
    image = tmp_path / "lmu" / "images" / "AI2D_TEST" / "1.png"
    image.write_bytes(image.read_bytes()[:100])
    line = r"AI2D_TEST/1\.png: .* does not decode .* delete it and"
    with pytest.raises(InputError, match=line):
        go(work, tmp_path / "out", ["AI2D"], lmu=tmp_path / "lmu", engine=engine)
    image.write_bytes(image.read_bytes()[:30])  # which vlmeval mends where it has the TSV's own
    with pytest.raises(InputError, match=line):
        ordered([("1", [{"type": "image", "value": str(image)}])], None, None)


def test_a_limit_marks_its_result_and_keeps_rotations_together(work, tmp_path):
    found = go(work, tmp_path, ["MMBench", "HRBench4K"], limit=3)
    assert (found["MMBench"]["num_samples"], found["MMBench"]["partial"]) == (4, True)
    assert (found["HRBench4K"]["num_samples"], found["HRBench4K"]["partial"]) == (4, True)
    frame = pd.DataFrame({"index": [0, 1, 1_000_000, 1_000_001, 2, 2_000_000]})
    for limit, kept in ((1, 3), (3, 3), (4, 3), (5, 5), (9, 6)):
        assert len(kit.limited(frame, BENCHMARKS["MMBench"], limit)) == kept


def test_sampling_has_a_seed_of_its_own(work, tmp_path):
    sampled = {"decoding": "released", "temperature": 1.5}
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        torch.manual_seed(ord(name))
        result = go(work, tmp_path / name, ["AI2D"], sampling_seed=seed, **sampled)["AI2D"]
        assert (result["seed"], result["generation"]["temperature"]) == (seed, 1.5)
    a, b, c = (predictions(tmp_path / name, "AI2D") for name in "abc")
    assert a == b
    assert a != c


@pytest.mark.parametrize(
    ("benchmarks", "settings", "line"),
    [
        (["MIABench"], {"grader": {"kind": "none"}}, "MIABench needs a grader"),
        (["MIABench"], {"grader": {"kind": "demo"}}, "base_url: empty"),
        (["AI2D"], {"engine": "vllm"}, "evaluation.engine: 'vllm' is unknown"),
        (["AI2D"], {"decoding": "beam"}, "evaluation.decoding: 'beam' is unknown"),
        (["AI2D"], {"modes": {"cot": 9}}, "evaluation.modes: 'limited' is unknown"),
        (["AI2D"], {"max_pixels": 4000}, "max_pixels: 4000 is below 4096"),
        (["OCRBench"], {"max_pixels": 50000}, "max_pixels: 50000 is below 102400"),
        (["AI2D"], {"min_pixels": 9000, "max_pixels": 8000}, "9000 is more than max_pixels"),
        (["Chart"], {}, "benchmark 'Chart' is unknown"),
        (
            ["AI2D"],
            {"decoding": "released", "temperature": 0},
            "temperature: 0 is not above 0; set",
        ),
        (["AI2D"], {"limit": 0}, "evaluation.limit: 0 is below 1"),
        (["AI2D"], {"limit": -1}, "evaluation.limit: -1 is below 1"),
        (["AI2D"], {"modes": {"limited": 0}}, "evaluation.modes.limited: 0 is below 1"),
    ],
)
def test_mistakes_are_refused_before_any_work(benchmarks, settings, line, work, tmp_path):
    with pytest.raises(InputError, match=line):
        go(work, tmp_path / "out", benchmarks, **settings)
    assert not (tmp_path / "out").exists()


def test_two_jobs_do_not_share_predictions(work, tmp_path):
    go(work, tmp_path, ["AI2D"])
    (folder,) = (path for path in tmp_path.glob("work/AI2D-*") if path.is_dir())
    with (
        claimed(folder),
        pytest.raises(InputError, match=r"process [0-9]+ on .* is at work on it"),
    ):
        go(work, tmp_path, ["AI2D"])


def test_limits_of_single_benchmarks_are_recorded(work, tmp_path):
    pixels = {"AI2D": {"max_pixels": 4096}}
    found = go(work, tmp_path, ["AI2D", "POPE"], pixels=pixels)
    assert found["AI2D"]["generation"]["max_pixels"] == 4096
    assert found["POPE"]["generation"]["max_pixels"] is None


def test_ungraded_rows_are_an_error_and_graded_ones_are_kept(work, tmp_path, says):
    says(str)

    # the first call is graded, all others get prose that vlmeval would drop from the mean
    def answer(call):
        return (
            "score of component 1: 6/6, score of component 2: 4/4, total score: 10/10."
            if (call == 1)
            else "I like the picture."
        )

    with stub_grader(answer) as server:
        with pytest.raises(InputError, match=r"MIA-Bench: 1 of 2 rows"):
            go(work, tmp_path, ["MIABench"], grader=openai(server))
        assert not (tmp_path / "MIABench.json").exists()
        calls = server.calls
        server.answer = lambda call: (
            "score of component 1: 3/6, score of component 2: 2/4, total score: 5/10."
        )
        found = go(work, tmp_path, ["MIABench"], grader=openai(server))
        assert server.calls == calls + 1  # the one row that was not graded
    assert found["MIABench"]["score"] == pytest.approx(75)


def test_the_key_reaches_the_grader_and_nothing_else(work, tmp_path, monkeypatch, caplog, capfd):
    monkeypatch.setenv("TEST_GRADER_KEY", CANARY)
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="vlmeval")
    environment = dict(os.environ)
    with stub_grader(lambda call: GRADE if call <= 2 else "A") as server:
        go(work, tmp_path, ["MIABench", "AI2D"], grader=openai(server, extract=True))
        assert server.calls == 4
        assert server.keys == {f"Bearer {CANARY}"}
        assert server.models == {"rules-1"}
    written = capfd.readouterr()
    assert CANARY not in caplog.text + written.out + written.err
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 5
    assert not [file for file in files if CANARY.encode() in file.read_bytes()]
    assert dict(os.environ) == environment


def test_vlmeval_leaves_no_trace_in_this_process(work, tmp_path, monkeypatch):
    monkeypatch.setenv("LMUData", "elsewhere")
    monkeypatch.setenv("SKIP_ERR", "1")
    odd = {"WORLD_SIZE": "2", "RANK": "1", "VLMEVAL_MAX_IMAGE_SIZE": "9", "FWD_API": "1"}
    for name, value in odd.items():
        monkeypatch.setenv(name, value)
    with kit.kit_environment(work / "lmu"):
        assert not odd.keys() & os.environ.keys()
    assert odd.items() <= os.environ.items()
    kit.load_vlmeval()
    assert ssl._create_default_https_context is ssl.create_default_context
    assert torch.is_grad_enabled()
    state = torch.get_rng_state()
    go(work, tmp_path, ["AI2D"])
    assert torch.equal(torch.get_rng_state(), state)
    assert (os.environ["LMUData"], os.environ["SKIP_ERR"]) == ("elsewhere", "1")  # noqa: SIM112


def test_prompts_may_be_vlmevalkits_or_the_datasets(work):
    from interlace.evaluation.model import LocalQwen3VL

    with kit.kit_environment(work / "lmu"):
        dataset = kit.build_dataset("AI2D_TEST")
        line = dataset.data.iloc[0]
        plain = LocalQwen3VL(None, None).message(dataset, line)
        custom = LocalQwen3VL(None, None, custom_prompt=True).message(dataset, line)
    assert [part["type"] for part in plain] == ["image", "text"]
    assert plain[-1]["value"].endswith(
        "Please select the correct answer from the options above. \n"
    )
    assert custom[-1]["value"].endswith("Answer with the option letter only.")


def test_an_old_result_does_not_stay_beside_new_outcomes(work, tmp_path, says, monkeypatch):
    says(lambda index: "A")
    go(work, tmp_path, ["AI2D"])
    says(lambda index: "B")
    monkeypatch.setattr("interlace.evaluation.run.stamp", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # between the two files
        go(work, tmp_path, ["AI2D"])
    assert set(read_outcomes_file(tmp_path / "AI2D.parquet")["prediction"]) == {"B"}
    assert not (tmp_path / "AI2D.json").exists()


def test_results_of_another_checkpoint_do_not_stay_beside_new_ones(work, tmp_path, says):
    says(str)
    with stub_grader() as server:
        go(work, tmp_path, ["AI2D", "MIABench"], grader=openai(server))
        assert (tmp_path / "MIABench.json").exists()
        server.answer = lambda call: None
        other = make_tiny_checkpoint(tmp_path / "other", layers=4, seed=1)
        says(lambda index: "B")
        with pytest.raises(InputError, match="MIA-Bench: 2 of 2 rows were not graded"):
            go(work, tmp_path, ["AI2D", "MIABench"], checkpoint=other, grader=openai(server))
    assert read_json(tmp_path / "AI2D.json")["provenance"]["model_revision"] == checkpoint_digest(
        other
    )
    assert not list(tmp_path.glob("MIABench.*"))


def test_a_full_disk_is_told(work, tmp_path, says):
    def full(index):
        raise OSError(errno.ENOSPC, "No space left on device")

    says(full)
    with pytest.raises(InputError, match=r"disk is full .*; free some space and run again"):
        go(work, tmp_path, ["AI2D"])
