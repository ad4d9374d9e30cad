"""Reading ranges: what is tried again, what is not, how long is waited, and what is said."""

import datetime
import email.utils
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from interlace import secrets
from interlace.errors import InputError
from interlace.sampling import ranges
from interlace.sampling.ranges import RangeReader, persist

SECRET = "hf_abcdefghijkl"


class HttpError(OSError):
    """As huggingface_hub raises it: an OSError with the response."""

    def __init__(self, status, **headers):
        super().__init__(f"{status} from https://cdn.example/f?sig={SECRET}\nRequest ID: 1")
        headers = {key.replace("_", "-"): value for key, value in headers.items()}
        self.response = SimpleNamespace(status_code=status, headers=headers)


class Server:
    """A filesystem that answers with the errors and bodies it is given, then rightly."""

    async_impl = False

    def __init__(self, *answers, body=bytes(range(100))):
        self.answers, self.body, self.asked = list(answers), body, 0

    def cat_file(self, path, start, end, **options):
        self.asked += 1
        assert options == {"cache_type": "none"}
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Exception):
            raise answer
        return self.body[start:end] if answer is None else answer


@pytest.fixture
def waits(monkeypatch):
    slept = []
    monkeypatch.setattr(ranges.threading.Event, "wait", lambda self, seconds: slept.append(seconds))
    return slept


@pytest.mark.parametrize(
    "failure",
    [
        HttpError(408), HttpError(429), HttpError(500), HttpError(503), HttpError(504),
        ConnectionResetError("reset by peer"), TimeoutError("timed out"), OSError("broken pipe"),
        EOFError("body ended"), b"", b"short",
    ],
    ids=str,
)  # fmt: skip
def test_passing_failures_are_tried_again(waits, failure):
    server = Server(failure, failure)
    reader = RangeReader(server, retries=2)
    assert reader.read("a.parquet", 10, 20) == bytes(range(10, 30))
    assert (server.asked, reader.requests, reader.failed, reader.received) == (3, 3, 2, 20)
    assert len(waits) == 2


def test_waits_grow_to_a_bound_with_jitter(waits):
    server = Server(*[HttpError(503)] * 9)
    RangeReader(server, retries=9).read("a", 0, 1)
    for number, slept in enumerate(waits):
        longest = min(ranges.FIRST_WAIT_S * 2**number, ranges.LONGEST_WAIT_S)
        assert longest / 2 <= slept <= longest
    assert max(waits) > ranges.LONGEST_WAIT_S / 2


@pytest.mark.parametrize("kind", ["seconds", "date", "ratelimit"])
def test_a_server_that_says_when_is_asked_then(waits, kind):
    date = datetime.datetime.fromtimestamp(time.time() + 40, datetime.UTC)
    header = {
        "seconds": {"Retry_After": "40"},
        "date": {"Retry_After": email.utils.format_datetime(date, usegmt=True)},
        "ratelimit": {"RateLimit": '"resolvers";r=0;t=40'},
    }[kind]
    RangeReader(Server(HttpError(429, **header))).read("a", 0, 1)
    assert 38 <= waits[0] <= 41


FAR = "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"


@pytest.mark.parametrize("header", ["999999", "soon", "-5", "\u00b2", "9" * 400, "", FAR])
def test_no_server_is_waited_for_without_bound(waits, header):
    RangeReader(Server(HttpError(429, Retry_After=header))).read("a", 0, 1)
    assert 0 <= waits[0] <= ranges.LONGEST_RETRY_AFTER_S + 1


def test_the_last_failure_is_one_line_with_file_range_and_cause(waits):
    reader = RangeReader(Server(*[HttpError(503)] * 9), retries=3)
    with pytest.raises(InputError) as caught:
        reader.read("hf/data/a.parquet", 100, 50)
    line = str(caught.value)
    assert "\n" not in line
    for part in ("hf/data/a.parquet", "bytes 100 to 150", "4 attempts", "503", "data.retries"):
        assert part in line
    assert SECRET not in line
    assert len(waits) == 3


