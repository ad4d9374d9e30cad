"""evaluate() on a tiny random checkpoint: both engines, resume, limits, the grader and its key."""

import json
import logging
import os
import ssl

import pandas as pd
import pytest
import torch

from interlace.errors import InputError
from interlace.evaluation import engine, kit, run
from interlace.evaluation.benchmarks import BENCHMARKS
from interlace.evaluation.prepare import prepare_benchmarks
from interlace.evaluation.run import evaluate
from interlace.io import read_json
from tests.tiny import make_tiny_checkpoint
from tests.tiny_benchmarks import DATASETS, make_tiny_benchmarks, stub_grader

SETTINGS = {"modes": {"limited": 6}, "batch_size": 3, "prompt": "dataset", "limit": None}
CANARY = "sk-canary-0123456789abcdef"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluation")
    make_tiny_benchmarks(root / "tsv")
    prepare_benchmarks(DATASETS, root / "lmu", str(root / "tsv"))
    make_tiny_checkpoint(root / "model", layers=4)
    return root


def go(work, out, benchmarks, checkpoint=None, **settings):
    evaluate(
        checkpoint or work / "model",
        benchmarks,
        work / "lmu",
        out,
        {**SETTINGS, **settings},
        model="tiny",
        variant="dense",
        mode="limited",
        seed=0,
    )
    return {name: read_json(out / f"{name}.json") for name in benchmarks}


def predictions(out, name):
    (file,) = out.glob(f"work/{name}-*/predictions.jsonl")
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {index: text for line in lines for index, text in line["predictions"].items()}


