"""Tune the planned layers of one model by a recipe, from its first step or from where it was killed."""

import glob
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, set_seed
from transformers.integrations import unset_hf_deepspeed_config

from interlace.data.chat import load_records
from interlace.decoder.checkpoint import Probe, save_checkpoint, take_probe
from interlace.decoder.load import load_model, load_processor
from interlace.io import digest, remove
from interlace.origin import hardware
from interlace.training import distributed
from interlace.training.batches import StepCollator, TrainingDataset
from interlace.training.fit import Fit, fit_memory
from interlace.training.freeze import apply_plan
from interlace.training.metrics import Checkpoints, Exchange, LogLines, MetricLines, tensorboard
from interlace.training.order import StepSampler
from interlace.training.out_of_memory import MicroBatchMemory, one_line_if_out_of_memory
from interlace.training.setup import make_teacher, set_up
from interlace.training.trainer import (
    NUM_NAMED,
    LayerTrainer,
    last_checkpoint,
    logged_steps,
    training_arguments,
)
from interlace.training.vision_store import StoredSamples, VisionStore
from interlace.training.vision_tower import why_not, without_pixels


def tune_layers(job: dict[str, Any], plan: dict[str, Any], info: dict[str, Any]) -> None:
    """Write the checkpoint that `job` asks for; `info` is what its interlace.json begins with.

    Raises InputError where samples or levers cannot be used, or memory does not suffice.
    """
    settings, out = job["settings"], Path(job["out"])
    world_size, rank = distributed.world()
    records = load_records(job["samples"])
    # Named after all that the weights depend on: only the same run may go on from a checkpoint.
    same = [settings, job["seed"], plan, info["provenance"]["model_revision"], records.ids]
    work = out.with_name(f".{out.name}.trainer-{digest([*same, world_size])}")
    smaller = MicroBatchMemory(work)
    fit = fit_memory(job, plan, _trains_head(plan), world_size, smaller)
    if rank == 0:
        for line in fit.lines():
            print(f"tune {job['variant']}: {line}", flush=True)
    try:
        _tune(job, plan, info, fit, work, smaller)
    finally:
        unset_hf_deepspeed_config()  # else every later load in this process would be partitioned
        distributed.leave()


