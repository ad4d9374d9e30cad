"""The plan of a pruning: which decoder layers are dropped, tuned and frozen, and why."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from interlace.decoder import layers as decoder
from interlace.decoder.ratio import num_dropped
from interlace.errors import InputError
from interlace.io import digest, read_json, write_json, write_text
from interlace.provenance import stamp
from interlace.selection.losses import Losses, read_losses, read_removals
from interlace.selection.method import Request
from interlace.selection.registry import METHODS
from interlace.selection.scores import READINGS, ScoreTable, read_scores
from interlace.selection.sheet import plan_sheet
from interlace.stamps import check_weights


@dataclass
class LayerPlan:
    """Layers by role, 0-based and ascending; the keys of `<plan id>.json`.

    `ratio` is the percentage asked for (None for dense), `num_dropped` the layers that it drops.
    `triplets` holds, in the order taken, `{start, size, score, drop, tune, anchor}` of each window;
    `order` the dropped layers in the order taken, empty where the method has none. `measures` are
    the scores that the choice went by: `{name, unit, size, values}`, a value per window of `size`
    layers by its first layer, None where it was not considered. `calibration` says what they were
    measured on: text, modality, subsets, num_samples (None: nothing was measured).
    """

    model: str
    method: str
    ratio: float | None
    num_layers: int
    num_dropped: int
    drop: list[int]
    tune: list[int]
    freeze: list[int]
    reading: str
    seed: int
    how_reached: str
    protect: list[int] = field(default_factory=list)
    calibration: dict[str, Any] | None = None
    scores_digest: str | None = None
    triplets: list[dict[str, Any]] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    measures: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def validate(self) -> None:
        """Raise ValueError unless every layer has exactly one role and the rest agrees with it."""
        self._validate_types()
        for role in ("drop", "tune", "freeze"):
            layers = getattr(self, role)
            if layers != sorted(set(layers)):
                raise ValueError(f"`{role}` is not ascending without repeats: {layers}")
        everything = sorted(self.drop + self.tune + self.freeze)
        if everything != list(range(self.num_layers)):
            raise ValueError(
                f"drop, tune and freeze do not give each of {self.num_layers} layers one role"
            )
        if len(self.drop) != self.num_dropped:
            raise ValueError(f"{len(self.drop)} layers in `drop`, num_dropped {self.num_dropped}")
        if not set(self.protect) <= set(self.freeze):
            raise ValueError("a protected layer is dropped or tuned")
        if self.order and sorted(self.order) != self.drop:
            raise ValueError(f"`order` {self.order} is not `drop` in another order")
        seen: set[int] = set()
        for entry in self.triplets:
            window = set(range(entry["start"], entry["start"] + entry["size"]))
            if not _is_number(entry["score"]):
                raise ValueError(f"the score of the window at {entry['start']} is no number")
            if seen & window:
                raise ValueError(f"the window at {entry['start']} overlaps another")
            seen |= window
            roles = {entry["drop"], entry["tune"], entry["anchor"]} - {None}
            if roles != window or entry["drop"] not in self.drop or entry["tune"] not in self.tune:
                raise ValueError(f"the roles of the window at {entry['start']} contradict the plan")
        for measure in self.measures:
            if len(measure["values"]) != self.num_layers - measure["size"] + 1:
                raise ValueError(f"measure `{measure['name']}` is not of {self.num_layers} layers")

    def _validate_types(self) -> None:
        """Raise ValueError for a value that JSON may hold and a plan may not."""
        for name in ("model", "method", "reading", "how_reached"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"`{name}` is no text")
        for name in ("num_layers", "num_dropped", "seed"):
            if not _is_integer(getattr(self, name)):
                raise ValueError(f"`{name}` is no integer")
        for name in ("drop", "tune", "freeze", "protect", "order"):
            layers = getattr(self, name)
            if not isinstance(layers, list) or not all(map(_is_integer, layers)):
                raise ValueError(f"`{name}` is no list of layers: {layers}")
        for name, kind in (("triplets", dict), ("measures", dict), ("warnings", str)):
            items = getattr(self, name)
            if not isinstance(items, list) or not all(isinstance(item, kind) for item in items):
                raise ValueError(f"`{name}` is no list of {kind.__name__}")
        if self.ratio is not None and not _is_number(self.ratio):
            raise ValueError("`ratio` is no number")
        if not isinstance(self.calibration, dict | None):
            raise ValueError("`calibration` is no object")
        for key in ("text", "modality", "subsets", "num_samples"):
            if self.calibration is not None and key not in self.calibration:
                raise ValueError(f"`calibration` lacks `{key}`")
        for measure in self.measures:
            values = [value for value in measure["values"] if value is not None]
            if not all(map(_is_number, values)):
                raise ValueError(f"measure `{measure['name']}` holds what is no number")

    def roles(self) -> list[str]:
        """Return `drop`, `tune`, `anchor` (frozen third of a triplet) or `freeze` by layer."""
        roles = ["freeze"] * self.num_layers
        for entry in self.triplets:
            if entry["anchor"] is not None:
                roles[entry["anchor"]] = "anchor"
        for role in ("drop", "tune"):
            for layer in getattr(self, role):
                roles[layer] = role
        return roles

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-able keys."""
        return asdict(self)

    @classmethod
    def from_dict(cls, body: dict[str, Any]) -> "LayerPlan":
        """Return the plan of `to_dict`'s keys, validated; other keys are ignored.

        Raises ValueError, TypeError or KeyError for a body that is not a plan.
        """
        required = [f.name for f in fields(cls) if f.default is f.default_factory is MISSING]
        known = [f.name for f in fields(cls) if f.name in required or f.name in body]
        plan = cls(**{name: body[name] for name in known})
        plan.validate()
        return plan


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_integer(value) or (isinstance(value, float) and math.isfinite(value))


