"""The hub that the sampler is tested against: ranges as the real one's, faults as they are named."""

import http.client
import json
import os
import subprocess
import sys
from urllib.parse import urlsplit

import pytest

from tests.loopback_hub import FAULTS, Hub

FILE = "/datasets/me/data/resolve/main/a(b)%2B/x.bin"
BODY = bytes(range(200)) * 5


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "me" / "data"
    for name in ("a(b)+", "c"):
        (folder / name).mkdir(parents=True)
        (folder / name / "x.bin").write_bytes(BODY)
    return tmp_path


def ask(hub, path, method="GET", timeout=5.0, **headers):
    """Return status, headers and body; raises what http.client raises."""
    connection = http.client.HTTPConnection(urlsplit(hub.url).netloc, timeout=timeout)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def test_a_range_is_answered_with_exactly_its_bytes_and_counted(root):
    with Hub(root) as hub:
        status, headers, body = ask(hub, FILE, Range="bytes=10-19")
        assert (status, body) == (206, BODY[10:20])
        assert headers["Content-Range"] == f"bytes 10-19/{len(BODY)}"
        assert ask(hub, FILE, Range=f"bytes=0-{10 * len(BODY)}")[2] == BODY
        assert ask(hub, FILE, Range=f"bytes={len(BODY)}-")[0] == 416
        assert ask(hub, FILE, method="HEAD")[2] == b""
        assert hub.sent() == 10 + len(BODY)
        assert set(hub.served().values()) == {1}
        assert sum(hub.counts().values()) == 4


def test_the_listing_comes_in_pages_and_names_what_is_missing(root):
    with Hub(root, page=2) as hub:
        path, found = "/api/datasets/me/data/tree/main?recursive=true&expand=false", []
        while path:
            status, headers, body = ask(hub, path)
            assert status == 200
            found += [entry["path"] for entry in json.loads(body)]
            link = headers.get("Link")
            path = link and link[1 : link.index(">")].removeprefix(hub.url)
        assert found == ["a(b)+", "a(b)+/x.bin", "c", "c/x.bin"]
        for path, code in (
            ("/api/datasets/me/none", "RepoNotFound"),
            ("/api/datasets/me/data/revision/old", "RevisionNotFound"),
            ("/datasets/me/data/resolve/main/y", "EntryNotFound"),
        ):
            status, headers, _ = ask(hub, path)
            assert (status, headers["X-Error-Code"]) == (404, code)


def outcome(hub):
    """Return how asking for 100 bytes ends: a status and the length, or the way it breaks."""
    try:
        status, headers, body = ask(hub, FILE, timeout=0.3, Range="bytes=0-99")
    except http.client.IncompleteRead as error:
        return f"{len(error.partial)} of 100 bytes"
    except TimeoutError:
        return "time-out"
    except ConnectionError:
        return "reset"
    return f"{status}, {len(body)} bytes, retry after {headers.get('Retry-After')}"


def test_faults_come_in_turn_at_the_asked_share_and_look_as_named(root):
    with Hub(root, fault_share=1.0, stall_s=0.6, retry_after_s=7) as hub:
        assert [outcome(hub) for _ in FAULTS] == [
            "408, 22 bytes, retry after None",
            "429, 22 bytes, retry after 7",
            "500, 22 bytes, retry after None",
            "503, 22 bytes, retry after None",
            "reset",
            "50 of 100 bytes",
            "206, 50 bytes, retry after None",
            "time-out",
        ]
        assert {request.fault for request in hub.requests()} == set(FAULTS)
        assert not hub.served()
    with Hub(root, fault_share=0.3, faults=["503"], seed=4) as hub:
        answers = [ask(hub, FILE, Range="bytes=0-9")[0] for _ in range(200)]
    assert 40 <= answers.count(503) <= 80
    assert answers.count(206) + answers.count(503) == 200


def test_without_the_token_nothing_is_served(root):
    with Hub(root, token="right") as hub:
        assert ask(hub, FILE)[0] == 401
        assert ask(hub, FILE, Authorization="Bearer wrong")[0] == 401
        assert ask(hub, FILE, Authorization="Bearer right")[2] == BODY


def test_huggingface_hub_takes_it_for_the_real_one(root):
    code = """
from huggingface_hub import HfApi, HfFileSystem
sha = HfApi().dataset_info("me/data").sha
files = HfFileSystem()
found = files.find(f"datasets/me/data@{sha}")
print(files.cat_file(found[0], 3, 7, cache_type="none"), len(found), len(sha))
"""
    with Hub(root, page=3, cdn=True, token="right") as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_TOKEN": "right"}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split("\n")[0] == f"{BODY[3:7]} 2 40"
        assert {request.token for request in hub.requests() if request.host == "cdn"} == {None}
