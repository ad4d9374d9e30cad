"""Predictor on a tiny checkpoint: stores, both engines, replicas, kills, resuming."""

import contextlib
import io
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from interlace.errors import InputError
from interlace.evaluation import engine, kit, replica, replicas
from interlace.evaluation.benchmarks import get_benchmark
from interlace.evaluation.predictions import Prediction, PredictionStore
from interlace.evaluation.predictor import Predictor
from interlace.evaluation.prepare import prepare_benchmarks
from tests.tiny import make_tiny_checkpoint
from tests.tiny_benchmarks import DATASETS, make_tiny_benchmarks

SETTINGS = {"modes": {"limited": 6}, "batch_size": 3, "prompt": "dataset", "limit": None}
CHOSEN = ("AI2D", "OCRBench", "MMBench")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    root = tmp_path_factory.mktemp("predictor")
    make_tiny_benchmarks(root / "tsv", questions=3)
    prepare_benchmarks(DATASETS, root / "lmu", str(root / "tsv"))
    make_tiny_checkpoint(root / "model", layers=4, tied=False)
    return root


def predictor(work, seed=0, **settings):
    return Predictor(work / "model", {**SETTINGS, **settings}, mode="limited", seed=seed)


def ask(made, work, folder):
    """Let a predictor answer the benchmark that `folder` is named after."""
    benchmark = get_benchmark(folder.name)
    with kit.kit_environment(work / "lmu"):
        dataset = kit.build_benchmark(benchmark, made.settings["limit"])
        return made.predict(benchmark, dataset, folder)


def predict(work, out, names=CHOSEN, **settings):
    with predictor(work, **settings) as made:
        return {name: ask(made, work, out / name).predictions for name in names}


@pytest.fixture(scope="module")
def expected(work, tmp_path_factory):
    return predict(work, tmp_path_factory.mktemp("expected"))


def texts(found):
    return {name: {k: v.text for k, v in rows.items()} for name, rows in found.items()}


def lines(folder):
    found = [json.loads(line) for f in sorted(folder.glob("*.jsonl")) for line in f.open()]
    return [index for line in found for index in line["predictions"]]


def test_a_store_keeps_what_is_whole_and_drops_a_torn_line(tmp_path, capsys):
    store = PredictionStore(tmp_path)
    odd = Prediction('"None",\n\t\u2028\ud800 é', 7, False)
    store.add({"1": odd, "2": Prediction("", None, None)}, 2.0)
    store.add({"3": Prediction("x", 1, True)}, 1.0)
    assert not PredictionStore(tmp_path).predictions.keys() ^ {"1", "2", "3"}
    file = tmp_path / "predictions-001-0.jsonl"
    whole = file.read_bytes()
    for torn in (whole[:-1], whole[:-9], whole + b'{"sec', whole + b"\0\0\0"):
        file.write_bytes(torn)
        again = PredictionStore(tmp_path)
        assert again.predictions["1"] == odd
        assert ("3" in again.predictions) == torn.startswith(whole)
        assert again.seconds == (3.0 if torn.startswith(whole) else 2.0)
        assert "line" in capsys.readouterr().out
    # Nor is what is no batch taken for one, whatever it is.
    row = '["x", 1, true]'
    for odd_line in (
        *("7", "null", "[]", '"x"', "{}", '{"predictions": {"3": ' + row + "}}"),
        *('{"seconds": 1, "predictions": [' + row + "]}", '{"seconds": 1, "predictions": null}'),
        *('{"seconds": 1, "predictions": {"3": ["x"]}}', '{"seconds": 1, "predictions": {"3": 7}}'),
        *(
            '{"seconds": 1, "predictions": {"3": ' + row + "}}"
            for row in ("[null, 1, true]", '["x", "y", true]', '["x", true, true]', '["x", 1, "z"]')
        ),
    ):
        file.write_bytes(whole.splitlines(keepends=True)[0] + odd_line.encode() + b"\n")
        again = PredictionStore(tmp_path)
        assert again.predictions.keys() == {"1", "2"}, odd_line
        assert f"{file}: line 2 is torn" in capsys.readouterr().out
    file.write_bytes(whole + b'{"sec')
    again = PredictionStore(tmp_path)
    # The next attempt writes another file, so that the torn one stays as it is.
    again.add({"4": Prediction("y", 2, True)}, 5.0)
    assert PredictionStore(tmp_path).predictions.keys() == {"1", "2", "3", "4"}
    assert PredictionStore(tmp_path).seconds == 8.0


