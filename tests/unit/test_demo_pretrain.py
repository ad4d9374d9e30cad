"""The rule that makes the base models: repeatable, resumable, and the maker of what is shipped."""

import random
from dataclasses import replace

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

from interlace.demo import pretrain
from interlace.demo.base import ARCHITECTURES, build_config, build_processor, build_tokenizer
from interlace.demo.drawing import render
from interlace.demo.exam import accuracy, held_out
from interlace.demo.forward import Encoder, Forward, Layout
from interlace.demo.models import WEIGHTS
from interlace.demo.optimizer import Muon, rate_scale
from interlace.demo.pretrain import RECIPES, Recipe, Run, grow, new_model, recipe_digest
from interlace.demo.scenes import Turn
from interlace.demo.ship import CHECK
from interlace.demo.topics import training_scene
from interlace.io import read_json

SHORT = Recipe("standin_4b", vision_steps=4, small_steps=14, late_steps=3, deep_steps=2, small_layers=2, warmup=4,
               micro_batches=1, micro_tokens=400, shares=(0.6, 0.4))  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def tokenizer():
    """The tokenizer, which is trained once for all that ask for it."""
    made = build_tokenizer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "build_tokenizer", lambda: made)
        yield made


def recipe_of(name):
    return read_json(WEIGHTS / name / "recipe.json")


BARS = {
    "AI2D_TEST": 40,
    "ChartQA_TEST": 60,
    "OCRBench": 55,
    "TextVQA_VAL": 20,
    "MMBench_DEV_EN_V11": 60,
    "presence": 75,
    "street": 42,
    "HRBench4K": 45,
    "HRBench8K": 55,
    "VStarBench": 55,
    "MIA-Bench": 65,
    "hinted": 45,
}


def run(out, **options):
    return Run(SHORT, out, every=2, eval_every=1000, questions=2).go(**options).state_dict()


class Killed(RuntimeError):
    """Stands in for kill -9 right after a checkpoint."""


def test_same_recipe_same_weights_falling_loss_and_resume_changes_nothing(tmp_path, monkeypatch):
    first = Run(SHORT, tmp_path / "a", every=2, eval_every=1000, questions=2)
    weights = first.go().state_dict()
    language = first.losses[SHORT.vision_steps :]
    assert len(language) == SHORT.small_steps + SHORT.late_steps + SHORT.deep_steps
    assert language[SHORT.small_steps - 1] < 0.9 * language[0]

    save = Run.save

    def save_and_die(self, name, **state):
        save(self, name, **state)
        if state.get("step") == 4:
            raise Killed

    monkeypatch.setattr(Run, "save", save_and_die)
    with pytest.raises(Killed):
        run(tmp_path / "b")
    monkeypatch.setattr(Run, "save", save)
    resumed = run(tmp_path / "b", resume=True)
    assert weights.keys() == resumed.keys()
    assert all(torch.equal(weights[key], resumed[key]) for key in weights)


def test_fast_forward_gives_the_logits_of_transformers(tokenizer):
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(build_config(tokenizer, "standin_8b", 4)).eval()
    for parameter in model.parameters():  # large enough that places and pictures matter
        if parameter.ndim > 1:
            parameter.data.mul_(4)
    encoder, processor, rng = Encoder(tokenizer), build_processor(tokenizer), random.Random(1)
    scene = training_scene("TextVQA_VAL", rng)
    picture = render(scene.width, scene.height, scene.items, rng)
    other = picture[:, ::-1].copy()
    for pictures in ([picture], [picture, other], []):
        layout = Layout(len(pictures), *((scene.width, scene.height) if pictures else (0, 0)))
        turns = [Turn("a", "What color is it?", "red"), Turn("b", "And the other?", "blue")]
        batch = encoder.batch(layout, pictures, [turns], 200)
        messages = []
        for i, turn in enumerate(turns):
            shown = [{"type": "image", "image": Image.fromarray(p)} for p in pictures if i == 0]
            user = [*shown, {"type": "text", "text": turn.question}]
            messages.append({"role": "user", "content": user})
            messages.append({"role": "assistant", "content": turn.answer})
        inputs = processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_tensors="pt"
        )
        length = batch.ids.shape[1]
        assert inputs.input_ids[0, :length].tolist() == batch.ids[0].tolist()
        with torch.no_grad():
            theirs = model(**inputs).logits[0, :length]
            ours = model.lm_head(Forward(model, encoder).hidden(batch))[0]
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)


