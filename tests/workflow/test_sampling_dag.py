"""What is drawn again once samples are there: nothing but the subsets whose plan has changed."""

import json
import re

import pyarrow.parquet as pq
import pytest
import yaml

from interlace.sampling.planned import subset_digest
from tests.tiny import make_tiny_finevision
from tests.workflow.run import ROOT, checkout, snakemake

pytestmark = pytest.mark.slow

SUBSETS = {"text_tiny", "tiny_pairs(a+b)", "tiny_turns", "tiny_vqa"}
SAMPLES = "results/tiny/samples"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A checkout in which the samples of four small subsets were drawn."""
    folder = checkout(tmp_path_factory.mktemp("checkout"))
    make_tiny_finevision(folder / "data", rows=20)
    config = yaml.safe_load((ROOT / "config" / "smoke.yaml").read_text())
    config |= {"run": "tiny", "data": {"source": "local", "path": "data", "fraction": 0.5}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    assert drawn_subsets(draw(folder)) == SUBSETS
    return folder


def draw(folder, *arguments):
    done = snakemake(SAMPLES, *arguments, "--cores", "2", "--configfile", "tiny.yaml", cwd=folder)
    assert done.returncode == 0, done.stdout
    return done.stdout


def drawn_subsets(output):
    return set(re.findall(r"Samples: draw \S+ of (.+)$", output, re.M))


def change_plan(folder, change):
    """Make the plan anew by hand, as another commit would, or with other content."""
    plan = folder / "results" / "tiny" / "sampling" / "plan"
    body = json.loads((plan / "plan.json").read_text())
    change(body)
    (plan / "plan.json").write_text(json.dumps(body))
    table = pq.read_table(plan / "index.parquet")
    pq.write_table(table, plan / "index.parquet", compression="none")


def test_a_plan_that_is_made_again_with_the_same_content_draws_nothing(drawn):
    change_plan(drawn, lambda body: body["provenance"].update(git_commit="another"))
    assert "Nothing to be done" in draw(drawn, "-n")


def test_only_the_subset_whose_plan_changed_is_drawn_again(drawn):
    plan = drawn / "results" / "tiny" / "sampling" / "plan" / "plan.json"
    before = plan.read_bytes()
    digests = {name: subset_digest(plan, name) for name in SUBSETS}
    change_plan(drawn, lambda body: body["subsets"]["tiny_vqa"].update(rows=21))
    output = draw(drawn, "-n")
    assert drawn_subsets(output) == {"tiny_vqa"}
    assert "Samples: gather" in output
    assert {n for n in SUBSETS if subset_digest(plan, n) != digests[n]} == {"tiny_vqa"}
    change_plan(drawn, lambda body: body.update(revision="another"))
    assert {n for n in SUBSETS if subset_digest(plan, n) != digests[n]} == SUBSETS
    plan.write_bytes(before)


def test_a_subset_that_is_added_or_left_out_leaves_the_others_alone(drawn):
    everything = (drawn / "tiny.yaml").read_text()
    config = yaml.safe_load(everything)
    config["data"]["subsets"] = few = ["text_tiny", "tiny_vqa"]
    (drawn / "tiny.yaml").write_text(yaml.safe_dump(config))
    (drawn / "results" / "tiny" / "sampling" / "plan" / "plan.json").unlink()
    assert not drawn_subsets(draw(drawn))
    assert sorted(path.name for path in (drawn / SAMPLES).iterdir() if path.is_dir()) == few
    (drawn / "tiny.yaml").write_text(everything)
    assert not drawn_subsets(draw(drawn))
    assert {path.name for path in (drawn / SAMPLES).iterdir() if path.is_dir()} == SUBSETS
