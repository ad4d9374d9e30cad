"""The decoding loop against transformers' generate(), row by row, on tiny models in float32."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import GenerationConfig

from interlace.decoder.load import load_model, load_processor
from interlace.decoder.surgery import drop_layers
from interlace.errors import InputError
from interlace.evaluation import generate as loop
from interlace.evaluation.batches import Room, Row, batches, collate, prepared
from interlace.evaluation.generate import Decoding, decoding_of, generate, loop_refusal
from tests.tiny import make_tiny_checkpoint
from tests.tiny_families import tiny_batch, tiny_model

PAD = 0
NEW = 14


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_tiny_checkpoint(tmp_path_factory.mktemp("engine") / "model", layers=4, tied=False)


@pytest.fixture
def model(checkpoint):
    return load_model(checkpoint)


@pytest.fixture(scope="module")
def prompts(checkpoint):
    """Twelve prompts: no image, one or two, of different sizes, and text of different lengths."""
    processor = load_processor(checkpoint)
    rng = np.random.default_rng(0)
    made = []
    for number in range(12):
        sizes = [(32 * int(w), 32 * int(h)) for w, h in rng.integers(1, 5, (number % 3, 2))]
        images = [
            Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes
        ]
        content = [{"type": "image"} for _ in images]
        content.append({"type": "text", "text": "What is 4 plus 7? " * int(rng.integers(1, 9))})
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        made.append(dict(processor(text=text, images=images or None, return_tensors="pt")))
    return made


def alone(model, prompts, **arguments):
    """Return what generate() answers to each prompt on its own, cut after the token that ends it."""
    found = []
    for prompt in prompts:
        output = model.generate(**prompt, **arguments)
        found.append(output[0, prompt["input_ids"].shape[1] :].tolist())
    return found


def together(model, prompts, room=None, ahead=0, seeds=None, order=None, images=None, **arguments):
    """Return (tokens, finished) of each prompt from the loop."""
    decoding = decoding_of(model, {"repetition_penalty": 1.0, **arguments}, PAD)
    order = range(len(prompts)) if order is None else order
    rows = [
        Row(
            str(n),
            lambda n=n: prompts[n],
            seeds[n] if seeds is not None else None,
            images[n] if images is not None else None,
        )
        for n in order
    ]
    room = room or Room(64, 10**6, arguments["max_new_tokens"])
    done = list(generate(model, rows, decoding, room, "AI2D", ahead))
    assert sorted(int(row.index) for row in done) == sorted(order)
    return {int(row.index): (row.tokens, row.finished) for row in done}


def check(found, expected, eos, most):
    for number, tokens in enumerate(expected):
        ends = next((at for at, token in enumerate(tokens) if token in eos), None)
        cut = tokens if ends is None else tokens[: ends + 1]
        assert found[number] == (cut, ends is not None), number
        assert len(cut) == most or ends is not None


def tokens_until(answer, eos):
    return next((n for n, token in enumerate(answer, 1) if token in eos), NEW)


def ends_for(model, prompts):
    """Return tokens that end the free answers at as many places as can be had, and those answers.

    One ends at its first token and one goes on to the last, if that can be had.
    """
    model.generation_config = GenerationConfig(pad_token_id=PAD)
    free = alone(model, prompts, max_new_tokens=NEW, do_sample=False)

    def worth(eos):
        found = {tokens_until(answer, eos) for answer in free}
        return {1, NEW} <= found, len(found)

    said = sorted({token for answer in free for token in answer})
    return max(itertools.combinations(said, 2), key=worth), free


@pytest.fixture(scope="module")
def answers(checkpoint, prompts):
    """Two tokens that end answers at different places, and the answers without an end."""
    model = load_model(checkpoint)
    eos, free = ends_for(model, prompts)
    lengths = [tokens_until(answer, eos) for answer in free]
    assert {1, NEW} < set(lengths)
    assert len(set(lengths)) > 3
    model.generation_config.eos_token_id = list(eos)
    ended = alone(model, prompts, max_new_tokens=NEW, do_sample=False)
    assert ended == [answer[:length] for answer, length in zip(free, lengths, strict=True)]
    return eos, free


def end_at(model, eos):
    model.generation_config = GenerationConfig(pad_token_id=PAD, eos_token_id=list(eos))


@pytest.mark.parametrize(
    "room",
    [
        Room(64, 10**6, NEW),
        Room(5, 10**6, NEW),
        Room(1, 10**6, NEW),
        Room(64, 400, NEW),
    ],
)
def test_greedy_tokens_are_those_of_generate(model, prompts, answers, room):
    eos, free = answers
    end_at(model, eos)
    check(together(model, prompts, room, max_new_tokens=NEW), free, eos, NEW)


def test_rows_without_padding_need_no_mask(model, prompts):
    model.generation_config = GenerationConfig(pad_token_id=PAD)
    seen = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
    )
    together(model, [prompts[1]] * 3, max_new_tokens=3)
    assert seen == [None] * 3


def test_an_image_that_rows_share_is_read_once(model, checkpoint, monkeypatch):
    processor = load_processor(checkpoint)
    rng = np.random.default_rng(1)
    pictures = [
        Image.fromarray(rng.integers(0, 256, (32 * side, 64, 3), dtype=np.uint8))
        for side in (1, 3, 2)
    ]
    prompts, images = [], []
    # Rows 0 to 8 ask three questions about each picture, 9 opens otherwise, 10 shows two pictures.
    for number in range(12):
        shown = {10: [0, 1], 11: []}.get(number, [number % 3])
        content = [{"type": "image"} for _ in shown]
        content.insert(
            0 if number == 9 else 9, {"type": "text", "text": "What is it? " * (number + 1)}
        )
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        given = [pictures[n] for n in shown] or None
        prompts.append(dict(processor(text=text, images=given, return_tensors="pt")))
        images.append(str(shown))
    eos, free = ends_for(model, prompts)
    model.generation_config.eos_token_id = list(eos)
    grids = []
    tower = model.model.get_image_features
    monkeypatch.setattr(
        model.model,
        "get_image_features",
        lambda pixels, grid, **kwargs: grids.append(len(grid)) or tower(pixels, grid, **kwargs),
    )
    check(together(model, prompts, max_new_tokens=NEW), free, eos, NEW)
    assert sum(grids) == 12
    grids.clear()
    check(together(model, prompts, images=images, max_new_tokens=NEW), free, eos, NEW)
    assert sum(grids) == 3 + 1 + 2
    grids.clear()
    room = Room(5, 10**6, NEW)
    monkeypatch.setattr(loop, "PARKED_STEPS", 2)
    monkeypatch.setattr(loop, "PARKED_SHARE", 3 / 4)
    check(together(model, prompts, room, images=images, max_new_tokens=NEW), free, eos, NEW)
    # Rows that share nothing, or cannot tell, are prefilled as they are.
    grids.clear()
    check(together(model, prompts[:3], images=images, max_new_tokens=NEW), free[:3], eos, NEW)
    assert sum(grids) == 3


def test_finished_rows_leave_the_batch(model, prompts, answers):
    eos, _ = answers
    end_at(model, eos)
    sizes = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    found = together(model, prompts, max_new_tokens=NEW)
    lengths = [len(tokens) for tokens, _ in found.values()]
    assert sizes == [sum(length > step for length in lengths) for step in range(max(lengths))]


def test_parked_rows_go_on_where_they_were(model, prompts, answers, monkeypatch):
    eos, free = answers
    end_at(model, eos)
    monkeypatch.setattr(loop, "PARKED_STEPS", 2)
    monkeypatch.setattr(loop, "PARKED_SHARE", 3 / 4)
    prefills = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: prefills.append(kwargs["input_ids"].shape[1] > 1), with_kwargs=True
    )
    check(together(model, prompts, Room(4, 10**6, NEW), max_new_tokens=NEW), free, eos, NEW)
    assert sum(prefills) > 3  # more than the three batches of four
    # A batch that outgrows its room goes on with half of its rows.
    model.generation_config.eos_token_id = None
    monkeypatch.setattr("interlace.evaluation.batches.EXPECTED_NEW_TOKENS", 1)
    width = max(prompt["input_ids"].shape[1] for prompt in prompts)
    prefills.clear()
    found = together(model, prompts, Room(12, 12 * (width + 2), NEW), max_new_tokens=NEW)
    assert all(found[n] == (free[n], False) for n in found)
    assert sum(prefills) > 1


@pytest.fixture(scope="module")
def placeholders(checkpoint):
    """The ids of <|image_pad|>, <|video_pad|> and <|vision_start|>."""
    names = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>"]
    return load_processor(checkpoint).tokenizer.convert_tokens_to_ids(names)


@pytest.mark.parametrize(
    ("said", "reason"),
    [(0, "none"), (0, "parked"), (0, "no memory"), (1, "parked"), (2, "parked")],
)
def test_a_model_that_says_image_tokens(said, reason, model, prompts, placeholders, monkeypatch):
    token = placeholders[said]
    ends_for(model, prompts)
    top = alone(model, prompts[1:2], max_new_tokens=1, do_sample=False)[0][0]
    with torch.no_grad():
        model.lm_head.weight[token] = 1.3 * model.lm_head.weight[top]
    eos, free = ends_for(model, prompts)
    assert sum(token in answer[:-2] for answer in free) > 2
    assert len({other for answer in free for other in answer}) > 3  # and not only that
    model.generation_config.eos_token_id = [end for end in eos if end != token]
    room, calls, resumed = Room(64, 10**6, NEW), [], []
    if reason == "parked":
        room = Room(4, 10**6, NEW)
        monkeypatch.setattr(loop, "PARKED_STEPS", 1)
        monkeypatch.setattr(loop, "PARKED_SHARE", 1)

    def fail(_, args, kwargs):
        ids = kwargs["input_ids"]
        calls.append(ids.shape)
        resumed.append("pixel_values" not in kwargs and bool((ids[:, :-1] == token).any()))
        if reason == "no memory" and len(ids) > 3 and len(calls) % 4 == 0:
            raise torch.OutOfMemoryError("no memory left")

    model.register_forward_pre_hook(fail, with_kwargs=True)
    ends = model.generation_config.eos_token_id
    check(together(model, prompts, room, max_new_tokens=NEW), free, ends, NEW)
    assert any(resumed) == (reason != "none")


def test_out_of_memory_halves_the_room_and_loses_nothing(model, prompts, answers, capsys):
    eos, free = answers
    end_at(model, eos)
    calls, errors = [], [RuntimeError, torch.OutOfMemoryError]  # of CUDA's libraries, and torch's

    def fail(_, args, kwargs):
        calls.append(len(kwargs["input_ids"]))
        if len(kwargs["input_ids"]) > 3 and len(calls) > 2:
            raise errors[-1]("CUDA error: out of memory")

    handle = model.register_forward_pre_hook(fail, with_kwargs=True)
    while errors:
        check(together(model, prompts, max_new_tokens=NEW), free, eos, NEW)
        assert "out of memory with" in capsys.readouterr().out
        errors.pop()
    handle.remove()
    # What is left of a batch may be a single row; it may yet fit when it is alone from the start.
    lengths = [tokens_until(answer, eos) for answer in free]
    two = [prompts[lengths.index(1)], prompts[lengths.index(NEW)]]
    once = iter([torch.OutOfMemoryError("no memory left")])

    def fail_once(_, args, kwargs):
        if kwargs["input_ids"].shape == (1, 1) and (error := next(once, None)):
            raise error

    handle = model.register_forward_pre_hook(fail_once, with_kwargs=True)
    found = together(model, two, max_new_tokens=NEW)
    assert next(once, None) is None
    check(found, [free[lengths.index(1)], free[lengths.index(NEW)]], eos, NEW)
    handle.remove()
    model.register_forward_pre_hook(
        lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("never enough"))
    )
    line = r"AI2D: index \d+: out of memory with this row alone, \d+ tokens .*pixels\.AI2D"
    with pytest.raises(InputError, match=line):
        together(model, prompts, max_new_tokens=NEW)
    with pytest.raises(RuntimeError, match="something else"):
        model.register_forward_pre_hook(
            lambda *_: (_ for _ in ()).throw(RuntimeError("something else")), prepend=True
        )
        together(model, prompts, max_new_tokens=NEW)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_batches_say_what_single_rows_say_and_live_with_little_memory(
    checkpoint, prompts, capsys
):
    model = load_model(checkpoint, device="cuda")
    model.generation_config = GenerationConfig(pad_token_id=PAD)
    on_gpu = [{key: value.to("cuda") for key, value in prompt.items()} for prompt in prompts]
    free = alone(model, on_gpu, max_new_tokens=NEW, do_sample=False)
    check(together(model, prompts, max_new_tokens=NEW), free, [], NEW)
    many = [prompts[number % 12] for number in range(600)]
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    few = torch.cuda.memory_reserved() + 256 * 2**20
    torch.cuda.set_per_process_memory_fraction(few / total)
    try:
        found = together(model, many, Room(len(many), 10**9, NEW), max_new_tokens=NEW)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "out of memory with" in capsys.readouterr().out
    check(found, [free[number % 12] for number in range(600)], [], NEW)


def test_a_pruned_model_and_an_untied_one(tmp_path, prompts):
    for number, tied in enumerate((True, False)):
        made = make_tiny_checkpoint(tmp_path / str(number), layers=6, tied=tied, seed=3)
        model = load_model(made)
        if number == 0:
            drop_layers(model, [1, 4])
        eos, free = ends_for(model, prompts)
        model.generation_config.eos_token_id = list(eos)
        check(together(model, prompts, max_new_tokens=NEW), free, eos, NEW)


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl", "qwen2_vl", "llama"])
def test_other_families_in_the_loop_or_by_generate(family, monkeypatch):
    text = {"use_sliding_window": False} if family.startswith("qwen2") else {}
    model = tiny_model(family, **text).eval()
    made = [tiny_batch(family, with_image=family != "llama", seed=seed) for seed in range(3)]
    made = [{k: v[:1] if k in ("input_ids", "attention_mask", "mm_token_type_ids") else v
             for k, v in batch.items() if k != "labels"} for batch in made]  # fmt: skip
    model.generation_config = GenerationConfig(pad_token_id=PAD)
    free = alone(model, made, max_new_tokens=5, do_sample=False)
    assert loop_refusal(model) is None
    check(together(model, made, max_new_tokens=5), free, [], 5)
    monkeypatch.setattr(loop, "loop_refusal", lambda model: "a test")
    model.generation_config.eos_token_id = free[1][2]
    check(together(model, made, max_new_tokens=5), free, [free[1][2]], 5)


def test_what_the_loop_does_not_know_is_left_to_generate(model, prompts, capsys):
    assert loop_refusal(model) is None
    assert "DynamicSlidingWindowLayer" in loop_refusal(tiny_model("gemma3"))
    model.generation_config = GenerationConfig(pad_token_id=PAD, no_repeat_ngram_size=1)
    assert "no_repeat_ngram_size" in loop_refusal(model)
    expected = alone(model, prompts, max_new_tokens=NEW, do_sample=False)
    check(together(model, prompts, max_new_tokens=NEW), expected, [], NEW)
    assert "no_repeat_ngram_size" in capsys.readouterr().out
    model.generation_config.repetition_penalty = 1.0
    sampled = {"do_sample": True, "temperature": 2.0, "max_new_tokens": NEW}
    seeds = list(range(12))
    first = together(model, prompts, seeds=seeds, **sampled)
    again = together(model, prompts[:5], seeds=seeds, order=[4, 0], **sampled)
    assert again == {n: first[n] for n in again}


SAMPLED = {"do_sample": True, "temperature": 1.5, "top_p": 0.9, "top_k": 20, "max_new_tokens": NEW}


def test_a_sampled_answer_depends_on_its_seed_alone(model, prompts, answers, monkeypatch):
    eos, _ = answers
    end_at(model, eos)
    seeds = [7 * n + 1 for n in range(12)]
    state = torch.get_rng_state()
    first = together(model, prompts, seeds=seeds, **SAMPLED)
    assert torch.equal(torch.get_rng_state(), state)
    assert together(model, prompts, Room(1, 10**6, NEW), seeds=seeds, **SAMPLED) == first
    order = [9, 3, 11, 0]
    some = together(model, prompts, Room(3, 10**6, NEW), seeds=seeds, order=order, **SAMPLED)
    assert some == {n: first[n] for n in order}
    monkeypatch.setattr(loop, "PARKED_STEPS", 1)
    monkeypatch.setattr("interlace.evaluation.batches.EXPECTED_NEW_TOKENS", 1)
    assert together(model, prompts, Room(5, 300, NEW), seeds=seeds, **SAMPLED) == first
    other = together(model, prompts, seeds=[seed + 1 for seed in seeds], **SAMPLED)
    assert sum(other[n] != first[n] for n in first) > 6
    assert len({tuple(tokens) for tokens, _ in first.values()}) > 9


def test_samples_follow_the_distribution_that_generate_draws_from(model, prompts):
    arguments = {**SAMPLED, "max_new_tokens": 1}
    made = model.generate(
        **prompts[1], **arguments, output_scores=True, return_dict_in_generate=True
    )
    probs = made.scores[0].softmax(dim=-1)[0]
    assert 3 < int((probs > 0).sum()) <= 20
    with torch.inference_mode():
        logits = model(**prompts[1]).logits[:, -1]
    rows = [Row(str(n), dict, seed=n) for n in range(4000)]
    decoding = Decoding(arguments, frozenset(), PAD)
    drawn = decoding.choose(logits.expand(len(rows), -1), rows)
    shares = torch.bincount(drawn, minlength=len(probs)) / len(rows)
    assert (shares[probs == 0] == 0).all()
    assert (shares - probs).abs().max() < 0.03
    # Certain tokens are certain, at both ends of the vocabulary.
    for token in (0, logits.shape[1] - 1):
        sure = torch.full_like(logits, -1e4)
        sure[0, token] = 1e4
        assert decoding.choose(sure.expand(50, -1), rows[:50]).unique().tolist() == [token]


def test_eager_attention_masks_alike(checkpoint, prompts):
    model = load_model(checkpoint, attention="eager")
    eos, free = ends_for(model, prompts)
    model.generation_config.eos_token_id = list(eos)
    twice, images = [*prompts, *prompts], [str(n % 12) for n in range(24)]
    check(together(model, twice, images=images, max_new_tokens=NEW), free * 2, eos, NEW)


def test_rows_prepared_ahead_are_the_same(model, prompts):
    model.generation_config = GenerationConfig(pad_token_id=PAD)
    room = Room(4, 10**6, NEW)
    assert together(model, prompts, room, ahead=50, max_new_tokens=NEW) == together(
        model, prompts, room, max_new_tokens=NEW
    )


def test_what_fails_in_preparation_is_raised_and_the_thread_ends():
    def fail():
        raise OSError("no such image")

    def row(index):
        return Row(index, lambda: {"input_ids": torch.ones(1, 2, dtype=torch.long)})

    seen = prepared([row("0"), Row("1", fail), row("2")], ahead=1)
    assert next(seen)[0].index == "0"
    with pytest.raises(OSError, match="no such image"):
        next(seen)
    # No more than asked for is held: two tokens a row, one row over, one in the thread's hands.
    made = []
    rows = [Row(str(n), lambda n=n: made.append(n) or row("").prepare()) for n in range(50)]
    left = prepared(rows, ahead=6)
    next(left)
    left.close()  # joins the thread, which waits for room
    assert len(made) <= 6


def test_collate_pads_on_the_left_and_joins_images():
    def sample(length, patches):
        return {
            "input_ids": torch.full((1, length), 7),
            "attention_mask": torch.ones(1, length, dtype=torch.long),
            "pixel_values": torch.ones(patches, 3),
            "image_grid_thw": torch.tensor([[1, 2, patches // 2]]),
        }

    text = {key: value for key, value in sample(1, 4).items() if key[:5] not in ("pixel", "image")}
    batch = collate([sample(2, 4), sample(4, 8), text], pad_token_id=9)
    assert batch["input_ids"].tolist() == [[9, 9, 7, 7], [7] * 4, [9, 9, 9, 7]]
    assert batch["attention_mask"].tolist() == [[0, 0, 1, 1], [1] * 4, [0, 0, 0, 1]]
    assert batch["pixel_values"].shape == (12, 3)
    assert batch["image_grid_thw"].tolist() == [[1, 2, 2], [1, 2, 4]]


def test_batches_keep_to_rows_and_tokens():
    def sizes(lengths, room, new=0):
        rows = []
        for length in lengths:
            row = Row("", lambda n=length: {"input_ids": torch.ones(1, n, dtype=torch.long)})
            row.tokens = [1] * new
            rows.append(row)
        return [len(batch) for batch in batches(prepared(rows, 0), room)]

    lengths = (50, 30, 30, 10, 10, 10, 10)
    assert sizes(lengths, Room(3, 60, 0)) == [1, 2, 3, 1]
    assert sizes(lengths, Room(3, 60, 10)) == [1, 1, 1, 3, 1]
    assert sizes([100] * 8, Room(64, 4 * 356, 16384)) == [4, 4]  # not 16,484 tokens each
    assert sizes([100] * 8, Room(64, 4 * 356, 50)) == [8]
    assert sizes([100] * 8, Room(64, 4 * 1100, 16384), new=500) == [4, 4]
    assert sizes([100] * 3, Room(64, 1, 50)) == [1, 1, 1]