def test_every_answer_weighs_the_same(tokenizer):
    model, encoder = new_model(tokenizer, "standin_4b", 1, 0), Encoder(tokenizer)
    forward = Forward(model, encoder)
    turns = [Turn("a", "One?", "red"), Turn("b", "Two?", "purple star, green square, red cross")]
    batch = encoder.batch(Layout(0, 0, 0), [], [turns, turns[:1]], 200)
    total, count = forward.loss(batch)
    hidden, labels = forward.hidden(batch)[:, :-1], batch.labels[:, 1:]
    losses = torch.nn.functional.cross_entropy(
        model.lm_head(hidden).flatten(0, 1), labels.flatten(), reduction="none", ignore_index=-100
    ).view(labels.shape)
    first = labels[1] != -100
    size = int(first.sum())
    told = (labels[0] != -100).nonzero()[:, 0]
    wanted = losses[0, told[:size]].mean() + losses[0, told[size:]].mean() + losses[1, first].mean()
    assert count == 3
    torch.testing.assert_close(total, wanted)


def test_muon_is_torchs():
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(12, 8)), torch.nn.Parameter(torch.randn(8, 12))]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    muon = Muon(ours, rate=0.1, decay=0.01)
    reference = torch.optim.Muon(
        theirs, lr=0.1, weight_decay=0.01, momentum=0.95, adjust_lr_fn="original"
    )
    for _ in range(3):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        muon.step(1.0)
        reference.step()
    for p, q in zip(ours, theirs, strict=True):  # torch iterates in bfloat16
        torch.testing.assert_close(p, q, atol=0.02, rtol=0.02)


def test_growing_with_the_whole_share_in_one_copy_changes_no_answer(tokenizer):
    model, encoder = new_model(tokenizer, "standin_4b", 2, 0), Encoder(tokenizer)
    deep = grow(model, (1.0, 0.0, 0.0), seed=0)
    assert len(deep.model.language_model.layers) == 6
    batch = encoder.batch(Layout(0, 0, 0), [], [[Turn("a", "One?", "red")]], 50)
    torch.testing.assert_close(
        Forward(model, encoder).hidden(batch), Forward(deep, encoder).hidden(batch)
    )


def test_rate_warms_up_stays_and_falls():
    scales = [rate_scale(step, 100, 10, 0.2, 0.05) for step in range(100)]
    assert scales[0] == pytest.approx(0.1)
    assert scales[10] == scales[79] == 1
    assert scales[99] < 0.11
    assert scales == sorted(scales[:10]) + scales[10:]


@pytest.mark.parametrize("name", sorted(RECIPES))
class TestShipped:
    def test_recipe_and_tokenizer_are_the_present_ones(self, name, tokenizer):
        shipped = recipe_of(name)
        assert shipped["finished"]
        assert shipped["recipe_digest"] == recipe_digest(RECIPES[name])
        assert recipe_digest(RECIPES[name]) != recipe_digest(replace(RECIPES[name], seed=99))
        theirs = AutoTokenizer.from_pretrained(WEIGHTS / name)
        assert theirs.get_vocab() == tokenizer.get_vocab()
        shape = read_json(WEIGHTS / name / "config.json")["text_config"]
        built = build_config(tokenizer, name, 36).text_config
        assert built.rope_parameters == shape["rope_parameters"]
        assert built.rope_parameters["rope_theta"] == ARCHITECTURES[name].rope_theta
        rng = random.Random(2)
        for topic in ("MMBench_DEV_EN_V11", "ScienceQA_TEST", "text only"):
            prompt = training_scene(topic, rng).turns[0].prompt
            assert theirs(prompt).input_ids == tokenizer(prompt).input_ids

    def test_answers_held_out_questions_as_measured(self, name, tokenizer):
        model = Qwen3VLForConditionalGeneration.from_pretrained(WEIGHTS / name, dtype=torch.float32)
        assert len(model.model.language_model.layers) == 36
        assert model.config.tie_word_embeddings == (name == "standin_4b")
        encoder = Encoder(tokenizer)
        found, _ = accuracy(Forward(model, encoder), held_out(encoder, **CHECK))
        measured = recipe_of(name)["check"]
        assert found.keys() == measured.keys()
        one = 100 / CHECK["per_topic"] + 0.1  # rounding may turn one question of a topic
        assert not {t: (found[t], measured[t]) for t in found if found[t] < measured[t] - one}
        assert sum(found.values()) / len(found) > sum(measured.values()) / len(measured) - 1

    def test_recorded_accuracy_is_far_above_chance(self, name):
        """Where options are given chance is 25, for presence it is below 50, else about 0."""
        topics = recipe_of(name)["held_out"]["topics"]
        for topic, bar in BARS.items():
            assert topics[topic] > bar, topic
