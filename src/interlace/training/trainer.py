"""The Hugging Face Trainer with this project's loss checks, log lines and counts."""

import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback

from interlace.data.collate import IGNORED
from interlace.errors import InputError
from interlace.io import read_json
from interlace.training.batches import FAILURES, TrainingCollator, TrainingDataset

MAX_FAILED_SHARE = 0.05  # a run that cannot use more of its samples than this is stopped
NUM_NAMED = 20  # failures named in interlace.json; all are counted


def training_arguments(
    settings: dict[str, Any], work: Path, seed: int, num_samples: int, world_size: int
) -> TrainingArguments:
    """Return the arguments of the paper's recipe: AdamW, cosine, warm-up, clipping, ZeRO-3.

    `settings` is the config's section `finetune`. Raises InputError for a missing DeepSpeed file.
    """
    deepspeed = settings.get("deepspeed")
    if deepspeed is not None and not isinstance(deepspeed, dict):
        deepspeed = read_json(deepspeed)
    batch = settings["micro_batch"] * settings["accumulation"] * world_size
    steps = math.ceil(settings["epochs"] * math.ceil(num_samples / batch))
    save_steps = settings.get("save_steps")
    return TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=settings["micro_batch"],
        gradient_accumulation_steps=settings["accumulation"],
        num_train_epochs=settings["epochs"],
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(settings["warmup_ratio"] * steps),
        weight_decay=settings["weight_decay"],
        max_grad_norm=settings["max_grad_norm"],
        bf16=settings["precision"] == "bfloat16",
        fp16=settings["precision"] == "float16",
        optim="adamw_torch",
        deepspeed=deepspeed,
        seed=seed,
        data_seed=seed,
        dataloader_num_workers=settings.get("workers", 0),
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        label_names=["labels"],
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to=[],
        save_strategy="steps" if save_steps else "no",
        save_steps=save_steps or 500,
        save_total_limit=1,
        use_cpu=not torch.cuda.is_available(),
        accelerator_config={"use_configured_state": deepspeed is not None},
    )


class LayerTrainer(Trainer):
    """A Trainer whose loss is the mean over a micro-batch's supervised tokens.

    Micro-batches are averaged as the paper's code does (Qwen3-VL under transformers 4.57), not
    weighted by their number of tokens. Samples that were left out are collected in `failures`.
    """

    def __init__(self, model: PreTrainedModel, arguments: TrainingArguments, **kwargs: Any):
        super().__init__(model=model, args=arguments, **kwargs)
        self.model_accepts_loss_kwargs = False
        self.remove_callback(PrinterCallback)
        self.failures: list[str] = []

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the loss of one micro-batch; InputError or RuntimeError where training must end."""
        self._note_failures(inputs.pop(FAILURES))
        supervised = bool((inputs["labels"][:, 1:] != IGNORED).any())
        if not supervised:
            inputs = {key: value for key, value in inputs.items() if key != "labels"}
        outputs = model(**inputs, use_cache=False)
        # Without a label the mean is 0/0; the batch still takes part in the collectives.
        loss = outputs.loss if supervised else outputs.logits.sum() * 0.0
        if not torch.isfinite(loss):
            raise RuntimeError(
                f"step {self.state.global_step + 1}: the loss is {float(loss)}; lower"
                " finetune.learning_rate or finetune.max_grad_norm"
            )
        return (loss, outputs) if return_outputs else loss

    def _note_failures(self, failures: list[str]) -> None:
        for failure in failures:
            print(f"sample left out: {failure}", file=sys.stderr, flush=True)
        self.failures += failures
        limit = max(1, MAX_FAILED_SHARE * len(self.train_dataset))
        if len(self.failures) > limit:
            raise InputError(
                f"{len(self.failures)} of {len(self.train_dataset)} samples cannot be used, first"
                f" {self.failures[0]}; mend the samples or raise finetune.max_length"
            )


def logged_steps(trainer: Trainer) -> list[dict[str, float]]:
    """Return step, loss, learning rate and gradient norm of every step, of resumed runs too."""
    keys = ("step", "epoch", "loss", "learning_rate", "grad_norm")
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [{key: entry[key] for key in keys if key in entry} for entry in history]


class LogLines(TrainerCallback):
    """Print a line with step, loss, learning rate, gradient norm and time left now and then."""

    def __init__(self, title: str, every_s: float = 10.0):
        self.title = title
        self.every_s = every_s

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        self._start = self._last = time.monotonic()
        self._first_step = state.global_step

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
            f"{self.title}: step {state.global_step}/{state.max_steps} loss {row['loss']:.4f}"
            f" lr {row.get('learning_rate', 0.0):.2e} grad norm {row.get('grad_norm', 0.0):.3f}"
            f" ({elapsed:.0f} s, {left:.0f} s left)",
            file=sys.stderr,
            flush=True,
        )


def build_trainer(
    model: PreTrainedModel,
    arguments: TrainingArguments,
    dataset: TrainingDataset,
    collator: TrainingCollator,
    title: str,
) -> LayerTrainer:
    """Return the trainer. The model must be loaded before the arguments are made."""
    return LayerTrainer(
        model,
        arguments,
        train_dataset=dataset,
        data_collator=collator,
        callbacks=[LogLines(title)],
    )


def last_checkpoint(work: Path) -> str | None:
    """Return the newest Trainer checkpoint in `work` that was written to its end, or None."""
    whole = [path.parent for path in work.glob("checkpoint-*/trainer_state.json")]
    return str(max(whole, key=lambda path: int(path.name.split("-")[1]))) if whole else None
