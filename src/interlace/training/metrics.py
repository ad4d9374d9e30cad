"""What is told of a training run while it runs: numbers of each step, lines, checkpoints due."""

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, is_tensorboard_available

from interlace.training.batches import Failure, MicroBatch, Step
from interlace.training.out_of_memory import Now


class Exchange:
    """What the ranks tell each other at the start of a step, and what becomes of it.

    One collective per step: how many micro-batches the slowest rank has, the sums of samples and
    tokens over all ranks, how many samples failed, and whether rank 0 wants a checkpoint, so that
    all agree on it. Another one where some failed, to tell which.
    """

    def __init__(
        self,
        minutes: float | None,
        world_size: int,
        clock: Callable[[], float] = time.monotonic,
    ):
        """`minutes` between two checkpoints; None for none, 0 for one after every step. `clock`
        gives seconds.
        """
        self._minutes, self._world_size, self._clock = minutes, world_size, clock
        self.steps_per_epoch = 1
        self.begin()
        self._numbers: dict[str, float] = {}
        self._samples = self._tokens = 0
        self.save_due = False
        self.losses: Any = None  # of the latest micro-batch's supervised tokens, if the head tells

    def begin(self) -> None:
        """Start the clock: what comes before the first step is no part of it."""
        self._last_save = self._last_step = self._clock()

    def begin_step(self, step: int, given: Step) -> tuple[int, int, list[Failure]]:
        """Return how many micro-batches every rank runs, how many groups with a label all of them
        have, and their failures.
        """
        now = self._clock()
        due = self._minutes is not None and now - self._last_save >= 60 * self._minutes
        mine = [len(given.micro_batches), given.samples, given.tokens, given.supervised]
        mine += [given.groups_left, len(given.failures), int(due)]
        values = [mine]
        if self._world_size > 1:
            on_gpu = torch.distributed.get_backend() == "nccl"
            own = torch.tensor(mine, device="cuda" if on_gpu else "cpu")
            gathered = [torch.empty_like(own) for _ in range(self._world_size)]
            torch.distributed.all_gather(gathered, own)
            values = [one.tolist() for one in gathered]
        most, samples, tokens, supervised, left, failed, _ = (
            max(column) if number == 0 else sum(column)
            for number, column in enumerate(zip(*values, strict=True))
        )
        failures = given.failures
        if failed and self._world_size > 1:
            of_ranks: list[Any] = [None] * self._world_size
            torch.distributed.all_gather_object(of_ranks, [tuple(f) for f in given.failures])
            failures = [Failure(*one) for of_rank in of_ranks for one in of_rank]
        self.save_due = bool(values[0][-1])
        if self.save_due:
            self._last_save = now
        self._samples, self._tokens = samples, tokens
        self._numbers = {
            "epoch_done": round(step / self.steps_per_epoch, 4),
            "samples": samples,
            "supervised_tokens": supervised,
            "micro_batches": most,
        }
        return most, left, failures

    def end_step(self) -> dict[str, float]:
        """Return the numbers of the step: counts over all ranks, rates per second, memory in MB."""
        now = self._clock()
        seconds, self._last_step = now - self._last_step, now
        return {
            **self._numbers,
            "samples_per_s": round(self._samples / seconds, 3),
            "tokens_per_s": round(self._tokens / seconds, 1),
            "supervised_tokens_per_s": round(self._numbers["supervised_tokens"] / seconds, 1),
            "memory_mb": round(peak_memory() / 1e6),
        }

    def nonfinite(self, micro_batch: MicroBatch) -> list[str]:
        """Return the samples of a micro-batch whose loss is not finite; all where none is known."""
        if self.losses is None:
            return micro_batch.ids
        owners = micro_batch.owners[:, 1:][micro_batch.labels[:, 1:] != -100]
        bad = sorted(set(owners[~torch.isfinite(self.losses)].tolist()))
        return [micro_batch.ids[owner] for owner in bad if owner >= 0] or micro_batch.ids


