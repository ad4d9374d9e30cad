import subprocess
import sys

import pytest

from interlace.errors import InputError
from interlace.evaluation.benchmarks import (
    BENCHMARKS,
    by_dataset,
    get_benchmark,
    is_loopback,
)


def test_the_papers_twelve_in_the_papers_order():
    assert list(BENCHMARKS) == [
        *("AI2D", "ChartQA", "OCRBench", "TextVQA", "MMBench", "POPE", "RealWorldQA"),
        *("HRBench4K", "HRBench8K", "VStar", "MIABench", "ScienceQA"),
    ]
    categories = [benchmark.category for benchmark in BENCHMARKS.values()]
    assert {c: categories.count(c) for c in categories} == {
        "Text/Chart": 4,
        "GVQA": 3,
        "Perception": 3,
        "Inst&Sci": 2,
    }
    assert by_dataset("MMBench_DEV_EN_V11").name == "MMBench"
    assert [name for name, b in BENCHMARKS.items() if b.needs_grader] == ["MIABench"]
    assert BENCHMARKS["POPE"].chance == pytest.approx(66.67, abs=0.01)


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"'AI2' is unknown \(possible: AI2D, ChartQA"):
        get_benchmark("AI2")
    with pytest.raises(InputError, match="dataset 'AI2D' is unknown"):
        by_dataset("AI2D")


def test_loads_without_torch_and_vlmeval():
    code = (
        "import sys, interlace.evaluation.benchmarks\n"
        "sys.exit(any(m in sys.modules for m in ('torch', 'vlmeval', 'pandas', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_address_on_this_machine():
    assert is_loopback("http://localhost:1/v1")
    assert not is_loopback("http://127.0.0.1.example/v1")
    assert not is_loopback("http://[x/v1")
