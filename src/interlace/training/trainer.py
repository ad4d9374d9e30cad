"""The Hugging Face Trainer with steps of any number of micro-batches and this project's checks."""

import contextlib
import itertools
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from interlace.data.collate import IGNORED
from interlace.decoder.checkpoint import sync
from interlace.errors import InputError
from interlace.io import read_json, remove, write_json
from interlace.training.batches import Failure, MicroBatch, Step, StepCollator, TrainingDataset
from interlace.training.metrics import Exchange, told
from interlace.training.order import StepSampler
from interlace.training.out_of_memory import Now
from interlace.training.parcel import Parcel, Parcels, unwrap
from interlace.training.work import (
    check_whole,
    finish,
    full_disk_told,
    last_checkpoint,
    readable,
    size_of,
)

NUM_NAMED = 20  # failures named in interlace.json; all are counted
TRAINED = "trained.safetensors"  # of a checkpoint to go on from: all else is the base model's

Loss = Callable[[torch.nn.Module, MicroBatch], torch.Tensor]


def training_arguments(
    settings: dict[str, Any], work: Path, seed: int, num_steps: int, deepspeed: str | None
) -> TrainingArguments:
    """Return the arguments of the paper's recipe: AdamW, cosine, warm-up, clipping.

    `settings` is the config's section `finetune`, `deepspeed` a DeepSpeed file or None. What a
    Trainer calls a batch is a whole step here. Raises InputError for a missing DeepSpeed file.
    """
    return TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=settings["micro_batch"] * settings["accumulation"],
        gradient_accumulation_steps=1,
        max_steps=num_steps,
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(settings["warmup_ratio"] * num_steps),
        weight_decay=settings["weight_decay"],
        max_grad_norm=settings["max_grad_norm"],
        bf16=settings["precision"] == "bfloat16",
        # The fused kernel needs no copy of the weights; DeepSpeed brings an AdamW of its own.
        optim="adamw_torch_fused" if fused(deepspeed) else "adamw_torch",
        deepspeed=None if deepspeed is None else read_json(deepspeed),
        seed=seed,
        dataloader_num_workers=settings.get("workers", 0),
        remove_unused_columns=False,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to=[],
        save_strategy="no",  # `metrics.Checkpoints` asks for them by the clock
        use_cpu=not torch.cuda.is_available(),
        accelerator_config={"use_configured_state": deepspeed is not None},
    )


def fused(deepspeed: str | None) -> bool:
    """Say whether AdamW runs as one fused kernel: on one GPU without DeepSpeed."""
    return deepspeed is None and torch.cuda.is_available()


