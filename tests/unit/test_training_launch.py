import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from interlace.errors import InputError
from interlace.training import launch as launching
from interlace.training.launch import check_processes, launch, reported_failure

SRC = Path(launching.__file__).resolve().parents[2]

# Adds up the ranks' numbers over gloo, and leaves what a rank can know of how it was started.
WORKER = """\
import json, os, sys
from interlace.processes import die_with_parent
from interlace.training.launch import reported_failure

die_with_parent()
with reported_failure(sys.argv[1]):
    rank, job = int(os.environ["RANK"]), json.load(open(sys.argv[1]))
    if "wait" in job:
        import time
        open(f"{job['out']}/pid-{rank}", "w").write(str(os.getpid()))
        time.sleep(600)
    import torch, torch.distributed as dist
    dist.init_process_group("gloo")
    world = dist.get_world_size()
    value = torch.tensor([float(rank + 1)])
    dist.all_reduce(value)
    seen = {"rank": dist.get_rank(), "world": world, "sum": value.item(), "local": os.environ["LOCAL_RANK"],
            "node": os.environ.get("SLURM_NODEID"), "group": os.environ["GROUP_RANK"],
            "args": sys.argv[1:], "step": os.environ.get("SLURM_STEP_ID"),
            "command": open(f"/proc/{os.getppid()}/cmdline").read()}
    open(f"{job['out']}/seen-{rank}.json", "w").write(json.dumps(seen))
    dist.destroy_process_group()
"""

# Starts a task on each "node" of this one machine with what SLURM would tell it, passes SIGTERM on.
SRUN = """\
#!{python}
import json, os, signal, subprocess, sys
args = sys.argv[1:]
command = next(i for i, a in enumerate(args) if not a.startswith("-"))
options = dict(a[2:].split("=", 1) for a in args[:command] if "=" in a)
json.dump({{"args": args, "environment": dict(os.environ)}}, open({record!r}, "w"))
tasks = []
for node in range(int(options["nodes"])):
    told = {{"SLURM_NODEID": str(node), "SLURM_NNODES": options["nodes"], "SLURM_PROCID": str(node),
            "PET_LOCAL_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}}
    tasks.append(subprocess.Popen(args[command:], env={{**os.environ, **told}}))
signal.signal(signal.SIGTERM, lambda *_: [task.terminate() for task in tasks])
sys.exit(max(abs(task.wait()) for task in tasks))
"""
SCONTROL = """\
#!/bin/sh
[ "$1 $2" = "show hostnames" ] && echo "$3" | tr , '\\n'
"""


@pytest.fixture
def worker(tmp_path, monkeypatch):
    (tmp_path / "adding_worker.py").write_text(WORKER)
    paths = [str(tmp_path), str(SRC), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    return "adding_worker"


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Be inside of an allocation of two nodes, both this machine."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    texts = {
        "srun": SRUN.format(python=sys.executable, record=str(tmp_path / "srun.json")),
        "scontrol": SCONTROL,
    }
    for name, text in texts.items():
        (bin_folder / name).write_text(text)
        (bin_folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "localhost,other")
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    return lambda: json.loads((tmp_path / "srun.json").read_text())


def seen(folder):
    return [json.loads(path.read_text()) for path in sorted(folder.glob("seen-*.json"))]


def test_two_nodes_meet_through_srun(worker, slurm, tmp_path):
    out = tmp_path / "shared"
    launch(worker, {"out": str(tmp_path), "token": "hf_secret"}, 1, nodes=2, folder=out, cpus=3)
    ranks = seen(tmp_path)
    assert [rank["sum"] for rank in ranks] == [3.0, 3.0]
    assert sorted(rank["node"] for rank in ranks) == ["0", "1"]
    assert sorted(rank["group"] for rank in ranks) == ["0", "1"]
    assert [rank["local"] for rank in ranks] == ["0", "0"]
    assert [rank["step"] for rank in ranks] == [None, None]  # our own step's is not handed on
    assert not list(out.iterdir())  # the job's file is gone
    assert all("hf_secret" not in rank["command"] for rank in ranks)
    assert all(Path(rank["args"][0]).is_relative_to(out) for rank in ranks)
    called = slurm()
    assert "hf_secret" not in " ".join(called["args"])
    assert "--cpus-per-task=3" in called["args"]
    assert "SLURM_NTASKS" not in called["environment"]
    assert called["environment"]["SLURM_JOB_ID"] == "4711"