def _tune(
    job: dict[str, Any],
    plan: dict[str, Any],
    info: dict[str, Any],
    fit: Fit,
    work: Path,
    smaller: MicroBatchMemory,
) -> None:
    settings, seed = job["settings"], job["seed"]
    trains_head = _trains_head(plan)
    world_size, rank = distributed.world()
    # Loaded before any ZeRO-3 config exists: transformers would load into partitioned weights.
    model = load_model(job["base"], dtype=settings["precision"])
    processor = load_processor(job["base"], settings.get("min_pixels"), settings.get("max_pixels"))
    records, add_features = load_records(job["samples"]), None
    recipe = fit.recipe
    if recipe.vision == "cached" and (why := why_not(model.config)):
        recipe = replace(recipe, vision="live")
        print(f"tune {job['variant']}: {why}", flush=True)
    if recipe.vision == "cached":
        store = VisionStore.open(
            job["vision"], job["base"], processor, settings["precision"], job["samples"]
        )
        records, add_features = StoredSamples(job["samples"], store), store.add_features
        processor = without_pixels(processor)
    dataset = TrainingDataset(records)
    teacher = make_teacher(model, plan, settings, trains_head)
    names = apply_plan(model, plan["drop"], plan["tune"], head=trains_head)
    exchange = Exchange(settings.get("checkpoint_minutes", 30), world_size)
    setup = set_up(model, recipe, fit.rows, fit.budget, exchange, settings, teacher)
    if fit.deepspeed is not None:
        distributed.prepare()
        distributed.gather_by_layer(model)
    elif settings["precision"] != "float32":
        _widen_trained(model)  # AdamW's small steps would be lost in 16 bits
    sampler = StepSampler(
        len(dataset), settings["micro_batch"], settings["accumulation"], settings["epochs"], seed,
        rank, world_size,
    )  # fmt: skip
    exchange.steps_per_epoch = sampler.steps_per_epoch
    arguments = training_arguments(settings, work, seed, len(sampler), fit.deepspeed)
    assert arguments.world_size == world_size
    set_seed(seed)
    collator = StepCollator(
        processor, settings.get("max_length"), setup.layout, world_size, add_features
    )  # fmt: skip
    title, where = f"tune {job['variant']}", ["its start"]
    trainer = LayerTrainer(
        model, arguments, dataset, collator, sampler, setup.objective, exchange,
        settings.get("max_failed_share", 0.05),
        callbacks=[
            LogLines(title, where), MetricLines(work / "training.jsonl"), Checkpoints(exchange),
            *tensorboard(work / "tensorboard"),
        ],
    )  # fmt: skip
    num_trained = sum(_numel(weight) for weight in model.parameters() if weight.requires_grad)
    num_all = sum(_numel(weight) for weight in model.parameters())
    if rank == 0:
        print(
            f"{title}: {num_trained:,} of {num_all:,} parameters in {len(plan['tune'])} layers"
            f"{' and the head' if any(n.endswith('lm_head.weight') for n in names) else ''}"
            f" ({len(names)} tensors: {names[0]} ... {names[-1]}), {len(dataset)} samples,"
            f" {world_size} processes; numbers of each step in {work / 'training.jsonl'}",
            flush=True,
        )
    start = time.monotonic()
    with one_line_if_out_of_memory(
        lambda: f"{title}, {where[-1]}", fit.estimate, smaller, fit.recipe,
        fit.configured, fit.smallest,
    ):  # fmt: skip
        trainer.train(resume_from_checkpoint=last_checkpoint(work))
    seconds = time.monotonic() - start

    counts = {**collator.collator.counts, "failed": len(trainer.failures)}
    if world_size > 1:
        counts = _sum_over_ranks(counts)
    setup.restore()
    state_dict, probe = _weights(trainer, model, settings["precision"], job["base"])
    unset_hf_deepspeed_config()  # else the reload below would be partitioned
    if rank == 0:
        info["provenance"]["num_samples"] = len(dataset) - len(set(trainer.failures))
        steps = logged_steps(trainer)
        info["training"] = {
            **settings,
            "recipe": {"name": fit.recipe.name, **setup.recipe.levers(), "notes": setup.notes},
            "memory": fit.record(),
            "world_size": world_size,
            "hardware": hardware(world_size),
            "steps": trainer.state.global_step,
            "loss_first": steps[0]["loss"],
            "loss_last": steps[-1]["loss"],
            "seconds": round(seconds, 1),
            "num_trained_tensors": len(names),
            "num_trained_parameters": num_trained,
            "num_parameters": num_all,
            "trained_parameters": names,
            "counts": counts,
            "failures": trainer.failures[:NUM_NAMED],
        }
        out = Path(job["out"])
        save_checkpoint(
            trainer.model,
            load_processor(job["base"]),  # a checkpoint keeps the base's image sizes
            out,
            info,
            state_dict=state_dict,
            files={"training.jsonl": "".join(json.dumps(step) + "\n" for step in steps)},
            probe=probe,
        )
        for leftover in out.parent.glob(f".{glob.escape(out.name)}.trainer-*"):
            remove(leftover)
    if world_size > 1:
        torch.distributed.barrier()


def _trains_head(plan: dict[str, Any]) -> bool:
    return plan.get("reading") == "released"


def _widen_trained(model: PreTrainedModel) -> None:
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()


def _weights(
    trainer: LayerTrainer, model: PreTrainedModel, precision: str, base: str
) -> tuple[dict[str, torch.Tensor], Probe]:
    """Return all weights in `precision` and the logits that they give; every rank takes part."""
    stock = load_processor(base)
    if trainer.is_deepspeed_enabled:
        state_dict = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        return state_dict, take_probe(trainer.model_wrapped, stock)
    # Without the autocast that accelerate wraps around the forward: a checkpoint has none either.
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    model.to(getattr(torch, precision))
    return model.state_dict(), take_probe(model, stock)


def _numel(weight: torch.Tensor) -> int:
    return getattr(weight, "ds_numel", weight.numel())


def _sum_over_ranks(counts: dict[str, int]) -> dict[str, int]:
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    values = torch.tensor(list(counts.values()), dtype=torch.int64, device=device)
    torch.distributed.all_reduce(values)
    return dict(zip(counts, values.tolist(), strict=True))
