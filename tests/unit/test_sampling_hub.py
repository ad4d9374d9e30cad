"""Sampling from a hub that fails, dies and asks for a token: the same sample, nothing fetched twice.

Each sample is drawn by a process of its own, since huggingface_hub reads its environment at import.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from interlace.errors import InputError
from interlace.io import folder_digest
from interlace.sampling import hub as hub_files
from interlace.sampling.index import load_index
from interlace.sampling.ranges import RangeReader
from interlace.sampling.run import draw_samples
from tests.finevision_like import REPO, write_scaled
from tests.loopback_hub import FAULTS, Hub

NAMES = ("geoqa+(mathv360k)", "text_OpenMathInstruct-2", "aguvis-stage-1", "chartqa")
ADDRESS = f"hf://datasets/{REPO}"
SETTINGS = {"fraction": 0.2, "unit": "row", "workers": 8}
FEW = {"subsets": ["chartqa"]}
DRAW = """
import json, sys
from interlace.errors import InputError
from interlace.sampling import ranges
from interlace.sampling.run import draw_samples
ranges.FIRST_WAIT_S = 0.02
try:
    draw_samples(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), seed=7)
except InputError as error:
    sys.exit(f"InputError: {error}")
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """240 row groups in 16 shards of four subsets."""
    root = tmp_path_factory.mktemp("hub")
    write_scaled(root, dict.fromkeys(NAMES, 600), shard_rows=150, group_rows=10)
    return root


@pytest.fixture(scope="module")
def digests(root, tmp_path_factory):
    """What one worker draws from the folder itself: by unit, and of one subset by row."""
    found = {}
    for key, settings in (("row", {}), ("row_group", {"unit": "row_group"}), ("few", FEW)):
        out = tmp_path_factory.mktemp(key) / "samples"
        draw_samples(root / REPO, out, SETTINGS | {"workers": 1} | settings, seed=7)
        found[key] = folder_digest(out, "*.parquet")
    assert found["row"] != found["row_group"]
    return found