def test_the_command_of_srun(slurm, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "12")
    path = tmp_path / "job.json"
    command = launching._slurm_command("a.worker", path, 4, 2, None)
    start = command.index(sys.executable)
    assert command[:start] == [
        "srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--overlap",
        "--kill-on-bad-exit=1", "--cpus-per-task=12",
    ]  # fmt: skip
    agent = command[start + 1 :]
    assert agent[:2] == ["-m", "torch.distributed.run"]
    assert agent[-3:] == ["-m", "a.worker", str(path)]
    options = dict(option[2:].split("=", 1) for option in agent[2:-3])
    host, port = options.pop("rdzv-endpoint").rsplit(":", 1)
    assert host == "localhost"
    assert 12_000 <= int(port) < 32_000
    assert options.pop("rdzv-id").startswith("4711-")
    assert options == {"nnodes": "2", "rdzv-backend": "c10d", "nproc-per-node": "4"}
    # Another run of the same allocation meets elsewhere.
    other = launching._slurm_command("a.worker", tmp_path / "b" / "job.json", 4, 2, None)
    assert other[start:-1] != command[start:-1]


def test_a_job_step_without_a_node_list_is_on_the_first_node(slurm, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_NODELIST")
    assert launching._first_host() == launching.socket.gethostname()


def test_several_nodes_outside_of_slurm_are_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(InputError, match=r"finetune\.nodes: 2, but this is no SLURM job"):
        launch("a.worker", {}, 1, nodes=2, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_job_can_be_read_by_its_owner_alone(tmp_path, monkeypatch):
    modes = []

    def run(command, _environment):
        modes.append(stat.S_IMODE(Path(command[-1]).parent.stat().st_mode))
        assert json.loads(Path(command[-1]).read_text()) == {"a": 1}
        return 0, None

    monkeypatch.setattr(launching, "_run", run)
    launch("a.worker", {"a": 1}, 2, folder=tmp_path / "new")
    assert modes == [0o700]


def failing(monkeypatch, errors):
    """Let the ranks end with these errors, in this order, in place of torchrun's processes."""

    def run(command, _environment):
        for rank, error in errors.items():
            monkeypatch.setenv("RANK", str(rank))
            # In a report's name stands the process, which these ranks share.
            monkeypatch.setattr(launching.os, "getpid", lambda rank=rank: rank)
            with pytest.raises((SystemExit, type(error))), reported_failure(command[-1]):
                raise error
        return 1, None

    monkeypatch.setattr(launching, "_run", run)


def test_what_a_rank_refuses_is_refused_in_one_line(monkeypatch, capfd):
    refused = InputError("finetune.micro_batch: too large\nand a second line")
    failing(monkeypatch, {0: ConnectionError("its echo"), 1: refused})
    with pytest.raises(InputError) as raised:
        launch("a.worker", {}, 2)
    assert str(raised.value) == "finetune.micro_batch: too large"
    assert capfd.readouterr().err.startswith("error: finetune.micro_batch: too large")


def test_another_failure_names_the_rank(monkeypatch):
    failing(monkeypatch, {1: TypeError("not that type"), 0: ConnectionError("its echo")})
    with pytest.raises(RuntimeError, match=r"rank 1: TypeError: not that type") as raised:
        launch("a.worker", {}, 2)
    assert not isinstance(raised.value, InputError)


def test_a_rank_that_says_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(launching, "_run", lambda *_: (9, None))
    with pytest.raises(RuntimeError, match=r"exit status 9\): no rank says why"):
        launch("a.worker", {}, 2)


# SLURM itself ends the steps of a job whose batch script is killed.
@pytest.mark.parametrize(
    ("nodes", "number"), [(1, signal.SIGTERM), (1, signal.SIGKILL), (2, signal.SIGTERM)]
)
def test_the_ranks_end_with_the_launcher(worker, slurm, tmp_path, number, nodes):
    code = textwrap.dedent("""\
        import sys
        from interlace.training.launch import launch
        launch(sys.argv[1], {"out": sys.argv[2], "wait": 1}, 2 // int(sys.argv[3]),
               nodes=int(sys.argv[3]), folder=sys.argv[2])
    """)
    command = [sys.executable, "-c", code, worker, str(tmp_path), str(nodes)]
    launcher = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    files = [tmp_path / f"pid-{rank}" for rank in range(2)]
    assert eventually(lambda: all(f.exists() and f.read_text() for f in files), launcher)
    pids = [int(file.read_text()) for file in files]
    assert all(map(alive, pids))
    launcher.send_signal(number)
    assert launcher.wait(90) == -number
    assert eventually(lambda: not any(map(alive, pids)))
    if number == signal.SIGTERM:
        assert not list(tmp_path.glob(".interlace-job-*")), "the job's file stays only after a kill"


def eventually(condition, process=None, seconds=90):
    end = time.monotonic() + seconds
    while time.monotonic() < end and (process is None or process.poll() is None):
        if condition():
            return True
        time.sleep(0.1)
    return condition()


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_more_processes_than_gpus_are_refused(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_processes(2)
    with pytest.raises(InputError, match=r"finetune\.processes: 3, but 2 GPUs are visible"):
        check_processes(3)
