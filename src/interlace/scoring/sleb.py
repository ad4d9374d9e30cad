"""SLEB: remove the layer whose removal costs least language-modelling loss, again and again.

The search is that of the reference (jiwonsong-dev/SLEB), with the same removals at about half the
work: a candidate is run from the cached output of the layer before it, since what comes before
does not change. Turned off means removed: DeepStack features are added by position, as in a
checkpoint whose layers were dropped (`interlace.decoder.surgery.drop_layers`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interlace.data.chat import load_records
from interlace.data.seeds import derive_seed
from interlace.decoder.layers import decoder_layers, decoder_stack, num_layers
from interlace.decoder.load import load_model, load_processor
from interlace.decoder.ratio import num_dropped
from interlace.errors import InputError
from interlace.io import digest, folder_digest, write_json
from interlace.progress import track
from interlace.provenance import stamp
from interlace.scoring.batches import SampleBatches

LOGIT_TOKENS = 2048  # logits of so many tokens are made at a time


@dataclass
class Removal:
    """One step: the layer removed (numbered as in the dense model), and every candidate's loss."""

    layer: int
    loss: float
    candidates: dict[int, float]


@dataclass
class Search:
    """The removals in order, the loss of the whole model, and the layers that were run for it."""

    removals: list[Removal] = field(default_factory=list)
    base_loss: float = 0.0
    num_targets: int = 0
    layer_evaluations: int = 0


def target_mask(batch: dict[str, torch.Tensor], image_token_id: int | None) -> torch.Tensor:
    """Return (B, T-1): whether token t+1 is one to predict, a real token that is no image piece."""
    ids, real = batch["input_ids"][:, 1:], batch["attention_mask"].bool()
    mask = real[:, 1:] & real[:, :-1]
    return mask if image_token_id is None else mask & (ids != image_token_id)


@torch.inference_mode()
def sleb_search(
    model: torch.nn.Module,
    batches: Iterable[dict[str, torch.Tensor]],
    count: int,
    protect: Iterable[int] = (),
) -> Search:
    """Return `count` greedy removals of `model`, which is left as it was.

    The loss of a candidate is the sum over sequences of (mean next-token cross-entropy x number of
    tokens predicted), in float32 logits, over all text tokens, not image placeholders. The first
    and the last layer alive and those of `protect` are never candidates; of equal losses the first
    layer's wins. Holds one hidden state per layer, batch and side (current, best candidate) on the
    model's device.
    """
    depth = len(decoder_layers(model))
    if not 1 <= count <= depth - 2:
        raise InputError(f"SLEB can remove 1 to {depth - 2} of {depth} layers, not {count}")
    runs = [_Run(model, batch) for batch in batches]
    alive = list(range(depth))
    search = Search(num_targets=sum(run.num_targets for run in runs))
    for run in runs:
        run.states, loss = run.forward(alive, 0)
        search.base_loss += loss
        search.layer_evaluations += depth
    protected = set(protect)
    for _ in track(range(count), "SLEB search", unit="removal"):
        candidates: dict[int, float] = {}
        best: tuple[float, int] | None = None
        best_states: list[list[torch.Tensor]] = []
        for position in range(1, len(alive) - 1):
            if alive[position] in protected:
                continue
            rest = alive[:position] + alive[position + 1 :]
            results = [run.forward(rest, position) for run in runs]
            search.layer_evaluations += len(runs) * (len(rest) - position)
            loss = sum(loss for _, loss in results)
            candidates[alive[position]] = loss
            if best is None or loss < best[0]:
                best, best_states = (loss, position), [states for states, _ in results]
        if best is None:
            raise InputError("plan.protect leaves SLEB no layer to remove; protect fewer layers")
        loss, position = best
        for run, states in zip(runs, best_states, strict=True):
            run.states = run.states[:position] + states
        search.removals.append(Removal(alive.pop(position), loss, candidates))
    return search


def sleb_order(
    model: torch.nn.Module, batches: Iterable[dict[str, torch.Tensor]], count: int
) -> list[Removal]:
    """Return the removals of `sleb_search`, first removed first."""
    return sleb_search(model, batches, count).removals


class _Replay(torch.nn.Module):
    """Stands in for a layer: gives a recorded output, or its input back."""

    def __init__(self, like: torch.nn.Module, output: torch.Tensor | None = None) -> None:
        super().__init__()
        self._output = output
        if hasattr(like, "attention_type"):  # read by decoders that mix kinds of attention
            self.attention_type = like.attention_type

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return hidden_states if self._output is None else self._output


