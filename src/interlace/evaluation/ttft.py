"""Time to first token: dense and pruned in turns on the same samples of a benchmark.

From the moment the processor's outputs lie on the device, synchronised, to the first token's id on
the host: vision tower, projector, decoder prefill, logits of the last position, argmax.
"""

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interlace.decoder.layers import image_token_id
from interlace.errors import InputError
from interlace.evaluation import kit
from interlace.evaluation.benchmarks import get_benchmark
from interlace.evaluation.prepare import read_record
from interlace.evaluation.run import check_pixels, checkpoint_digest
from interlace.io import digest, write_json
from interlace.progress import track
from interlace.provenance import stamp

RESAMPLES = 2000


def measure_ttft(
    dense: Path,
    variants: dict[str, Path],
    benchmarks: Sequence[str],
    data_root: Path,
    out_root: Path,
    settings: dict[str, Any],
    *,
    model: str,
    seed: int,
) -> None:
    """Write `out_root/<variant>/<benchmark>.json` for every variant and benchmark.

    `settings` is the config's `ttft` section with `prompt`, `min_pixels` and `max_pixels` of
    `evaluation` and the model's `dtype`: `samples` rows per benchmark (null: all), drawn with
    `seed`; `warmup` passes per sample and model, not timed; `repeats` timed passes, averaged.
    All models are loaded at once, on the GPU if there is one (or on `device`); in every repeat
    their order is drawn anew. 2:4 sparse variants run on the GPU's kernels for them where
    `sparse_kernels` is not off and it has them; every result says which and why. `threads` (1) is
    the number of CPU threads. Raises InputError for benchmarks that are not prepared and for
    settings that cannot work.
    """
    chosen = [get_benchmark(name) for name in benchmarks]
    records = {b.name: read_record(b.dataset, data_root) for b in chosen}
    check_pixels(benchmarks, settings)
    repeats, warmup = int(settings.get("repeats", 3)), int(settings.get("warmup", 1))
    if repeats < 1 or not variants:
        raise InputError("ttft: repeats has to be at least 1 and there has to be a variant")
    paths = {"dense": dense, **{name: path for name, path in variants.items() if name != "dense"}}
    digests = {name: checkpoint_digest(path) for name, path in paths.items()}
    with _threads(int(settings.get("threads") or 1)), kit.kit_environment(data_root):
        models, preparer, kernels = _load(paths, settings)
        for benchmark in chosen:
            dataset = kit.build_dataset(benchmark.dataset)
            rows = _draw(len(dataset.data), settings.get("samples"), seed, benchmark.name)
            rng = np.random.default_rng([seed, len(rows)])
            samples = []
            for row in track(rows, f"{benchmark.name} TTFT", unit="samples"):
                line = dataset.data.iloc[row]
                message = preparer.message(dataset, line)
                inputs = preparer.prepare(message, benchmark.dataset)
                times = _sample_times(models, inputs, warmup, repeats, rng)
                tokens = _token_counts(inputs, models["dense"].config)
                samples.append({"index": str(line["index"]), **tokens, "times": times})
            for name in variants:
                body = _result(samples, name, np.random.default_rng(seed))
                provenance = stamp(
                    "ttft",
                    config_digest=digest(settings),
                    seed=seed,
                    num_samples=len(samples),
                    model_revision=digests[name],
                )
                head = {"model": model, "variant": name, "benchmark": benchmark.name}
                result = {
                    "provenance": provenance,
                    **head,
                    **body,
                    "warmup": warmup,
                    "repeats": repeats,
                    "device": _device_name(models["dense"].device),
                    "dtype": str(models["dense"].dtype).removeprefix("torch."),
                    "attention": settings.get("attention", "sdpa"),
                    **kernels[name],
                    "threads": torch.get_num_threads(),
                    "fixture": records[benchmark.name]["fixture"],
                }
                write_json(out_root / name / f"{benchmark.name}.json", result)
                print(f"{model} {name} {benchmark.name}: {body['speedup']:.3f}x", flush=True)


def _load(
    paths: dict[str, Path], settings: dict[str, Any]
) -> tuple[dict[str, Any], Any, dict[str, dict[str, Any]]]:
    """Return the models, who prepares their inputs, and what kernels each runs on."""
    from interlace.decoder.load import default_device, load_model, load_processor
    from interlace.evaluation.model import LocalQwen3VL
    from interlace.sparsity.kernels import use_sparse_kernels

    dtype, attention = settings.get("dtype", "float32"), settings.get("attention", "sdpa")
    device = default_device(settings)
    models = {name: load_model(path, dtype, device, attention) for name, path in paths.items()}
    vocabulary = models["dense"].config.text_config.vocab_size
    for name, loaded in models.items():
        if loaded.config.text_config.vocab_size != vocabulary:
            raise InputError(
                f"{paths[name]}: its vocabulary has another size than that of {paths['dense']}; "
                "TTFT compares a checkpoint with the dense one that it was made from"
            )
    preparer = LocalQwen3VL(
        models["dense"],
        load_processor(paths["dense"]),
        custom_prompt=settings.get("prompt", "dataset") == "custom",
        min_pixels=settings.get("min_pixels"),
        max_pixels=settings.get("max_pixels"),
    )
    wanted = settings.get("sparse_kernels", "auto")
    kernels = {name: use_sparse_kernels(loaded, wanted) for name, loaded in models.items()}
    return models, preparer, kernels