def read_plan(path: str | Path, num_layers: int | None = None) -> LayerPlan:
    """Read a plan; `InputError` for a file that is none, or one for another depth."""
    try:
        plan = LayerPlan.from_dict(read_json(path))
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: not a valid plan ({error}); plan again") from error
    if num_layers is not None and plan.num_layers != num_layers:
        raise InputError(
            f"{path}: a plan for {plan.num_layers} layers, the model has {num_layers}; plan again"
        )
    return plan


def make_plan(
    method: str,
    ratio: float | None,
    scores: ScoreTable | None = None,
    *,
    num_layers: int,
    model: str = "",
    reading: str = "paper",
    protect: Iterable[int] = (),
    seed: int = 0,
    removals: Sequence[int] | None = None,
    losses: Mapping[int, float] | None = None,
    base_loss: float = 1.0,
    num_deepstack: int = 0,
) -> LayerPlan:
    """Return the plan of `method` at `ratio` percent.

    `scores`, `removals`, `losses` and `base_loss` are what a `Request` holds. `num_deepstack` is
    the number of leading decoder positions after which the model adds visual features: dropping
    one of those layers is warned of. Raises `InputError` for an unknown method or reading, a ratio
    that drops none or more than a third, a choice that drops none, protected layers that do not
    exist or leave too few, and missing scores.
    """
    if method not in METHODS:
        raise InputError(f"experiments.method: `{method}` is none of {', '.join(METHODS)}")
    if reading not in READINGS:
        raise InputError(f"plan.reading: `{reading}` is none of {', '.join(READINGS)}")
    protected = frozenset(protect)
    unknown = sorted(layer for layer in protected if layer not in range(num_layers))
    if unknown:
        raise InputError(
            f"plan.protect: layer {unknown[0]} is none of 0..{num_layers - 1} (layers count from 0)"
        )
    chosen = METHODS[method]
    needed = (
        (chosen.needs_scores, scores, "similarity scores"),
        (chosen.needs_sleb, removals, "sleb.json"),
        (chosen.needs_losses, losses, "block_losses.json"),
    )
    for needs, given, name in needed:
        if needs and given is None:
            raise InputError(f"{method}: needs {name}; run the stage `scores` first")
    if scores is not None and scores.num_layers != num_layers:
        raise InputError(f"scores of {scores.num_layers} layers for a model of {num_layers}")
    if chosen.needs_losses and sorted(losses or {}) != list(range(num_layers)):
        raise InputError(f"losses of {len(losses or {})} layers for a model of {num_layers}")
    count = 0
    if chosen.needs_ratio:
        if ratio is None:
            raise InputError(f"experiments.ratios: {method} needs a ratio")
        if not _is_number(ratio):
            raise InputError(f"experiments.ratios: {ratio} is no percentage; choose up to 33")
        count = num_dropped(ratio, num_layers)
    if num_layers - len(protected) < 2 * count:
        raise InputError(
            f"plan.protect: {len(protected)} protected layers leave too few of {num_layers} to drop "
            f"{count} and tune {count}"
        )
    choice = chosen.choose(
        Request(num_layers, count, reading, seed, protected, scores, removals, losses, base_loss)
    )
    drop, tune = sorted(choice.drop), sorted(choice.tune)
    if count and not drop:
        raise InputError(
            f"experiments.method: {method} finds no layer to drop, {count} are asked for; set "
            "plan.reading: paper, or protect fewer layers"
        )
    calibration, warnings = None, list(choice.warnings)
    if scores is not None and chosen.needs_scores:
        calibration = scores.calibration or None
        warnings += _scores_warnings(scores.calibration, reading)
    plan = LayerPlan(
        model=model,
        method=method,
        ratio=ratio if chosen.needs_ratio else None,
        num_layers=num_layers,
        num_dropped=len(drop),
        drop=drop,
        tune=tune,
        freeze=[layer for layer in range(num_layers) if layer not in {*drop, *tune}],
        reading=reading,
        seed=seed,
        how_reached=choice.how_reached,
        protect=sorted(protected),
        calibration=calibration,
        scores_digest=scores.digest if scores is not None and chosen.needs_scores else None,
        triplets=choice.triplets,
        order=choice.order,
        measures=choice.measures,
        warnings=[*warnings, *_deepstack_warning(drop, num_deepstack)],
    )
    plan.validate()
    return plan


