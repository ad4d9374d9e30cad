"""Tune the planned layers of one model by a recipe, from its first step or from where it was killed."""

import json
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, ProcessorMixin, set_seed
from transformers.integrations import unset_hf_deepspeed_config

from interlace.decoder.checkpoint import Probe, save_checkpoint, take_probe
from interlace.decoder.load import load_model, load_processor
from interlace.errors import InputError
from interlace.io import claimed, digest, read_json, remove
from interlace.origin import hardware
from interlace.training import distributed
from interlace.training.batches import StepCollator, TrainingDataset
from interlace.training.fit import Fit, fit_memory
from interlace.training.freeze import apply_plan, trains_head
from interlace.training.metrics import (
    Checkpoints,
    Exchange,
    LogLines,
    MetricLines,
    event_files,
    tensorboard,
)
from interlace.training.order import StepSampler
from interlace.training.out_of_memory import Now, one_line_if_out_of_memory
from interlace.training.setup import Setup, make_teacher, set_up
from interlace.training.trainer import (
    NUM_NAMED,
    LayerTrainer,
    logged_steps,
    training_arguments,
)
from interlace.training.vision_store import StoredSamples, VisionStore
from interlace.training.vision_tower import without_pixels
from interlace.training.work import (
    begins_anew,
    engine_folder,
    full_disk_told,
    last_checkpoint,
    work_folders,
)

TENSORBOARD = "tensorboard"  # folder of its files, in the work folder and in the checkpoint


def tune_layers(job: dict[str, Any], plan: dict[str, Any], info: dict[str, Any]) -> None:
    """Write the checkpoint that `job` asks for; `info` is what its interlace.json begins with.

    Raises InputError where samples or levers cannot be used, or memory does not suffice.
    """
    out = Path(job["out"])
    world_size, rank = distributed.world()
    # An attempt whose ranks still live must not share its folder with the next one.
    claim = claimed(out.with_name(f".{out.name}.trainer")) if rank == 0 else nullcontext()
    with claim:
        fit = fit_memory(job, plan, world_size)
        _tune_in_turn(job, plan, info, fit)
        if rank == 0:
            for leftover in work_folders(out):
                remove(leftover)


def _tune_in_turn(
    job: dict[str, Any], plan: dict[str, Any], info: dict[str, Any], fit: Fit
) -> None:
    """Tune after having told what is ahead; leave process and files in order, whatever happens."""
    out, (_, rank) = Path(job["out"]), distributed.world()
    engine = engine_folder(fit.work, fit.recipe.sharding, fit.deepspeed)
    title, now = f"tune {job['variant']}", Now()
    if rank == 0:
        for line in [*fit.lines(), *begins_anew(engine, out)]:
            print(f"{title}: {line}", flush=True)
    try:
        with one_line_if_out_of_memory(
            title, now, fit.estimate, fit.smaller, fit.recipe, fit.configured
        ):
            _tune(job, plan, info, fit, engine, now)
    finally:
        unset_hf_deepspeed_config()  # else every later load in this process would be partitioned
        distributed.leave()


def _tune(
    job: dict[str, Any],
    plan: dict[str, Any],
    info: dict[str, Any],
    fit: Fit,
    work: Path,
    now: Now,
) -> None:
    trainer, setup, names = _make_trainer(job, plan, fit, work, now)
    trainer.go_on_from(last_checkpoint(work))
    world_size, rank = distributed.world()
    counts = dict(trainer.counts)
    if world_size > 1:
        counts = _sum_over_ranks(counts)
    steps = logged_steps(trainer)
    shown = [step["loss"] for step in steps if step["loss"] is not None]
    if not shown:
        raise InputError(
            f"{job['samples']}: no sample could be used, no step has a loss; see what was left out"
            " above"
        )
    now.step = "saving the checkpoint"
    setup.restore()
    stock = load_processor(job["base"])  # a checkpoint keeps the base's image sizes
    device = trainer.model.device
    state_dict, probe = _weights(trainer, job["settings"]["precision"], stock)
    unset_hf_deepspeed_config()  # else the reload below would be partitioned
    if rank == 0:
        out = Path(job["out"])
        info["provenance"]["num_samples"] = trainer.sampler.num_drawn - len(trainer.failures)
        notes = [*fit.notes, *setup.notes]
        info["training"] = {
            **{key: value for key, value in job["settings"].items() if key != "deepspeed_offload"},
            "deepspeed": _engine_record(fit.deepspeed),
            "recipe": {"name": fit.recipe.name, **setup.recipe.levers(), "notes": notes},
            "memory": fit.record(),
            "world_size": world_size,
            "hardware": hardware(world_size),
            "steps": trainer.state.global_step,
            "loss_first": shown[0],
            "loss_last": shown[-1],
            "seconds": round(trainer.spent(), 1),
            "num_trained_tensors": len(names),
            **_sizes(trainer.model),
            "trained_parameters": names,
            "counts": {**counts, "failed": len(trainer.failures)},
            "failures": list(trainer.failures.values())[:NUM_NAMED],
        }
        with full_disk_told(out):
            save_checkpoint(
                trainer.model,
                stock,
                out,
                info,
                state_dict=state_dict,
                files={"training.jsonl": "".join(json.dumps(step) + "\n" for step in steps)},
                probe=probe,
                copy_files={
                    f"{TENSORBOARD}/{name}": path
                    for name, path in event_files(work / TENSORBOARD).items()
                },
                device=device,
            )
    if world_size > 1:
        torch.distributed.barrier()


