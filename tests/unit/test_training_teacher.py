"""The teacher: the dense model as it was, while the student that shares its weights learns."""

import pytest
import torch
import torch.nn.functional as F

from interlace.decoder.layers import decoder_layers
from interlace.training.distill import Teacher, kd_refusal
from interlace.training.freeze import apply_plan
from tests.boundaries import BoundaryRecorder
from tests.tiny_families import tiny_batch, tiny_model
from tests.unit.distill_cases import DROP, SETTINGS, TUNE, doubled, pupil, train_a_step


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl", "llava", "llama", "gemma3_text"])
def test_the_teacher_is_the_dense_model_and_stays_so_while_the_student_learns(family):
    dense, student, teacher = pupil(family, hidden=True)
    inputs = doubled(tiny_batch(family))
    student.train()
    before = student(**inputs).logits
    with torch.no_grad(), BoundaryRecorder(dense) as recorder:
        logits = dense(**inputs).logits
    for _ in range(2):
        states = teacher.run(inputs)
        assert torch.equal(F.linear(states.hidden_BTD, teacher.head_weight), logits)
        assert len(states.anchors_BTD) == len(teacher.anchors) == 2
        for anchor, state in zip(teacher.anchors, states.anchors_BTD, strict=True):
            assert torch.equal(state, recorder.outputs[anchor.teacher])
        assert not any(state.requires_grad for state in [states.hidden_BTD, *states.anchors_BTD])
        train_a_step(student, inputs)
    assert not torch.allclose(student(**inputs).logits, before, atol=1e-3)  # it did learn


def test_a_dropped_end_is_compared_with_the_teachers_last_layer():
    dense, student, teacher = pupil(drop=[5], tune=[4], hidden=True)
    inputs = tiny_batch("llama")
    with torch.no_grad(), BoundaryRecorder(dense) as recorder:
        dense(**inputs)
    (state,) = teacher.run(inputs).anchors_BTD
    assert torch.equal(state, recorder.outputs[5])
    assert teacher.student_layers == [decoder_layers(student)[4]]


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_vl"])
def test_the_student_is_as_before_once_the_teacher_ran(family):
    _, student, teacher = pupil(family, hidden=True)
    inputs = doubled(tiny_batch(family))
    student.train()
    student.model.visual.eval()
    modes = [module.training for module in student.modules()]
    names, config = list(student.state_dict()), str(student.config)
    before = student(**inputs).logits
    teacher.run(inputs)
    assert torch.equal(student(**inputs).logits, before)
    assert [module.training for module in student.modules()] == modes
    assert list(student.state_dict()) == names
    assert str(student.config) == config
    assert len(decoder_layers(student)) == 4
    assert not any(module._forward_hooks for module in student.modules())
    assert "forward" not in vars(student.get_output_embeddings())
    # Also where the run fails.
    with pytest.raises((TypeError, ValueError)):
        teacher.run({**inputs, "no_such_input": 1, "input_ids": None})
    assert torch.equal(student(**inputs).logits, before)
    assert [module.training for module in student.modules()] == modes


def test_the_teacher_runs_without_dropout_and_without_a_graph():
    dense, student, teacher = pupil(attention_dropout=0.5)
    inputs = tiny_batch("llama")
    student.train()
    state = torch.random.get_rng_state()
    logits = F.linear(teacher.run(inputs).hidden_BTD, teacher.head_weight)
    assert torch.equal(logits, dense(**inputs).logits)
    assert not logits.requires_grad
    assert torch.equal(torch.random.get_rng_state(), state)  # the student's draws are the same


def test_attention_that_is_set_on_the_student_is_the_teachers_too():
    _, student, teacher = pupil("qwen3_vl")
    configs = {id(m.config) for m in teacher._layers.modules() if hasattr(m, "config")}
    assert configs == {id(student.model.language_model.config)}


@pytest.mark.parametrize("trained_head", [False, True])
def test_only_dropped_layers_and_originals_of_trained_ones_take_memory(trained_head):
    _, student, teacher = pupil(trained_head=trained_head)
    seen = {weight.data_ptr() for weight in student.parameters()}
    layers = list(teacher._layers)
    kept = [0, 2, 4, 5]
    for index, layer in enumerate(layers):
        own = [weight.data_ptr() not in seen for weight in layer.parameters()]
        assert all(own) if index in DROP + TUNE else not any(own)
        if index in kept and index not in TUNE:
            assert layer is decoder_layers(student)[kept.index(index)]
    shares_head = teacher.head_weight.data_ptr() == student.lm_head.weight.data_ptr()
    assert shares_head != trained_head
    trained = {id(weight) for weight in student.parameters() if weight.requires_grad}
    assert not trained & {id(weight) for layer in layers for weight in layer.parameters()}


def test_a_trained_head_is_not_the_teachers():
    dense, student, teacher = pupil(trained_head=True)
    inputs = tiny_batch("llama")
    train_a_step(student, inputs)
    assert not torch.equal(student.lm_head.weight, dense.lm_head.weight)
    logits = F.linear(teacher.run(inputs).hidden_BTD, teacher.head_weight)
    assert torch.equal(logits, dense(**inputs).logits)


def test_a_head_tied_to_the_embeddings_is_shared_since_it_is_never_trained():
    student = tiny_model("llama", tie_word_embeddings=True)
    student.lm_head.weight = student.model.embed_tokens.weight
    teacher = Teacher(student, DROP, TUNE, head=True)
    apply_plan(student, DROP, TUNE, True)
    assert teacher.head_weight is student.lm_head.weight
    teacher.run(tiny_batch("llama"))


def test_a_student_that_trains_what_the_teacher_shares_is_caught():
    student = tiny_model("llama").double()
    teacher = Teacher(student, DROP, [2])
    apply_plan(student, DROP, TUNE)
    with pytest.raises(AssertionError, match=r"layers\.4\."):
        teacher.run(tiny_batch("llama"))


def test_what_cannot_be_distilled_is_refused():
    _, student, teacher = pupil()
    assert kd_refusal(student, SETTINGS) is None
    student.lm_head.weight.ds_id = 0  # partitioned by ZeRO-3
    with pytest.raises(AssertionError):
        teacher.run(tiny_batch("llama"))
    capped = tiny_model("gemma3_text", layers=2, final_logit_softcapping=30.0)
    assert "final_logit_softcapping" in kd_refusal(capped, SETTINGS)
    assert kd_refusal(capped, {"loss": "kd", "kd": {"match": "hidden"}}) is None


def test_a_packed_row_is_taught_as_its_samples_alone():
    dense, _, teacher = pupil("qwen3")
    samples = [tiny_batch("qwen3", seed=seed)["input_ids"] for seed in (1, 23)]
    inputs = {
        "input_ids": torch.cat(samples, 1),
        "position_ids": torch.cat([torch.arange(ids.shape[1]) for ids in samples])[None],
    }
    states = teacher.run(inputs).hidden_BTD
    alone = torch.cat([dense.model(ids).last_hidden_state for ids in samples], 1)
    assert torch.allclose(states, alone, rtol=0, atol=1e-10)
