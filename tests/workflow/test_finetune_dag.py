"""What a change of the section `finetune` makes Snakemake do again: nothing that keeps the weights."""

import re

import pytest
import yaml

from tests.workflow.run import ROOT, checkout, snakemake

TARGETS = [f"results/smoke/standin_8b/checkpoints/interlace-25{end}" for end in ("", "-ft")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A checkout whose checkpoints count as made, by the settings of config/smoke.yaml."""
    folder = checkout(tmp_path_factory.mktemp("checkout"))
    for made in [*TARGETS, "results/smoke/standin_8b/base", "results/smoke/samples"]:
        (folder / made).mkdir(parents=True)
    plans = folder / "results/smoke/standin_8b/plans"
    plans.mkdir()
    for name in ("interlace-25.json", "interlace-25.md"):
        (plans / name).touch()
    done = snakemake(
        "--touch", "--force", "--cores", "1", "--configfile", "config/smoke.yaml", "--", *TARGETS,
        cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return folder


def done_again(folder, **changes):
    """Return the rules that a dry run names after the settings of fine-tuning have changed."""
    config = yaml.safe_load((ROOT / "config" / "smoke.yaml").read_text())
    config["finetune"].update(changes)
    (folder / "changed.yaml").write_text(yaml.safe_dump(config))
    done = snakemake("-n", "--configfile", "changed.yaml", "--", *TARGETS, cwd=folder)
    assert done.returncode == 0, done.stdout
    return set(re.findall(r"^(finetune|prune) +\d+$", done.stdout, re.M))


def test_what_does_not_decide_the_weights_does_nothing_again(finished):
    assert not done_again(
        finished, workers=3, checkpoint_minutes=1, max_failed_share=0.5, pack_tokens=300,
        recipe="paper", levers={"sharding": "none", "checkpointing": "tuned"},
        deepspeed="config/deepspeed/zero3_offload.json", kd={"weight": 0.3},
    )  # fmt: skip


def test_what_does_tunes_again_and_prunes_nothing(finished):
    assert done_again(finished, learning_rate=3e-3) == {"finetune"}
    assert done_again(finished, processes=2) == {"finetune"}
