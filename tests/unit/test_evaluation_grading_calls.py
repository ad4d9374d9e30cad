"""Calls to a grader that misbehaves: bounded in time, retried where that helps, told plainly."""

import json
import ssl
import time
from email.utils import formatdate
from urllib.parse import quote

import pytest

from interlace.environment import key_missing
from interlace.errors import InputError
from interlace.evaluation import grader_client, grading
from interlace.evaluation.grader_client import CallFailed, Client
from tests.faulty_grader import (
    GRADE,
    body,
    drip,
    drop,
    fail,
    faulty_grader,
    hang,
    hang_up,
    raw,
    redirect,
    say,
)

KEY = "sk-canary-0123456789abcdef"
PAYLOAD = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(grader_client, "FIRST_WAIT_S", 0.01)


def client(server, **changes):
    return Client(server.base_url, KEY, "MY_KEY", **{"timeout_s": 5, "retries": 2, **changes})


def in_turn(*acts):
    return lambda call, prompt: acts[min(call, len(acts)) - 1]


@pytest.mark.parametrize(
    "first",
    [
        fail(500),
        fail(503),
        fail(429, Retry_After="0"),
        fail(408),
        drop,
        hang_up,
        raw(b"<html>Bad gateway</html>"),
        raw(b"{"),
        body([]),
        body({"choices": []}),
        body({"error": {"message": "try later"}}),
        say(""),
        body({"choices": [{"message": {"content": None}}]}),
    ],
)
def test_what_may_pass_is_tried_again(first):
    with faulty_grader(in_turn(first, first, say("fine"))) as server:
        assert client(server).ask(PAYLOAD) == "fine"
        assert len(server.requests) == 3
        assert server.keys == {f"Bearer {KEY}"}


@pytest.mark.parametrize(
    ("act", "told"),
    [
        (fail(500, "boom"), "HTTP 500: boom, in 3 tries"),
        (fail(429, "slow down"), "HTTP 429: slow down, in 3 tries"),
        (drop, "broken off after"),
        (hang_up, "no answer ("),
        (raw(b"<html>hi</html>"), "HTTP 200 without a chat completion: <html>hi</html>, in 3"),
        (body({"error": "odd"}), "HTTP 200 without a chat completion: odd"),
        (say("  "), "HTTP 200 with an empty answer, in 3 tries"),
    ],
)
def test_what_does_not_pass_ends_after_the_tries_and_says_why(act, told):
    with faulty_grader(in_turn(act)) as server:
        with pytest.raises(CallFailed) as caught:
            client(server).ask(PAYLOAD)
        assert told in str(caught.value)
        assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("act", "told"),
    [
        (fail(400, "cannot grade this"), "HTTP 400: cannot grade this"),
        (fail(413, "too large"), "HTTP 413: too large"),
        (fail(401, "bad key"), "HTTP 401: bad key; check the key in MY_KEY"),
        (fail(404, "no such model"), "HTTP 404: no such model"),
        (fail(429, "insufficient_quota: pay"), "HTTP 429: insufficient_quota: pay"),
        (
            body({"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]}),
            "content_filter",
        ),
    ],
)
def test_what_cannot_pass_is_not_tried_again(act, told):
    with faulty_grader(in_turn(act)) as server:
        with pytest.raises(CallFailed) as caught:
            client(server).ask(PAYLOAD)
        assert told in str(caught.value)
        assert len(server.requests) == 1


def test_a_refusal_is_an_answer():
    refusal = {"choices": [{"message": {"content": None, "refusal": "I will not."}}]}
    with faulty_grader(in_turn(body(refusal))) as server:
        assert client(server).ask(PAYLOAD) == "I will not."


@pytest.mark.parametrize("act", [hang, drip])
def test_a_slow_grader_is_left_when_the_time_is_up(act):
    with faulty_grader(in_turn(act)) as server:
        start = time.monotonic()
        with pytest.raises(CallFailed, match=r"no answer within 0.3 s, in 2 tries"):
            client(server, timeout_s=0.3, retries=1).ask(PAYLOAD)
        assert time.monotonic() - start < 10  # the test's grader would hang for 30 s
        assert len(server.requests) == 2


@pytest.mark.parametrize("form", [lambda: "0.6", lambda: formatdate(time.time() + 2, usegmt=True)])
def test_a_wait_that_the_grader_asks_for_is_kept(form):
    with faulty_grader() as server:
        asked = fail(429, Retry_After=form())  # a date has whole seconds: 1 to 2 from now
        server.act = in_turn(asked, say("fine"))
        assert client(server).ask(PAYLOAD) == "fine"
        assert server.times[1] - server.times[0] >= 0.5


def test_a_wait_that_is_too_long_is_not_begun():
    with faulty_grader(in_turn(fail(429, "tomorrow", Retry_After="86400"))) as server:
        with pytest.raises(CallFailed, match="HTTP 429: tomorrow; it asks for a wait of 86400 s"):
            client(server).ask(PAYLOAD)
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, None), ("", None), ("7", 7), ("-1", 0), ("soon", None), ("nan", None)],
)
def test_retry_after_is_seconds_or_a_date(value, seconds):
    assert grader_client._retry_after(value) == seconds


