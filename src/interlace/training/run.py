"""One variant's checkpoint: drop the planned layers, tune the chosen ones, save, prove the save."""

import glob
import json
import time
from pathlib import Path
from typing import Any

from interlace.errors import InputError
from interlace.io import digest, folder_digest, read_json, remove
from interlace.provenance import stamp


def finetune(
    base: str | Path,
    plan: str | Path | None,
    samples: str | Path | None,
    out: str | Path,
    settings: dict[str, Any],
    *,
    model: str,
    variant: str,
    seed: int,
) -> None:
    """Write the checkpoint `out` of a variant: `base` without the plan's dropped layers.

    With `settings["tune"]` (true unless stated) the plan's tuned layers are trained for
    `settings["epochs"]` over all kept samples; otherwise layers are only dropped. `settings` is
    the config's section `finetune`. With `processes` above 1 the ranks are started with torchrun.
    Raises InputError for a plan of another depth, missing samples or devices.
    """
    tune = settings.get("tune", True)
    processes = settings.get("processes", 1) if tune else 1
    job = {
        "base": str(base),
        "plan": None if plan is None else str(plan),
        "samples": None if samples is None else str(samples),
        "out": str(out),
        "settings": settings,
        "model": model,
        "variant": variant,
        "seed": seed,
    }
    from interlace.training import distributed

    if processes > 1 and settings.get("deepspeed") is None:
        raise InputError("finetune.processes above 1 needs finetune.deepspeed, a DeepSpeed file")
    if processes > 1 and not distributed.under_torchrun():
        distributed.check_processes(processes)
        read_plan(plan, base)  # what is wrong with it is better said once than by every rank
        distributed.launch("interlace.training.worker", job, processes)
        return
    run_job(job)


def run_job(job: dict[str, Any]) -> None:
    """Do the work of `finetune` in this process, which may be one rank of several."""
    from interlace.decoder.checkpoint import save_checkpoint
    from interlace.decoder.load import load_model, load_processor
    from interlace.training import distributed
    from interlace.training.freeze import apply_plan

    distributed.choose_accelerator()
    settings = job["settings"]
    tune = settings.get("tune", True)
    plan = read_plan(job["plan"], job["base"])
    if tune and job["samples"] is None:
        raise InputError(f"{job['variant']}: fine-tuning needs samples; none are given")
    if tune and not plan["tune"]:
        raise InputError(f"{job['plan']}: the plan tunes no layer; run the variant without -ft")
    # Loaded before any ZeRO-3 config exists: transformers would load into partitioned weights.
    model = load_model(job["base"], dtype=settings["precision"] if tune else "auto")
    processor = load_processor(job["base"], settings.get("min_pixels"), settings.get("max_pixels"))
    names = apply_plan(model, plan["drop"], plan["tune"] if tune else [])
    info = {
        "provenance": stamp(
            "checkpoint",
            config_digest=digest(settings),
            seed=job["seed"] if tune else None,
            num_samples=None,
            model_revision=folder_digest(job["base"], "*.safetensors"),
        ),
        "model": job["model"],
        "variant": job["variant"],
        "plan": plan,
        "training": None,
        "sparsity": None,
    }
    stock = load_processor(job["base"])  # what the checkpoint carries keeps the base's image sizes
    if not tune:
        save_checkpoint(model, stock, job["out"], info)
        return
    from transformers.integrations import unset_hf_deepspeed_config

    try:
        _train(job, model, processor, stock, names, info)
    finally:
        unset_hf_deepspeed_config()  # else every later load in this process would be partitioned


