"""The similarity scores that a plan is made from: one number per window of layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interlace.errors import InputError
from interlace.io import digest

if TYPE_CHECKING:  # the store reads Parquet, which a planner without a file does without
    import numpy as np

    from interlace.scoring.store import Windows

Means = Mapping[int, Sequence[float | None]]
READINGS = ("paper", "released")
_COLUMNS = {"all": [0, 1], "text": [0], "visual": [1]}
COSINE_LIMIT = 1.001  # of an absolute mean, rounding allowed for


@dataclass(frozen=True)
class ScoreTable:
    """Mean cosine similarity of the hidden state before and after each window of layers.

    `token_means[k][i]` is the mean over all tokens for layers i..i+k-1 (0-based), `sample_means`
    the mean over samples of each one's token mean; all starts 0..L-k are there, None for a window
    that was not measured. `token_means` is None where token counts are unknown (imported scores).
    `calibration` says what was measured: text, modality, subsets, num_samples. `source` names the
    file in messages, `weights` those measured on (`interlace.stamps.weights_record`).
    """

    num_layers: int
    token_means: Means | None
    sample_means: Means
    digest: str | None = None
    calibration: dict[str, Any] = field(default_factory=dict)
    source: str = "scores"
    weights: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for means in (self.token_means or {}, self.sample_means):
            for size, scores in means.items():
                if len(scores) != self.num_layers - size + 1:
                    raise InputError(
                        f"{self.source}: {len(scores)} windows of {size} layers; {self.num_layers} "
                        f"layers have {self.num_layers - size + 1}: score this model again"
                    )
                for start, score in enumerate(scores):
                    if score is not None and not abs(score) <= COSINE_LIMIT:  # NaN neither
                        raise InputError(
                            f"{self.source}: the score of layers {start}..{start + size - 1} is "
                            f"{score}, no mean of cosines; score this model again"
                        )

    def tokens(self, size: int, *, last: bool = True) -> list[float | None]:
        """Return the token means of the windows of `size` by start; None without the `last` layer.

        Raises `InputError` where token counts are unknown or windows of `size` were not measured.
        """
        if self.token_means is None:
            raise InputError(
                f"{self.source}: imported scores have no token counts, which plan.reading `paper` "
                "weighs by; set plan.reading: released, or measure (models.<key>.scores: null)"
            )
        return self._by_start(self.token_means, size, last)

    def samples(self, size: int, *, last: bool = True) -> list[float | None]:
        """Return the means over samples of the windows of `size`, as `tokens` does."""
        return self._by_start(self.sample_means, size, last)

    def read(self, size: int, reading: str) -> list[float | None]:
        """Return the scores that `reading` goes by, None for a window it does not consider.

        `paper`: the mean over all tokens, every window. `released`: the mean over samples; windows
        stop one short, so that the last layer is in none.
        """
        if reading == "released":
            return self.samples(size, last=False)
        return self.tokens(size)

    def _by_start(self, means: Means, size: int, last: bool) -> list[float | None]:
        if size not in means:
            longer = all(size > held for held in means)
            setting = f"set scoring.max_window to {size} or more and " if longer else ""
            raise InputError(
                f"{self.source}: holds windows of {', '.join(map(str, sorted(means)))} layers, needed "
                f"are those of {size}; {setting}score this model again"
            )
        scores = list(means[size]) if last else [*means[size][:-1], None]
        for start, score in enumerate(scores):
            if score is None and (last or start + size < self.num_layers):
                raise InputError(
                    f"{self.source}: layers {start}..{start + size - 1} were not measured; score "
                    "this model again (imported scores: set models.<key>.scores to null)"
                )
        return scores


def read_scores(
    path: str | Path,
    model: str,
    num_layers: int,
    modality: str = "all",
    subsets: Sequence[str] | None = None,
) -> ScoreTable:
    """Read `windows.parquet`; `modality` and `subsets` choose the tokens and samples to go by.

    `modality`: `all` tokens, or those of `text` or `visual` alone; samples that have none of them
    are left out. `subsets`: names of the dataset's subsets; None for every one. The sums are exact
    (`math.fsum`), so that the order of the rows does not matter. Raises `InputError` for scores of
    another model or depth, NaN, a missing window, and where no sample is left.
    """
    from interlace.scoring.store import read_windows, window_means

    found = read_windows(path)
    name = str(path)
    if (found.info["model"], found.info["num_layers"]) != (model, num_layers):
        raise InputError(
            f"{name}: scores of {found.info['model']}, {found.info['num_layers']} layers; needed "
            f"are {model}, {num_layers} layers: score this model again"
        )
    counted = bool(found.info["counts_known"])
    if modality not in _COLUMNS:
        raise InputError(f"plan.modality: `{modality}` is none of {', '.join(_COLUMNS)}")
    if modality != "all" and not counted:
        raise InputError(
            f"plan.modality: {name} holds imported scores, which do not tell {modality} tokens "
            "apart; set plan.modality: all, or measure (models.<key>.scores: null)"
        )
    rows, columns = _rows(found, subsets, name), _COLUMNS[modality]
    sums_NW = found.sums[rows][:, :, columns].sum(2)
    counts_N = found.counts[rows][:, columns].sum(1)
    sums_NW, counts_N = sums_NW[counts_N > 0], counts_N[counts_N > 0]
    if not len(counts_N):
        if modality == "all":
            raise InputError(f"{name}: no sample has tokens; score this model again")
        raise InputError(
            f"plan.modality: {name} holds no sample with {modality} tokens; set plan.modality: all"
        )
    _check_means(found.windows, sums_NW, counts_N, counted, name)
    token_means, sample_means = (
        _by_size(found.windows, num_layers, means) for means in window_means(sums_NW, counts_N)
    )
    calibration = {
        "text": found.info["text"],
        "modality": modality,
        "subsets": None if subsets is None else sorted(subsets),
        "num_samples": len(counts_N),
    }
    if found.info.get("imported_from"):
        calibration["imported_from"] = found.info["imported_from"]
    return ScoreTable(
        num_layers,
        token_means if counted else None,
        sample_means,
        digest([calibration, _listed(token_means), _listed(sample_means)]),
        calibration,
        name,
        {key: found.info.get(key) for key in ("model_digest", "model_files")},
    )


def _rows(found: "Windows", subsets: Sequence[str] | None, name: str) -> list[int]:
    """Return the rows of `subsets`; `InputError` for a subset that no sample is of."""
    if subsets is not None:
        missing = sorted(set(subsets) - set(found.subsets))
        if missing or not subsets:
            known = sorted(set(found.subsets))
            more = ", ..." if len(known) > 8 else ""
            raise InputError(
                f"plan.subsets: {name} holds no sample of `{missing[0] if missing else ''}`; it has "
                f"{', '.join(known[:8])}{more}"
            )
    return [row for row, subset in enumerate(found.subsets) if subsets is None or subset in subsets]


def _check_means(
    windows: Sequence[tuple[int, int]],
    sums_NW: "np.ndarray",
    counts_N: "np.ndarray",
    counted: bool,
    name: str,
) -> None:
    """Refuse a sample's mean that is no mean of cosines, NaN and infinity too.

    Imported scores may lack a window in every sample (all NaN).
    """
    import numpy as np

    means_NW = sums_NW / counts_N[:, None]
    bad_NW = ~(np.abs(means_NW) <= COSINE_LIMIT)
    if not counted:
        bad_NW &= ~np.isnan(means_NW).all(0)
    if bad_NW.any():
        row, column = map(int, np.argwhere(bad_NW)[0])
        size, start = windows[column]
        raise InputError(
            f"{name}: the score of layers {start}..{start + size - 1} is {means_NW[row, column]} "
            "in a sample, no mean of cosines; score this model again"
        )


def _by_size(windows: Sequence[tuple[int, int]], num_layers: int, means: list[Any]) -> Means:
    """Return `means`, one a window, by size and start."""
    by_size: dict[int, list[float | None]] = {}
    for (size, start), mean in zip(windows, means, strict=True):
        by_size.setdefault(size, [None] * (num_layers - size + 1))[start] = mean
    return by_size


def _listed(means: Means) -> list[Any]:
    return sorted([size, list(scores)] for size, scores in means.items())