def test_waits_double_up_to_a_limit(monkeypatch):
    monkeypatch.setattr(grader_client, "FIRST_WAIT_S", 1.0)
    monkeypatch.setattr(grader_client, "LONGEST_WAIT_S", 6.0)
    waits = []
    with faulty_grader(in_turn(fail(500))) as server:
        asking = client(server, retries=5)
        monkeypatch.setattr(asking._ended, "wait", waits.append)
        with pytest.raises(CallFailed):
            asking.ask(PAYLOAD)
    assert waits == [1, 2, 4, 6, 6]


def test_calls_lost_in_a_row_end_the_others_and_an_answer_between_does_not():
    with faulty_grader(in_turn(fail(500), fail(500), say("fine"), fail(500))) as server:
        asking = client(server, retries=0)
        for number in range(10):
            if number == 2:
                assert asking.ask(PAYLOAD) == "fine"
                continue
            with pytest.raises(CallFailed, match="HTTP 500: overloaded"):
                asking.ask(PAYLOAD)
        assert len(server.requests) == 2 + 1 + grader_client.LOST_CALLS


def test_calls_that_fail_for_their_content_do_not_end_the_others():
    with faulty_grader(in_turn(*[fail(400)] * 9, say("fine"))) as server:
        asking = client(server)
        for _ in range(9):
            with pytest.raises(CallFailed):
                asking.ask(PAYLOAD)
        assert asking.ask(PAYLOAD) == "fine"


def test_a_redirect_is_not_followed_since_it_would_carry_the_key_along():
    with faulty_grader() as other, faulty_grader(in_turn(redirect(other.base_url))) as server:
        with pytest.raises(CallFailed, match=rf"redirects to {other.base_url}; give .*base_url"):
            client(server).ask(PAYLOAD)
        assert (other.requests, other.paths) == ([], [])


@pytest.mark.parametrize(
    "act",
    [
        fail(500, f"you sent Bearer {KEY}"),
        fail(401, f"no such key: {KEY}"),
        raw(f"<html>{KEY}</html>".encode()),
        fail(500, "x" * 290 + KEY),  # cut in the middle, it would not be found
        redirect(f"http://elsewhere/?key={KEY}"),
        lambda handler: handler.wfile.write(f"{KEY}\r\n\r\n".encode()),  # in the status line
    ],
)
def test_a_key_that_comes_back_is_cut_out_of_errors(act):
    with faulty_grader(in_turn(act)) as server:
        asking = client(server, retries=0)
        with pytest.raises(CallFailed) as caught:
            asking.ask(PAYLOAD)
    assert "canary" not in f"{caught.value} {caught.value!r} {caught.value.reason} {asking!r}"
    assert "[key]" in str(caught.value) or "x" * 200 in str(caught.value)


@pytest.mark.parametrize("key", ["sk/canary+0123456789==", 'sk"canary"0123456789'])
def test_a_key_that_comes_back_in_other_letters_is_cut_out(key):
    quoted, written = quote(key, safe=""), json.dumps(key)[1:-1]
    for act in (
        redirect(f"http://elsewhere/?key={quoted}"),
        raw(f'["{written}"]'.encode(), 500),
        raw('{{"key": "{}"'.format(written.replace("/", "\\/")).encode(), 500),
    ):
        with faulty_grader(in_turn(act)) as server:
            asking = Client(server.base_url, key, retries=0)
            with pytest.raises(CallFailed) as caught:
                asking.ask(PAYLOAD)
        assert "canary" not in str(caught.value)
        assert "[key]" in str(caught.value)


def test_a_key_that_comes_back_masked_is_cut_out_of_errors():
    masked = "Incorrect API key provided: sk-canar*****cdef. You can find it elsewhere."
    with faulty_grader(in_turn(fail(401, masked))) as server:
        asking = client(server)
        with pytest.raises(CallFailed, match=r"provided: \[key\] You can find"):
            asking.ask(PAYLOAD)


