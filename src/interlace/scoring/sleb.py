"""SLEB: remove the layer whose removal costs least language-modelling loss, again and again.

The search is that of the reference (jiwonsong-dev/SLEB), with the same removals at a fraction of
the work: a candidate starts from the longest run of first layers that any network before it had
in common with it. With 36 layers and 9 removals at most 55 % of the reference's layers are run
where memory holds about 17 states of all samples or more (`expected_evaluations`).

The reference turns a layer off by passing its input on. Without DeepStack that is a removed layer,
and the removals are the same. On Qwen3-VL a removed layer is absent: DeepStack features enter after
the first positions among the layers left, as in a checkpoint whose layers were dropped
(`interlace.decoder.surgery.drop_layers`), where the reference's way would add them after the same
layers as before.

Every candidate runs on every batch. Stopping one whose losses so far exceed the best total would
be exact too; with 16 batches of one sample it saved 5-7 % more layers on random and on the demo's
weights, with 4 batches 0-1 %, and would leave losses of candidates unknown.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from interlace.decoder.layers import decoder_layers, num_layers
from interlace.decoder.ratio import num_dropped
from interlace.errors import InputError
from interlace.io import digest, read_json, write_json
from interlace.memory import free_bytes
from interlace.progress import track
from interlace.provenance import versions
from interlace.scoring.calibration import CONVENTION, TEXT, Calibration, load_calibration
from interlace.scoring.loss import BatchLoss, finite_loss
from interlace.scoring.prefixes import PrefixRun, Storage
from interlace.stamps import configuration_digest

SHARE_OF_FREE = 0.5  # of the free memory, for states; the rest is for what a layer needs as it runs


@dataclass
class Removal:
    """One step: the layer removed (numbered as in the dense model), and every candidate's loss."""

    layer: int
    loss: float
    candidates: dict[int, float]


@dataclass
class Search:
    """The removals in order, the loss of the whole model, and the layers that were run for it.

    In a search that was stopped and gone on with, layers run after the last removal before the
    stop are not counted.
    """

    removals: list[Removal] = field(default_factory=list)
    base_loss: float = 0.0
    num_targets: int = 0
    num_batches: int = 0
    layer_evaluations: int = 0


def _nowhere(_search: Search) -> None:
    """Keep no record of the search so far."""


