"""The plan of a pruning: which decoder layers are dropped, tuned and frozen, and why."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from interlace.decoder import layers as decoder
from interlace.decoder.ratio import num_dropped
from interlace.errors import InputError
from interlace.io import digest, read_json, write_json, write_text
from interlace.provenance import stamp
from interlace.selection.method import READINGS, Request
from interlace.selection.registry import METHODS
from interlace.selection.scores import ScoreTable, read_scores
from interlace.selection.sheet import plan_sheet


@dataclass
class LayerPlan:
    """Layers by role, 0-based and ascending; the keys of `<plan id>.json`.

    `ratio` is the percentage asked for (None for dense), `num_dropped` the layers that it drops.
    `triplets` holds, in the order taken, `{start, size, score, drop, tune, anchor}` of each window.
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
    scores_digest: str | None = None
    triplets: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def validate(self) -> None:
        """Raise ValueError unless every layer has exactly one role and the triplets agree."""
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
        seen: set[int] = set()
        for entry in self.triplets:
            window = set(range(entry["start"], entry["start"] + entry["size"]))
            if seen & window:
                raise ValueError(f"the window at {entry['start']} overlaps another")
            seen |= window
            roles = {entry["drop"], entry["tune"], entry["anchor"]} - {None}
            if roles != window or entry["drop"] not in self.drop or entry["tune"] not in self.tune:
                raise ValueError(f"the roles of the window at {entry['start']} contradict the plan")

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-able keys."""
        return asdict(self)

    @classmethod
    def from_dict(cls, body: dict[str, Any]) -> "LayerPlan":
        """Return the plan of `to_dict`'s keys, validated; other keys are ignored.

        Raises ValueError, TypeError or KeyError for a body that is not a plan.
        """
        plan = cls(**{f.name: body[f.name] for f in fields(cls)})
        plan.validate()
        return plan


def read_plan(path: str | Path, num_layers: int | None = None) -> LayerPlan:
    """Read a plan; `InputError` for a file that is none, or one for another depth."""
    try:
        plan = LayerPlan.from_dict(read_json(path))
    except InputError:
        raise
    except (ValueError, TypeError, KeyError) as error:
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
    num_deepstack: int = 0,
) -> LayerPlan:
    """Return the plan of `method` at `ratio` percent.

    `removals` are SLEB's layers in the order of removal. `num_deepstack` is the number of leading
    decoder positions after which the model adds visual features: dropping one of those layers is
    warned of. Raises `InputError` for an unknown method or reading, a ratio that drops none or
    more than a third, protected layers that do not exist or leave too few, and missing scores.
    """
    if method not in METHODS:
        raise InputError(f"experiments.methods: `{method}` is none of {', '.join(METHODS)}")
    if reading not in READINGS:
        raise InputError(f"plan.reading: `{reading}` is none of {', '.join(READINGS)}")
    protected = frozenset(protect)
    unknown = sorted(layer for layer in protected if layer not in range(num_layers))
    if unknown:
        raise InputError(
            f"plan.protect: layer {unknown[0]} is none of 0..{num_layers - 1} (layers count from 0)"
        )
    entry = METHODS[method]
    if entry.needs_scores and scores is None:
        raise InputError(f"{method}: needs similarity scores; run the stage `scores` first")
    if entry.needs_sleb and removals is None:
        raise InputError(f"{method}: needs sleb.json; run the stage `scores` first")
    if scores is not None and scores.num_layers != num_layers:
        raise InputError(f"scores of {scores.num_layers} layers for a model of {num_layers}")
    count = 0
    if entry.needs_ratio:
        if ratio is None:
            raise InputError(f"experiments.ratios: {method} needs a ratio")
        count = num_dropped(ratio, num_layers)
    if num_layers - len(protected) < 2 * count:
        raise InputError(
            f"plan.protect: {len(protected)} protected layers leave too few of {num_layers} to drop "
            f"{count} and tune {count}"
        )
    request = Request(num_layers, count, reading, seed, protected, scores, removals)
    choice = entry.choose(request)
    drop, tune = sorted(choice.drop), sorted(choice.tune)
    how = choice.how_reached
    if entry.needs_scores and reading == "released":
        how += "; scores are of whole conversations, where the released code reads the first prompt"
    moved = [layer for layer in drop if layer < num_deepstack]
    warnings = list(choice.warnings)
    if moved:
        warnings.append(
            f"DeepStack adds visual features after decoder positions 0..{num_deepstack - 1} by "
            f"position; dropping layer {', '.join(map(str, moved))} makes them enter after other "
            "layers than in the dense model (plan.protect keeps a layer)"
        )
    plan = LayerPlan(
        model=model,
        method=method,
        ratio=ratio if entry.needs_ratio else None,
        num_layers=num_layers,
        num_dropped=len(drop),
        drop=drop,
        tune=tune,
        freeze=[layer for layer in range(num_layers) if layer not in {*drop, *tune}],
        reading=reading,
        seed=seed,
        how_reached=how,
        scores_digest=scores.digest if scores is not None and entry.needs_scores else None,
        triplets=choice.triplets,
        warnings=warnings,
    )
    plan.validate()
    return plan


def write_plan(
    method: str,
    ratio: float | None,
    scores_dir: str | Path | None,
    sleb: str | Path | None,
    base_config: str | Path,
    out: str | Path,
    settings: dict[str, Any],
    *,
    model_key: str,
    seed: int,
    config_digest: str | None = None,
    sheet: str | Path | None = None,
) -> LayerPlan:
    """Write the plan to `out` (JSON) and its sheet to `sheet` (default: beside it, `.md`).

    `scores_dir` holds `pack1.json` ..., `sleb` is SLEB's `sleb.json`; either may be None where the
    method does not need it. `settings`: `reading` and `protect`. Loads no torch.
    """
    layers = decoder.num_layers(base_config)
    reading = settings.get("reading", "paper")
    if reading not in READINGS:
        raise InputError(f"plan.reading: `{reading}` is none of {', '.join(READINGS)}")
    scores = removals = None
    if scores_dir is not None:
        scores = read_scores(scores_dir, reading, model_key, layers)
    digest_of = None
    if method in METHODS and METHODS[method].needs_sleb and sleb is not None:
        removals, digest_of = _read_removals(Path(sleb), model_key, layers)
    plan = make_plan(
        method,
        ratio,
        scores,
        num_layers=layers,
        model=model_key,
        reading=reading,
        protect=settings.get("protect") or (),
        seed=seed,
        removals=removals,
        num_deepstack=decoder.num_deepstack(base_config),
    )
    if digest_of is not None:
        plan.scores_digest = digest_of
    source = Path(base_config) / "source.json"
    provenance = stamp(
        "plan",
        config_digest=config_digest or digest([method, ratio, settings]),
        seed=seed,
        num_samples=_num_samples(scores_dir, sleb),
        model_revision=read_json(source)["resolved"] if source.is_file() else None,
    )
    write_text(sheet or Path(out).with_suffix(".md"), plan_sheet(plan, scores))
    write_json(out, {"provenance": provenance, **plan.to_dict()})
    return plan


def _num_samples(scores_dir: str | Path | None, sleb: str | Path | None) -> int | None:
    """Return how many calibration samples stand behind the plan; None where none do."""
    path = Path(scores_dir) / "pack1.json" if scores_dir is not None else sleb
    if path is None:
        return None
    return (read_json(path).get("provenance") or {}).get("num_samples")


def _read_removals(path: Path, model: str, num_layers: int) -> tuple[list[int], str]:
    body = read_json(path)
    try:
        found = (body["model"], body["num_layers"])
        removals = [int(removal["layer"]) for removal in body["removals"]]
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{path}: not a result of SLEB's search ({error!r}); search again"
        ) from None
    if found != (model, num_layers):
        raise InputError(
            f"{path}: a search on {found[0]}, {found[1]} layers; needed is {model}, {num_layers}: "
            "search again"
        )
    return removals, digest(body["removals"])
