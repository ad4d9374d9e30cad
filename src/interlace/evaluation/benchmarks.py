"""The paper's twelve benchmarks: what each is called, how it is scored, what it needs.

Loads without torch or vlmeval. Names and order are the paper's; datasets are VLMEvalKit's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from interlace.errors import InputError

TEXT_CHART, GVQA, PERCEPTION, INST_SCI = "Text/Chart", "GVQA", "Perception", "Inst&Sci"

# Qwen3VLChat reads OCRBench images at no less than this, whatever min_pixels says.
OCRBENCH_MIN_PIXELS = 10 * 10 * 32 * 32


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    `dense_reference` tells whether the paper's dense score is `reported` (by Qwen) or `measured`;
    `chance` is the score (0-100) of one constant or random answer, for four options where the
    benchmark is multiple choice; `needs_grader` that a grading model reads the answers; `columns`
    are those its TSV cannot do without.
    """

    name: str
    dataset: str
    category: str
    dense_reference: str
    unit: str
    chance: float
    needs_grader: bool = False
    exact_matching: bool = False
    columns: tuple[str, ...] = ("index", "image", "question", "answer")


_CHOICE = ("index", "image", "question", "answer", "A", "B")

_ALL = (
    Benchmark("AI2D", "AI2D_TEST", TEXT_CHART, "reported", "accuracy", 25.0, False, True, _CHOICE),
    Benchmark("ChartQA", "ChartQA_TEST", TEXT_CHART, "measured", "relaxed accuracy", 0.0),
    Benchmark(
        "OCRBench",
        "OCRBench",
        TEXT_CHART,
        "reported",
        "accuracy (substring)",
        0.0,
        columns=("index", "image", "question", "answer", "category"),
    ),
    Benchmark("TextVQA", "TextVQA_VAL", TEXT_CHART, "measured", "VQA accuracy", 0.0),
    Benchmark(
        "MMBench",
        "MMBench_DEV_EN_V11",
        GVQA,
        "reported",
        "circular accuracy",
        100 / 4**4,  # all four rotations have to be right
        False,
        True,
        _CHOICE,
    ),
    Benchmark(
        "POPE",
        "POPE",
        GVQA,
        "measured",
        "F1",
        200 / 3,  # always yes on balanced questions: precision 1/2, recall 1
        False,
        True,
        ("index", "image", "question", "answer", "category"),
    ),
    Benchmark(
        "RealWorldQA", "RealWorldQA", GVQA, "reported", "accuracy", 25.0, False, True, _CHOICE
    ),
    Benchmark(
        "HRBench4K",
        "HRBench4K",
        PERCEPTION,
        "reported",
        "accuracy",
        25.0,
        False,
        True,
        (*_CHOICE, "category", "cycle_category"),
    ),
    Benchmark(
        "HRBench8K",
        "HRBench8K",
        PERCEPTION,
        "reported",
        "accuracy",
        25.0,
        False,
        True,
        (*_CHOICE, "category", "cycle_category"),
    ),
    Benchmark(
        "VStar", "VStarBench", PERCEPTION, "reported", "accuracy", 25.0, False, True, _CHOICE
    ),
    Benchmark(
        "MIABench",
        "MIA-Bench",
        INST_SCI,
        "reported",
        "mean grade",
        0.0,
        needs_grader=True,
        columns=(
            *("index", "image", "question"),
            *("num_of_component", "components", "component_weight", "component_type"),
        ),
    ),
    Benchmark(
        "ScienceQA", "ScienceQA_TEST", INST_SCI, "measured", "accuracy", 25.0, False, True, _CHOICE
    ),
)

BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}
DATASETS: dict[str, Benchmark] = {benchmark.dataset: benchmark for benchmark in _ALL}


def get_benchmark(name: str) -> Benchmark:
    """Return the benchmark called `name`; InputError with the possible names otherwise."""
    try:
        return BENCHMARKS[name]
    except KeyError:
        raise InputError(
            f"benchmark '{name}' is unknown (possible: {', '.join(BENCHMARKS)})"
        ) from None


# Rows of the official file and visual tokens of a typical image: estimates, which only decide how
# benchmarks are shared out among jobs.
_SIZES = {
    "AI2D": (3088, 400),
    "ChartQA": (2500, 500),
    "OCRBench": (1000, 400),
    "TextVQA": (5000, 800),
    "MMBench": (4876, 200),
    "POPE": (5127, 300),
    "RealWorldQA": (765, 1500),
    "HRBench4K": (800, 8000),
    "HRBench8K": (800, 16384),
    "VStar": (191, 3500),
    "MIABench": (400, 1000),
    "ScienceQA": (2017, 250),
}
_ANSWER_COST = 2000
"""What generating an answer costs, in visual tokens: an estimate as well."""


def cost(name: str) -> int:
    """Return about what a benchmark costs to evaluate, in visual tokens of prefill."""
    rows, visual_tokens = _SIZES[name]
    return rows * (visual_tokens + _ANSWER_COST)


def shared_out(names: Sequence[str], groups: int) -> list[list[str]]:
    """Return `names` in at most `groups` groups of about the same cost, each in the given order.

    The costliest benchmark goes first, each to the group that has the least so far.
    """
    found: list[list[str]] = [[] for _ in range(min(groups, len(names)))]
    for name in sorted(names, key=lambda name: (-cost(name), name)):
        min(found, key=lambda group: sum(cost(n) for n in group)).append(name)
    return [sorted(group, key=list(names).index) for group in found]


def by_dataset(dataset: str) -> Benchmark:
    """Return the benchmark whose VLMEvalKit dataset is `dataset`; InputError otherwise."""
    try:
        return DATASETS[dataset]
    except KeyError:
        raise InputError(
            f"dataset '{dataset}' is unknown (possible: {', '.join(DATASETS)})"
        ) from None


def asks_grader(benchmark: Benchmark, extract: bool) -> bool:
    """Return whether a grader reads a benchmark's answers, with or without `extract`."""
    return benchmark.needs_grader or (extract and benchmark.exact_matching)


def is_loopback(base_url: str) -> bool:
    """Return whether an address is this machine's own; one that is no address is not."""
    try:
        return urlsplit(base_url).hostname in ("127.0.0.1", "localhost", "::1")
    except ValueError:
        return False