def _make_trainer(
    job: dict[str, Any], plan: dict[str, Any], fit: Fit, work: Path, now: Now
) -> tuple[LayerTrainer, Setup, list[str]]:
    """Return the trainer, its setup and the names of the weights that it trains."""
    settings, seed, title = job["settings"], job["seed"], f"tune {job['variant']}"
    world_size, rank = distributed.world()
    assert world_size == 1 or fit.deepspeed is not None, "several ranks share out weights"
    # Loaded before any ZeRO-3 config exists: transformers would load into partitioned weights.
    model = load_model(job["base"], dtype=settings["precision"])
    processor, records, store = fit.processor, fit.records, None
    recipe = fit.recipe
    if recipe.vision == "cached":
        store = VisionStore.open(
            job["vision"], job["base"], processor, settings["precision"], job["samples"],
            records.ids,
        )  # fmt: skip
        records = StoredSamples(job["samples"], records.ids, store)
        processor = without_pixels(processor)
    teacher = make_teacher(model, plan, settings, trains_head(plan))
    names = apply_plan(model, plan["drop"], plan["tune"], head=trains_head(plan))
    minutes = settings.get("checkpoint_minutes", 30)
    exchange = Exchange(minutes, world_size)
    setup = set_up(model, recipe, fit.rows, fit.budget, exchange, settings, teacher)
    if fit.deepspeed is not None:
        distributed.prepare()
        distributed.gather_by_layer(model)
    elif settings["precision"] != "float32":
        _cast(model, torch.float32, trained_only=True)  # 16 bits would lose AdamW's small steps
    sampler = StepSampler(
        len(records), settings["micro_batch"], settings["accumulation"], settings["epochs"], seed,
        rank, world_size,
    )  # fmt: skip
    exchange.steps_per_epoch = sampler.steps_per_epoch
    arguments = training_arguments(settings, work, seed, len(sampler), fit.deepspeed)
    assert arguments.world_size == world_size
    set_seed(seed)
    collator = StepCollator(
        processor, settings.get("max_length"), setup.layout, world_size,
        sharded=fit.deepspeed is not None, store=store,
    )  # fmt: skip
    sizes = _sizes(model)
    if rank == 0:
        print(
            f"{title}: {sizes['num_trained_parameters']:,} of {sizes['num_parameters']:,} parameters"
            f" in {len(names)} tensors: {_grouped(names)}; {len(records)} samples, {world_size}"
            f" processes; numbers of each step in {work / 'training.jsonl'}",
            flush=True,
        )
    trainer = LayerTrainer(
        model, arguments, TrainingDataset(records), collator, sampler, setup.objective, exchange,
        settings.get("max_failed_share", 0.05), now,
        callbacks=[
            LogLines(title, now), MetricLines(work / "training.jsonl"),
            Checkpoints(exchange, wanted=minutes is not None), *tensorboard(work / TENSORBOARD),
        ],
    )  # fmt: skip
    return trainer, setup, names


def _grouped(names: list[str]) -> str:
    """Return names of tensors in one line: the layers by number, then what is in each of them."""
    parts: dict[str, dict[str, list[int]]] = {}
    for name in names:
        prefix, number, rest = re.fullmatch(r"(.*?)(?:\.(\d+)\.(.*))?", name).groups()
        parts.setdefault(prefix, {}).setdefault(rest or "", []).append(int(number or 0))
    lines = []
    for prefix, rests in parts.items():
        if list(rests) == [""]:
            lines.append(prefix)
            continue
        numbers = sorted(set().union(*rests.values()))
        lines.append(f"{prefix}.{{{', '.join(map(str, numbers))}}}.{{{', '.join(sorted(rests))}}}")
    return "; ".join(lines)


def _sizes(model: PreTrainedModel) -> dict[str, int]:
    weights = list(model.parameters())
    trained = [weight for weight in weights if weight.requires_grad]
    return {
        "num_trained_parameters": sum(map(_numel, trained)),
        "num_parameters": sum(map(_numel, weights)),
    }


def _engine_record(deepspeed: str | None) -> dict[str, str] | None:
    """Return name and digest of the DeepSpeed file in use: the record may be published."""
    if deepspeed is None:
        return None
    return {"file": Path(deepspeed).name, "digest": digest(read_json(deepspeed))}


def _cast(model: PreTrainedModel, dtype: torch.dtype, trained_only: bool = False) -> None:
    """Change the type of weights; buffers (frequencies of rotary positions) keep theirs."""
    for weight in model.parameters():
        if weight.requires_grad or not trained_only:
            weight.data = weight.data.to(dtype)


def _weights(
    trainer: LayerTrainer, precision: str, stock: ProcessorMixin
) -> tuple[dict[str, torch.Tensor], Probe]:
    """Return all weights in `precision` and the logits that they give; every rank takes part.

    On a single device the optimizer's states and gradients go and the weights move to main memory:
    the checkpoint will be loaded beside them, on the device, which may have no room for both.
    """
    if trainer.is_deepspeed_enabled:
        state_dict = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        return state_dict, take_probe(trainer.model_wrapped, stock)
    # Without the autocast that accelerate wraps around the forward: a checkpoint has none either.
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    trainer.optimizer.state.clear()
    model.zero_grad(set_to_none=True)
    _cast(model, getattr(torch, precision))
    probe = take_probe(model, stock)
    return model.to("cpu").state_dict(), probe


def _numel(weight: torch.Tensor) -> int:
    return getattr(weight, "ds_numel", weight.numel())


def _sum_over_ranks(counts: dict[str, int]) -> dict[str, int]:
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    values = torch.tensor(list(counts.values()), dtype=torch.int64, device=device)
    torch.distributed.all_reduce(values)
    return dict(zip(counts, values.tolist(), strict=True))
