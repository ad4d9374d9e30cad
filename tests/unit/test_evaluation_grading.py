"""score_predictions() with exact matching and with graders of every temper; the key stays hidden."""

import csv
import json
import logging
import os
import pickle
import random
import signal
import time

import pandas as pd
import pytest

from interlace.demo.grader import running_grader
from interlace.errors import InputError
from interlace.evaluation import (
    cost,
    grader_client,
    grading,
    judging,
    kit,
    scores,
    scoring,
)
from interlace.evaluation.benchmarks import BENCHMARKS
from interlace.evaluation.prepare import prepare_benchmarks
from interlace.evaluation.questions import prompt_version
from interlace.provenance import versions
from tests.faulty_grader import (
    GRADE,
    body,
    drip,
    drop,
    fail,
    faulty_grader,
    fitting,
    hang,
    hang_up,
    raw,
    say,
)
from tests.tiny_benchmarks import DATASETS, make_tiny_benchmarks

CANARY = "sk-canary-0123456789abcdef"
CHOICES = [name for name, b in BENCHMARKS.items() if b.exact_matching and name != "POPE"]
VAGUE = "It is hard to say, and I would rather not commit myself to any of these."


@pytest.fixture(scope="module")
def lmu(tmp_path_factory):
    root = tmp_path_factory.mktemp("grading")
    make_tiny_benchmarks(root / "tsv", questions=3)
    prepare_benchmarks(DATASETS, root / "lmu", str(root / "tsv"))
    return root / "lmu"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(grader_client, "FIRST_WAIT_S", 0.01)


def connect(server, names=("MIABench",), **changes):
    told = {"kind": "openai", "base_url": server.base_url, "model": "m", "key_env": "TEST_KEY"}
    return grading.connect({**told, "retries": 1, "timeout_s": 5, **changes}, list(names))


def score(lmu, folder, name, text, grader=None):
    """Score what `text(row)` says; return the record and the score."""
    benchmark = BENCHMARKS[name]
    folder.mkdir(parents=True, exist_ok=True)
    with kit.kit_environment(lmu):
        dataset = kit.build_benchmark(benchmark, None)
    table = dataset.data.drop(columns="image")
    table["prediction"] = [text(row) for _, row in dataset.data.iterrows()]
    table.to_csv(folder / "predictions.tsv", sep="\t", index=False, quoting=csv.QUOTE_ALL)
    with kit.kit_environment(lmu):
        record = scoring.score_predictions(benchmark, dataset, folder, grader)
    stem, judge = folder / "predictions", record["judge"]
    value = scores.read_score(benchmark.dataset, stem, len(table), judge)
    questions = pd.Series([str(i % 1_000_000) for i in table["index"]], map(str, table["index"]))
    outcomes = scores.read_outcomes(benchmark.dataset, stem, questions, judge)
    assert scores.ratio(outcomes) == pytest.approx(value)
    return record, value


def right(row):
    return "[red]" if "answer" not in row else str(row["answer"])


def vague(row):
    return VAGUE