def _scores_warnings(calibration: Mapping[str, Any], reading: str) -> list[str]:
    """Say what is not known of scores, and where they are not what the reading goes by."""
    warnings = []
    names = calibration.get("imported_from")
    if names:
        warnings.append(
            f"scores were imported from files of {', '.join(names)}; which weights they were "
            "measured on is not recorded"
        )
    if reading == "released" and calibration.get("text") == "conversation":
        warnings.append(
            "scores are of whole conversations, the released code scored prompts only "
            "(scoring.text: prompt)"
        )
    return warnings


def _deepstack_warning(drop: Sequence[int], num_deepstack: int) -> list[str]:
    moved = [layer for layer in drop if layer < num_deepstack]
    if not moved:
        return []
    return [
        f"DeepStack adds visual features after decoder positions 0..{num_deepstack - 1} by "
        f"position; dropping layer {', '.join(map(str, moved))} makes them enter after other "
        "layers than in the dense model (plan.protect keeps a layer)"
    ]


def write_plan(
    method: str,
    ratio: float | None,
    base_config: str | Path,
    out: str | Path,
    settings: dict[str, Any],
    *,
    model_key: str,
    seed: int,
    windows: str | Path | None = None,
    sleb: str | Path | None = None,
    losses: str | Path | None = None,
    sheet: str | Path | None = None,
) -> LayerPlan:
    """Write the plan to `out` (JSON) and its sheet to `sheet` (default: beside it, `.md`).

    `windows` (windows.parquet), `sleb` (sleb.json) and `losses` (block_losses.json) are read where
    given, and refused where they were measured on other weights than the base's (imported scores do
    not tell theirs); the method says which it needs. `base_config` is the base's folder, or its
    `config.json` (then no weights are compared). `settings`: `reading`, `protect`, `modality`,
    `subsets`. Loads no torch.
    """
    depth = decoder.num_layers(base_config)
    scores = None
    found: Losses | None = None
    if windows is not None:
        modality, subsets = settings.get("modality") or "all", settings.get("subsets")
        scores = read_scores(windows, model_key, depth, modality, subsets)
        if "imported_from" not in scores.calibration:
            check_weights(windows, scores.weights, base_config, "score this model again")
    if sleb is not None:
        found = read_removals(sleb, model_key, depth)
        check_weights(sleb, found.weights, base_config, "search again")
    elif losses is not None:
        found = read_losses(losses, model_key, depth)
        check_weights(losses, found.weights, base_config, "measure again")
    plan = make_plan(
        method,
        ratio,
        scores,
        num_layers=depth,
        model=model_key,
        reading=settings.get("reading", "paper"),
        protect=settings.get("protect") or (),
        seed=seed,
        removals=None if sleb is None or found is None else list(found.by_layer),
        losses=None if found is None else found.by_layer,
        base_loss=1.0 if found is None else found.base_loss,
        num_deepstack=decoder.num_deepstack(base_config),
    )
    if found is not None:
        plan.scores_digest, plan.calibration = found.digest, found.calibration
        if found.work is not None:
            ran, plain = found.work
            plan.how_reached += (
                f"; the search ran {ran} of {plain} layer evaluations of the plain loop "
                f"({100 * ran / plain:.1f} %)"
            )
    source = Path(base_config) / "source.json"
    provenance = stamp(
        "plan",
        config_digest=digest([method, ratio, settings]),
        seed=seed,
        num_samples=plan.calibration["num_samples"] if plan.calibration else None,
        model_revision=read_json(source)["resolved"] if source.is_file() else None,
    )
    write_text(sheet or Path(out).with_suffix(".md"), plan_sheet(plan))
    write_json(out, {"provenance": provenance, **plan.to_dict()})
    return plan
