"""One replica: `python -m interlace.evaluation.replica`, started by `Replicas`, fed on stdin.

The first line is the job, every other a benchmark's share of rows. A JSON line per group of rows
that are on the disk goes to what was standard output; all that is printed goes to the log.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, TextIO

from interlace.errors import InputError
from interlace.processes import die_with_parent


def main() -> None:
    """Answer orders from standard input until it ends, or until our parent does."""
    die_with_parent()
    # Nobody but us may write to the pipe: vlmeval and transformers print as they like.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends us
    orders = sys.stdin
    job = json.loads(orders.readline())
    if os.getppid() != job["parent"]:
        return  # it died before we asked to die with it
    try:
        _serve(job, orders, out)
    except InputError as error:
        _say(out, input_error=str(error))
        sys.exit(1)


def _serve(job: dict[str, Any], orders: TextIO, out: TextIO) -> None:
    from interlace.evaluation.benchmarks import get_benchmark
    from interlace.evaluation.engine import Engine, Prompt
    from interlace.evaluation.predictions import PredictionStore

    engine = Engine(Path(job["checkpoint"]), job["settings"], job["mode"], job["seed"])
    for line in orders:
        order = json.loads(line)
        store = PredictionStore(Path(order["folder"]), order["attempt"], order["replica"])
        prompts = [Prompt(*prompt) for prompt in order["prompts"]]
        for rows in engine.answer(get_benchmark(order["benchmark"]), prompts, store):
            _say(out, rows=rows, is_done=False)
        store.close()
        _say(out, is_done=True)


def _say(out: TextIO, **event: Any) -> None:
    out.write(json.dumps(event) + "\n")


if __name__ == "__main__":
    main()