# Without a grader


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name != "MIABench"])
def test_rules_score_everything_but_mia_bench(lmu, tmp_path, name):
    record, best = score(lmu, tmp_path / "right", name, right)
    matched = BENCHMARKS[name].exact_matching
    rows = len(pd.read_csv(tmp_path / "right" / "predictions.tsv", sep="\t"))
    assert record == {
        "kind": "exact_matching" if matched else "none",
        "model": None,
        "prompt": None,
        "answers": rows if matched else 0,
        "unparsed": 0 if matched else None,
        "unparsed_share": 0.0 if matched else None,
        "ungraded": 0,
        "judge": "exact_matching",
    }
    if name not in ("TextVQA", "OCRBench"):  # whose answers are lists of possible answers
        assert best == 100
    # every second answer cannot be read
    half = iter(range(rows))
    record, _ = score(lmu, tmp_path / "half", name, lambda r: VAGUE if next(half) % 2 else right(r))
    assert record["unparsed"] == (rows // 2 if matched else None)
    assert record["unparsed_share"] == (pytest.approx(rows // 2 / rows) if matched else None)


def test_scores_of_an_attempt_before_do_not_come_back(lmu, tmp_path):
    for name in ("AI2D", "MMBench", "POPE", "HRBench4K"):
        assert score(lmu, tmp_path / name, name, right)[1] == 100
        assert score(lmu, tmp_path / name, name, vague)[1] == 0
        for file in (tmp_path / name).iterdir():  # as a kill in the middle of any write leaves them
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        assert score(lmu, tmp_path / name, name, right)[1] == 100


# MIA-Bench


def test_grades_come_from_the_grader_and_are_not_asked_for_twice(lmu, tmp_path):
    with faulty_grader() as server:
        grader = connect(server)
        record, value = score(lmu, tmp_path, "MIABench", right, grader)
        assert value == pytest.approx(50)
        prompt = record.pop("prompt")
        assert prompt.startswith(f"vlmeval {versions()['vlmeval']}, prompts ")
        assert record == {
            "kind": "openai",
            "model": "m",
            "answers": 3,
            "unparsed": None,  # a row without a grade is an error
            "unparsed_share": None,
            "ungraded": 0,
            "unreadable_replies": 0,
            "judge": "grader",
        }
        assert len(server.requests) == 3
        again = score(lmu, tmp_path, "MIABench", right, grader)
        assert again == ({**record, "prompt": prompt}, value)
        assert len(server.requests) == 3
        # what is graded anew: another answer, another grader
        score(lmu, tmp_path, "MIABench", lambda row: "[blue]", grader)
        assert len(server.requests) == 6
        demo = connect(server, kind="demo", model="faulty")
        record, _ = score(lmu, tmp_path, "MIABench", right, demo)
        assert (record["kind"], record["model"], len(server.requests)) == ("demo", "faulty", 9)


def test_the_request_is_the_one_that_vlmeval_itself_would_send(lmu, tmp_path, monkeypatch):
    with faulty_grader() as server:
        score(lmu, tmp_path / "ours", "MIABench", right, connect(server))
        ours = sorted(json.dumps(request, sort_keys=True) for request in server.requests)
        server.requests.clear()
        table = tmp_path / "ours" / "predictions.tsv"
        (tmp_path / "kit.tsv").write_bytes(table.read_bytes())
        with kit.kit_environment(lmu):
            monkeypatch.setenv("LOCAL_LLM", "m")
            dataset = kit.build_benchmark(BENCHMARKS["MIABench"], None)
            dataset.evaluate(
                str(tmp_path / "kit.tsv"),
                model="gpt-4o",
                api_base=f"{server.base_url}/chat/completions",
                key="sk-x",
                nproc=1,
            )
        assert sorted(json.dumps(request, sort_keys=True) for request in server.requests) == ours
        assert "data:image/jpeg;base64," in ours[0]


def only_first(act):
    """Grade the first call, `act` on the others."""
    return lambda call, prompt: say(GRADE) if call == 1 else act


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (hang, "no answer within 0.5 s, in 2 tries"),
        (drip, "no answer within 0.5 s, in 2 tries"),
        (drop, "broken off after"),
        (hang_up, "no answer ("),
        (raw(b"{not json"), "HTTP 200 without a chat completion: {not json"),
        (fail(500, "boom"), "HTTP 500: boom, in 2 tries"),
        (fail(429, "slow down", Retry_After="86400"), "slow down; it asks for a wait of 86400 s"),
        (fail(401, f"bad key {CANARY}"), "HTTP 401: bad key [key]; check the key in TEST_KEY"),
        (fail(400, "content policy"), "HTTP 400: content policy;"),
        (say(""), "HTTP 200 with an empty answer, in 2 tries"),
        (say("I'm sorry, I can't help with that."), "it answered 'I'm sorry, I can't help"),
        (say("Total: 7/10"), "it answered 'Total: 7/10', which cannot be read"),
        (say("score of component 1: 3/6, total score: 5/10. One is missing."), "cannot be read"),
        (say(GRADE.replace("5/10", "12/10")), "cannot be read"),
        (say(GRADE.replace("3/6", "2.5/0")), "cannot be read"),
        (say(GRADE.replace(", total", " is too much, total")), "cannot be read"),
    ],
)
def test_whatever_it_does_is_one_clear_error_and_what_was_graded_stays(
    lmu, tmp_path, monkeypatch, act, reason
):
    monkeypatch.setenv("TEST_KEY", CANARY)
    with faulty_grader(only_first(act)) as server:
        grader = connect(server, timeout_s=1, parallel=1)
        object.__setattr__(grader, "timeout_s", 0.5)
        with pytest.raises(InputError) as caught:
            score(lmu, tmp_path, "MIABench", right, grader)
        line = str(caught.value)
        assert line.startswith(f"MIA-Bench: 2 of 3 rows were not graded by m at {server.base_url}")
        assert "(index " in line
        assert reason in line
        assert "\n" not in line
        assert CANARY not in line
        server.act = lambda call, prompt: say(GRADE)
        asked = len(server.prompts)
        assert score(lmu, tmp_path, "MIABench", right, connect(server))[1] == pytest.approx(50)
        assert len(server.prompts) == asked + 2  # the two that had no grade


@pytest.fixture(scope="module")
def forty(tmp_path_factory):
    root = tmp_path_factory.mktemp("forty")
    make_tiny_benchmarks(root / "tsv", questions=40, datasets=("MIA-Bench",))
    prepare_benchmarks(["MIA-Bench"], root / "lmu", str(root / "tsv"))
    return root / "lmu"


def test_a_dead_grader_does_not_cost_its_time_for_every_row(forty, tmp_path):
    with faulty_grader(lambda call, prompt: fail(503)) as server:
        with pytest.raises(InputError, match=r"40 of 40 rows .*: HTTP 503: overloaded, in 2 tries"):
            score(forty, tmp_path, "MIABench", right, connect(server))
        assert len(server.requests) <= 16  # of 80: two tries each of a few calls at once


REFUSED = "I'm sorry, I can't help with that."
FILTERED = {"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]}


@pytest.mark.parametrize("act", [say(REFUSED), fail(400, "policy"), body(FILTERED)])
def test_a_grader_that_refuses_everything_is_soon_left_alone(forty, tmp_path, capsys, act):
    few = judging.UNREADABLE_CALLS + 4  # those at once
    with faulty_grader(lambda call, prompt: act) as server:
        with pytest.raises(InputError, match=r"40 of 40 rows were .* unreadable replies in a row;"):
            score(forty, tmp_path, "MIABench", right, connect(server, retries=5))
        assert judging.UNREADABLE_CALLS <= len(server.requests) < few
        told = capsys.readouterr().out
        named = [i for line in told.splitlines() if "not graded: index" in line
                 for i in line.split("index ")[1].split(":")[0].split(", ")]  # fmt: skip
        assert len(set(named)) == len(named) == 40


def test_replies_that_cannot_be_read_here_and_there_end_nothing(forty, tmp_path):
    with faulty_grader(lambda call, prompt: say(REFUSED if call % 3 else GRADE)) as server:
        with pytest.raises(InputError, match="27 of 40 rows were not graded"):
            score(forty, tmp_path, "MIABench", right, connect(server, parallel=1, retries=0))
        assert len(server.requests) == 40


def test_a_row_that_is_refused_for_ever_has_a_way_out(lmu, tmp_path):
    def act(call, prompt):
        return body(FILTERED) if call == 2 else say(fitting(prompt))

    with faulty_grader(act) as server:
        for name, way_out in (
            ("MIABench", "leave MIABench out of evaluation.benchmarks"),
            ("AI2D", "set evaluation.grader.extract to false"),
        ):
            server.requests.clear()
            grader = connect(server, ["AI2D"], extract=True, parallel=1)
            with pytest.raises(InputError) as caught:
                score(lmu, tmp_path / name, name, vague, grader)
            line = str(caught.value)
            assert "1 of 3 rows were not graded" in line
            assert "(index 1): HTTP 200 with an empty answer (finish_reason content_filter)" in line
            assert "another evaluation.grader.model" in line
            assert line.endswith(way_out)
            assert len(server.requests) == 3


@pytest.mark.parametrize("name", ["AI2D", "POPE", "HRBench4K"])
def test_a_question_is_asked_once_whatever_comes_back(lmu, tmp_path, name):
    with faulty_grader(lambda call, prompt: say(f"{REFUSED} {call}")) as server:
        grader = connect(server, [name], extract=True, parallel=1)
        with pytest.raises(InputError):
            score(lmu, tmp_path, name, vague, grader)
        assert 0 < len(server.prompts) == len(set(server.prompts))
        assert {request["temperature"] for request in server.requests} == {0}


ODD_GRADES = {
    "score of component 1: 2.5/6, score of component 2: 2/4, total score: 4.5/10. So.": 45,
    "Score of component 1: 3/6, Score of component 2: 2/4, Total score: 5/10.": 50,
    "Sure!\nscore of component 1: 3/6\nscore of component 2: 2/4\ntotal score: 5.5/10": 55,
    "- **Score of component 1:** 3/6\n- **Score of component 2:** 2/4\n- **Total score:** 6/10": 60,
    "score of component 1: 3/6. score of component 2: 2/4, and the total score: 4/10.": 40,
}


@pytest.mark.parametrize("reply", ODD_GRADES)
def test_a_grade_may_be_written_otherwise(lmu, tmp_path, reply):
    with faulty_grader(lambda call, prompt: say(reply)) as server:
        record, value = score(lmu, tmp_path, "MIABench", right, connect(server, retries=0))
        assert value == pytest.approx(ODD_GRADES[reply])
        assert (record["unreadable_replies"], len(server.requests)) == (0, 3)


def test_a_grade_that_cannot_be_read_is_asked_for_again_and_counted(lmu, tmp_path):
    with faulty_grader(lambda call, prompt: say(REFUSED if call < 4 else GRADE)) as server:
        with pytest.raises(InputError, match="1 of 3 rows were not graded"):
            score(lmu, tmp_path, "MIABench", right, connect(server, parallel=1, retries=1))
        assert [request["temperature"] for request in server.requests] == [0, 0.5, 0, 0.5, 0]
        record, value = score(lmu, tmp_path, "MIABench", right, connect(server))
        assert (record["unreadable_replies"], value) == (3, pytest.approx(50))


def test_asking_again_keeps_to_the_budget(lmu, tmp_path):
    with faulty_grader(lambda call, prompt: say(REFUSED)) as server:
        grader = connect(server, model="gpt-4o", price=[0, 1000], budget=1.5, retries=7, parallel=1)
        with pytest.raises(InputError, match=r"would pass evaluation\.grader\.budget"):
            score(lmu, tmp_path, "MIABench", right, grader)  # 0.35 a call
        assert len(server.requests) == 4


def test_an_interrupt_does_not_wait_for_all_rows(forty, tmp_path):
    def act(call, prompt):
        if call == 3:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
        return say(GRADE)

    before = signal.getsignal(signal.SIGINT)
    with faulty_grader(act) as server:
        grader = connect(server, parallel=1)
        with pytest.raises(KeyboardInterrupt):
            score(forty, tmp_path, "MIABench", right, grader)
        assert 3 <= len(server.requests) <= 5
        assert signal.getsignal(signal.SIGINT) is before
        server.act = lambda call, prompt: say(GRADE)
        score(forty, tmp_path, "MIABench", right, grader)
        # What had been answered when the interrupt came is not asked again.
        assert len(server.requests) == 40


def test_rate_limits_pass(lmu, tmp_path):
    limited = fail(429, Retry_After="0.1")
    with faulty_grader(lambda call, prompt: limited if call % 2 else say(GRADE)) as server:
        grader = connect(server, parallel=1)
        assert score(lmu, tmp_path, "MIABench", right, grader)[1] == pytest.approx(50)
        assert len(server.requests) == 6


@pytest.mark.parametrize("torn", [b"", b"\x80\x04", pickle.dumps({0: "Failed to obtain answer"})])
def test_a_spoiled_cache_and_a_torn_line_are_recovered_from(lmu, tmp_path, torn):
    with faulty_grader() as server:
        grader = connect(server)
        score(lmu, tmp_path, "MIABench", right, grader)
        (tmp_path / "predictions_grader.pkl").write_bytes(torn)
        (tmp_path / "predictions_grader.tsv").write_bytes(torn)
        replies = tmp_path / "replies.jsonl"
        assert len(replies.read_bytes().splitlines()) == 3
        replies.write_bytes(replies.read_bytes()[:-9])
        assert score(lmu, tmp_path, "MIABench", right, grader)[1] == pytest.approx(50)
        assert len(server.requests) == 4
        torn = b'\x00\xff\nnull\n7\n{}\n{"key": "x", "reply": 7}\n'
        replies.write_bytes(torn + replies.read_bytes())
        assert score(lmu, tmp_path, "MIABench", right, grader)[1] == pytest.approx(50)
        assert len(server.requests) == 4


# Extraction


@pytest.mark.parametrize("name", CHOICES)
def test_the_grader_reads_choices_that_rules_cannot(lmu, tmp_path, name):
    def letter(call, prompt):
        return say(prompt.rpartition("I mean the ")[2][0])

    with faulty_grader(letter) as server:
        grader = connect(server, [name], extract=True)
        told = f"{VAGUE} I mean the {{}} of them all, or so it seems to me."
        record, value = score(
            lmu, tmp_path, name, lambda row: told.format(f"{row['answer']}-"), grader
        )
        rows = 12 if name in ("MMBench", "HRBench4K", "HRBench8K") else 3
        assert (value, record["kind"]) == (100, "openai")
        assert "prompts" in record["prompt"]
        assert (record["answers"], record["unparsed"]) == (rows, 0)
        assert all(prompt.startswith("You are an AI assistant") for prompt in server.prompts)


def test_only_answers_that_rules_cannot_read_are_asked_about(lmu, tmp_path):
    said = {0: "{}", 1: VAGUE, 2: VAGUE + " Red."}
    with faulty_grader(lambda call, prompt: say("Z")) as server:
        grader = connect(server, ["AI2D", "POPE", "OCRBench"], extract=True)
        text = lambda row: said[row["index"]].format(row["answer"])  # noqa: E731
        record, value = score(lmu, tmp_path / "a", "AI2D", text, grader)
        assert len(server.requests) == 2
        assert value == pytest.approx(100 / 3)
        assert (record["answers"], record["unparsed"]) == (2, 2)  # Z: none of the options
        assert record["unparsed_share"] == pytest.approx(2 / 3)
        record, _ = score(lmu, tmp_path / "o", "OCRBench", right, grader)
        assert (record["kind"], len(server.requests)) == ("none", 2)
        server.act = lambda call, prompt: say("Unknown")
        record, _ = score(lmu, tmp_path / "p", "POPE", text, grader)
        assert (record["answers"], record["unparsed"]) == (2, 2)
        assert len(server.requests) == 4  # an honest Unknown is not asked for five times


def test_yes_and_no_are_read_by_the_grader(lmu, tmp_path):
    def truth(call, prompt):
        return say("Yes" if "I mean Y" in prompt else "No, it is not.")

    with faulty_grader(truth) as server:
        grader = connect(server, ["POPE"], extract=True)
        record, value = score(
            lmu, tmp_path, "POPE", lambda row: f"I mean {row['answer'][0]}, friend", grader
        )
        assert (value, record["answers"], record["unparsed"]) == (100, 3, 0)


def test_mmbench_asks_only_about_questions_that_are_still_open(lmu, tmp_path):
    wrong = {"A": "B", "B": "C", "C": "D", "D": "A"}

    def text(row):
        turn, question = divmod(row["index"], 1_000_000)
        if question == 0:  # decided by its second rotation
            return wrong[row["answer"]] if turn == 1 else VAGUE
        return VAGUE if (question, turn) == (1, 3) else row["answer"]

    with faulty_grader(lambda call, prompt: say("Z")) as server:
        record, value = score(
            lmu, tmp_path, "MMBench", text, connect(server, ["MMBench"], extract=True)
        )
        assert len(server.requests) == 1
        assert (record["answers"], record["unparsed"]) == (1, 1)
        assert record["unparsed_share"] == pytest.approx(1 / 12)
        assert value == pytest.approx(100 / 3)
    record, _ = score(lmu, tmp_path, "MMBench", text)  # the same without a grader
    assert record["unparsed"] == 1


@pytest.mark.parametrize("name", ["AI2D", "MMBench", "POPE", "HRBench4K"])
def test_a_choice_that_the_grader_does_not_read_is_an_error_and_never_drawn(lmu, tmp_path, name):
    with faulty_grader(lambda call, prompt: say("I am sorry, that is beyond me")) as server:
        grader = connect(server, [name], extract=True)
        with pytest.raises(InputError, match=r"rows were not graded by m .*'I am sorry, that is"):
            score(lmu, tmp_path, name, vague, grader)
        server.act = lambda call, prompt: fail(500)
        with pytest.raises(InputError, match="HTTP 500: overloaded"):
            score(lmu, tmp_path, name, vague, grader)
        asked, state = len(server.requests), random.getstate()
        server.act = lambda call, prompt: say(fitting(prompt))
        score(lmu, tmp_path, name, vague, grader)
        assert len(server.requests) > asked
        assert random.getstate() == state


def test_prompts_have_a_version_that_follows_their_words(monkeypatch):
    kit.load_vlmeval()
    from vlmeval.dataset import miabench

    found = {prompt_version(BENCHMARKS[n]) for n in ("MIABench", "POPE", "AI2D")}
    assert len(found) == 3
    assert prompt_version(BENCHMARKS["MMBench"]) in found
    before = miabench.generate_prompt
    monkeypatch.setattr(miabench, "generate_prompt", lambda row: before(row) + " Please.")
    assert prompt_version(BENCHMARKS["MIABench"]) not in found


def test_the_demos_rules_grade_and_extract_as_what_they_are(lmu, tmp_path):
    names = ["AI2D", "MMBench", "HRBench8K", "POPE"]
    with running_grader() as (address, model):
        told = {"kind": "demo", "base_url": address, "model": model, "extract": True}
        grader = grading.connect(told, ["MIABench", *names])
        for name in names:

            def text(row):
                if "A" not in row:
                    return "It is." if row["answer"] == "Yes" else "There isn't any."
                return f"As far as I am able to see in here, they have painted it {row[row['answer']]}."

            record, value = score(lmu, tmp_path / name, name, text, grader)
            assert (record["kind"], record["model"], value) == ("demo", "demo-rules-grader", 100)
            assert record["answers"] > 0
        with pytest.raises(InputError, match=r"HTTP 400: no rule for the component"):
            score(lmu, tmp_path / "m", "MIABench", right, grader)  # it knows its own ones only


# Cost


def test_a_price_is_told_before_and_only_for_what_is_missing(lmu, tmp_path, capsys):
    with faulty_grader() as server:
        grader = connect(server, model="gpt-4o", price=[1000, 2000], budget=100)
        score(lmu, tmp_path, "MIABench", right, grader)
        line = next(x for x in capsys.readouterr().out.splitlines() if "MIA-Bench" in x)
        assert line.startswith(f"MIA-Bench: 3 calls to gpt-4o at {server.base_url}, about ")
        characters = sum(-(-len(prompt) // 4) for prompt in server.prompts)
        assert f"about {characters + 3 * 85} tokens read and 1050 written" in line
        price = ((characters + 255) * 1000 + 1050 * 2000) / 1e6
        assert line.endswith(f"about {price:.2f}, {price:.2f} in this job")
        assert grader.account.spent == pytest.approx(price)
        score(lmu, tmp_path, "MIABench", right, grader)
        assert "calls to" not in capsys.readouterr().out


def test_a_budget_holds_over_a_job_and_before_any_call(lmu, tmp_path):
    with faulty_grader() as server:
        grader = connect(server, model="gpt-4o", price=[0, 1000], budget=1.5)
        score(lmu, tmp_path / "a", "MIABench", right, grader)
        assert len(server.requests) == 3
        with pytest.raises(InputError, match=r"budget: MIA-Bench .* to 2\.10, which is above 1\.5"):
            score(lmu, tmp_path / "b", "MIABench", right, grader)
        assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("act", "asked"),
    [
        (say(""), 4),  # billed, and tried again
        (hang_up, 4),  # perhaps billed
        (fail(503), 2 * 4),  # not billed: ends after calls lost in a row
    ],
)
def test_further_tries_count_against_the_budget(lmu, tmp_path, monkeypatch, capsys, act, asked):
    with faulty_grader(lambda call, prompt: act) as server:
        grader = connect(server, model="gpt-4o", price=[0, 1000], budget=1.5, retries=7, parallel=1)
        monkeypatch.setattr(grader_client, "LOST_CALLS", 1)
        with pytest.raises(InputError, match="3 of 3 rows were not graded") as caught:
            score(lmu, tmp_path, "MIABench", right, grader)  # 0.35 a call
        assert len(server.requests) == asked
        assert ("would pass evaluation.grader.budget (1.5); raise it" in str(caught.value)) == (
            asked == 4
        )
        assert grader.account.spent == pytest.approx(1.4 if asked == 4 else 0)
        assert ("MIA-Bench: 4 calls were asked, about 1.40" in capsys.readouterr().out) == (
            asked == 4
        )


def test_a_budget_of_just_the_estimate_is_enough(lmu, tmp_path):
    with faulty_grader() as server:
        grader = connect(server, model="gpt-4o", price=[0, 1000], budget=1.05)
        assert score(lmu, tmp_path, "MIABench", right, grader)[1] == pytest.approx(50)
        assert len(server.requests) == 3


def test_a_grader_on_this_machine_costs_nothing(lmu, tmp_path, capsys):
    with faulty_grader() as server:
        score(lmu, tmp_path, "MIABench", right, connect(server))
    assert "calls to" not in capsys.readouterr().out


def test_images_cost_what_is_documented():
    size = (1000, 750)
    assert cost.image_tokens(size, "gpt-4o-2024-08-06") == 85
    assert cost.image_tokens(size, "openai/gpt-4o-mini") == 2833
    assert cost.image_tokens(size, "gpt-4.1-mini") == 1890  # 32 x 24 patches, 2.46 each
    assert cost.image_tokens((9000, 9000), "o4-mini") == 3779  # no more than 1536 patches
    assert cost.image_tokens(size, "some-other-model") == 1000
    found = cost.estimate([cost.Call(401, None, "extract")] * 2, "m")
    assert (found.calls, found.read, found.written, found.cost) == (2, 202, 10, None)
    assert cost.estimate([cost.Call(0, None, "extract")], "o3").written == 1005


# The key


@pytest.mark.parametrize("echo", [False, True])
def test_the_key_is_in_nothing_that_is_written(lmu, tmp_path, monkeypatch, caplog, capfd, echo):
    monkeypatch.setenv("TEST_KEY", CANARY)
    for name in ("", "vlmeval", "vlmeval.api.gpt", "urllib3", "http"):
        caplog.set_level(logging.DEBUG, logger=name)
    environment = dict(os.environ)
    told = f" Your key is {CANARY}." if echo else ""

    def act(call, prompt):
        if call % 3 == 0:
            return fail(500, f"no capacity{told}")
        fits = fitting(prompt)
        return say(fits + told if fits == GRADE else f"{told} {fits}")

    errors = []
    with faulty_grader(act) as server:
        names = ["MIABench", *CHOICES, "POPE"]
        grader = connect(server, names, extract=True, retries=5)
        for name in names:
            score(lmu, tmp_path / name, name, vague, grader)
        assert server.keys == {f"Bearer {CANARY}"}
        server.act = lambda call, prompt: fail(401, f"who is {CANARY}?")
        for name in ("MIABench", "AI2D", "POPE"):
            with pytest.raises(InputError) as caught:
                score(lmu, tmp_path / f"failed-{name}", name, vague, grader)
            errors.append(f"{caught.value!r} {caught.value} {caught.getrepr(style='short')}")
    written = capfd.readouterr()
    files = [path for root in (tmp_path, lmu) for path in root.rglob("*") if path.is_file()]
    assert len(files) > 40
    assert not [path for path in files if CANARY.encode() in path.read_bytes()]
    for text in (caplog.text, written.out, written.err, repr(grader), *errors):
        assert CANARY not in text
    assert all("who is [key]?" in error for error in errors)
    assert dict(os.environ) == environment
