"""Models that take turns on the same samples."""

import contextlib
import gc
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from interlace.decoder.layers import image_token_id
from interlace.evaluation.ttft import clock
from interlace.evaluation.ttft.clock import first_token
from interlace.evaluation.ttft.decode import decode_rate
from interlace.evaluation.ttft.memory import PeakMemory
from interlace.evaluation.ttft.ratios import STAGES

Inputs = dict[str, torch.Tensor]


@dataclass
class Measured:
    """One sample; times in seconds, by model and, within `stages`, by stage.

    `images` are its rows of image_grid_thw. `preprocessing` is the mean over all models' turns: the
    same work for each. `seconds` and `end_to_end` are means over `passes` and `whole_passes`.
    """

    index: str
    visual_tokens: int
    text_tokens: int
    images: list[list[int]]
    preprocessing: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    end_to_end: dict[str, float] = field(default_factory=dict)
    passes: dict[str, list[float]] = field(default_factory=dict)
    whole_passes: dict[str, list[float]] = field(default_factory=dict)


class Turns:
    """Dense and its variants, loaded together, timed in turns.

    `models` maps names to models on one device, `dense` among them; `resident` the bytes of their
    weights. The order of the models is drawn anew for every turn, from `rng`.
    """

    def __init__(
        self,
        models: Mapping[str, Any],
        resident: Mapping[str, int],
        *,
        warmup: int,
        repeats: int,
    ) -> None:
        self.models, self.warmup, self.repeats = models, warmup, repeats
        self.device = models["dense"].device
        self.memory = PeakMemory(self.device, resident)
        self._warm: set[Any] = set()
        self._decoded = False

    def measure(
        self, samples: Iterable[tuple[str, Callable[[], Inputs]]], rng: np.random.Generator
    ) -> list[Measured]:
        """Return the times of all models on each of `samples`: an index, and what prepares inputs.

        Every model first runs `warmup` times, untimed, on each shape that is new. Then `repeats`
        turns from inputs on the device to the first token, and as many from the image file.
        """
        return [self._measure(index, prepare, rng) for index, prepare in samples]

    def _measure(
        self, index: str, prepare: Callable[[], Inputs], rng: np.random.Generator
    ) -> Measured:
        inputs = self._placed(prepare())
        sample = _describe(index, inputs, self.models["dense"].config)
        self._warm_up(inputs)
        turns: dict[str, list[Any]] = {name: [] for name in self.models}
        with _no_collection():
            for _ in range(self.repeats):
                for name in self._order(rng):
                    self.memory.start()
                    turns[name].append(first_token(self.models[name], inputs))
                    self.memory.stop(name)
            prepared = []
            for _ in range(self.repeats):
                for name in self._order(rng):
                    start = clock.now()
                    fresh = prepare()
                    prepared.append(clock.now() - start)
                    first_token(self.models[name], self._placed(fresh))
                    sample.whole_passes.setdefault(name, []).append(clock.now() - start)
        sample.preprocessing = float(np.mean(prepared))
        for name, runs in turns.items():
            sample.passes[name] = [run.seconds for run in runs]
            sample.seconds[name] = float(np.mean(sample.passes[name]))
            sample.end_to_end[name] = float(np.mean(sample.whole_passes[name]))
            sample.stages[name] = {
                stage: float(np.mean([run.stages[stage] for run in runs])) for stage in STAGES
            }
        return sample

    def decode(
        self, prepare: Callable[[], Inputs], tokens: int, rng: np.random.Generator
    ) -> dict[str, float]:
        """Return each model's tokens per second after the first, over `repeats` turns on one sample."""
        inputs = self._placed(prepare())
        if not self._decoded:
            for model in self.models.values():
                decode_rate(model, inputs, 2)
            self._decoded = True
        rates: dict[str, list[float]] = {name: [] for name in self.models}
        with _no_collection():
            for _ in range(self.repeats):
                for name in self._order(rng):
                    rates[name].append(decode_rate(self.models[name], inputs, tokens))
        # Tokens over seconds of all turns: the harmonic mean.
        return {name: statistics.harmonic_mean(found) for name, found in rates.items()}

    def _warm_up(self, inputs: Inputs) -> None:
        grid = inputs.get("image_grid_thw")
        shape = (tuple(inputs["input_ids"].shape), str([] if grid is None else grid.tolist()))
        if shape in self._warm:
            return
        self._warm.add(shape)
        for _ in range(self.warmup):
            for model in self.models.values():
                first_token(model, inputs)

    def _order(self, rng: np.random.Generator) -> list[str]:
        names = list(self.models)
        return [names[position] for position in rng.permutation(len(names))]

    def _placed(self, inputs: Inputs) -> Inputs:
        return {key: value.to(self.device) for key, value in inputs.items()}


def _describe(index: str, inputs: Inputs, config: Any) -> Measured:
    visual = int((inputs["input_ids"] == image_token_id(config)).sum())
    grid = inputs.get("image_grid_thw")
    images = [] if grid is None else grid.tolist()
    return Measured(index, visual, inputs["input_ids"].numel() - visual, images)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python's garbage collection out of the times."""
    gc.collect(1)  # what is young: all there is takes a second, and there are 26,600 samples
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
