"""What tables are made from: results, the paper, the config's models and experiments."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from interlace.reporting.estimates import Estimate
from interlace.reporting.labels import Variant, model_label, parse_variant
from interlace.reporting.paper import ABLATION_RATIO, MODELS, Paper
from interlace.reporting.resamples import Resampler
from interlace.reporting.results import Results, Score
from interlace.reporting.timings import Timing

PAPER_ABLATIONS = ("consecutive", "random", "interlace_oa", "interlace_tn")
DENSE = Variant("dense", None, False)
DENSE_FT = Variant("dense", None, True)


@dataclass(frozen=True)
class Sources:
    """What every table is made from; `results` are means over seeds."""

    results: Results
    paper: Paper
    models: Mapping[str, Mapping[str, Any]]
    experiments: Mapping[str, Any]
    resampler: Resampler

    @property
    def primary(self) -> str:
        """Key of the model that methods are compared on."""
        return self.experiments["primary"]

    @property
    def ratio(self) -> float:
        """The ratio of the comparisons in percent."""
        return self.experiments["ratio"]

    @property
    def method(self) -> str:
        """The main method."""
        return self.experiments.get("method", "interlace")

    @property
    def reference(self) -> Variant:
        """The main method at the ratio of the comparisons, fine-tuned."""
        return Variant(self.method, float(self.ratio), True)

    @property
    def primary_in_paper(self) -> bool:
        """Tables 2, 3, 5 and 6 are about the 8B."""
        return self.models[self.primary].get("paper") == MODELS[0]

    def comparable(self, variant: Variant) -> bool:
        """Whether the paper's cell of this variant's method is about the same thing."""
        return self.primary_in_paper and variant.ratio in (None, ABLATION_RATIO)

    def of_primary(self, title: str) -> str:
        """Return a title that names the primary model."""
        return f"{title}, {model_label(self.primary, self.models)}"

    def scores(self, variant: Variant, mode: str, model: str | None = None) -> dict[str, Estimate]:
        """Return a variant's scores by benchmark, with resamples where there are outcomes."""
        found = self.results.values(model or self.primary, variant.id, mode)
        return {name: self._estimate(score, name) for name, score in found.items()}

    def _estimate(self, score: Score, benchmark: str) -> Estimate:
        resampled = self.resampler.of_score(score, benchmark)
        return Estimate(
            score.value,
            None if resampled is None else resampled.scores,
            score.by_seed,
            score.low,
            score.high,
            score.partial,
            resampled,
            score.num_samples,
            0 if resampled is None else resampled.num_questions,
            0 if resampled is None else resampled.num_questions,
            score.files[0] if score.files else None,
        )

    def timings(self, model: str, variant: Variant) -> Mapping[str, Timing]:
        """Return TTFT by benchmark; fine-tuning changes no shape, so either form will do."""
        either = (variant, Variant(variant.method, variant.ratio, not variant.tuned))
        found = (self.results.timings.get((model, candidate.id)) for candidate in either)
        return next(filter(None, found), {})

    def speedups(self, model: str, variant: Variant) -> dict[str, Estimate]:
        """Return TTFT speed-ups by benchmark."""
        timings = self.timings(model, variant)
        return {n: Estimate(t.speedup, low=t.low, high=t.high) for n, t in timings.items()}

    def comparison(self) -> list[Variant]:
        """Return the rows of Table 2: the paper's, then whatever else was run, the main method last."""
        ratio = float(self.ratio)
        rows = [
            DENSE,
            DENSE_FT,
            Variant("wanda_2_4", None, False),
            Variant("magnitude_2_4", None, False),
        ]
        rows += [Variant("sleb", ratio, False), Variant("sleb", ratio, True)]
        main = {Variant("interlace", ratio, True), self.reference}
        rows += sorted(self._others("limited") - {*rows} - main, key=lambda v: v.order)
        return [*rows, *sorted(main - {*rows}, key=lambda v: v == self.reference)]

    def ablations(self) -> list[Variant]:
        """Return the methods of Tables 3 and 5: the paper's, the config's, whatever else was run."""
        ratio = float(self.ratio)
        methods = dict.fromkeys([*PAPER_ABLATIONS, *self.experiments.get("ablations", [])])
        rows = [Variant(method, ratio, True) for method in methods]
        others = {variant for variant in self._others("cot") if variant.ratio is not None}
        rows += sorted(others - {*rows}, key=lambda v: v.order)
        return [variant for variant in rows if variant != self.reference]

    def _others(self, mode: str) -> set[Variant]:
        """Return the primary model's variants in `mode` that belong to the comparisons' ratio."""
        found = set()
        for model, name, results_mode in self.results.scores:
            variant = parse_variant(name)
            if model == self.primary and results_mode == mode:
                found.add(variant)
        return {v for v in found if v.ratio in (None, float(self.ratio))}