class LayerTrainer(Trainer):
    """A Trainer whose batch is a `Step`, whose loss is the weighted sum that the step states.

    `loss` computes that of one micro-batch. Samples that were left out, by any rank, are collected in
    `failures`, by name; more than `max_failed_share` of the drawn samples end the run (a share above
    0 allows for one at least). A
    micro-batch whose loss is NaN or infinite is left out of its step with all of its samples, and
    loss and gradient are those of what is left; under DeepSpeed it ends the run, since an engine
    must not miss a backward pass. The loss of a step of which nothing is left is None. `counts` is
    what this rank's collator counted, but what was left out for its loss stands under `dropped_not_finite`;
    `seconds` is how long training took. Both are over all attempts and epochs.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        arguments: TrainingArguments,
        dataset: TrainingDataset,
        collator: StepCollator,
        sampler: StepSampler,
        loss: Loss,
        exchange: Exchange,
        max_failed_share: float,
        now: Now,
        **kwargs: Any,
    ):
        super().__init__(
            model=model, args=arguments, train_dataset=dataset, data_collator=collator, **kwargs
        )
        self.sampler, self._loss, self._exchange = sampler, loss, exchange
        self._max_failed_share, self._now = max_failed_share, now
        self.remove_callback(PrinterCallback)
        self.failures: dict[str, str] = {}
        self.counts: Counter[str] = Counter(dropped_not_finite=0)
        self.seconds = 0.0
        self._begun = time.monotonic()
        self._rate = 0.0
        self._shown: list[float | None] | None = None

    def get_train_dataloader(self) -> DataLoader:
        """Return the steps of this rank; accelerate must not share them out once more."""
        workers = self.args.dataloader_num_workers
        return DataLoader(
            self.train_dataset,
            batch_sampler=self.sampler,
            collate_fn=Parcels(self.data_collator) if workers else self.data_collator,
            num_workers=workers,
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Step], num_batches: int, device: torch.device
    ) -> tuple[list[Step], None]:
        """Return the next steps; nothing is counted, their weights hold all there is to know."""
        steps = itertools.islice(epoch_iterator, num_batches)
        return [unwrap(step) if isinstance(step, Parcel) else step for step in steps], None

    def training_step(
        self, model: torch.nn.Module, inputs: Step, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Run forward and backward of all micro-batches; return the step's loss."""
        model.train()
        self._rate = self._get_learning_rate()  # DeepSpeed moves on to the next before it is logged
        most, left, failures = self._exchange.begin_step(self.state.global_step + 1, inputs)
        self._note_failures(failures)
        self.counts.update(inputs.counts)
        micro_batches = list(inputs.micro_batches)
        if micro_batches and left not in (0, inputs.groups):
            # The mean over the groups that are left, on all ranks.
            for micro_batch in micro_batches:
                micro_batch.weights = micro_batch.weights * (inputs.groups / left)
        if inputs.blank is not None:  # so that every step has a backward pass, on every rank
            micro_batches += [inputs.blank] * (max(1, most) - len(micro_batches))
        total = torch.zeros((), device=self.args.device)
        whole = used = 0.0
        for number, micro_batch in enumerate(micro_batches):
            self._now.samples = len(micro_batch.ids)
            share = float(micro_batch.weights.sum())
            whole += share
            self._move(micro_batch)
            last = number + 1 == len(micro_batches)
            self.accelerator.gradient_state._set_sync_gradients(last)
            with self.compute_loss_context_manager():
                loss = self._loss(model, micro_batch)
            if not torch.isfinite(loss):
                self._leave_out(micro_batch, loss)
                continue
            # Loss weights already hold the accumulation; DeepSpeed must not divide once more.
            scale = {"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}
            self.accelerator.backward(loss, **scale)
            total += loss.detach()
            used += share
        self._now.samples = 0
        self._shown = [None] if not left else None
        if used != whole:
            self._shown = [self._of_what_is_left(float(total), whole / used) if used else None]
        return total

    def _of_what_is_left(self, loss: float, factor: float) -> float:
        """Scale the gradient, and return the loss scaled, to the mean over what could be used."""
        for weight in self.model.parameters():
            if weight.grad is not None:
                weight.grad.mul_(factor)
        return loss * factor

    def _move(self, micro_batch: MicroBatch) -> None:
        """Put a micro-batch on the device; only the model's inputs may change their type."""
        micro_batch.inputs = self._prepare_input(micro_batch.inputs)
        for name in ("labels", "weights", "owners"):
            setattr(micro_batch, name, getattr(micro_batch, name).to(self.args.device))

    def _leave_out(self, micro_batch: MicroBatch, loss: torch.Tensor) -> None:
        """Name the samples of a loss that is not finite, and those that are left out with them."""
        guilty = self._exchange.nonfinite(micro_batch)
        what = f"the loss is {float(loss.detach())} at step {self.state.global_step + 1}"
        if self.is_deepspeed_enabled:
            raise InputError(
                f"{', '.join(guilty)}: {what}; lower finetune.learning_rate or"
                " finetune.max_grad_norm, or leave out what is wrong with the samples"
            )
        failures = [Failure(name, f"{name}: {what}") for name in guilty]
        failures += [
            Failure(name, f"{name}: left out together with {guilty[0]}: {what}")
            for name in micro_batch.ids
            if name not in guilty
        ]
        self.counts.update(dropped_not_finite=len(micro_batch.ids))
        self.counts.subtract(
            samples=len(micro_batch.ids),
            tokens=int((micro_batch.owners >= 0).sum()),
            supervised_tokens=int((micro_batch.labels != IGNORED).sum()),
        )
        self._note_failures(failures)

    def _note_failures(self, failures: list[Failure]) -> None:
        for failure in failures:
            if failure.id not in self.failures and self.is_world_process_zero():
                print(f"sample left out: {failure.text}", file=sys.stderr, flush=True)
            self.failures.setdefault(failure.id, failure.text)
        share, num_drawn = self._max_failed_share, self.sampler.num_drawn
        if len(self.failures) > (max(1, share * num_drawn) if share else 0):
            raise InputError(
                f"{len(self.failures)} of {num_drawn} drawn samples cannot be used, first"
                f" {next(iter(self.failures.values()))}; mend the samples, lower"
                " finetune.learning_rate where a loss is not finite, or raise"
                " finetune.max_failed_share"
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Take a step's numbers to the callbacks, with tokens, rates and memory."""
        norm = logs.get("grad_norm")
        if norm is not None and not math.isfinite(norm):
            raise InputError(
                f"step {self.state.global_step}: the gradient's norm is {norm}; lower"
                " finetune.learning_rate or leave out what is wrong with the samples"
            )
        if "loss" in logs:
            logs = {**logs, "learning_rate": self._rate, **self._exchange.end_step()}
            if self._shown is not None:
                (logs["loss"],) = self._shown
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Any) -> int:
        """Return 0: the estimate of transformers knows no frozen layers."""
        return 0

    # Checkpoints to go on from. Written to a folder of their own and renamed when whole.

    def _get_output_dir(self, trial: Any) -> str:
        return str(Path(self.args.output_dir) / "partial")

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        partial, final = Path(self._get_output_dir(trial)), Path(self.args.output_dir)
        before = last_checkpoint(final)
        if self.is_world_process_zero():
            remove(partial)
        self._barrier()
        with full_disk_told(partial, size_of(before)):
            super()._save_checkpoint(model, trial)
            self._finish_checkpoint(partial, final)

    def _finish_checkpoint(self, partial: Path, final: Path) -> None:
        (folder,) = partial.glob("checkpoint-*")
        self.seconds, self._begun = self.spent(), time.monotonic()
        so_far = {"failures": self.failures, "counts": dict(self.counts), "seconds": self.seconds}
        write_json(folder / f"so_far_{self.args.process_index}.json", so_far)
        self._barrier()
        if self.args.local_process_index == 0:
            sync(folder)  # what all ranks of this machine wrote
        self._barrier()
        if self.is_world_process_zero():
            finish(folder, final / folder.name)

    def _barrier(self) -> None:
        if self.args.world_size > 1:
            torch.distributed.barrier()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trained weights alone; DeepSpeed's own files hold them where it is used."""
        assert output_dir is not None
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        if not self.is_deepspeed_enabled and self.args.should_save:
            save_file(
                {
                    name: weight.detach().contiguous()
                    for name, weight in self.model.named_parameters()
                    if weight.requires_grad
                },
                folder / TRAINED,
            )

    def spent(self) -> float:
        """Return the seconds of training so far, of earlier attempts too."""
        return self.seconds + time.monotonic() - self._begun

    def go_on_from(self, checkpoint: Path | None) -> None:
        """Train to the end, from the state in a checkpoint folder if one is given.

        Raises InputError for a checkpoint that is damaged.
        """
        if checkpoint is not None:
            check_whole(checkpoint)
            with readable(checkpoint):
                so_far = read_json(checkpoint / f"so_far_{self.args.process_index}.json")
            self.failures, self.counts = so_far["failures"], Counter(so_far["counts"])
            self.seconds = so_far["seconds"]
        self._begun = time.monotonic()
        self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: torch.nn.Module | None = None
    ) -> None:
        with readable(resume_from_checkpoint):
            weights = load_file(Path(resume_from_checkpoint) / TRAINED)
        trained = {n: w for n, w in self.model.named_parameters() if w.requires_grad}
        assert weights.keys() == trained.keys(), weights.keys() ^ trained.keys()
        with torch.no_grad():
            for name, weight in weights.items():
                trained[name].copy_(weight)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with readable(checkpoint) if checkpoint else contextlib.nullcontext():
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with readable(checkpoint) if checkpoint else contextlib.nullcontext():
            super()._load_rng_state(checkpoint)


def logged_steps(trainer: Trainer) -> list[dict[str, float | None]]:
    """Return the numbers of every step, of resumed runs too; a step without a loss has None."""
    return [told(entry) for entry in trainer.state.log_history if "loss" in entry]
