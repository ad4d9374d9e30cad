"""The conda files by role pin what the lock pins."""

import re
from pathlib import Path

import pytest
import yaml

ENVS = Path(__file__).resolve().parents[2] / "envs"


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def lock():
    lines = (ENVS / "requirements.lock").read_text().splitlines()
    pins = [line.split("==") for line in lines if "==" in line]
    return {canonical(name): version for name, version in pins}


@pytest.mark.parametrize("path", sorted(ENVS.glob("*.yaml")), ids=lambda p: p.stem)
def test_conda_pins_equal_the_lock(path):
    pinned = lock()
    (pip,) = [
        d["pip"] for d in yaml.safe_load(path.read_text())["dependencies"] if isinstance(d, dict)
    ]
    assert pip
    for requirement in pip:
        name, version = requirement.split("==")
        assert pinned[canonical(name)] == version


def test_post_deploy_pins_equal_the_lock():
    (pin,) = re.findall(r"ms-vlmeval==(\S+)", (ENVS / "evaluate.post-deploy.sh").read_text())
    assert lock()["ms-vlmeval"] == pin


def test_every_requirement_is_locked():
    pinned = lock()
    for line in (ENVS / "requirements.in").read_text().splitlines():
        requirement = line.split("#")[0].strip()
        if requirement:
            assert canonical(re.split(r"[=<>~]", requirement)[0]) in pinned
