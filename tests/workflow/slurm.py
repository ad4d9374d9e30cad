"""A real SLURM on this one machine, for as long as a test needs it.

Daemons run in the foreground as our children, with every file in a folder of the test's; they are
ended by their pids. Two GPUs are declared on device files that every machine has, so that `--gres`
is scheduled and CUDA_VISIBLE_DEVICES set as on a cluster.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "sinfo", "srun")

CONFIG = """\
ClusterName=interlace-test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={slurmd_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
GresTypes=gpu
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
InactiveLimit=0
KillWait=5
MinJobAge=300
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory_mb} Gres=gpu:2 State=UNKNOWN
PartitionName=test Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""

GRES = """\
Name=gpu File=/dev/zero
Name=gpu File=/dev/null
"""


def missing() -> str | None:
    """Return why a SLURM can't be started here, or None."""
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    absent = [name for name in NEEDED if shutil.which(name, path=path) is None]
    if absent:
        return f"SLURM is not installed ({', '.join(absent)} missing)"
    return None if os.geteuid() == 0 else "slurmd needs root"


@contextlib.contextmanager
def running_slurm(folder: Path, memory_mb: int = 7000) -> Iterator[dict[str, str]]:
    """Start munged, slurmctld and slurmd; yield the environment in which sbatch reaches them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host = socket.gethostname().split(".")[0]
    (folder / "slurm.conf").write_text(
        CONFIG.format(
            host=host,
            folder=folder,
            cpus=os.cpu_count(),
            memory_mb=memory_mb,
            ctld_port=_free_port(),
            slurmd_port=_free_port(),
        )
    )
    (folder / "gres.conf").write_text(GRES)
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    os.chmod(folder, 0o755)  # noqa: PTH101
    env = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    env["PATH"] = f"{folder}:{env['PATH']}:/usr/sbin:/sbin"
    # Snakemake takes SLURM_* variables out of a job's environment; srun inside the job needs this one.
    real = shutil.which("srun")
    shim = folder / "srun"
    shim.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {real} "$@"\n')
    shim.chmod(0o755)
    commands = [
        ["munged", "-F", "--force", f"--socket={folder}/munge.socket", f"--key-file={key}",
         f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log",
         f"--seed-file={folder}/munge.seed"],
        ["slurmctld", "-D", "-c"],
        ["slurmd", "-D", "-c", "-N", host],
    ]  # fmt: skip
    with contextlib.ExitStack() as stack:
        for command in commands:
            stack.enter_context(_daemon(command, env, folder))
            time.sleep(1)
        _wait_for_idle(env, folder)
        yield env


@contextlib.contextmanager
def _daemon(command: list[str], env: dict[str, str], folder: Path) -> Iterator[None]:
    with (folder / f"{command[0]}.out").open("wb") as out:
        process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for_idle(env: dict[str, str], folder: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    state = ""
    while time.monotonic() < deadline:
        done = subprocess.run(
            ["sinfo", "-h", "-o", "%T"], env=env, capture_output=True, text=True, check=False
        )
        state = done.stdout.strip() or done.stderr.strip()
        if state == "idle":
            return
        time.sleep(1)
    logs = "\n".join(p.read_text(errors="replace")[-2000:] for p in folder.glob("*.log"))
    raise RuntimeError(f"SLURM did not become idle ({state}):\n{logs}")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
