"""TTFT of a model's variants on any of the twelve benchmarks, as VLMEvalKit would ask them."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interlace.errors import InputError
from interlace.evaluation import kit
from interlace.evaluation.benchmarks import Benchmark, get_benchmark
from interlace.evaluation.prepare import read_record
from interlace.evaluation.settings import check_pixels, pixel_limits
from interlace.evaluation.ttft import machine, memory, roofline
from interlace.evaluation.ttft.kept import kept
from interlace.evaluation.ttft.outcome import Side, summarise
from interlace.evaluation.ttft.sanity import check_sanity, needed
from interlace.evaluation.ttft.turns import Inputs, Measured, Turns
from interlace.io import digest, write_json
from interlace.memory import free_bytes, is_out_of_memory
from interlace.progress import track
from interlace.provenance import git_commit, stamp, versions

DECODE_TOKENS = 32


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
    memory_mb: float | None = None,
) -> None:
    """Write `out_root/<variant>/<benchmark>.json` for every variant and benchmark.

    `settings` is the config's `ttft` section with `prompt`, `min_pixels`, `max_pixels` and `pixels`
    of `evaluation` and the model's `dtype`: `samples` rows per benchmark (null: all), drawn with
    `seed`; `warmup` passes per new shape and model, not timed; `repeats` timed passes, averaged;
    `decode_tokens` generated on one sample per benchmark. All models are loaded at once where their
    weights fit, else in groups, each beside dense, on the GPU if there is one (or on `device`). The
    order of samples, and in every turn that of the models, is drawn. 2:4 sparse variants run on the
    GPU's kernels for them where `sparse_kernels` is not off and it has them; every result says
    which and why. On the CPU all runs on one thread. `memory_mb` is what the job asked for.

    What is measured of a group on a benchmark is kept in `out_root/work`, keyed by checkpoints,
    benchmarks, settings, seed, machine and code, until all is done: a job that was killed measures
    the rest only. Raises InputError for benchmarks that are not prepared, for settings that cannot
    work, where memory runs out and where another process measures the same; what `check_sanity`
    finds is printed.
    """
    from interlace.decoder.load import default_device
    from interlace.stamps import checkpoint_digest

    chosen = [get_benchmark(name) for name in benchmarks]
    records = {b.name: read_record(b.dataset, data_root) for b in chosen}
    check_pixels(benchmarks, settings)
    if settings["repeats"] < 1 or not variants:
        raise InputError("ttft: repeats has to be at least 1 and there has to be a variant")
    paths = {"dense": dense, **{name: path for name, path in variants.items() if name != "dense"}}
    digests = {name: checkpoint_digest(path) for name, path in paths.items()}
    checked: list[dict[str, Any]] = []
    device = torch.device(default_device(settings))
    with _one_thread(), kit.kit_environment(data_root):
        key = {
            "checkpoints": digests,
            "benchmarks": {name: record["md5"] for name, record in records.items()},
            "settings": settings,
            "seed": seed,
            "machine": machine.identity(device),
            "versions": versions(),
            "commit": git_commit(),
        }
        with kept(out_root / "work", key) as work:
            for names in work.groups(_groups(paths, settings, device, memory_mb)):
                group = _Group({n: paths[n] for n in names}, settings, device, seed)
                for benchmark in chosen:
                    results, old = work.measured(
                        names, benchmark.name, lambda b=benchmark, g=group: g.measure(b)
                    )
                    if old:
                        print(f"{model} {benchmark.name}: measured before, kept", flush=True)
                    for name in (n for n in names if n in variants):
                        body = {
                            "provenance": stamp(
                                "ttft",
                                config_digest=digest(settings),
                                seed=seed,
                                num_samples=results[name]["num_samples"],
                                model_revision=digests[name],
                            ),
                            "model": model,
                            "variant": name,
                            "benchmark": benchmark.name,
                            **results[name],
                            "fixture": records[benchmark.name]["fixture"],
                        }
                        write_json(out_root / name / f"{benchmark.name}.json", body)
                        print(
                            f"{model} {name} {benchmark.name}: {body['speedup']:.3f}x", flush=True
                        )
                        checked.append(needed(body))
                del group
                gc.collect()
    for problem in check_sanity(checked):
        print(f"TTFT, check this: {problem}", flush=True)


class _Group:
    """Models that are loaded together, once there is something to measure."""

    def __init__(self, paths: dict[str, Path], *arguments: Any) -> None:
        self._names, self._arguments = list(paths), (paths, *arguments)
        self._session: _Session | None = None

    def measure(self, benchmark: Benchmark) -> dict[str, dict[str, Any]]:
        """Return the body of each model's result on a benchmark; InputError without the memory."""
        try:
            if self._session is None:
                self._session = _Session(*self._arguments)
            return self._session.measure(benchmark)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            several = len(self._names) > 2
            way_out = "lower ttft.variants_per_job" if several else "take a device with more memory"
            raise InputError(
                f"ttft: memory ran out on {benchmark.name} with {', '.join(self._names)} loaded "
                f"together; {way_out}, or lower evaluation.max_pixels"
            ) from error