def test_seconds_are_those_of_the_slowest_replica(tmp_path):
    attempt = PredictionStore(tmp_path).attempt
    for number, seconds in enumerate((2.0, 5.0, 3.0)):
        store = PredictionStore(tmp_path, attempt, number)
        store.add({str(number): Prediction("", 0, True)}, seconds)
    PredictionStore(tmp_path).add({"9": Prediction("", 0, True)}, 1.0)
    assert PredictionStore(tmp_path).seconds == 6.0
    with pytest.raises(FileExistsError):  # two writers of one file
        PredictionStore(tmp_path, attempt, 1).add({"1": Prediction("", 0, True)}, 1.0)


def test_an_answer_that_reads_as_missing_stays_what_it_is(work, tmp_path, monkeypatch):
    from interlace.evaluation.model import LocalQwen3VL

    said = iter(["None", "", "N/A"])
    monkeypatch.setattr(LocalQwen3VL, "generate", lambda *_, **__: next(said))
    monkeypatch.setenv("WORLD_SIZE", "2")  # of a shell: VLMEvalKit would answer every other row
    found = predict(work, tmp_path, ["AI2D"], engine="vlmevalkit", replicas=2)
    assert {index: row.text for index, row in found["AI2D"].items()} == {
        "0": "None",
        "1": "",
        "2": "N/A",
    }


def test_what_an_interrupted_reference_left_is_never_read(work, tmp_path, monkeypatch):
    from vlmeval import inference

    from interlace.evaluation.model import LocalQwen3VL

    said = ["", "0451", "None"]
    asked = []

    def answer(*_, **__):
        asked.append(len(asked))
        return said[(len(asked) - 1) % 3]

    monkeypatch.setattr(LocalQwen3VL, "generate", answer)
    names, reference = ["AI2D"], {"engine": "vlmevalkit"}

    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    # Killed with VLMEvalKit's table on the disk, whole or torn: every answer is in the store.
    dump, job = inference.dump, inference.infer_data_job

    def torn(data, file, **kwargs):
        dump(data, file, **kwargs)
        if str(file).endswith(".tsv"):
            Path(file).write_bytes(Path(file).read_bytes()[:-9] + b'"')
            raise Killed

    def whole(*args, **kwargs):
        job(*args, **kwargs)
        raise Killed

    for name, killed in (("dump", torn), ("infer_data_job", whole)):
        out = tmp_path / name
        with monkeypatch.context() as patch:
            patch.setattr(inference, name, killed)
            with pytest.raises(Killed):
                predict(work, out, names, **reference)
        assert len(asked) == 3
        assert [row.text for row in predict(work, out, names, **reference)["AI2D"].values()] == said
        assert len(asked) == 3
        asked.clear()
    # Killed in the second row, by files that would tell otherwise: the first is not asked again.
    add = PredictionStore.add
    left = iter([add, die])
    with monkeypatch.context() as patch:
        patch.setattr(PredictionStore, "add", lambda *args: next(left)(*args))
        with pytest.raises(Killed):
            predict(work, tmp_path, names, **reference)
    assert lines(tmp_path / "AI2D") == ["0"]
    folder = tmp_path / "AI2D" / "vlmevalkit"
    for name in ("01_AI2D_TEST.pkl", "reference_AI2D_TEST_PREV.pkl", "reference_AI2D_TEST.tsv"):
        (folder / name).write_bytes(b"\x80\x04\x95 garbage")
    asked[:] = [0]
    assert [
        row.text for row in predict(work, tmp_path, names, **reference)["AI2D"].values()
    ] == said
    assert lines(tmp_path / "AI2D") == ["0", "1", "2"]


