"""Copies of a model in processes of their own, which share out a benchmark's rows."""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interlace.decoder.load import default_device
from interlace.errors import InputError
from interlace.evaluation.benchmarks import Benchmark
from interlace.evaluation.engine import Prompt, shares
from interlace.gpus import visible_gpus

_TAIL_LINES, _TAIL_CHARACTERS = 12, 2000


def usable_gpus(settings: Mapping[str, Any]) -> list[str]:
    """Return the GPUs that we may use, as CUDA_VISIBLE_DEVICES names them: numbers, UUIDs or MIGs.

    None of them if `settings` put the model elsewhere (`device`).
    """
    import torch

    if not default_device(settings).startswith("cuda"):
        return []
    # CUDA leaves out all from the first wrong name.
    return visible_gpus()[: torch.cuda.device_count()]


def num_replicas(settings: Mapping[str, Any]) -> int:
    """Return how many copies of the model to run: one per visible GPU, one on the CPU, or as set."""
    return int(settings.get("replicas") or len(usable_gpus(settings)) or 1)


class Replicas:
    """Processes that each hold a copy of a checkpoint, on one GPU each, or on the CPU.

    With more replicas than GPUs, some share one. They live until `close`, or until this process
    dies, however it does. What one prints goes to a log that is shown where it fails.
    """

    def __init__(self, checkpoint: Path, settings: dict[str, Any], mode: str, seed: int) -> None:
        gpus, count = usable_gpus(settings), num_replicas(settings)
        self._folder = tempfile.TemporaryDirectory(prefix="interlace-replicas-")
        self._events: queue.Queue[tuple[_Replica, dict[str, Any] | None]] = queue.Queue()
        self._replicas: list[_Replica] = []
        job = {
            "parent": os.getpid(),
            "checkpoint": str(checkpoint),
            "settings": {**settings, "device": "cuda" if gpus else default_device(settings)},
            "mode": mode,
            "seed": seed,
        }
        try:
            for number in range(count):
                gpu = gpus[number % len(gpus)] if gpus else None
                log = Path(self._folder.name) / f"replica{number}.log"
                replica = _Replica(number, count, gpu, log, _start(gpu, count, log))
                self._replicas.append(replica)
                reader = threading.Thread(target=self._read, args=(replica,), daemon=True)
                reader.start()
                replica.send(job)
        except BaseException:
            self.close()
            raise

    def _read(self, replica: "_Replica") -> None:
        try:
            for line in replica.process.stdout:
                try:
                    event = json.loads(line)
                except ValueError:  # nothing that it says can be trusted
                    event = {"garbled": line.strip()}
                self._events.put((replica, event))
        finally:  # whoever waits is told, whatever ended this thread
            self._events.put((replica, None))

    def answer(
        self, benchmark: Benchmark, prompts: list[Prompt], folder: Path, attempt: int
    ) -> Iterator[int]:
        """Let the replicas answer prompts; yield how many rows were added to `folder`, as they are.

        Raises RuntimeError for a replica that ends before its rows, with its exit status and the end
        of its log, or that says what is no event, and InputError where that is what ended it; no
        replica is left then, and what was answered is in `folder`.
        """
        busy = set()
        try:
            dealt = shares(prompts, len(self._replicas))
            for number, (replica, share) in enumerate(zip(self._replicas, dealt, strict=True)):
                if share:
                    order = {"benchmark": benchmark.name, "prompts": share}
                    order |= {"folder": str(folder.resolve()), "attempt": attempt}
                    replica.send({**order, "replica": number})
                    busy.add(number)
            while busy:
                replica, event = self._events.get()
                if event is None:
                    raise RuntimeError(replica.end())
                if "garbled" in event:
                    raise RuntimeError(
                        f"{replica.name} said {event['garbled']!r}; run again to go on"
                    )
                if "input_error" in event:
                    raise InputError(event["input_error"])
                if event["is_done"]:
                    busy.discard(replica.number)
                else:
                    yield event["rows"]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End all replicas at once; what they had not written is generated again."""
        for replica in self._replicas:
            replica.process.kill()
        for replica in self._replicas:
            replica.process.wait()
        self._replicas = []
        self._folder.cleanup()


@dataclass
class _Replica:
    number: int
    count: int
    gpu: str | None
    log: Path
    process: subprocess.Popen

    @property
    def name(self) -> str:
        where = f"GPU {self.gpu}" if self.gpu else "the CPU"
        return f"evaluation.replicas: replica {self.number + 1} of {self.count} on {where}"

    def send(self, order: dict[str, Any]) -> None:
        try:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it is dead: its reader says so, with the reason

    def end(self) -> str:
        """Return one line about a replica that ended: which, how, and the last it printed."""
        status = self.process.wait()
        how = f"exit status {status}"
        if status < 0:
            how += f", {signal.Signals(-status).name}"
            how += "; often short of main memory" if status == -signal.SIGKILL else ""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        said = " | ".join(line.strip() for line in lines[-_TAIL_LINES:] if line.strip())
        return (
            f"{self.name} ended before its rows were done ({how}); run again to go on. The end of its "
            f"log: {said[-_TAIL_CHARACTERS:] or 'empty'}"
        )


def _start(gpu: str | None, count: int, log: Path) -> subprocess.Popen:
    import torch

    environment = dict(os.environ)
    package_root = str(Path(__file__).resolve().parents[2])
    paths = [package_root, environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    environment["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // count))
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    with log.open("wb") as handle:
        return subprocess.Popen(
            [sys.executable, "-m", "interlace.evaluation.replica"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=handle,
            env=environment,
            text=True,
            encoding="utf-8",
        )