def _groups(
    paths: dict[str, Path],
    settings: dict[str, Any],
    device: torch.device,
    memory_mb: float | None,
) -> list[list[str]]:
    """Return which models are loaded together, dense in every group; say so if it is not all."""
    dtype = settings.get("dtype", "float32")
    needs = {name: memory.weights_loaded(path, dtype) for name, path in paths.items()}
    free = free_bytes(device, memory_mb)
    found = memory.groups(needs, free)
    if len(found) > 1:
        print(
            f"TTFT: weights of {sum(needs.values()) / 1e9:.1f} GB, {free / 1e9:.1f} GB free; "
            f"{len(found)} groups, each beside dense: "
            + "; ".join(", ".join(names[1:]) for names in found),
            flush=True,
        )
    return found


class _Session:
    """Models that are loaded together, and what they are asked."""

    def __init__(
        self, paths: dict[str, Path], settings: dict[str, Any], device: torch.device, seed: int
    ) -> None:
        self.settings, self.device, self.seed, self.paths = settings, device, seed, paths
        self.models, self.resident, self.kernels = _load(paths, settings, device)
        self.preparer = _preparer(paths["dense"], self.models["dense"], settings)
        self.turns = Turns(
            self.models,
            self.resident,
            warmup=int(settings.get("warmup", 1)),
            repeats=settings["repeats"],
        )
        self.peaks = roofline.measure_peaks(device, self.models["dense"].dtype)
        self.machine = machine.describe_machine(device)

    def measure(self, benchmark: Benchmark) -> dict[str, dict[str, Any]]:
        """Return the body of each model's result on a benchmark."""
        dataset = kit.build_dataset(benchmark.dataset)
        limits = pixel_limits(self.settings, benchmark.name)
        self.preparer.min_pixels, self.preparer.max_pixels = limits
        rows = _draw(len(dataset.data), self.settings.get("samples"), self.seed, benchmark.name)
        prepared = {row: self._prepare(dataset, row, benchmark) for row in rows}
        # Of each benchmark its own, so that those that were measured before decide nothing.
        own = [self.seed, len(self.models), int(digest(benchmark.name), 16)]
        rng = np.random.default_rng(own)
        clocks = {"before": machine.read_clocks(self.device)}
        self.turns.memory.peaks.clear()
        found = self.turns.measure(self._samples(dataset, prepared, benchmark), rng)
        clocks["after"] = machine.read_clocks(self.device)
        tokens = int(self.settings.get("decode_tokens") or DECODE_TOKENS)
        rates = self.turns.decode(prepared[rows[0]], tokens, rng)
        places = {str(dataset.data.iloc[row]["index"]): number for number, row in enumerate(rows)}
        found.sort(key=lambda sample: places[sample.index])
        return {name: self._result(name, found, rates, tokens, clocks) for name in self.models}

    def _prepare(self, dataset: Any, row: int, benchmark: Benchmark) -> Callable[[], Inputs]:
        line = dataset.data.iloc[row]

        def prepare() -> Inputs:
            message = self.preparer.message(dataset, line)
            return self.preparer.prepare(message, benchmark.dataset)

        return prepare

    def _samples(
        self, dataset: Any, prepared: dict[int, Callable[[], Inputs]], benchmark: Benchmark
    ) -> Iterator[tuple[str, Callable[[], Inputs]]]:
        """Yield the samples in an order drawn from the seed."""
        rows = list(prepared)
        np.random.default_rng([self.seed, len(rows)]).shuffle(rows)
        for row in track(rows, f"{benchmark.name} TTFT", unit="samples"):
            yield str(dataset.data.iloc[row]["index"]), prepared[row]

    def _result(
        self,
        name: str,
        samples: list[Measured],
        rates: dict[str, float],
        tokens: int,
        clocks: dict[str, Any],
    ) -> dict[str, Any]:
        sides, work = {}, {}
        for side in dict.fromkeys(("dense", name)):
            loaded = self.models[side]
            sides[side] = Side(
                loaded.config.text_config.num_hidden_layers,
                memory.weights_on_disk(self.paths[side]),
                self.resident[side],
                self.turns.memory.peaks[side],
                rates[side],
            )
            sparse = self.kernels[side]["kernels"] == "semi_structured"
            work[side] = roofline.work_of(loaded, samples, sparse=sparse)
        body = summarise(samples, name, sides, work=work, peaks=self.peaks, seed=self.seed)
        return {
            **body,
            "decode_tokens": tokens,
            "memory_kind": self.turns.memory.kind,
            "warmup": self.turns.warmup,
            "repeats": self.turns.repeats,
            "loaded_together": list(self.models),
            "device": machine.device_name(self.device),
            "machine": self.machine,
            "clocks": clocks,
            "dtype": str(self.models["dense"].dtype).removeprefix("torch."),
            "attention": self.settings.get("attention", "sdpa"),
            **self.kernels[name],
            "threads": torch.get_num_threads(),
            "prompt": self.settings.get("prompt", "dataset"),
            "min_pixels": self.preparer.min_pixels,
            "max_pixels": self.preparer.max_pixels,
        }


