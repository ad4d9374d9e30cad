"""One variant's checkpoint: drop the planned layers, tune the chosen ones, save, prove the save."""

from pathlib import Path
from typing import Any

from interlace.errors import InputError
from interlace.io import digest, folder_digest
from interlace.origin import base_record, data_record
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
    vision: str | Path | None = None,
    cpus: int | None = None,
    mem_mb: float | None = None,
) -> None:
    """Write the checkpoint `out` of a variant: `base` without the plan's dropped layers.

    With `settings["tune"]` (true unless stated) the plan's tuned layers are trained for
    `settings["epochs"]` over all kept samples; otherwise layers are only dropped. `settings` is
    the config's section `finetune`. With `processes` or `nodes` above 1 the ranks are started with
    torchrun, on each node with `cpus` cores. `mem_mb` is the main memory there is. `vision`: the folder of stored vision features, for the
    lever `vision: cached`. Raises InputError for a plan of another depth, missing samples or devices.
    """
    tune = settings.get("tune", True)
    processes = settings.get("processes", 1) if tune else 1
    nodes = settings.get("nodes", 1) if tune else 1
    job = {
        "base": str(base),
        "plan": None if plan is None else str(plan),
        "samples": None if samples is None else str(samples),
        "out": str(out),
        "settings": settings,
        "model": model,
        "variant": variant,
        "seed": seed,
        "vision": None if vision is None else str(vision),
        "mem_mb": mem_mb,
        "model_revision": folder_digest(base, "*.safetensors"),
    }
    from interlace.training import distributed
    from interlace.training.fit import choose_for_all
    from interlace.training.launch import check_processes, launch

    if processes * nodes > 1 and not distributed.under_torchrun():
        check_processes(processes)
        # What is wrong is better said once than by every rank.
        job["chosen"] = choose_for_all(job, read_plan(plan, base), processes * nodes)
        folder = Path(out).parent if nodes > 1 else None
        launch("interlace.training.worker", job, processes, nodes=nodes, folder=folder, cpus=cpus)
        return
    run_job(job)


def run_job(job: dict[str, Any]) -> None:
    """Do the work of `finetune` in this process, which may be one rank of several."""
    from interlace.training import distributed

    distributed.choose_accelerator()
    settings = job["settings"]
    tune = settings.get("tune", True)
    plan = read_plan(job["plan"], job["base"])
    if tune and job["samples"] is None:
        raise InputError(f"{job['variant']}: fine-tuning needs samples; none are given")
    if tune and not plan["tune"]:
        raise InputError(f"{job['plan']}: the plan tunes no layer; run the variant without -ft")
    info = {
        "provenance": stamp(
            "checkpoint",
            config_digest=digest(settings),
            seed=job["seed"] if tune else None,
            num_samples=None,
            model_revision=job["model_revision"],
        ),
        "model": job["model"],
        "variant": job["variant"],
        "plan": plan,
        "base": base_record(job["base"]),
        "data": data_record(job["samples"]) if tune else None,
        "training": None,
        "sparsity": None,
    }
    if tune:
        from interlace.training.tune import tune_layers

        tune_layers(job, plan, info)
        return
    from interlace.decoder.checkpoint import save_checkpoint
    from interlace.decoder.load import load_model, load_processor
    from interlace.training.freeze import apply_plan

    model = load_model(job["base"], dtype="auto")
    apply_plan(model, plan["drop"], [])
    save_checkpoint(model, load_processor(job["base"]), job["out"], info)


def read_plan(path: str | Path | None, base: str | Path) -> dict[str, Any]:
    """Return a plan's JSON, made for the depth of `base`; without a path, one that drops nothing.

    Raises InputError for what is no plan or belongs to another depth.
    """
    from interlace.decoder.layers import num_layers
    from interlace.selection import plan

    depth = num_layers(base)
    if path is not None:
        return plan.read_plan(path, depth).to_dict()
    everything = list(range(depth))
    dense = {"method": "dense", "ratio": None, "num_layers": depth, "num_dropped": 0}
    return {**dense, "drop": [], "tune": [], "freeze": everything, "reading": "paper"}
