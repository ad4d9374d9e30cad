"""Publishing, against a hub on loopback; in a process of its own where the process matters."""

import hashlib
import json
import os
import signal
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard

from interlace.errors import InputError
from interlace.io import folder_digest, write_json
from interlace.publish.run import publish
from interlace.publish.scores import score_section
from interlace.reporting.results import load_results
from interlace.stamps import checkpoint_digest
from tests.hub_uploads import Repository, UploadHub
from tests.scripts.test_scripts import DRIVER, ROOT
from tests.unit.reporting_results import write_score

CANARY = "hf_canaryCANARYcanary0123456789"
REPO = "me/big-interlace-25-ft"


@pytest.fixture
def checkpoint(tmp_path):
    """Return a folder shaped as a checkpoint, of two weight files and Snakemake's own one."""
    folder = tmp_path / "run" / "big" / "checkpoints" / "interlace-25-ft"
    folder.mkdir(parents=True)
    (folder / ".snakemake_timestamp").touch()
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("the card without scores")
    make_weights(folder, {"model-1.safetensors": b"one" * 99, "model-2.safetensors": b"two" * 99})
    return folder


def make_weights(folder, files):
    for old in folder.glob("*.safetensors"):
        old.unlink()
    for name, body in files.items():
        (folder / name).write_bytes(body)
    write_json(
        folder / "interlace.json",
        {
            "model": "big",
            "variant": "interlace-25-ft",
            "base": {"source": "hub", "path": "org/Base", "resolved": "c" * 40, "license": "mit"},
            "plan": {"method": "interlace", "num_layers": 4, "drop": [1], "tune": [2]},
            "num_layers": 3,
            "digest": folder_digest(folder, "*.safetensors"),
        },
    )


@pytest.fixture
def hub():
    with UploadHub(CANARY) as server:
        yield server