def test_tries_are_charged_unless_they_are_answered_with_an_error():
    tries = []
    with faulty_grader(in_turn(fail(500), say(""), say("fine"))) as server:
        assert client(server).ask(PAYLOAD, tries.append) == "fine"
    assert tries == [1, -1, 1, 1]


def test_a_key_that_comes_back_is_cut_out_of_answers():
    with faulty_grader(in_turn(say(f"{GRADE} Your key is {KEY}."))) as server:
        assert client(server).ask(PAYLOAD) == f"{GRADE} Your key is [key]."


def test_a_local_servers_dummy_key_spoils_no_answer():
    with faulty_grader(in_turn(say(GRADE))) as server:
        assert Client(server.base_url, "1").ask(PAYLOAD) == GRADE


def test_certificates_are_verified_whatever_the_default_is(monkeypatch):
    monkeypatch.setattr(ssl, "_create_default_https_context", ssl._create_unverified_context)
    assert Client("https://grader.example/v1", KEY)._tls.verify_mode == ssl.CERT_REQUIRED


def test_proxies_are_left_out_on_this_machine(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with faulty_grader() as server:
        assert client(server).ask(PAYLOAD) == "A"


# connect()


def settings(server, **changes):
    told = {"kind": "openai", "base_url": server.base_url, "model": "m", "key_env": "MY_KEY"}
    return {**told, **changes}


def test_nothing_is_connected_where_nothing_needs_a_grader():
    assert grading.connect(None, ["AI2D", "POPE", "OCRBench"]) is None
    assert grading.connect({"kind": "none"}, ["AI2D"]) is None
    told = {"kind": "demo", "extract": True}
    assert grading.connect(told, ["OCRBench", "ChartQA"]) is None


def test_a_grader_has_the_configs_limits_and_hides_its_key(monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY + "\n")  # as `export MY_KEY="$(cat file)"` does not leave it
    with faulty_grader() as server:
        grader = grading.connect(
            settings(
                server, kind="demo", timeout_s=7, retries=0, parallel=2, extract=True, price=[1, 2]
            ),
            ["MIABench"],
        )
        assert (grader.kind, grader.model, grader.extract) == ("demo", "m", True)
        assert (grader.timeout_s, grader.retries, grader.parallel) == (7, 0, 2)
        assert (grader.price, grader.budget, grader.billed) == ((1.0, 2.0), None, True)
        assert grader.identity == ["demo", "m"]
        assert grader.client().ask(PAYLOAD) == "A"
        assert server.keys == {f"Bearer {KEY}"}
        assert "canary" not in f"{grader} {grader!r} {grader.client()!r}"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"kind": "none"}, "evaluation.grader.kind: MIABench needs a grader and it is 'none'"),
        ({"kind": None}, "evaluation.grader.kind: MIABench needs a grader and it is 'None'"),
        (
            {"model": None},
            "evaluation.grader.model: empty, and kind openai needs base_url and model",
        ),
        ({"kind": "demo", "model": None}, "start a grader and give its address and model"),
        ({"base_url": None}, "evaluation.grader.base_url: empty"),
        ({"base_url": "grader.example"}, "'grader.example' is no address"),
        ({"base_url": "https://me:pass@grader.example"}, "holds a name, a password or a query"),
        ({"base_url": "https://grader.example/v1?key=1"}, "holds a name, a password or a query"),
        ({"base_url": "https://grader.example/v1#pass@"}, "holds a name, a password or a query"),
        ({"base_url": "me:pass@grader.example/v1"}, "holds a name, a password or a query"),
        ({"base_url": "https://[grader.example/v1"}, "[grader.example/v1' is no address"),
        ({"base_url": "https://grader.example:v1"}, "grader.example:v1' is no address"),
        ({"base_url": "https://grader example/v1"}, "grader example/v1' is no address"),
        (
            {"base_url": "https://grader.example/v1"},
            "key_env: MY_KEY, the variable that evaluation.grader.key_env names, is not set",
        ),
        ({"budget": 1.0}, "evaluation.grader.price: budget needs it"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, line, monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with faulty_grader() as server, pytest.raises(InputError) as caught:
        grading.connect(settings(server, **changes), ["MIABench"])
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "pass@" not in str(caught.value)


def test_extraction_alone_needs_a_grader_too():
    with pytest.raises(InputError, match=r"grader\.extract: there is no grader .* .kind .none.."):
        grading.connect({"kind": "none", "extract": True}, ["AI2D", "OCRBench"])


@pytest.mark.parametrize("key", [KEY, "AIzaCanary0123456789", "canary0123456789abcdef"])
def test_a_key_given_as_its_variables_name_is_not_shown(key):
    told = {"base_url": "https://grader.example/v1", "key_env": key}
    with faulty_grader(listed=fail(401)) as server:
        for changes in (told, {"key_env": key}):
            with pytest.raises(InputError, match=r"evaluation\.grader\.key_env") as caught:
                grading.connect(settings(server, **changes), ["MIABench"])
            assert key not in str(caught.value)


def test_a_beginning_of_the_key_is_cut_out_of_errors():
    told = f"unknown key {KEY[:11]}... or '{KEY[:8]}'"
    with (
        faulty_grader(in_turn(fail(401, told))) as server,
        pytest.raises(CallFailed, match=r"unknown key \[key\]\.\.\. or '\[key\]'"),
    ):
        client(server).ask(PAYLOAD)


def test_a_key_too_short_to_be_cut_out_is_refused_unseen(monkeypatch):
    monkeypatch.setenv("MY_KEY", "s3cret7")
    with faulty_grader() as server:
        grading.connect(settings(server), ["MIABench"])  # no secret on this machine
        with pytest.raises(InputError, match=r"MY_KEY, .* holds less than 8 characters") as caught:
            grading.connect(settings(server, base_url="https://a.example/v1"), ["MIABench"])
    assert "s3cret7" not in str(caught.value)


@pytest.mark.parametrize("key", [f"{KEY}\nX-Other: 1", f"two {KEY}", f"{KEY}ü"])
def test_a_key_that_no_header_can_hold_is_refused_unseen(key, monkeypatch):
    monkeypatch.setenv("MY_KEY", key)
    with faulty_grader() as server, pytest.raises(InputError) as caught:
        grading.connect(settings(server), ["MIABench"])
    assert "MY_KEY, the variable that evaluation.grader.key_env names, holds characters" in str(
        caught.value
    )
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("listed", "line"),
    [
        (
            fail(401, f"unknown key {KEY}"),
            r"HTTP 401: unknown key \[key\]; check the key in MY_KEY",
        ),
        (redirect("http://elsewhere/v1"), "it redirects to http://elsewhere/v1; give"),
        (hang_up, "does not answer .*in 2 tries.*; start the grader"),
        (drip, "does not answer .*within 1 s"),
    ],
)
def test_the_address_is_checked_once_and_errors_are_named(listed, line, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    with faulty_grader(listed=listed) as server:
        with pytest.raises(InputError, match=line) as caught:
            grading.connect(settings(server, retries=1, timeout_s=1), ["MIABench"])
        assert server.base_url in str(caught.value)
        assert "canary" not in str(caught.value)
        assert server.requests == []


def test_a_grader_that_is_down_is_named():
    with faulty_grader() as server:
        address = server.base_url
    with pytest.raises(InputError, match=f"{address} does not answer .*refused.*; start the"):
        grading.connect({"kind": "demo", "base_url": address, "model": "m"}, ["MIABench"])


def test_a_server_needs_no_list_of_its_models():
    with faulty_grader(listed=fail(404)) as server:
        assert grading.connect(settings(server), ["MIABench"]).model == "m"


def test_a_config_is_checked_without_key_and_network(monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    hosted = {
        "kind": "openai",
        "base_url": "https://a.example/v1",
        "model": "m",
        "key_env": "MY_KEY",
    }
    config = {"evaluation": {"grader": hosted}}
    assert grading.check_grader(hosted, ["AI2D", "MIABench"]) == ["MIABench"]
    assert grading.check_grader({"kind": "demo", "extract": True}, ["AI2D", "OCRBench"]) == ["AI2D"]
    assert grading.check_grader(None, ["AI2D"]) == []
    assert key_missing(config, ["AI2D"]) is None
    line = "config: evaluation.grader.key_env: MY_KEY, the variable that"
    assert key_missing(config, ["MIABench"]).startswith(line)
    monkeypatch.setenv("MY_KEY", KEY)
    assert key_missing(config, ["MIABench"]) is None


def test_children_need_not_see_the_key(monkeypatch):
    import os

    monkeypatch.setenv("MY_KEY", KEY)
    with grading.key_hidden({"key_env": "MY_KEY"}):
        assert "MY_KEY" not in os.environ
    assert os.environ["MY_KEY"] == KEY
    with grading.key_hidden(None), grading.key_hidden({"key_env": "NEVER_SET_9"}):
        pass
    assert "NEVER_SET_9" not in os.environ