def test_a_sampling_reference_resumes_with_the_same_answers(work, tmp_path):
    sampled = {"decoding": "released", "temperature": 1.5, "engine": "vlmevalkit"}
    whole = predict(work, tmp_path, ["AI2D"], **sampled)
    assert len({row.text for row in whole["AI2D"].values()}) == 3
    (file,) = (tmp_path / "AI2D").glob("*.jsonl")
    file.write_bytes(file.read_bytes()[:-20])
    assert predict(work, tmp_path, ["AI2D"], **sampled) == whole
    assert len(list((tmp_path / "AI2D").glob("*.jsonl"))) == 2


def test_only_what_is_missing_is_generated(work, tmp_path, expected, monkeypatch):
    assert predict(work, tmp_path, ["MMBench"])["MMBench"] == expected["MMBench"]

    def refuse(*_, **__):
        raise AssertionError("loaded again")

    (file,) = (tmp_path / "MMBench").glob("*.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr(engine, "load_model", refuse)
        assert predict(work, tmp_path, ["MMBench"])["MMBench"] == expected["MMBench"]
        with pytest.raises(AssertionError, match="loaded again"):
            predict(work, tmp_path, ["AI2D"])
    kept = next(iter(expected["MMBench"]))
    line = json.dumps({"predictions": {kept: ["kept as it is", 1, True]}, "seconds": 1.0})
    file.write_text(line + "\n" + '{"predictions": {"1": ["to', encoding="utf-8")
    found = predict(work, tmp_path, ["MMBench"])["MMBench"]
    assert found == {**expected["MMBench"], kept: Prediction("kept as it is", 1, True)}


def test_what_was_done_before_an_error_is_kept(work, tmp_path, expected, monkeypatch):
    monkeypatch.setattr(engine, "FLUSH_S", 1e6)
    left = iter(range(7))
    prepare = engine.LocalQwen3VL.prepare

    def failing(*args):
        if next(left, None) is None:
            raise OSError("the disk is gone")
        return prepare(*args)

    with monkeypatch.context() as patch:
        patch.setattr(engine.LocalQwen3VL, "prepare", failing)
        with pytest.raises(OSError, match="disk is gone"):
            predict(work, tmp_path, ["MMBench"])
    assert len(lines(tmp_path / "MMBench")) == 6
    assert predict(work, tmp_path, ["MMBench"])["MMBench"] == expected["MMBench"]
    assert sorted(lines(tmp_path / "MMBench")) == sorted(expected["MMBench"])


def test_what_memory_had_room_for_is_known_to_the_next_benchmark(work, tmp_path, expected):
    failed = []

    def fail(_, args, kwargs):
        if len(kwargs["input_ids"]) > 4:
            failed.append(len(kwargs["input_ids"]))
            raise torch.OutOfMemoryError("no memory left")

    with predictor(work, batch_size=64) as made:
        made._engine.model.register_forward_pre_hook(fail, with_kwargs=True)
        assert ask(made, work, tmp_path / "a" / "MMBench").predictions == expected["MMBench"]
        assert failed
        failed.clear()
        assert ask(made, work, tmp_path / "b" / "MMBench").predictions == expected["MMBench"]
    assert not failed


def test_sampling_depends_on_seed_and_row_alone(work, tmp_path):
    sampled = {"decoding": "released", "temperature": 1.5}
    first = predict(work, tmp_path / "a", ["MMBench"], **sampled)
    assert first != predict(work, tmp_path / "greedy", ["MMBench"])
    assert first != predict(work, tmp_path / "seed", ["MMBench"], seed=1, **sampled)
    assert first == predict(work, tmp_path / "b", ["MMBench"], batch_size=64, **sampled)
    (file,) = (tmp_path / "a" / "MMBench").glob("*.jsonl")
    file.write_bytes(file.read_bytes()[:-20])
    assert first == predict(work, tmp_path / "a", ["MMBench"], batch_size=2, **sampled)
    assert len(list((tmp_path / "a" / "MMBench").glob("*.jsonl"))) == 2


def test_pixels_of_one_benchmark(work, tmp_path, monkeypatch):
    seen = {}
    prepare = engine.LocalQwen3VL.prepare

    def watch(self, message, dataset):
        inputs = prepare(self, message, dataset)
        seen[dataset] = inputs["image_grid_thw"][0].prod() * 16**2
        return inputs

    monkeypatch.setattr(engine.LocalQwen3VL, "prepare", watch)
    limits = {
        "pixels": {"AI2D": {"min_pixels": 1024, "max_pixels": 4096}},
        "max_pixels": 110000,
        "min_pixels": 9000,
    }
    predict(work, tmp_path, ["AI2D", "ChartQA", "OCRBench"], **{**limits, "limit": 1})
    assert seen["AI2D_TEST"] <= 9216
    assert seen["ChartQA_TEST"] >= 8192
    assert seen["OCRBench"] >= 90000


def test_replicas_say_what_one_says_and_a_killed_one_is_named(
    work, tmp_path, expected, monkeypatch
):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    made, pids = predictor(work, replicas=2), set()
    for name in CHOSEN:
        found = ask(made, work, tmp_path / name)
        assert found.predictions == expected[name], name
        pids |= {replica.process.pid for replica in made._replicas._replicas}
    assert len(pids) == 2  # they stayed for all benchmarks
    files = sorted(file.name for file in (tmp_path / "MMBench").glob("*.jsonl"))
    assert files == ["predictions-001-0.jsonl", "predictions-001-1.jsonl"]
    # A replica dies: it is named, none is left, and what it owed is generated by another number.
    torn = tmp_path / "MMBench" / files[1]
    torn.write_bytes(torn.read_bytes()[:-5])
    last = made._replicas._replicas[1]
    last.log.write_text("one line\nNot enough of something\n")
    os.kill(last.process.pid, signal.SIGKILL)
    wait_for(lambda: not made._replicas._events.empty())  # its rows may be the other's to answer
    with pytest.raises(RuntimeError, match="replica 2 of 2 on the CPU ended") as raised:
        ask(made, work, tmp_path / "MMBench")
    assert "exit status -9, SIGKILL" in str(raised.value)
    assert "one line | Not enough of something" in str(raised.value)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    again = predict(work, tmp_path, ["MMBench"], replicas=1)
    assert again["MMBench"] == expected["MMBench"]


def wait_for(condition, seconds=100):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


def test_a_replica_passes_on_what_the_user_got_wrong(work, tmp_path, monkeypatch):
    job = {"parent": os.getppid(), "checkpoint": str(tmp_path), "mode": "limited", "seed": 0}
    job["settings"] = SETTINGS
    prompts = [engine.Prompt("1", [{"type": "text", "value": "hello"}], "none")]
    order = {"benchmark": "AI2D", "prompts": prompts, "folder": str(tmp_path)}
    order |= {"attempt": 1, "replica": 0}
    said = tmp_path / "said"
    with monkeypatch.context() as patch:  # in this process, whose own streams stay as they are
        patch.setattr(replica, "die_with_parent", lambda: None)
        patch.setattr(replica.signal, "signal", lambda *_: None)
        patch.setattr(replica.os, "dup", lambda _: os.open(said, os.O_CREAT | os.O_WRONLY))
        patch.setattr(replica.os, "dup2", lambda *_: None)
        patch.setattr(sys, "stdin", io.StringIO(f"{json.dumps(job)}\n{json.dumps(order)}\n"))
        with pytest.raises(SystemExit):
            replica.main()

    class Process(io.StringIO):
        stdin = io.StringIO()
        kill = wait = lambda _: None

        @property
        def stdout(self):
            return self

    for heard, error, line in (
        (said.read_text(), InputError, f"{tmp_path}: no checkpoint there"),
        ("Loading weights\n", RuntimeError, "replica 1 of 1 on the CPU said 'Loading weights'"),
    ):
        monkeypatch.setattr(replicas, "_start", lambda *_, heard=heard: Process(heard))
        made = replicas.Replicas(tmp_path, {**SETTINGS, "replicas": 1}, "limited", 0)
        with pytest.raises(error, match=line):
            list(made.answer(get_benchmark("AI2D"), prompts, tmp_path, 1))


def test_kill_of_the_parent_leaves_no_replicas(work, tmp_path, expected):
    """Killed with rows on the disk; what is there is not generated again."""
    folder = tmp_path / "MMBench"
    pids = tmp_path / "pids"
    parent = os.fork()
    if not parent:  # has imported vlmeval already
        try:
            engine_of = predictor(work, replicas=2)

            def started(*args):
                process = forked(*args)
                with pids.open("a") as handle:
                    handle.write(f"{process.pid}\n")
                return process

            replicas._start = started
            with Path(os.devnull).open("w") as nothing, contextlib.redirect_stdout(nothing):
                ask(engine_of, work, folder)
                time.sleep(600)
        finally:
            os._exit(1)
    try:
        wait_for(lambda: folder.exists() and lines(folder))
    finally:
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
    children = pids.read_text().split()
    assert len(children) == 2
    wait_for(lambda: not [pid for pid in children if alive(pid)], seconds=20)
    assert predict(work, tmp_path, ["MMBench"]) == {"MMBench": expected["MMBench"]}
    assert sorted(lines(folder)) == sorted(expected["MMBench"])


def forked(gpu, count, log):
    """What `replicas._start` starts, as a fork of this process: it has imported all that is needed."""
    orders, events = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        try:
            handle = os.open(log, os.O_CREAT | os.O_WRONLY)
            for target, source in enumerate((orders[0], events[1], handle)):
                os.dup2(source, target)
            sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(2, "w")
            replica.main()
        finally:
            os._exit(1)
    os.close(orders[0])
    os.close(events[1])
    return SimpleNamespace(
        pid=pid, stdin=os.fdopen(orders[1], "w"), stdout=os.fdopen(events[0]), kill=None, wait=None
    )


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_gpus_are_those_that_we_may_use(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert replicas.usable_gpus({}) == ["0", "1"]
    assert replicas.num_replicas({}) == 2
    assert replicas.num_replicas({"replicas": 3}) == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8a, MIG-7f,5")
    assert replicas.usable_gpus({}) == ["GPU-8a", "MIG-7f"]
    assert replicas.usable_gpus({"device": "cpu"}) == []
    assert replicas.num_replicas({"device": "cpu"}) == 1


def test_each_replica_sees_its_gpu_and_its_share_of_cores(monkeypatch, tmp_path):
    started = []

    class Process:
        stdout, stdin = iter(()), io.StringIO()

        def __init__(self, command, env, **_):
            started.append((env.get("CUDA_VISIBLE_DEVICES"), env["OMP_NUM_THREADS"]))

        def kill(self):
            pass

        def wait(self):
            return 0

    monkeypatch.setattr(replicas.subprocess, "Popen", Process)
    monkeypatch.setattr(replicas, "usable_gpus", lambda settings: ["GPU-8a", "MIG-7f"])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    made = replicas.Replicas(tmp_path, {"replicas": 3}, "limited", 0)
    made.close()
    assert started == [("GPU-8a", "2"), ("MIG-7f", "2"), ("GPU-8a", "2")]


def test_long_prompts_come_first_and_those_of_an_image_together(tmp_path):
    for name, size in (("small", (64, 64)), ("large", (640, 640)), ("copy", (64, 64))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")

    def prompt(*parts):
        return [
            {"type": "image" if part.endswith("png") else "text", "value": part} for part in parts
        ]

    small, large, copy = (str(tmp_path / f"{name}.png") for name in ("small", "large", "copy"))
    messages = {
        "a": prompt(small, "x" * 40),
        "b": prompt(large, "x"),
        "c": prompt("x" * 4000),
        "d": prompt(copy, "x" * 44),
        "e": prompt("x" * 4000),
    }

    def order(*limits):
        return "".join(prompt.index for prompt in engine.ordered(messages.items(), *limits))

    assert order(None, None) == "cebda"
    assert order(None, 4096) == "cedab"
    assert order(10**7, None) == "dabce"
    prompts = engine.ordered(messages.items(), None, None)
    dealt = engine.shares(prompts, 3)
    assert sorted("".join(prompt.index for prompt in share) for share in dealt) == ["b", "cda", "e"]
    assert engine.shares(prompts[:1], 2) == [prompts[:1], []]
