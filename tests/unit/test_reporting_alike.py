"""Which results may stand in one table: what they were made with, as far as they record it."""

import pytest

from interlace.errors import InputError
from interlace.reporting.alike import check_alike
from interlace.reporting.results import load_results
from tests.unit.reporting_results import write_score

VERSIONS = {"torch": "2.14.1", "transformers": "5.23.0", "vlmeval": "0.0.20"}


def made(revision="a", batch_size=64, **versions):
    return {
        "provenance": {"model_revision": revision, "versions": VERSIONS | versions},
        "generation": {"max_new_tokens": 50, "dtype": "bfloat16", "engine": "batched"},
        "batching": {"batch_size": batch_size, "batch_tokens": 65536},
    }


def check(root, first, second, variants=("dense", "dense"), names=("AI2D", "POPE")):
    parts = zip(variants, names, (first, second), strict=True)
    files = [write_score(root, "big", v, "cot", name, 50.0, **body) for v, name, body in parts]
    check_alike(load_results(files))


OTHERS = {"variants": ("dense", "interlace-25"), "names": ("AI2D", "AI2D")}


def test_one_variant_is_one_checkpoint(tmp_path):
    with pytest.raises(InputError, match=r"provenance\.model_revision is 'a' and 'b'; delete one"):
        check(tmp_path, made("a"), made("b"))
    check(tmp_path, made("a"), made("a"))
    check(tmp_path, made("a"), made("b"), **OTHERS)
    check(tmp_path, made("a"), made(None))  # which did not say


@pytest.mark.parametrize("name", ["vlmeval", "transformers"])
def test_a_benchmark_is_evaluated_with_the_same_versions(tmp_path, name):
    other = made(**{name: "1"})
    with pytest.raises(InputError, match=rf"provenance\.versions\.{name} is '.*' and '1'"):
        check(tmp_path, made(), other, **OTHERS)
    check(tmp_path, made(), made(torch="1", **{name: None}), **OTHERS)
    check(tmp_path, made(), other)  # another benchmark, which is not compared with the first


def test_other_batch_sizes_may_stand_beside(tmp_path):
    check(tmp_path, made(), made(batch_size=8), **OTHERS)