def _load(
    paths: dict[str, Path], settings: dict[str, Any], device: torch.device
) -> tuple[dict[str, Any], dict[str, int], dict[str, dict[str, Any]]]:
    """Return the models, the bytes of their weights, and what kernels each runs on."""
    from interlace.decoder.load import load_model
    from interlace.sparsity.kernels import use_sparse_kernels

    dtype, attention = settings.get("dtype", "float32"), settings.get("attention", "sdpa")
    wanted = settings.get("sparse_kernels", "auto")
    models, resident, kernels = {}, {}, {}

    def load(name: str) -> Any:
        loaded = load_model(paths[name], dtype, device, attention)
        kernels[name] = use_sparse_kernels(loaded, wanted)
        return loaded

    for name in paths:
        models[name], resident[name] = memory.load_measured(device, lambda name=name: load(name))
    vocabulary = models["dense"].config.text_config.vocab_size
    for name, loaded in models.items():
        if loaded.config.text_config.vocab_size != vocabulary:
            raise InputError(
                f"{paths[name]}: its vocabulary has another size than that of {paths['dense']}; "
                "TTFT compares a checkpoint with the dense one that it was made from"
            )
    return models, resident, kernels


def _preparer(checkpoint: Path, model: Any, settings: dict[str, Any]) -> Any:
    from interlace.decoder.load import load_processor
    from interlace.evaluation.model import LocalQwen3VL

    custom = settings.get("prompt", "dataset") == "custom"
    return LocalQwen3VL(model, load_processor(checkpoint), custom_prompt=custom)


def _draw(rows: int, wanted: int | None, seed: int, name: str) -> list[int]:
    if wanted is None or wanted >= rows:
        return list(range(rows))
    rng = np.random.default_rng([seed, int(digest(name), 16)])
    return sorted(int(row) for row in rng.choice(rows, size=wanted, replace=False))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep the CPU to one thread: what several gain changes with what else the machine does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