@pytest.fixture
def upload(hub, monkeypatch, capfd):
    """Publish in this process: return what was recorded and what was said, without the token."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def upload(checkpoint, evaluations=(), private=True, token=CANARY, url=None):
        monkeypatch.setattr(constants, "ENDPOINT", url or hub.url)
        monkeypatch.setenv("HF_TOKEN", token)
        out = checkpoint.parents[1] / "published" / "interlace-25-ft.json"
        out.unlink(missing_ok=True)
        settings = {"namespace": "me", "private": private}
        names = {"model": "big", "variant": "interlace-25-ft"}
        try:
            publish(checkpoint, evaluations, out, settings, **names)
        finally:
            told = "".join(capfd.readouterr())
            assert CANARY not in told
            assert "signature=secret" not in told
        return json.loads(out.read_text()), told

    return upload


@pytest.fixture
def refusal(upload, checkpoint):
    """Publish what is refused; return the line that says why."""

    def refusal(**options):
        with pytest.raises(InputError) as error:
            upload(checkpoint, **options)
        assert not list(checkpoint.parents[1].glob("published/*.json"))
        line = str(error.value)
        assert CANARY not in line
        assert "\n" not in line
        return line

    return refusal


class Publishing:
    """One run of the script `publish`; what it printed and what it left."""

    def __init__(self, hub, checkpoint, **environment):
        run = checkpoint.parents[2]
        self.out = run / "big" / "published" / "interlace-25-ft.json"
        self.log = run / "logs" / "publish.log"
        given = {
            "input": {"checkpoint": str(checkpoint), "evaluations": []},
            "output": [str(self.out)],
            "params": {"settings": {"namespace": "me", "private": True}, "standin": []},
            "wildcards": {"model": "big", "variant": "interlace-25-ft"},
            "log": [str(self.log)],
        }
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
            "HF_ENDPOINT": hub.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(run / "hf"),
            "HF_TOKEN": CANARY,
            **environment,
        }
        script = ROOT / "workflow" / "scripts" / "publish.py"
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(script), json.dumps(given)],
            env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def finish(self):
        """Wait for the end; return what was said on the terminal. No token is in any of it."""
        self.said, _ = self.process.communicate(timeout=120)
        told = self.said + self.log.read_text()
        told += self.out.read_text() if self.out.exists() else ""
        assert CANARY not in told
        assert "signature=secret" not in told
        return self.said

    def result(self):
        self.finish()
        assert self.process.returncode == 0, self.log.read_text()
        return json.loads(self.out.read_text())


def scores(checkpoint, revision=None, score=61.0):
    """Write two results of the checkpoint and one of dense; return their files."""
    revision = revision or checkpoint_digest(checkpoint)
    stamped = {"provenance": {"model_revision": revision}}
    root = checkpoint.parents[2]
    return [
        write_score(root, "big", "interlace-25-ft", "cot", "AI2D", score, **stamped),
        write_score(root, "big", "interlace-25-ft", "limited", "POPE", 80.0, **stamped),
        write_score(root, "big", "dense", "cot", "AI2D", 70.0),
    ]


def test_a_checkpoint_is_uploaded_with_its_scores_and_stays_as_it_is(hub, upload, checkpoint):
    before = folder_digest(checkpoint)
    result, _ = upload(checkpoint, scores(checkpoint))
    repository = hub.repositories[REPO]
    assert repository.private
    assert result["private"] is True
    assert result["repo"] == REPO
    assert result["commit"] == repository.sha
    assert result["url"] == f"{hub.url}/{REPO}/commit/{repository.sha}"
    assert result["scores"] == {"cot": ["AI2D"], "limited": ["POPE"]}
    names = {"README.md", "config.json", "interlace.json"}
    names |= {"model-1.safetensors", "model-2.safetensors"}
    assert set(repository.files) - {".gitattributes"} == names == set(result["files"])
    for name in names - {"README.md"}:
        assert repository.files[name] == (checkpoint / name).read_bytes()
    assert folder_digest(checkpoint) == before
    card = ModelCard(repository.files["README.md"].decode())
    assert card.data.base_model == "org/Base"
    assert card.data.license == "mit"
    assert "| AI2D | 61.00 [56.0, 66.0] | 70.00 | 64 |" in card.content
    assert "87.1 % of the dense model's mean" in card.content
    assert f'path = "{REPO}"' in card.content
    assert not list(checkpoint.parents[1].glob("published/.*"))


def test_the_token_goes_to_the_hub_alone(hub, checkpoint):
    Publishing(hub, checkpoint).result()
    routes = {route for route, _ in hub.tokens}
    assert {"create", "preupload", "batch", "put", "commit"} <= routes
    # The store of large files is another host.
    assert hub.tokens == {(r, None if r == "put" else f"Bearer {CANARY}") for r in routes}
    assert not any(CANARY.encode() in body for body in hub.repositories[REPO].files.values())
    tree = checkpoint.parents[2]
    assert not any(CANARY in p.read_text("latin-1") for p in tree.rglob("*") if p.is_file())


def test_again_sends_only_what_is_new(hub, upload, checkpoint):
    first, _ = upload(checkpoint)
    assert len(hub.puts()) == 2
    hub.log.clear()
    second, _ = upload(checkpoint)
    assert second["commit"] == first["commit"]
    assert len(hub.repositories[REPO].messages) == 1
    third, _ = upload(checkpoint, scores(checkpoint))
    assert third["commit"] != first["commit"]
    assert hub.puts() == []
    assert "61.00" in hub.repositories[REPO].files["README.md"].decode()


def test_killed_in_an_upload_it_goes_on_where_it_was(hub, upload, checkpoint):
    hub.stall_on = b"two"
    killed = Publishing(hub, checkpoint)
    assert hub.stalled.wait(60)
    done = hashlib.sha256(b"one" * 99).hexdigest()
    while done not in hub.objects:  # the other file is on its way beside
        assert killed.process.poll() is None
    killed.process.send_signal(signal.SIGKILL)
    killed.finish()
    assert not killed.out.exists()
    assert hub.repositories[REPO].messages == []
    hub.stall_on = None
    hub.log.clear()
    upload(checkpoint)
    assert hub.puts() == [hashlib.sha256(b"two" * 99).hexdigest()]
    assert "model-1.safetensors" in hub.repositories[REPO].files


def test_weights_of_an_earlier_checkpoint_leave_and_other_files_stay(hub, upload, checkpoint):
    upload(checkpoint)
    hub.repositories[REPO].files["figure.png"] = b"mine"
    make_weights(checkpoint, {"model.safetensors": b"whole" * 9})
    upload(checkpoint)
    files = hub.repositories[REPO].files
    assert [name for name in files if name.endswith(".safetensors")] == ["model.safetensors"]
    assert files["figure.png"] == b"mine"


def card_lines(root, ours=None, dense=None, names=("AI2D", "POPE")):
    """Return the card's lines; `ours` and `dense` change the first benchmark's result."""
    files = [
        write_score(root, "big", variant, "cot", name, score, **(changes or {}) if not i else {})
        for variant, score, changes in (("dense", 80.0, dense), ("interlace-25-ft", 60.0, ours))
        for i, name in enumerate(names)
    ]
    return "\n".join(score_section(load_results(files), "big", "interlace-25-ft"))


def test_the_cards_share_and_means_of_whole_benchmarks_have_no_mark(tmp_path):
    text = card_lines(tmp_path)
    assert "| mean of 2 | 60.00 | 80.00 | |" in text
    assert "75.0 % of the dense model's mean, over 2 benchmark(s)." in text
    assert "†" not in text


def test_parts_are_marked_in_every_number_of_the_card_that_they_enter(tmp_path):
    part = {"partial": True, "num_samples": 3}
    text = card_lines(tmp_path, part, part)
    assert "| AI2D | 60.00† [55.0, 65.0] | 80.00† | 3 |" in text
    assert "| POPE | 60.00 [55.0, 65.0] | 80.00 | 64 |" in text
    assert "| mean of 2 | 60.00† | 80.00† | |" in text
    assert "75.0 %† of the dense model's mean, over 2 benchmark(s), in part." in text
    assert "† measured on a part" in text


@pytest.mark.parametrize("side", ["ours", "dense"])
@pytest.mark.parametrize(
    "change", [{"partial": True, "num_samples": 3}, {"num_samples": 60}, {"tsv": {"md5": "other"}}]
)
def test_the_card_has_no_share_over_other_questions(tmp_path, side, change):
    both = {"ours": {"tsv": {"md5": "one"}}, "dense": {"tsv": {"md5": "one"}}}
    text = card_lines(tmp_path, **both | {side: both[side] | change})
    assert "% of the dense" not in text
    assert "not asked the same questions of AI2D." in text
    assert ("† measured on a part" in text) == ("partial" in change)
    if "partial" in change:
        means = ("60.00†", "80.00") if side == "ours" else ("60.00", "80.00†")
        assert f"| mean of 2 | {means[0]} | {means[1]} | |" in text


def test_a_score_of_other_weights_is_not_on_the_card(hub, upload, checkpoint):
    result, told = upload(checkpoint, scores(checkpoint, revision="0" * 16))
    assert result["scores"] == {"cot": [], "limited": []}
    assert result["scores_left_out"] == ["AI2D.json", "POPE.json"]
    assert "## Scores" not in hub.repositories[REPO].files["README.md"].decode()
    assert "of other weights" in told


def test_public_if_asked_for(hub, upload, checkpoint):
    result, _ = upload(checkpoint, private=False)
    assert result["private"] is False
    assert not hub.repositories[REPO].private


def test_a_public_repository_gets_nothing_private(hub, refusal):
    hub.repositories[REPO] = Repository(private=False)
    assert "is a public repository" in refusal()
    assert hub.repositories[REPO].messages == []


def test_a_repository_of_something_else_is_left_alone(hub, refusal):
    hub.repositories[REPO] = Repository(private=True)
    hub.repositories[REPO].files["model.safetensors"] = b"another's"
    assert "not interlace's" in refusal()
    assert hub.repositories[REPO].files["model.safetensors"] == b"another's"


def test_a_token_that_the_hub_refuses_is_one_line(hub, refusal):
    assert "does not accept the token" in refusal(token="hf_another")
    assert hub.repositories == {}


def test_offline_is_one_line_on_the_terminal(hub, checkpoint):
    run = Publishing(hub, checkpoint, HF_HUB_OFFLINE="1")
    (line,) = run.finish().strip().splitlines()
    assert run.process.returncode == 1
    assert not run.out.exists()
    assert "broke off" in line
    assert hub.repositories == {}


def test_a_hub_that_cannot_be_reached_is_one_line(refusal):
    assert "http://127.0.0.1:9 broke off; run again" in refusal(url="http://127.0.0.1:9")


def test_a_server_that_echoes_the_token_does_not_get_it_printed(hub, refusal):
    hub.refuse = 403
    assert "may not write there" in refusal()


@pytest.mark.parametrize(
    ("namespace", "token", "words"),
    [
        ("me", None, "no token"),
        (None, CANARY, r"publish\.namespace: not set"),
        ("me/you", CANARY, r"publish\.namespace"),
        ("-me", CANARY, r"publish\.namespace"),
    ],
)
def test_what_a_person_forgot_is_said_first(tmp_path, monkeypatch, namespace, token, words):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: token)
    settings = {"namespace": namespace, "private": True}
    with pytest.raises(InputError, match=words) as caught:
        publish(tmp_path / "absent", [], tmp_path / "out.json", settings, model="m", variant="v")
    assert CANARY not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("torn", ["model-1.safetensors", "interlace.json"])
def test_what_is_not_the_recorded_checkpoint_is_not_sent(checkpoint, monkeypatch, torn):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: CANARY)
    (checkpoint / torn).write_bytes(b"torn")
    settings = {"namespace": "me", "private": True}
    with pytest.raises(InputError, match=r"interlace\.json"):
        publish(checkpoint, [], checkpoint / "out.json", settings, model="m", variant="v")