@pytest.mark.parametrize(
    ("failure", "hint"),
    [
        (HttpError(401), "HF_TOKEN"), (HttpError(403), "HF_TOKEN"), (PermissionError("no"), "HF_TOKEN"),
        (HttpError(404), "data.path"), (FileNotFoundError("gone"), "data.path"),
    ],
    ids=str,
)  # fmt: skip
def test_what_no_patience_mends_is_said_at_once(waits, failure, hint):
    server = Server(failure)
    with pytest.raises(InputError, match=hint) as caught:
        RangeReader(server).read("a.parquet", 0, 1)
    assert (server.asked, waits) == (1, [])
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("status", [400, 402, 409, 416, 425, 451, 401, 404])
def test_no_refusal_of_a_server_shows_the_signed_address(waits, status):
    server = Server(HttpError(status))
    with pytest.raises(InputError, match=str(status)) as caught:
        RangeReader(server).read("a.parquet", 0, 1)
    assert (server.asked, waits) == (1, [])
    assert "\n" not in str(caught.value)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("failure", [KeyError("x"), TypeError("x")], ids=str)
def test_our_own_mistakes_are_not_tried_again(waits, failure):
    server = Server(failure)
    with pytest.raises(type(failure)):
        RangeReader(server).read("a", 0, 1)
    assert server.asked == 1


def test_a_server_that_ignores_ranges_is_named_and_asked_once(waits):
    server = Server(*[bytes(100)] * 2)
    with pytest.raises(InputError, match=r"a: bytes 0 to 5: 100 bytes came; .* range requests"):
        RangeReader(server, retries=1).read("a", 0, 5)
    assert (server.asked, waits) == (1, [])


def test_a_filesystem_that_keeps_blocks_is_read(tmp_path):
    (tmp_path / "f").write_bytes(bytes(range(50)))
    files, root = fsspec.url_to_fs(f"blockcache::file://{tmp_path}", cache_storage=str(tmp_path))
    assert RangeReader(files, retries=0).read(f"{root}/f", 7, 5) == bytes(range(7, 12))


def test_who_is_told_to_stop_neither_waits_nor_tries_again():
    server = Server(*[HttpError(429, Retry_After="300")] * 9)
    reader = RangeReader(server)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(reader.read, "a", 0, 1)
        while not reader.failed:
            time.sleep(0.001)
        reader.stop()
        with pytest.raises(InputError, match="1 attempt failed"):
            waiting.result(20)
    assert server.asked == 1


def test_errors_of_network_libraries_are_known_by_their_module(waits):
    lost = type("ReadError", (Exception,), {"__module__": "httpx2._exceptions"})("reset")
    assert RangeReader(Server(lost)).read("a", 0, 3) == bytes(range(3))


def test_nothing_is_read_for_nothing(tmp_path):
    server = Server()
    assert RangeReader(server).read("a", 5, 0) == b""
    assert server.asked == 0


def test_a_local_file_is_read_by_range(tmp_path):
    (tmp_path / "f").write_bytes(bytes(range(50)))
    assert RangeReader(LocalFileSystem()).read(str(tmp_path / "f"), 7, 5) == bytes(range(7, 12))


def test_an_input_error_passes_through(waits):
    def refuse():
        raise InputError("data.path: no")

    with pytest.raises(InputError, match=r"^data\.path: no$"):
        persist(refuse, "x", 5)
    assert waits == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:pw@host/a", "http://...@host/a"),
        ("s3://key:p/w@bucket/a", "s3://...@bucket/a"),
        ("https://host/a?sig=pw&x=1 refused", "https://host/a?... refused"),
        ("http://host:8080/a@b", "http://host:8080/a@b"),
        ("https://hf_token@host/a and HTTP://pw@h", "https://...@host/a and HTTP://...@h"),
        ("sftp://me@host/a", "sftp://me@host/a"),
        ("abfs://c@host/a?pw", "abfs://c@host/a?..."),
        ("hf://datasets/o/n@main/x:y", "hf://datasets/o/n@main/x:y"),
    ],
)
def test_passwords_and_signatures_are_masked(text, shown):
    assert secrets.masked(text) == shown
    assert secrets.one_line(OSError(text)) == f"OSError: {shown}"
    assert secrets.secret_in(text.split()[0]) == (text != shown)
