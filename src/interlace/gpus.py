"""Which GPUs a job may use, where several jobs share a workstation.

Snakemake counts GPUs (`--resources gpu=4`) but does not say which one a job gets; SLURM does.
"""

import contextlib
import fcntl
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

WAIT_S = 1.0
DEVICES = Path("/dev")


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them.

    CUDA counts those it finds from 0, whatever their device files are called: a container that was
    given the fourth GPU has /dev/nvidia3 and GPU 0.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    devices = [path for path in DEVICES.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
    return [str(number) for number in range(len(devices))]


@contextlib.contextmanager
def claimed_gpus(count: int) -> Iterator[list[str]]:
    """Let this process and its children see `count` GPUs within the block that no other job has.

    Waits until so many are free; a job that dies lets go of its own. Where there are fewer, all of
    them are taken. Nothing happens for 0, without a GPU, and in a SLURM job that was given no more
    than `count`; one that was given more (salloc) may run several of our jobs. CUDA must not have
    been started before.
    """
    found = visible_gpus()
    if not count or not found or ("SLURM_JOB_ID" in os.environ and len(found) <= count):
        yield found
        return
    folder = Path(tempfile.gettempdir(), f"interlace-gpus-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    wanted, said = min(count, len(found)), False
    while len(mine := _take(found, wanted, folder)) < wanted:
        if not said:
            print(f"waiting for {wanted} of the GPUs {', '.join(found)}", flush=True)
        said = True
        time.sleep(WAIT_S)
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
    try:
        yield list(mine)
    finally:
        os.environ.pop("CUDA_VISIBLE_DEVICES")
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before
        for handle in mine.values():
            handle.close()


def _take(names: list[str], count: int, folder: Path) -> dict[str, IO[str]]:
    """Return `count` GPUs with the locks that hold them; none where fewer are free."""
    mine: dict[str, IO[str]] = {}
    with (folder / "taking").open("w") as door:
        fcntl.flock(door, fcntl.LOCK_EX)  # else two jobs may hold half of what each needs
        for name in names:
            handle = (folder / re.sub(r"[^A-Za-z0-9-]", "-", name)).open("w")
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.close()
                continue
            mine[name] = handle
            if len(mine) == count:
                return mine
        for handle in mine.values():
            handle.close()
    return {}
