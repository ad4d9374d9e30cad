"""Start the ranks of a training job: on this machine, or on the nodes of a SLURM allocation.

Every node runs one agent of torchrun, which starts a rank for each of its devices. The job travels
in a file that all nodes can read; of the command line, which others can read too, only its path.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from interlace.errors import InputError
from interlace.io import digest, read_json, write_json
from interlace.processes import die_with_parent

_JOB = "job.json"
# Of the SLURM variables only these describe the allocation; the others describe the step that we
# run in, and srun would take them as options of the step that it starts.
_KEPT = ("SLURM_JOB_ID", "SLURM_JOBID", "SLURM_CLUSTER_NAME", "SLURM_CONF", "SLURM_SUBMIT_")


def launch(
    module: str,
    job: dict[str, Any],
    processes: int,
    nodes: int = 1,
    folder: str | Path | None = None,
    cpus: int | None = None,
) -> None:
    """Run `python -m module <job.json>` in `processes` ranks on each of `nodes` machines.

    `folder` is where the job's file is kept meanwhile: one that all nodes share (None: a temporary
    one of this machine). `cpus` is how many cores a node's agent and ranks get from SLURM. The
    output of all ranks goes to ours. SIGTERM, SIGINT and SIGHUP to this process end the ranks
    before they end it; if it is killed, the agents are told to stop.

    Raises InputError where several nodes are asked for outside of SLURM, and where a rank did (its
    line); RuntimeError if a rank fails otherwise.
    """
    assert nodes == 1 or folder is not None, "several nodes need a folder that they share"
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
    # A folder of the temporary directory's mode, 0700: the job may name what is private.
    with tempfile.TemporaryDirectory(prefix=".interlace-job-", dir=folder) as name:
        path = Path(name).resolve() / _JOB
        path.write_text(json.dumps(job), encoding="utf-8")
        if nodes == 1:
            command = _local_command(module, path, processes)
        else:
            command = _slurm_command(module, path, processes, nodes, cpus)
        status, received = _run(command, _environment(keep_slurm=nodes == 1))
        what = f"training with {processes * nodes} processes"
        if status and received is None:
            _raise_first_failure(path.parent, what, status)
    if received is not None:  # the file is gone, the ranks too: now it is our turn
        signal.raise_signal(received)
        raise RuntimeError(f"{what} was ended by signal {received}")


def check_processes(processes: int) -> None:
    """Raise InputError where fewer devices than `finetune.processes` are visible on this machine."""
    import torch

    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise InputError(
            f"finetune.processes: {processes}, but {torch.cuda.device_count()} GPUs are visible"
        )


@contextlib.contextmanager
def reported_failure(job_file: str | Path) -> Iterator[None]:
    """Leave what ends a rank beside the job's file, so that `launch` can say it in one line.

    An InputError ends the process with status 1 and that line; all other errors pass.
    """
    try:
        yield
    except BaseException as error:
        name = f"failure-{socket.gethostname()}-{os.getpid()}.json"
        line = (str(error).strip().splitlines() or [""])[0]
        is_input = isinstance(error, InputError)
        report = {
            "time": time.time(),
            "rank": int(os.environ.get("RANK", 0)),
            "input_error": is_input,
            "line": line if is_input else f"{type(error).__name__}: {line}",
        }
        with contextlib.suppress(OSError):  # the folder is gone where the launcher was killed
            write_json(Path(job_file).parent / name, report)
        if not is_input:
            raise
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)


def _raise_first_failure(folder: Path, what: str, status: int) -> None:
    """Raise what ended the first rank that failed; what follows in others is only its echo."""
    reports = [read_json(path) for path in folder.glob("failure-*.json")]
    reports.sort(key=lambda report: (not report["input_error"], report["time"]))
    if reports and reports[0]["input_error"]:
        raise InputError(reports[0]["line"])
    reason = f"rank {reports[0]['rank']}: {reports[0]['line']}" if reports else (
        "no rank says why; one killed from outside (status -9 above) was often short of main memory"
    )  # fmt: skip
    raise RuntimeError(f"{what} failed (exit status {status}): {reason}")


def _torchrun(processes: int, rendezvous: list[str], module: str, path: Path) -> list[str]:
    command = [sys.executable, "-m", "torch.distributed.run", *rendezvous]
    return [*command, f"--nproc-per-node={processes}", "-m", module, str(path)]


def _local_command(module: str, path: Path, processes: int) -> list[str]:
    return _torchrun(processes, ["--standalone"], module, path)


def _slurm_command(
    module: str, path: Path, processes: int, nodes: int, cpus: int | None
) -> list[str]:
    """Return the srun that starts one agent on each node; they meet on the first one.

    `--overlap`: we run in a step of the same allocation, whose cores and GPUs would else be taken.
    """
    job_id = os.environ.get("SLURM_JOB_ID")
    if job_id is None or shutil.which("srun") is None:
        raise InputError(
            f"finetune.nodes: {nodes}, but this is no SLURM job; run with --profile profiles/slurm,"
            " start the run inside of an allocation (salloc, sbatch), or set finetune.nodes to 1"
        )
    # Jobs share nodes, and runs share a job: the port, below those given out at random, and the
    # name of the meeting follow from both.
    run = digest([job_id, str(path)])
    port = 12_000 + int(run, 16) % 20_000
    srun = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    srun += ["--overlap", "--kill-on-bad-exit=1"]
    cpus = cpus or int(os.environ.get("SLURM_CPUS_PER_TASK", 0))
    srun += [f"--cpus-per-task={cpus}"] if cpus else []
    meeting = [f"--nnodes={nodes}", "--rdzv-backend=c10d", f"--rdzv-id={job_id}-{run}"]
    meeting.append(f"--rdzv-endpoint={_first_host()}:{port}")
    return [*srun, *_torchrun(processes, meeting, module, path)]


def _first_host() -> str:
    """Return the allocation's first node, on which its batch script runs, and so, mostly, we do."""
    names = os.environ.get("SLURM_JOB_NODELIST")
    if names is None or shutil.which("scontrol") is None:
        return socket.gethostname()  # Snakemake's job step takes the list away
    command = ["scontrol", "show", "hostnames", names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout.split():
        raise InputError(f"scontrol show hostnames {names}: {done.stderr.strip() or 'no node'}")
    return done.stdout.split()[0]


def _environment(keep_slurm: bool) -> dict[str, str]:
    environment = {
        key: value
        for key, value in os.environ.items()
        if keep_slurm or not key.startswith(("SLURM_", "SRUN_")) or key.startswith(_KEPT)
    }
    package_root = str(Path(__file__).resolve().parents[2])
    paths = [package_root, environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return {"OMP_NUM_THREADS": "1", **environment}


def _run(command: list[str], environment: dict[str, str]) -> tuple[int, int | None]:
    """Return the exit status of a command, and the signal to us that ended it, if one did."""
    child = subprocess.Popen(command, env=environment, preexec_fn=die_with_parent)
    received: list[int] = []

    def end(number: int, _frame: Any) -> None:
        received.append(number)
        child.terminate()  # torchrun and srun pass SIGTERM on, and wait for the ranks

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                before[number] = signal.signal(number, end)
    try:
        status = child.wait()
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
    return status, received[0] if received else None