def _train(
    job: dict[str, Any], model: Any, processor: Any, stock: Any, names: list[str], info: dict
) -> None:
    import torch
    from transformers import set_seed
    from transformers.integrations import unset_hf_deepspeed_config

    from interlace.data.chat import load_records
    from interlace.decoder.checkpoint import save_checkpoint, take_probe
    from interlace.training import distributed
    from interlace.training.batches import TrainingCollator, TrainingDataset
    from interlace.training.trainer import (
        NUM_NAMED,
        build_trainer,
        last_checkpoint,
        logged_steps,
        training_arguments,
    )

    settings, seed, out = job["settings"], job["seed"], Path(job["out"])
    world_size, rank = 1, 0
    if settings.get("deepspeed") is not None:
        distributed.prepare()
        distributed.gather_by_layer(model)
        world_size, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    first = rank == 0
    records = load_records(job["samples"])
    dataset = TrainingDataset(records)
    # Named after all that the weights depend on: only the same run may go on from a checkpoint.
    same = [settings, seed, info["plan"], info["provenance"]["model_revision"], records.ids]
    work = out.with_name(f".{out.name}.trainer-{digest(same)}")
    arguments = training_arguments(settings, work, seed, len(dataset), world_size)
    assert arguments.world_size == world_size
    set_seed(seed)
    if settings.get("gradient_checkpointing"):
        model.activation_checkpointing_enable({"use_reentrant": False})
        # Transformers makes the embeddings' output need a gradient, which would drag the backward
        # pass through every frozen layer below the first tuned one (1.5x the time, same gradients).
        model.disable_input_require_grads()
    collator = TrainingCollator(processor, settings.get("max_length"), always_image=world_size > 1)
    num_trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    num_all = sum(weight.numel() for weight in model.parameters())
    trainer = build_trainer(model, arguments, dataset, collator, f"tune {job['variant']}")
    if first:
        print(
            f"tune {job['variant']}: {num_trained:,} of {num_all:,} parameters in"
            f" {len(info['plan']['tune'])} layers, {len(dataset)} samples, {world_size} processes",
            flush=True,
        )
    start = time.monotonic()
    trainer.train(resume_from_checkpoint=last_checkpoint(work))
    seconds = time.monotonic() - start

    counts = {**collator.collator.counts, "failed": len(trainer.failures)}
    if world_size > 1:
        counts = _sum_over_ranks(counts)
    if settings.get("deepspeed") is None:
        state_dict = trainer.model.state_dict()
    else:
        state_dict = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    probe = take_probe(trainer.model_wrapped, stock)  # every rank takes part in the forward pass
    unset_hf_deepspeed_config()  # else the reload below would be partitioned
    if first:
        info["provenance"]["num_samples"] = len(dataset) - len(set(trainer.failures))
        steps = logged_steps(trainer)
        info["training"] = {
            **{key: value for key, value in settings.items() if key != "deepspeed"},
            "deepspeed": settings.get("deepspeed"),
            "world_size": world_size,
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
        save_checkpoint(
            trainer.model,
            stock,
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


def read_plan(path: str | Path | None, base: str | Path) -> dict[str, Any]:
    """Return a plan's JSON, made for the depth of `base`; without a path, one that drops nothing.

    Raises InputError for a plan that lacks a key or belongs to another depth.
    """
    from interlace.decoder.layers import num_layers

    depth = num_layers(base)
    if path is None:
        everything = list(range(depth))
        plan = {"method": "dense", "ratio": None, "num_layers": depth, "num_dropped": 0}
        return {**plan, "drop": [], "tune": [], "freeze": everything}
    plan = read_json(path)
    missing = [key for key in ("num_layers", "drop", "tune") if key not in plan]
    if missing:
        raise InputError(f"{path}: no layer plan (lacks {', '.join(missing)}); make the plan again")
    if plan["num_layers"] != depth:
        raise InputError(
            f"{path}: is a plan for {plan['num_layers']} layers, but {base} has {depth}; make the"
            " plan again for this model"
        )
    return plan


def _sum_over_ranks(counts: dict[str, int]) -> dict[str, int]:
    import torch

    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    values = torch.tensor(list(counts.values()), dtype=torch.int64, device=device)
    torch.distributed.all_reduce(values)
    return dict(zip(counts, values.tolist(), strict=True))
