"""Where a script's output goes: one function that every Snakemake script runs inside."""

import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from interlace.errors import InputError
from interlace.gpus import claimed_gpus


@contextlib.contextmanager
def script_log(
    path: str | Path, threads: int = 1, gpus: int = 0
) -> Iterator[Callable[[str], None]]:
    """Send all output of this process and its children to `path`, errors included.

    Yields a function for what a person should see at once: it writes a line to the log and to the
    caller's standard error. `threads` bounds the threads of numerical libraries; it acts only if
    they are imported later. `gpus` that no other job has are claimed for the block.

    An InputError becomes one line in the log and on the caller's standard error, any other error a
    traceback in the log; both end the process with status 1. Snakemake itself leaves `log:` empty
    when a script raises.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    terminal = os.dup(2)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    sys.stdout = open(1, "w", buffering=1, closefd=False, encoding="utf-8")  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False, encoding="utf-8")  # noqa: SIM115
    warnings.filterwarnings("ignore", category=DeprecationWarning)

    def say(text: str) -> None:
        print(text)
        os.write(terminal, f"{text}\n".encode())

    try:
        with claimed_gpus(gpus):
            yield say
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        os.write(terminal, f"interlace: {error}\n".encode())
        _leave(1)
    except BaseException as error:
        traceback.print_exc()
        os.write(terminal, f"interlace: {type(error).__name__}, see {path}\n".encode())
        _leave(1)


def _leave(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(status)