@torch.inference_mode()
def sleb_search(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, torch.Tensor]],
    count: int,
    protect: Iterable[int] = (),
    *,
    cache_bytes: float | None = None,
    memory_mb: float | None = None,
    done: Search | None = None,
    after_removal: Callable[[Search], None] = _nowhere,
) -> Search:
    """Return `count` greedy removals of `model`, which is left as it was.

    The loss is that of `interlace.scoring.loss.BatchLoss`. The first and the last layer alive and
    those of `protect` are never candidates; of equal losses the first layer's wins. Hidden states
    take at most `cache_bytes` of the model's device (None: half of what `free_bytes` finds there,
    `memory_mb` being what the job may use); how many are kept changes how many layers are run,
    never the result.

    `done` is an unfinished search of the same model, batches and `protect` to go on from;
    `after_removal` gets the search after every removal. Raises InputError for a `count` that
    cannot be had or a loss that is no number.
    """
    depth = len(decoder_layers(model))
    protected = set(protect)
    _check_count(depth, count, protected)
    runs = [BatchLoss(model, batch) for batch in batches]
    assert runs, "no calibration batch"
    if cache_bytes is None:
        cache_bytes = SHARE_OF_FREE * free_bytes(model.device, memory_mb)
    state = sum(run.state_bytes for run in runs)
    storage = Storage.fitting(depth, int(cache_bytes // state))
    expected = expected_evaluations(depth, _middle(depth, count, protected), storage, protected)
    share = 100 * expected / full_evaluations(depth, count)
    print(
        f"SLEB: a hidden state of all samples takes {state / 1e9:.3g} GB, {cache_bytes / 1e9:.3g} GB "
        f"may hold such states: kept are {storage}; about {share:.0f} % of the layer evaluations of "
        "the plain loop are needed",
        file=sys.stderr,
    )
    removed = [removal.layer for removal in done.removals] if done else []
    left = tuple(layer for layer in range(depth) if layer not in removed)
    search = done or Search(num_targets=sum(run.num_targets for run in runs), num_batches=len(runs))

    def loss_without(out: int | None, kept: Storage) -> float:
        before = sum(run.prefixes.layer_evaluations for run in runs)
        loss = sum(run.loss(left, out, kept) for run in runs)
        search.layer_evaluations += sum(run.prefixes.layer_evaluations for run in runs) - before
        return finite_loss(loss, out)

    if done is None:
        search.base_loss = loss_without(None, storage)
    for step in range(len(removed) + 1, count + 1):
        kept = _kept(storage, step, count)
        choices = [layer for layer in left[1:-1] if layer not in protected]
        losses = {
            layer: loss_without(layer, kept)
            for layer in track(choices, f"SLEB, removal {step} of {count}", unit="layer")
        }
        best = min(losses, key=losses.__getitem__)
        search.removals.append(Removal(best, losses[best], losses))
        after_removal(search)
        left = tuple(layer for layer in left if layer != best)
        for run in runs:
            run.prefixes.forget(best)
    return search


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
    memory_mb: float | None = None,
) -> None:
    """Search for the removals at `ratio` percent on calibration samples; write `out` (`sleb.json`).

    `settings` are those of `load_calibration`, and optionally `cache_gb`, the memory for hidden
    states in GB (10^9 bytes; None: half of what is free, of the job's `memory_mb` on a CPU). A plan
    for fewer layers takes the first removals.

    A search that was stopped goes on after its last removal: until `out` is written, the removals
    lie beside it in `<name>.progress.json`, and only a search of the same weights, samples and
    settings takes them up.
    """
    out = Path(out)
    protect = sorted(protect)
    depth = num_layers(model_path)
    count = num_dropped(ratio, depth)
    _check_count(depth, count, set(protect))
    settings = dict(settings)
    cache_gb = settings.pop("cache_gb", None)  # nothing that a result follows from
    calibration = load_calibration(model_path, samples, settings, seed)
    progress = out.with_name(f"{out.stem}.progress.json")
    key = _key(model_path, calibration, count, protect)
    search = sleb_search(
        calibration.model,
        calibration.batches,
        count,
        protect,
        cache_bytes=None if cache_gb is None else 1e9 * cache_gb,
        memory_mb=memory_mb,
        done=_unfinished(progress, key),
        after_removal=lambda search: write_json(progress, {"key": key, "search": asdict(search)}),
    )
    body = {
        "provenance": calibration.stamp("sleb"),
        "model": model_key,
        **calibration.weights,
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
        "calibration": calibration.record(),
        "convention": CONVENTION + "; first and last layer alive are no candidates",
        "layer_evaluations": search.layer_evaluations,
        "layer_evaluations_uncached": search.num_batches * full_evaluations(depth, count),
    }
    write_json(out, body)
    progress.unlink(missing_ok=True)


def _check_count(depth: int, count: int, protected: set[int]) -> None:
    """Raise InputError unless `count` layers may go: none protected, nor the first or the last."""
    if not 1 <= count <= depth - 2:
        raise InputError(f"SLEB can remove 1 to {depth - 2} of {depth} layers, not {count}")
    free = len(_middle(depth, depth, protected))
    if free < count:
        raise InputError(
            f"plan.protect leaves SLEB {free} of {count} layers to remove; protect fewer layers"
        )


def full_evaluations(depth: int, count: int) -> int:
    """Return the layers the reference loop runs for one batch: every candidate from the start."""
    return sum((depth - step - 2) * (depth - step - 1) for step in range(count))


class _NoCall:
    """Stands for a batch where only the layers that run are counted."""

    _state = torch.empty(0)

    def run(
        self,
        layers: tuple[int, ...],
        start: int,
        _state: torch.Tensor | None,
        keep: Callable[[int, torch.Tensor], None],
    ) -> torch.Tensor:
        """Offer a state after every layer that would run."""
        for position in range(start, len(layers)):
            keep(position, self._state)
        return self._state


def expected_evaluations(
    depth: int, removals: Sequence[int], storage: Storage, protect: Iterable[int] = ()
) -> int:
    """Return the layers that a search with these `removals` runs for one batch, nothing computed."""
    run = PrefixRun(_NoCall())
    left, protected = tuple(range(depth)), set(protect)
    run.forward(left, None, storage)
    for step, removed in enumerate(removals, 1):
        kept = _kept(storage, step, len(removals))
        for layer in left[1:-1]:
            if layer not in protected:
                run.forward(left, layer, kept)
        left = tuple(layer for layer in left if layer != removed)
        run.forget(removed)
    return run.layer_evaluations


def _kept(storage: Storage, step: int, count: int) -> Storage:
    """Return what to keep in a step: states of candidates serve the next one; the last has none."""
    return storage if step < count else Storage(storage.current, 0)


def _middle(depth: int, count: int, protected: set[int]) -> list[int]:
    """Return the free layers nearest to the middle: a guess at what a search will remove."""
    free = [layer for layer in range(1, depth - 1) if layer not in protected]
    return sorted(free, key=lambda layer: (abs(2 * layer - depth), layer))[:count]


def _key(model_path: str | Path, calibration: Calibration, count: int, protect: list[int]) -> str:
    """Return a digest of all that the losses and removals follow from, to the last bit.

    The memory for states is not among it: a search that ran out of memory may go on with less.
    """
    files = configuration_digest(model_path)
    device = str(calibration.model.device)
    samples = [TEXT, *(calibration.records.ids[position] for position in calibration.chosen)]
    weights = calibration.weights["model_digest"]
    texts = [samples, calibration.sample_stamps]
    return digest([weights, files, texts, calibration.settings, device, count, protect, versions()])


def _unfinished(path: Path, key: str) -> Search | None:
    """Return the search that `path` holds, if it is the one of `key`; say what is done with it."""
    if not path.is_file():
        return None
    try:
        found = read_json(path)
        same, body = found["key"] == key, found["search"]
        removals = [
            Removal(r["layer"], r["loss"], {int(k): v for k, v in r["candidates"].items()})
            for r in body["removals"]
        ]
        search = Search(**body | {"removals": removals})
    except (InputError, KeyError, TypeError, ValueError, AttributeError):
        print(f"{path}: not a whole record of a search; not used", file=sys.stderr)
        return None
    if not same:
        print(f"{path}: of other weights, samples or settings; not used", file=sys.stderr)
        return None
    print(f"{path}: going on after {len(removals)} removals", file=sys.stderr)
    return search