def openai(server, **changes):
    return {
        "kind": "openai",
        "base_url": server.base_url,
        "model": "rules-1",
        "key_env": "TEST_GRADER_KEY",
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
    assert len(set(texts)) > len(texts) / 4  # different pictures, different answers
    assert found["batched"]["MIABench"]["score"] == pytest.approx(50)
    assert found["batched"]["MIABench"]["grader"] == {
        "kind": "openai",
        "model": "rules-1",
        "ungraded": 0,
    }


def test_a_result_says_where_it_comes_from(work, tmp_path):
    found = go(work, tmp_path, ["AI2D", "OCRBench"])
    result = found["AI2D"]
    assert (result["model"], result["variant"], result["mode"]) == ("tiny", "dense", "limited")
    assert (result["benchmark"], result["dataset"]) == ("AI2D", "AI2D_TEST")
    assert (result["num_samples"], result["fixture"], result["partial"]) == (2, True, False)
    assert result["grader"] == {"kind": "exact_matching", "model": None, "ungraded": 0}
    assert result["generation"] == {
        "max_new_tokens": 6,
        "do_sample": False,
        "temperature": None,
        "prompt": "dataset",
        "min_pixels": None,
        "max_pixels": None,
        "dtype": "float32",
        "attention": "sdpa",
        "batch_size": 3,
        "engine": "batched",
    }
    assert result["provenance"]["schema"] == "interlace/evaluation/1"
    assert result["tsv"]["official"] is False
    assert found["OCRBench"]["generation"]["min_pixels"] == 102400
    assert found["OCRBench"]["grader"]["kind"] == "none"


def test_empty_answers_are_counted_though_a_table_cannot_tell(work, tmp_path, monkeypatch):
    said = ["", " \n", *["None"] * 6]
    monkeypatch.setattr(engine, "_generate_once", lambda model, samples, seed: said)
    assert go(work, tmp_path, ["MMBench"], batch_size=8)["MMBench"]["empty_predictions"] == 2


def test_what_is_predicted_is_not_predicted_again(work, tmp_path, monkeypatch):
    first = go(work, tmp_path, ["POPE"])
    (file,) = tmp_path.glob("work/POPE-*/predictions.jsonl")
    before = predictions(tmp_path, "POPE")

    def refuse(*_, **__):
        raise AssertionError("loaded again")

    with monkeypatch.context() as patch:
        patch.setattr("interlace.decoder.load.load_model", refuse)
        assert go(work, tmp_path, ["POPE"]) == first
        with pytest.raises(AssertionError, match="loaded again"):
            go(work, tmp_path, ["POPE"], modes={"limited": 5})
    # Killed in the second batch: its line is torn, and the summary was never written.
    (file.parent / "predictions.json").unlink()
    (file.parent / "predictions.tsv").unlink()
    kept = next(iter(before))
    line = json.dumps({"predictions": {kept: "kept as it is"}, "seconds": 1.0})
    file.write_text(line + "\n" + '{"predictions": {"1": "to', encoding="utf-8")
    go(work, tmp_path, ["POPE"])
    assert predictions(tmp_path, "POPE") == {**before, kept: "kept as it is"}


def test_another_checkpoint_is_another_folder(work, tmp_path):
    go(work, tmp_path / "out", ["AI2D"])
    other = make_tiny_checkpoint(tmp_path / "other", layers=4, seed=1)
    go(work, tmp_path / "out", ["AI2D"], checkpoint=other)
    assert len(list((tmp_path / "out" / "work").glob("AI2D-*"))) == 2
    digest = run.checkpoint_digest(other)
    (other / "README.md").write_text("a model card")
    assert run.checkpoint_digest(other) == digest
    with pytest.raises(InputError, match="it is not a checkpoint"):
        run.checkpoint_digest(tmp_path)


def test_a_limit_marks_its_result_and_keeps_rotations_together(work, tmp_path):
    found = go(work, tmp_path, ["MMBench", "HRBench4K"], limit=3)
    assert (found["MMBench"]["num_samples"], found["MMBench"]["partial"]) == (4, True)
    assert (found["HRBench4K"]["num_samples"], found["HRBench4K"]["partial"]) == (3, True)
    frame = pd.DataFrame({"index": [0, 1, 1_000_000, 1_000_001, 2, 2_000_000]})
    for limit, kept in ((1, 3), (3, 3), (4, 3), (5, 5), (9, 6)):
        assert len(run.limited(frame, BENCHMARKS["MMBench"], limit)) == kept


def test_sampling_is_seeded_and_does_not_depend_on_resuming(work, tmp_path):
    sampled = {"do_sample": True, "temperature": 1.5, "batch_size": 1}
    torch.manual_seed(1)
    go(work, tmp_path / "a", ["AI2D"], **sampled)
    torch.manual_seed(2)
    go(work, tmp_path / "b", ["AI2D"], **sampled)
    assert predictions(tmp_path / "a", "AI2D") == predictions(tmp_path / "b", "AI2D")
    go(work, tmp_path / "greedy", ["AI2D"])
    assert predictions(tmp_path / "a", "AI2D") != predictions(tmp_path / "greedy", "AI2D")


@pytest.mark.parametrize(
    ("benchmarks", "settings", "line"),
    [
        (["MIABench"], {"grader": {"kind": "none"}}, "MIABench needs a grader"),
        (["MIABench"], {"grader": {"kind": "demo"}}, "base_url: empty"),
        (["AI2D"], {"engine": "vllm"}, "evaluation.engine: 'vllm' is unknown"),
        (["AI2D"], {"modes": {"cot": 9}}, "evaluation.modes: 'limited' is unknown"),
        (["OCRBench"], {"max_pixels": 50000}, "max_pixels: 50000 is below 102400"),
        (["AI2D"], {"min_pixels": 9000, "max_pixels": 8000}, "9000 is more than max_pixels"),
        (["AI2D"], {"do_sample": True}, "evaluation.temperature: sampling needs one"),
        (["Chart"], {}, "benchmark 'Chart' is unknown"),
    ],
)
def test_mistakes_are_refused_before_any_work(benchmarks, settings, line, work, tmp_path):
    with pytest.raises(InputError, match=line):
        go(work, tmp_path / "out", benchmarks, **settings)
    assert not (tmp_path / "out").exists()


def test_a_grader_that_does_not_answer_is_named(work, tmp_path):
    with stub_grader() as server:
        address = server.base_url
    with pytest.raises(InputError, match=f"{address} does not answer"):
        go(work, tmp_path, ["MIABench"], grader={"kind": "demo", "base_url": address})


def test_ungraded_rows_are_an_error_and_graded_ones_are_kept(work, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)

    # the first call is graded, all others get prose that vlmeval would drop from the mean
    def answer(call):
        return (
            "score of component 1: 6/6, score of component 2: 4/4, total score: 10/10."
            if (call == 1)
            else "I like the picture."
        )

    with stub_grader(answer) as server:
        with pytest.raises(InputError, match=r"MIA-Bench: 1 of 2 rows were not graded by rules-1"):
            go(work, tmp_path, ["MIABench"], grader=openai(server))
        assert not (tmp_path / "MIABench.json").exists()
        calls = server.calls
        server.answer = lambda call: (
            "score of component 1: 0/6, score of component 2: 0/4, total score: 0/10."
        )
        found = go(work, tmp_path, ["MIABench"], grader=openai(server, kind="demo", model=None))
        assert server.calls == calls + 2  # another grader by name: asked about both rows
        server.answer = lambda call: (
            "score of component 1: 3/6, score of component 2: 2/4, total score: 5/10."
        )
        assert found["MIABench"]["grader"]["model"] == "stub-grader"
        found = go(work, tmp_path, ["MIABench"], grader=openai(server))
        assert server.calls == calls + 3  # the one row that rules-1 had not graded
    assert found["MIABench"]["score"] == pytest.approx(75)


def test_a_refused_row_is_an_error(work, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    with (
        stub_grader(lambda call: None) as server,
        pytest.raises(InputError, match=r"2 of 2 rows were not graded .*index 0, 1"),
    ):
        go(work, tmp_path, ["MIABench"], grader=openai(server))


def test_the_key_reaches_the_grader_and_nothing_else(work, tmp_path, monkeypatch, caplog, capfd):
    monkeypatch.setenv("TEST_GRADER_KEY", CANARY)
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="vlmeval")
    environment = dict(os.environ)
    with stub_grader() as server:
        go(work, tmp_path, ["MIABench"], grader=openai(server))
        assert server.keys == {f"Bearer {CANARY}"}
        assert server.models == {"rules-1"}
    assert "API Key: [key]" in caplog.text  # vlmeval did try to log it
    written = capfd.readouterr()
    assert CANARY not in caplog.text + written.out + written.err
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 5
    assert not [file for file in files if CANARY.encode() in file.read_bytes()]
    assert dict(os.environ) == environment


def test_vlmeval_leaves_no_trace_in_this_process(work, tmp_path, monkeypatch):
    monkeypatch.setenv("LMUData", "elsewhere")
    monkeypatch.setenv("SKIP_ERR", "1")
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


def test_collate_pads_on_the_left_and_joins_images():
    def sample(length, patches):
        return {
            "input_ids": torch.full((1, length), 7),
            "attention_mask": torch.ones(1, length, dtype=torch.long),
            "pixel_values": torch.ones(patches, 3),
            "image_grid_thw": torch.tensor([[1, 2, patches // 2]]),
        }

    text = {key: value for key, value in sample(1, 4).items() if key[:5] not in ("pixel", "image")}
    batch = engine.collate([sample(2, 4), sample(4, 8), text], pad_token_id=9)
    assert batch["input_ids"].tolist() == [[9, 9, 7, 7], [7] * 4, [9, 9, 9, 7]]
    assert batch["attention_mask"].tolist() == [[0, 0, 1, 1], [1] * 4, [0, 0, 0, 1]]
    assert batch["pixel_values"].shape == (12, 3)
    assert batch["image_grid_thw"].tolist() == [[1, 2, 2], [1, 2, 4]]


def test_batches_keep_to_rows_and_tokens():
    def row(length):
        return ("index", {"input_ids": torch.zeros(1, length)})

    rows = [row(length) for length in (50, 30, 30, 10, 10, 10, 10)]
    sizes = [len(batch) for batch in engine._batches(iter(rows), batch_size=3, batch_tokens=60)]
    assert sizes == [1, 2, 3, 1]
