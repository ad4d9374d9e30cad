"""The rules behind the demo's MIA-Bench grader, over HTTP and through VLMEvalKit's own format."""

import json
import random
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from interlace.demo.grader import MODEL, UnknownComponent, check, grade, reply, running_grader
from interlace.demo.scenes import draw_scene
from interlace.demo.topics import TOPICS
from interlace.evaluation import kit


def judge_prompt(components: list[str], weights: list[int], response: str) -> str:
    """As vlmeval.dataset.miabench.generate_prompt words it, for two or three components."""
    names = ("first", "second", "third")[: len(components)]
    told = ", and ".join(
        f"the {n} component is{':' if i == 0 else ''} '{c}'"
        for i, (n, c) in enumerate(zip(names, components, strict=True))
    )
    numbers = ", and ".join(str(w) for w in weights)
    return (
        "Here is an instruction for a multimodal LLM: 'Give it.'. You need to grade if the response "
        f"from the model follows each component of the instruction. T{told[1:]}. "
        f"The response is: '{response}'. You need to score the response and be strict. The total "
        "score ranges from 0 to 10, depending on if the response follows the instruction. "
        f"The components are each worth {numbers} scores. List scores of each component."
    )


PAIR = (["names the color red", "is in square brackets"], [6, 4])


@pytest.mark.parametrize(
    ("response", "scores"),
    [
        ("[red]", "6/6, 4/4, 10/10"),
        ("red", "6/6, 0/4, 6/10"),
        ("[blue]", "0/6, 4/4, 4/10"),
        ("[red blue green]", "0/6, 4/4, 4/10"),
        ("it's blue", "0/6, 0/4, 0/10"),
        ("", "0/6, 0/4, 0/10"),
    ],
)
def test_grades_right_half_wrong_and_empty(response, scores):
    answer = grade(judge_prompt(*PAIR, response))
    one, two, total = scores.split(", ")
    wanted = f"score of component 1: {one}, score of component 2: {two}, total score: {total}"
    assert answer.split(".")[0] == wanted


def test_order_earns_a_share_in_whole_points():
    component = "names the colors red blue green in this order"
    assert check(component, "red, blue, green") == 1
    assert check(component, "red, green, blue") == pytest.approx(1 / 3)
    assert check(component, "") == 0
    assert "1: 4/6" in grade(judge_prompt([component, PAIR[0][1]], [6, 4], "red, blue, red"))


def test_every_component_of_the_demo_is_met_by_its_own_answer_and_not_by_another():
    topic, rng = TOPICS["MIA-Bench"], random.Random(3)
    for _ in range(200):
        scene = draw_scene(topic.make, rng, *topic.grid, benchmark=True)
        for turn in scene.turns:
            assert [check(c, turn.answer) for c in turn.checks] == [1.0] * len(turn.checks)
            assert min(check(c, "no idea at all, sorry") for c in turn.checks) == 0
            assert max(check(c, "") for c in turn.checks) == 0


def test_an_unknown_component_is_refused_and_never_scored():
    with pytest.raises(UnknownComponent, match="is polite"):
        grade(judge_prompt(["names the color red", "is polite"], [6, 4], "red"))
    with pytest.raises(UnknownComponent, match="not a judge prompt"):
        grade("Hello")


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("I think that what you see there is red, yes, very much so", "B"),
        ("not Red but blue", "Z"),  # two of them
        ("the answer is covered", "Z"),  # red only as a part of a word
        ("dark  red!", "D"),
        ("purple", "Z"),
        ("", "Z"),
        ("Answer: red\nYour output: ", "B"),
    ],
)
def test_reads_a_choice_in_vlmevalkits_own_prompt(response, letter):
    kit.load_vlmeval()  # which undoes what its import changes
    from vlmeval.dataset.utils.multiple_choice import build_prompt
    from vlmeval.smp.vlm import build_option_str

    reds = {"A": "blue", "B": "red", "C": "light red"}
    options = {**reds, "D": "dark red"} if letter == "D" else reds
    options = {**options, "B": "bright red"} if letter == "D" else options
    assert reply(build_prompt("Which?", build_option_str(options), response)) == letter


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("There is a red circle in the image.", "Yes"),
        ("Yes and no.", "No"),
        ("I don't see one.", "No"),
        ("Red", "Unknown"),
        ("", "Unknown"),
    ],
)
def test_reads_yes_or_no_in_vlmevalkits_own_prompt(response, answer):
    kit.load_vlmeval()
    from vlmeval.dataset.utils.yorn import YOrN_match_prompt

    line = {"question": "Is there a red circle in the image", "prediction": response}
    assert reply(YOrN_match_prompt(line)) == answer


def post(base: str, body: bytes, path: str = "/chat/completions"):
    request = urllib.request.Request(base + path, body, {"Content-Type": "application/json"})
    return urllib.request.urlopen(request, timeout=10)


def test_speaks_the_openai_protocol_on_loopback():
    with running_grader() as (base, model):
        assert base.startswith("http://127.0.0.1:")
        assert model == MODEL
        listed = json.load(urllib.request.urlopen(base + "/models", timeout=10))
        assert [m["id"] for m in listed["data"]] == [MODEL]
        parts = [
            {"type": "text", "text": judge_prompt(*PAIR, "[red]")},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
        ]
        body = {"model": model, "messages": [{"role": "user", "content": parts}]}
        answer = json.load(post(base, json.dumps(body).encode()))
        assert answer["choices"][0]["message"]["content"].startswith("score of component 1: 6/6")
        body["messages"][0]["content"] = judge_prompt(["is polite"], [10], "x")
        for bad in (json.dumps(body).encode(), b"{", b"{}"):
            with pytest.raises(urllib.error.HTTPError) as caught:
                post(base, bad)
            assert caught.value.code == 400
            assert "message" in json.load(caught.value)["error"]
        with pytest.raises(urllib.error.HTTPError) as caught:
            post(base, b"{}", "/completions")
        assert caught.value.code == 404


def test_command_line_writes_its_port_and_stops_when_told(tmp_path):
    port_file = tmp_path / "port"
    command = [sys.executable, "-m", "interlace.demo.grader", "--port-file", str(port_file)]
    process = subprocess.Popen(command)
    try:
        for _ in range(200):
            if port_file.exists():
                break
            time.sleep(0.05)
        url = f"http://127.0.0.1:{int(port_file.read_text())}/v1/models"
        assert json.load(urllib.request.urlopen(url, timeout=10))["data"][0]["id"] == MODEL
        process.terminate()
        assert process.wait(timeout=10) == 0
    finally:
        process.kill()