class _Run:
    """One batch: the decoder's arguments, recorded once, and each alive layer's raw output."""

    def __init__(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> None:
        self._model = model
        self._stack, self._name = decoder_stack(model)
        self._layers = decoder_layers(model)
        inputs = {key: value.to(model.device) for key, value in batch.items() if key != "labels"}
        image_token_id = getattr(model.config, "image_token_id", None)
        self._mask = target_mask(inputs, image_token_id)
        self._targets = inputs["input_ids"][:, 1:][self._mask]
        self.num_targets = len(self._targets)
        self.states: list[torch.Tensor] = []
        self._call = self._record(inputs)

    def _record(self, inputs: dict[str, torch.Tensor]) -> tuple[tuple, dict[str, Any]]:
        """Return what the decoder is called with: embeddings, masks, positions, DeepStack."""
        calls: list[tuple[tuple, dict[str, Any]]] = []
        handle = self._stack.register_forward_pre_hook(
            lambda _module, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
        )
        try:
            if self._stack is self._model.base_model:
                calls.append(((), {**inputs, "use_cache": False}))
            else:
                with self._using([_Replay(layer) for layer in self._layers]):
                    self._model.base_model(**inputs, use_cache=False)
        finally:
            handle.remove()
        return calls[0]

    def forward(self, alive: Sequence[int], start: int) -> tuple[list[torch.Tensor], float]:
        """Run the layers `alive[start:]` at their positions; return their outputs and the loss.

        The output of the layer before them is taken from `states`. The model's own forward adds
        DeepStack features, so positions before `start` are filled with stand-ins.
        """
        layers = [self._layers[index] for index in alive]
        outputs: list[torch.Tensor] = []
        for position in range(start):
            known = self.states[position] if position == start - 1 else None
            layers[position] = _Replay(layers[position], known)
        handles = [
            layer.register_forward_hook(
                lambda _module, _args, output: outputs.append(
                    output[0] if isinstance(output, tuple) else output
                )
            )
            for layer in layers[start:]
        ]
        args, kwargs = self._call
        try:
            with self._using(layers):
                hidden_BTD = self._stack(*args, **kwargs).last_hidden_state
        finally:
            for handle in handles:
                handle.remove()
        return outputs, self._loss(hidden_BTD)

    def _using(self, layers: Sequence[torch.nn.Module]) -> "_Swapped":
        return _Swapped(self._stack, self._name, layers)

    def _loss(self, hidden_BTD: torch.Tensor) -> float:
        head = self._model.get_output_embeddings()
        predicting = hidden_BTD[:, :-1][self._mask]
        total = torch.zeros((), dtype=torch.float64, device=hidden_BTD.device)
        for start in range(0, self.num_targets, LOGIT_TOKENS):
            part = slice(start, start + LOGIT_TOKENS)
            total += torch.nn.functional.cross_entropy(
                head(predicting[part]).float(), self._targets[part], reduction="sum"
            )
        return float(total)


class _Swapped:
    """Other layers in the decoder while the `with` block runs."""

    def __init__(
        self, stack: torch.nn.Module, name: str, layers: Sequence[torch.nn.Module]
    ) -> None:
        self._stack, self._name = stack, name
        self._own = getattr(stack, name)
        self._other = torch.nn.ModuleList(layers)

    def __enter__(self) -> None:
        setattr(self._stack, self._name, self._other)

    def __exit__(self, *_: object) -> None:
        setattr(self._stack, self._name, self._own)


def run_sleb(
    model_path: str | Path,
    samples: str | Path,
    out: str | Path,
    settings: dict[str, Any],
    *,
    model_key: str,
    ratio: float,
    seed: int,
    protect: Iterable[int] = (),
    config_digest: str | None = None,
) -> None:
    """Search for the removals at `ratio` percent on calibration samples; write `out` (`sleb.json`).

    `settings`: `samples` (how many calibration samples, drawn with the seed), `max_length` in
    tokens, `batch_size`, and optionally `min_pixels`, `max_pixels`, `dtype`, `device`,
    `attention`. A plan for fewer layers takes the first removals.
    """
    device = settings.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
    protect = sorted(protect)
    count = num_dropped(ratio, num_layers(model_path))
    records = load_records(samples, calibration_only=True)
    generator = np.random.default_rng(derive_seed(seed, "sleb"))
    wanted = min(int(settings["samples"]), len(records))
    chosen = sorted(int(i) for i in generator.choice(len(records), size=wanted, replace=False))
    model = load_model(
        model_path,
        settings.get("dtype") or "float32",
        device,
        settings.get("attention") or "sdpa",
    )
    processor = load_processor(model_path, settings.get("min_pixels"), settings.get("max_pixels"))
    max_length = settings.get("max_length")
    batches = SampleBatches(
        records, processor, settings["batch_size"], max_length, "sleb.max_length", chosen
    )
    search = sleb_search(model, batches, count, protect)
    depth = num_layers(model_path)
    num_batches = -(-len(batches.positions) // settings["batch_size"])
    body = {
        "provenance": stamp(
            "sleb",
            config_digest=config_digest or digest(settings),
            seed=seed,
            num_samples=len(batches.positions),
            model_revision=folder_digest(model_path, "*.safetensors"),
        ),
        "model": model_key,
        "num_layers": depth,
        "num_dropped": count,
        "protect": protect,
        "removals": [
            {
                "layer": removal.layer,
                "loss": removal.loss,
                "candidates": {str(layer): loss for layer, loss in removal.candidates.items()},
            }
            for removal in search.removals
        ],
        "base_loss": search.base_loss,
        "num_targets": search.num_targets,
        "calibration": {
            "text": "whole conversations of the run's own calibration samples, user and assistant "
            "turns; the reference uses WikiText-2, the paper does not say what it used",
            "samples": [records.ids[position] for position in sorted(batches.positions)],
            "left_out": batches.left_out,
            "asked_for": int(settings["samples"]),
            "max_length": max_length,
        },
        "convention": "loss = sum over sequences of mean cross-entropy x predicted text tokens; a "
        "removed layer is absent, DeepStack features enter by position among the layers left; "
        "first and last layer alive are no candidates",
        "layer_evaluations": search.layer_evaluations,
        "layer_evaluations_uncached": num_batches * full_evaluations(depth, count),
    }
    write_json(out, body)


def full_evaluations(depth: int, count: int) -> int:
    """Return the layers the reference loop runs for one batch: every candidate from the start."""
    return sum((depth - step - 2) * (depth - step - 1) for step in range(count))