def start(hub, folder, settings=None, address=ADDRESS, **variables):
    """Start drawing to `folder`/samples with an empty HF_HOME beside it."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_DOWNLOAD_TIMEOUT": "10",
    }
    out, options = folder / "samples", json.dumps(SETTINGS | (settings or {}))
    return subprocess.Popen(
        [sys.executable, "-c", DRAW, address, str(out), options],
        env=environment | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def draw(hub, folder, settings=None, address=ADDRESS, **variables):
    """Draw to `folder`/samples; return the exit status and all that was printed."""
    process = start(hub, folder, settings, address, **variables)
    out, err = process.communicate()
    return process.returncode, out + err


def complaint(printed):
    """Return the one line that the sampler ended with."""
    lines = printed[printed.index("InputError: ") :].splitlines()
    assert len(lines) == 1, printed
    return lines[0]


def summary(folder):
    return json.loads((folder / "samples" / "samples.json").read_text())


def data_ranges(*indexes):
    """Return subset -> (served path, range) of each of its row groups, from footers as saved."""
    found = {}
    for subset in (subset for index in indexes for subset in load_index(index)):
        columns = (subset.groups[key].tolist() for key in ("shard", "start", "length"))
        found[subset.name] = [
            (f"{subset.name}/{shard}", (start, start + length))
            for shard, start, length in zip(*columns, strict=True)
        ]
    return found


def served(hub, since=0):
    """Return (path below the dataset, range) of each whole answer with a range, in order."""
    return [
        ("/".join(request.path.split("/")[6:]), request.range)
        for request in hub.requests()[since:]
        if request.complete and request.range and request.method == "GET"
    ]


@pytest.mark.parametrize("unit", ["row", "row_group"])
def test_eight_workers_and_one_request_in_twenty_failing_change_nothing(
    root, digests, tmp_path, unit
):
    faults = {"fault_share": 0.05, "retry_after_s": 0, "stall_s": 4.0, "seed": 3}
    with Hub(root, cdn=unit == "row_group", **faults) as hub:
        status, printed = draw(hub, tmp_path, {"unit": unit}, HF_HUB_DOWNLOAD_TIMEOUT="3")
        failed = {request.fault for request in hub.requests() if request.fault}
        assert status == 0, printed
        if unit == "row":
            assert failed >= set(FAULTS)
        assert "hub" in {request.host for request in hub.requests() if request.fault}
        assert max(hub.served().values()) == 1
    assert folder_digest(tmp_path / "samples", "*.parquet") == digests[unit]


@pytest.mark.parametrize(
    ("unit", "steps", "least"), [("row", (10, 40), 50), ("row_group", (12, 16), 0)]
)
def test_killed_five_times_while_requests_fail_it_fetches_nothing_twice(
    root, digests, tmp_path, unit, steps, least
):
    moments, workers = random.Random(11), 8
    with Hub(root, fault_share=0.05, retry_after_s=0, stall_s=1.0, seed=5) as hub:
        work = tmp_path / ".samples.sampling"
        done, ranges = set(), {}
        for killing in range(5):
            since = len(hub.requests())
            hub.hold(moments.randint(8, 20) if not killing else moments.randint(*steps))
            process = start(hub, tmp_path, {"unit": unit})
            while not hub.holding() and process.poll() is None:
                time.sleep(0.002)
            time.sleep(moments.uniform(0, 0.03))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            hub.hold(None)
            assert process.returncode == -signal.SIGKILL, "it was through before it was killed"
            now = served(hub, since)
            assert not done & set(now)
            if (work / "plan" / "plan.json").exists():
                ranges = data_ranges(work / "plan" / "index.parquet")
                for name, of_subset in ranges.items():
                    spooled = (work / "spool" / name).glob("*/*-00.arrow")
                    done |= {of_subset[int(path.name.split("-")[0])] for path in spooled}
                    if (work / "subsets" / name).exists():
                        done |= set(of_subset)
        assert len(done) > least
        since = len(hub.log)
        status, printed = draw(hub, tmp_path, {"unit": unit})
        assert status == 0, printed
        assert not done & set(served(hub, since))
        again = sum(n - 1 for n in Counter(served(hub)).values())
        # Only what was on its way when the process died: at most a range a worker and kill.
        assert again <= 5 * workers
    assert folder_digest(tmp_path / "samples", "*.parquet") == digests[unit]
    assert not work.exists()


def test_killed_while_planning_it_asks_for_no_footer_twice(tmp_path):
    # Thirty footers of a request each, since of two the first may be answered and lost.
    folder = write_scaled(tmp_path, {f"s{i}": 30 for i in range(10)}, shard_rows=10, group_rows=10)
    draw_samples(folder, tmp_path / "local" / "samples", SETTINGS | {"workers": 1}, seed=7)
    with Hub(tmp_path) as hub:
        known = set()
        for count in (12, 12, 12):  # the listing among them
            hub.hold(count)
            process = start(hub, tmp_path)
            while not hub.holding() and process.poll() is None:
                time.sleep(0.002)
            known = set(served(hub))
            deadline = time.monotonic() + 60  # the parser's process starts with the first footer
            while noted(tmp_path) < len(known) and time.monotonic() < deadline:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            hub.hold(None)
            assert noted(tmp_path) == len(known)
        assert 10 < len(known) < 30
        status, printed = draw(hub, tmp_path)
        assert status == 0, printed
        assert max(Counter(served(hub)).values()) == 1
    local, far = tmp_path / "local" / "samples", tmp_path / "samples"
    assert folder_digest(far, "*.parquet") == folder_digest(local, "*.parquet")


def noted(folder):
    """Return how many footers a planning that was killed knows of."""
    journals = (folder / "home").rglob(".journal")
    return sum(len(path.read_bytes().split()) for path in journals)


def test_the_plan_foretells_the_bytes_and_the_commit_is_recorded_and_kept_to(root, tmp_path):
    with Hub(root) as hub:
        status, printed = draw(hub, tmp_path, {"unit": "row_group"}, f"{ADDRESS}@main")
        assert status == 0, printed
        body, commit = summary(tmp_path), hub.dataset(REPO).commit
        assert body["revision"] == commit
        assert body["address"] == f"{ADDRESS}@{commit}"
        resolved = [r.path for r in hub.requests() if "/resolve/" in r.path]
        assert resolved
        assert all(f"/resolve/{commit}/" in path for path in resolved)
        for name in NAMES:
            assert any(f"/{name}/" in path for path in resolved)
        total = body["total"]
        assert total["rejected"]["too_many_turns"] > 0
        expected = body["expected"]["row_group"]["bytes"]
        # A row group in 24 more or less a subset, for two in a hundred rows are rejected.
        assert 0.95 * expected <= total["bytes_fetched"] <= 1.1 * expected
        # The plan is gone; the cache of footers, which holds the same, is not.
        index = [*(tmp_path / "home" / "interlace" / "footers").rglob("*.parquet")]
        groups = {r for ranges in data_ranges(*index).values() for r in ranges} & set(served(hub))
        assert total["bytes_fetched"] == sum(stop - start for _, (start, stop) in groups)
        sizes = hub.dataset(REPO).files
        footers = Counter(path for path, (_, stop) in served(hub) if stop == sizes[path])
        assert set(footers) == {path for path in sizes if path.endswith(".parquet")}
        assert set(footers.values()) == {1}, "a footer was read again with its row groups"


@pytest.mark.parametrize(
    ("address", "settings", "told"),
    [
        (f"{ADDRESS}@nowhere", {}, ["nowhere", "not found"]),
        ("hf://datasets/nobody/nothing", {}, ["nobody/nothing", "not found"]),
        (ADDRESS, {"subsets": ["geoqa(mathv360k)"]}, ["did you mean 'geoqa+(mathv360k)'"]),
    ],
)
def test_what_is_not_there_is_named_in_one_line(root, tmp_path, address, settings, told):
    with Hub(root) as hub:
        status, printed = draw(hub, tmp_path, settings, address)
    assert status == 1
    assert all(text in complaint(printed) for text in told), printed
    assert not (tmp_path / "samples").exists()


def test_a_server_that_never_answers_well_is_given_up_on_with_the_place(root, tmp_path):
    fault = {"fault_share": 1.0, "faults": ["short"], "fault_from": 1000}
    with Hub(root, **fault) as hub:
        status, printed = draw(hub, tmp_path, {"retries": 1} | FEW)
    assert status == 1
    line = complaint(printed)
    assert "chartqa/train-0000" in line
    assert "2 attempts failed" in line
    assert "data.retries" in line
    assert not (tmp_path / "samples").exists()


def test_a_server_that_ignores_ranges_is_left_at_once(tmp_path):
    write_scaled(tmp_path, {"chartqa": 600}, shard_rows=10_000, pixels=(90, 100))
    size = max(path.stat().st_size for path in tmp_path.rglob("*.parquet"))
    with Hub(tmp_path, fault_share=1.0, faults=["whole"], fault_from=1000) as hub:
        status, printed = draw(hub, tmp_path / "run")
        assert status == 1
        line = complaint(printed)
        for part in ("chartqa/train-0000", "HTTP 200", str(size), "range requests", "local copy"):
            assert part in line
        assert len([request for request in hub.requests() if request.range]) == 1
        assert hub.sent() < size / 2


def test_two_that_draw_to_one_place_do_not_meet(root, digests, tmp_path):
    with Hub(root) as hub:
        hub.hold(30)
        first = start(hub, tmp_path, FEW)
        while not hub.holding() and first.poll() is None:
            time.sleep(0.002)
        status, printed = draw(hub, tmp_path, FEW)
        assert status == 1
        assert f"process {first.pid} on" in complaint(printed)
        hub.hold(None)
        printed = "".join(first.communicate())
        assert first.returncode == 0, printed
        assert max(Counter(served(hub)).values()) == 1
    assert folder_digest(tmp_path / "samples", "*.parquet") == digests["few"]
    assert not list(tmp_path.glob(".*"))


def test_the_token_opens_the_door_goes_to_the_endpoint_alone_and_is_never_written(root, tmp_path):
    right, wrong = "hf_rightRightRight", "hf_wrongWrongWrong"
    with Hub(root, token=right, cdn=True) as hub:
        status, printed = draw(hub, tmp_path / "none", FEW)
        assert status == 1
        assert "HF_TOKEN" in complaint(printed)
        status, printed = draw(hub, tmp_path / "wrong", FEW, HF_TOKEN=wrong)
        assert status == 1
        assert "HF_TOKEN" in complaint(printed)
        assert wrong not in printed
        hub.clear()
        status, printed = draw(hub, tmp_path / "right", FEW, HF_TOKEN=right)
        assert status == 0, printed
        assert right not in printed
        by_host = {host: [] for host in ("hub", "cdn")}
        for request in hub.requests():
            by_host[request.host].append(request.token)
        assert by_host["cdn"]
        assert set(by_host["cdn"]) == {None}
        assert f"Bearer {right}" in by_host["hub"]
    written = [path for path in (tmp_path / "right").rglob("*") if path.is_file()]
    assert len(written) > 2
    assert not [path for path in written if right.encode() in path.read_bytes()]


def test_offline_it_reads_the_local_snapshot_or_says_that_there_is_none(root, digests, tmp_path):
    with Hub(root) as hub:
        status, printed = draw(hub, tmp_path, FEW, HF_HUB_OFFLINE="1")
        assert status == 1
        assert "HF_HUB_OFFLINE" in complaint(printed)
        assert not hub.requests()
        fetch = "import sys, huggingface_hub as h; h.snapshot_download(sys.argv[1], repo_type='dataset')"
        subprocess.run(
            [sys.executable, "-c", fetch, REPO],
            env=os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")},
            check=True,
            capture_output=True,
        )
        hub.clear()
        status, printed = draw(hub, tmp_path, FEW, HF_HUB_OFFLINE="1")
        assert status == 0, printed
        assert not hub.requests()
        assert summary(tmp_path)["revision"] == hub.dataset(REPO).commit
    assert folder_digest(tmp_path / "samples", "*.parquet") == digests["few"]


def test_bytes_that_are_not_those_asked_for_are_seen_and_asked_for_again(tmp_path):
    fault = "flipped"
    folder = write_scaled(tmp_path, {"chartqa": 300}, group_rows=30, write_page_checksum=True)
    draw_samples(folder, tmp_path / "local" / "samples", SETTINGS | {"workers": 1}, seed=7)
    with Hub(tmp_path, fault_share=1.0, faults=[fault], fault_from=30_000, fault_once=True) as hub:
        status, printed = draw(hub, tmp_path / "far")
        assert status == 0, printed
        spoiled = [request for request in hub.requests() if request.fault == fault]
        assert len(spoiled) >= 8
    local, far = (tmp_path / where / "samples" for where in ("local", "far"))
    assert folder_digest(far, "*.parquet") == folder_digest(local, "*.parquet")


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("elsewhere", "OtherRange: Content-Range 'bytes 101-200/400' for bytes 100 to 200"),
        ("trickle", "TimeoutError: "),
    ],
)
def test_other_bytes_and_a_server_that_trickles_are_tried_again(tmp_path, monkeypatch, fault, told):
    monkeypatch.setattr(hub_files.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    monkeypatch.setattr("interlace.sampling.ranges.FIRST_WAIT_S", 0.001)
    data = bytes(range(200)) * 2
    (tmp_path / REPO).mkdir(parents=True)
    (tmp_path / REPO / "a.bin").write_bytes(data)
    with Hub(tmp_path, fault_share=1.0, faults=[fault], fault_once=True) as hub:
        path = f"datasets/{REPO}@{hub.dataset(REPO).commit}/a.bin"
        files = hub_files.HubFiles(endpoint=hub.url, skip_instance_cache=True)
        with pytest.raises(InputError, match=re.escape(told)):
            RangeReader(files, retries=0).read(path, 100, 100)
        reader = RangeReader(files, retries=1)
        assert reader.read(path, 150, 100) == data[150:250]
        assert reader.failed == 1