def _draw(rows: int, wanted: int | None, seed: int, name: str) -> list[int]:
    if wanted is None or wanted >= rows:
        return list(range(rows))
    rng = np.random.default_rng([seed, int(digest(name), 16)])
    return sorted(int(row) for row in rng.choice(rows, size=wanted, replace=False))


def _sample_times(
    models: dict[str, Any],
    inputs: dict[str, torch.Tensor],
    warmup: int,
    repeats: int,
    rng: np.random.Generator,
) -> dict[str, tuple[float, float]]:
    """Return (total, vision) seconds per model, means over the repeats."""
    names = list(models)
    device = models["dense"].device
    inputs = {key: value.to(device) for key, value in inputs.items()}
    for _ in range(warmup):
        for name in names:
            first_token(models[name], inputs)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        for _ in range(repeats):
            for position in rng.permutation(len(names)):
                name = names[position]
                times[name].append(first_token(models[name], inputs)[1:])
    finally:
        gc.enable()
    return {name: tuple(np.mean(rounds, axis=0).tolist()) for name, rounds in times.items()}


@torch.inference_mode()
def first_token(model: Any, inputs: dict[str, torch.Tensor]) -> tuple[int, float, float]:
    """Return (first token's id, seconds to it, seconds of them in vision tower and projector).

    `inputs` is one prompt, on the model's device.
    """
    with _vision_clock(model) as vision:
        _synchronize(model.device)
        start = time.perf_counter()
        output = model(**inputs, use_cache=True, logits_to_keep=1)
        token = int(output.logits[0, -1].argmax())
        seconds = time.perf_counter() - start
        return token, seconds, vision()


@contextmanager
def _vision_clock(model: Any) -> Iterator[Any]:
    """Time the vision tower (merger included) by hooks that do not make a GPU wait."""
    marks: list[Any] = []

    def mark(*_: Any) -> None:
        if model.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            marks.append(event)
        else:
            marks.append(time.perf_counter())

    def seconds() -> float:
        if not marks:  # a prompt without an image
            return 0.0
        begin, end = marks
        if model.device.type == "cuda":
            end.synchronize()
            return begin.elapsed_time(end) / 1000
        return end - begin

    visual = model.model.visual
    hooks = [visual.register_forward_pre_hook(mark), visual.register_forward_hook(mark)]
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _token_counts(inputs: dict[str, torch.Tensor], config: Any) -> dict[str, int]:
    visual = int((inputs["input_ids"] == image_token_id(config)).sum())
    return {"visual_tokens": visual, "text_tokens": inputs["input_ids"].numel() - visual}


def _result(
    samples: list[dict[str, Any]], variant: str, rng: np.random.Generator
) -> dict[str, Any]:
    times = {
        side: np.array([sample["times"][name] for sample in samples])
        for side, name in (("dense", "dense"), ("pruned", variant))
    }
    dense, pruned = times["dense"][:, 0], times["pruned"][:, 0]
    return {
        "num_samples": len(samples),
        **{side: _statistics(values[:, 0]) for side, values in times.items()},
        "speedup": float(dense.mean() / pruned.mean()),
        "speedup_interval": speedup_interval(dense, pruned, rng),
        "split": {
            side: {
                "vision_s": float(values[:, 1].mean()),
                "decoder_s": float((values[:, 0] - values[:, 1]).mean()),
            }
            for side, values in times.items()
        },
        "samples": [
            {
                **{key: sample[key] for key in ("index", "visual_tokens", "text_tokens")},
                "dense_s": float(dense[number]),
                "pruned_s": float(pruned[number]),
                "dense_vision_s": float(times["dense"][number, 1]),
                "pruned_vision_s": float(times["pruned"][number, 1]),
            }
            for number, sample in enumerate(samples)
        ],
    }


def _statistics(seconds: np.ndarray) -> dict[str, float]:
    return {
        "mean_s": float(seconds.mean()),
        "median_s": float(np.median(seconds)),
        "p95_s": float(np.percentile(seconds, 95)),
    }


def speedup_interval(
    dense: np.ndarray, pruned: np.ndarray, rng: np.random.Generator, resamples: int = RESAMPLES
) -> list[float]:
    """Return the 95 % bootstrap interval of mean(dense) / mean(pruned), resampling pairs."""
    drawn = rng.integers(len(dense), size=(resamples, len(dense)))
    ratios = dense[drawn].mean(axis=1) / pruned[drawn].mean(axis=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return [float(low), float(high)]


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "CPU"