def peak_memory() -> int:
    """Return the most bytes held so far: on the GPU if there is one, else by this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Checkpoints(TrainerCallback):
    """Asks for a checkpoint when one is due, and after the last step: what follows can fail too."""

    def __init__(self, exchange: Exchange, wanted: bool):
        """`wanted`: there are to be any."""
        self._exchange, self._wanted = exchange, wanted

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        self._exchange.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Ask for it."""
        last = self._wanted and state.global_step == state.max_steps
        control.should_save = self._exchange.save_due or last
        return control


def told(logs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is told of a step. Transformers' `epoch` is no epoch here: steps are its samples."""
    return {key: value for key, value in logs.items() if key not in ("epoch", "total_flos")}


class MetricLines(TrainerCallback):
    """Appends the numbers of every step to a file of JSON lines, as they come.

    A run that goes on from a checkpoint first takes away the lines of the steps it does again.
    """

    def __init__(self, path: Path):
        self._path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep the lines up to where training goes on."""
        if not state.is_world_process_zero:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        kept = [told(entry) for entry in state.log_history if "loss" in entry]
        self._path.write_text("".join(json.dumps(entry) + "\n" for entry in kept))

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict | None = None, **_: Any
    ) -> None:
        """Append one line."""
        if state.is_world_process_zero and logs is not None and "loss" in logs:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **told(logs)}) + "\n")


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"


def tensorboard(folder: Path) -> list[TrainerCallback]:
    """Return the callback that writes TensorBoard's files to `folder`, if it can.

    It can with the package tensorboardX or tensorboard, which envs/ pins.
    """
    if not is_tensorboard_available():
        return []
    callback = _Scalars()
    callback.logging_dir = str(folder)
    return [callback]


class _Scalars(TensorBoardCallback):
    """Transformers' callback without the texts it writes first, which tell of this machine's paths,
    and without numbers that a step does not have."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the file."""
        if state.is_world_process_zero:
            self._init_summary_writer(args)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict | None = None, **kwargs: Any
    ) -> None:
        """Write one step's numbers."""
        known = {key: value for key, value in told(logs or {}).items() if value is not None}
        super().on_log(args, state, control, logs=known, **kwargs)


def event_files(folder: Path) -> dict[str, Path]:
    """Return TensorBoard's files in `folder`, one of every attempt, by names without the host's."""
    named: dict[str, Path] = {}
    last = 0
    for path in sorted(folder.glob("events.out.tfevents.*")):
        last = max(last + 1, int(path.name.split(".")[3]))  # the second it was begun in
        named[f"events.out.tfevents.{last}"] = path
    return named


class LogLines(TrainerCallback):
    """Print a line with step, loss, learning rate, gradient norm, rate and time left now and then."""

    def __init__(self, title: str, now: Now, every_s: float = 10.0):
        """`now` is told the step that is being done."""
        self.title, self._now = title, now
        self.every_s = every_s

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        self._start = self._last = time.monotonic()
        self._first_step = state.global_step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note the step."""
        self._now.step = f"step {state.global_step + 1} of {state.max_steps}"

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict | None = None, **_: Any
    ) -> None:
        """Take one step's metrics."""
        if logs is None or "loss" not in logs:
            return
        now = time.monotonic()
        if now - self._last >= self.every_s or state.global_step in (1, state.max_steps):
            self._last = now
            if state.is_world_process_zero:
                self._print(logs, state, now - self._start)

    def _print(self, row: dict[str, Any], state: Any, elapsed: float) -> None:
        done = state.global_step - self._first_step
        left = elapsed / max(1, done) * (state.max_steps - state.global_step)
        print(
            f"{self.title}: step {state.global_step}/{state.max_steps} loss {_number(row['loss'])}"
            f" lr {row.get('learning_rate', 0.0):.2e} grad norm {row.get('grad_norm', 0.0):.3f}"
            f" {row.get('samples_per_s', 0.0):.1f} samples/s"
            f" ({elapsed:.0f} s, {left:.0f} s left)",
            file=sys.stderr,
            flush=True,
        )
