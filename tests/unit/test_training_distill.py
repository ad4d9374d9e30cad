import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from interlace.data.collate import IGNORED
from interlace.decoder.layers import decoder_layers
from interlace.errors import InputError
from interlace.training.distill import (
    Anchor,
    Distillation,
    DistilledTokens,
    Teacher,
    anchors,
    hidden_loss,
    kd_losses,
    token_weights,
)
from interlace.training.freeze import apply_plan
from interlace.training.head import CrossEntropy, Supervised, SupervisedHead, full_loss
from tests.boundaries import BoundaryRecorder
from tests.tiny_families import tiny_batch, tiny_model
from tests.unit.distill_cases import SETTINGS, TUNE, doubled, micro_batch, pupil
from tests.unit.head_cases import supervised_head

# Anchors.


@pytest.mark.parametrize(
    ("drop", "tune", "expected"),
    [
        ([1], [2], [(2, 2)]),
        ([1, 4], [2, 5], [(2, 2), (5, 5)]),
        ([2], [1], [(3, 3)]),  # dropped behind its tuned layer: the frozen one behind both
        ([2, 3, 4], [5, 6, 7], [(5, 5)]),  # a block is one stretch
        ([7], [6], [(6, 7)]),  # none behind: the student's last layer stands for the teacher's
        ([6, 7], [5], [(5, 7)]),
        ([3, 5], [4], [(4, 4), (6, 6)]),
        ([3, 7], [4, 6], [(4, 4), (6, 7)]),
        ([5, 7], [6], [(6, 7)]),  # one student layer, and the deeper of its two teachers
        ([1, 5], [4], [(6, 6)]),  # what is dropped below every tuned layer cannot be mended
    ],
)
def test_an_anchor_is_the_kept_layer_behind_a_dropped_stretch(drop, tune, expected):
    assert anchors(drop, tune, 8) == [Anchor(*pair) for pair in expected]


@pytest.mark.parametrize(("drop", "tune"), [([], [7]), ([1], [4]), ([1], [])])
def test_a_plan_without_anchors_is_refused(drop, tune):
    with pytest.raises(InputError, match=r"finetune\.kd\.match: hidden .* use logits"):
        anchors(drop, tune, 8)


# Pure losses.


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), temperature=st.floats(0.3, 8.0))
def test_the_distilled_loss_is_tempered_divergence_with_hintons_gradient(seed, temperature):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    student.requires_grad_()
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    losses = kd_losses(student, teacher, temperature)
    expected = temperature**2 * (p * (p / q).log()).sum(-1)
    assert torch.allclose(losses, expected, rtol=0, atol=1e-10)
    (gradient,) = torch.autograd.grad(losses.sum(), student)
    assert torch.allclose(gradient, temperature * (q - p), rtol=0, atol=1e-10)
    same = kd_losses(student, student.detach(), temperature)
    assert same.abs().max() == 0
    assert torch.autograd.grad(same.sum(), student)[0].abs().max() < 1e-14


def test_logits_in_bfloat16_are_compared_in_float32():
    student, teacher = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    losses = kd_losses(student, teacher, 2.0)
    assert losses.dtype == torch.float32
    assert torch.allclose(losses, kd_losses(student.double(), teacher.double(), 2.0).float())


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 99), rows=st.integers(1, 9), share=st.sampled_from([0.0, 0.25, 1.0]),
    labelled=st.sampled_from([0.0, 0.6, 1.0]), trained=st.booleans(),
    kind=st.sampled_from(["supervised", "chunked"]),
)  # fmt: skip
def test_every_head_gives_the_distilled_loss_and_gradients_of_all_logits(
    seed, rows, share, labelled, trained, kind
):
    generator = torch.Generator().manual_seed(seed)
    hidden, teacher = torch.randn(2, 2, 6, 4, generator=generator, dtype=torch.float64)
    model = tiny_model("llama", layers=1).double()
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(torch.randn(9, 4, generator=generator, dtype=torch.float64))
    head.requires_grad_(trained)
    before = head.weight.detach() + 0.1  # the teacher's
    labels = torch.randint(0, 9, (2, 6), generator=generator)
    labels[torch.rand(2, 6, generator=generator) > labelled] = IGNORED
    weights = torch.rand(2, 6, generator=generator).masked_fill(labels == IGNORED, 0)
    hidden.requires_grad_()
    tokens = Supervised.of(labels, weights)

    logits = hidden @ head.weight.T
    kd = kd_losses(
        logits[:, :-1][tokens.mask_BT], (teacher @ before.T)[:, :-1][tokens.mask_BT], 3.0
    )
    ce, plain_losses = full_loss(logits, labels, weights)
    expected = (1 - share) * ce + share * (kd * tokens.weights_N).sum()
    criterion = DistilledTokens(tokens, teacher, before, 3.0, share)
    with supervised_head(model, kind, rows) as supervised:
        supervised.expect(labels, weights, criterion)
        loss = head(hidden)
    whole, _ = full_loss(hidden @ head.weight.T, labels, weights, criterion)
    wanted = [hidden, head.weight] if trained else [hidden]
    plain = torch.autograd.grad(expected, wanted)
    assert torch.allclose(supervised.losses, plain_losses, rtol=0, atol=1e-10)
    for one in (loss, whole):
        assert abs((one - expected).item()) < 1e-10
        for got, right in zip(torch.autograd.grad(one, wanted), plain, strict=True):
            assert torch.allclose(got, right, rtol=0, atol=1e-10)


def test_the_hidden_loss_is_relative_to_the_teachers_state_and_blind_to_bare_tokens():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, 2, 5, 4, generator=generator, dtype=torch.float64)
    weights = torch.rand(2, 5, generator=generator)
    weights[0, 3] = 0
    student[:, 0, 3] = torch.nan
    student.requires_grad_()
    loss = hidden_loss(list(student), list(teacher), weights)
    expected = sum(
        weights[b, t] * ((student[a, b, t] - teacher[a, b, t]) ** 2).sum() / (teacher[a, b, t] ** 2).sum() / 3
        for a in range(3) for b in range(2) for t in range(5) if (b, t) != (0, 3)
    )  # fmt: skip
    assert abs((loss - expected).item()) < 1e-10
    got, right = (torch.autograd.grad(one, student)[0] for one in (loss, expected))
    assert torch.allclose(got, right, rtol=0, atol=1e-10)
    grown = hidden_loss([1000 * state for state in student], list(1000 * teacher), weights)
    assert grown.item() == pytest.approx(loss.item())
    same = hidden_loss(list(teacher.requires_grad_()), list(teacher.detach()), weights)
    assert same.item() == 0
    assert torch.autograd.grad(same, teacher)[0].abs().max() == 0


def test_a_samples_weight_is_spread_over_its_tokens_however_it_is_laid_out():
    one = torch.tensor([[0.0, 0.2, 0.4]]), torch.tensor([[0, 0, 0]])
    two = torch.tensor([[0.0, 0.0, 0.1, 0.1]]), torch.tensor([[0, 0, 0, 0]])
    alone = [token_weights(*sample, 1) for sample in (one, two)]
    assert torch.allclose(alone[0], torch.full((1, 3), 0.2))
    assert torch.allclose(alone[1], torch.full((1, 4), 0.05))
    packed = token_weights(
        torch.cat([one[0], two[0]], 1), torch.cat([one[1], two[1] + 1], 1), count=2
    )
    assert torch.allclose(packed, torch.cat(alone, 1))
    padded = token_weights(
        torch.cat([F.pad(one[0], (0, 1)), two[0]]),
        torch.cat([F.pad(one[1], (0, 1), value=-1), two[1] + 1]),
        count=2,
    )
    assert torch.allclose(padded, torch.cat([F.pad(alone[0], (0, 1)), alone[1]]))


# A micro-batch's loss.


@pytest.mark.parametrize("head_kind", [None, "supervised", "chunked"])
@pytest.mark.parametrize(("loss", "share"), [("kd", 1.0), ("ce+kd", 0.3)])
def test_logits_are_distilled_with_the_shares_that_the_settings_state(loss, share, head_kind):
    dense, student, teacher = pupil("qwen3_vl")
    batch = micro_batch(doubled(tiny_batch("qwen3_vl")))
    trained = [weight for weight in student.parameters() if weight.requires_grad]
    tokens = Supervised.of(batch.labels, batch.weights)
    logits = student(**batch.inputs).logits
    with torch.no_grad():
        teaching = dense(**batch.inputs).logits
    kd = kd_losses(logits[:, :-1][tokens.mask_BT], teaching[:, :-1][tokens.mask_BT], 2.0)
    ce, losses = full_loss(logits, batch.labels, batch.weights)
    expected = (1 - share) * ce + share * (kd * tokens.weights_N).sum()
    plain = torch.autograd.grad(expected, trained)
    head = SupervisedHead(student, head_kind, 3) if head_kind else None
    distillation = Distillation(teacher, {**SETTINGS, "loss": loss}, head)
    found = distillation(student, batch)
    assert abs((found - expected).item()) < 1e-10
    for got, right in zip(torch.autograd.grad(found, trained), plain, strict=True):
        assert torch.allclose(got, right, rtol=0, atol=1e-10)
    assert torch.allclose(distillation.losses, losses, rtol=0, atol=1e-10)


@pytest.mark.parametrize("head_kind", [None, "chunked"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_hidden_states_are_distilled_at_the_anchors(head_kind, checkpointing):
    dense, student, teacher = pupil("qwen3_vl", hidden=True)
    batch = micro_batch(doubled(tiny_batch("qwen3_vl")))
    trained = [weight for weight in student.parameters() if weight.requires_grad]
    with torch.no_grad(), BoundaryRecorder(dense) as theirs:
        dense(**batch.inputs)
    with BoundaryRecorder(student) as mine:
        logits = student(**batch.inputs).logits
    kept = [0, 2, 4, 5]
    states = [mine.outputs[kept.index(anchor.student)] for anchor in teacher.anchors]
    teaching = [theirs.outputs[anchor.teacher] for anchor in teacher.anchors]
    weights = token_weights(batch.weights, batch.owners, 2)
    ce, _ = full_loss(logits, batch.labels, batch.weights)
    expected = 0.7 * ce + 0.3 * hidden_loss(states, teaching, weights)
    plain = torch.autograd.grad(expected, trained)
    student.train()
    if checkpointing:
        student.gradient_checkpointing_enable({"use_reentrant": False})
    head = SupervisedHead(student, head_kind, 3) if head_kind else None
    hidden = {"loss": "ce+kd", "kd": {"match": "hidden", "weight": 0.3}}
    found = Distillation(teacher, hidden, head)(student, batch)
    assert abs((found - expected).item()) < 1e-10
    for got, right in zip(torch.autograd.grad(found, trained), plain, strict=True):
        assert torch.allclose(got, right, rtol=0, atol=1e-10)


@pytest.mark.parametrize("on", ["logits", "hidden"])
def test_a_student_like_its_teacher_has_nothing_to_learn_from_it(on):
    student = tiny_model("llama", tie_word_embeddings=False).double()
    teacher = Teacher(student, [], TUNE)
    if on == "hidden":  # as a plan that dropped something would
        teacher.anchors = [Anchor(4, 4)]
        teacher.student_layers = [decoder_layers(student)[4]]
    apply_plan(student, [], TUNE)
    batch = micro_batch(tiny_batch("llama"))
    with supervised_head(student, "chunked") as head:
        kd = {"loss": "kd", "kd": {"match": on}}
        loss = Distillation(teacher, kd, head)(student, batch)
        loss.backward()
    assert loss.item() == 0
    gradients = [weight.grad for weight in student.parameters() if weight.requires_grad]
    assert max(gradient.abs().max() for gradient in gradients) < 1e-12
    # Which is not so once it is another.
    with torch.no_grad():
        decoder_layers(student)[2].mlp.up_proj.weight.mul_(1.5)
    with supervised_head(student, "chunked") as head:
        assert Distillation(teacher, kd, head)(student, batch).item() > 1e-4


def test_learning_from_the_teacher_brings_the_student_closer_to_it():
    _, student, teacher = pupil(hidden=True)
    batch = micro_batch(tiny_batch("llama"))
    batch.weights /= batch.weights.sum()
    optimizer = torch.optim.Adam([w for w in student.parameters() if w.requires_grad], 1e-2)
    losses = []
    with supervised_head(student, "chunked") as head:
        distillation = Distillation(teacher, {"loss": "kd", "kd": {"match": "hidden"}}, head)
        for _ in range(15):
            loss = distillation(student, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_a_blank_micro_batch_has_a_loss_of_zero_with_a_graph():
    for on in ("logits", "hidden"):
        _, student, teacher = pupil(hidden=True)
        batch = micro_batch(tiny_batch("llama"))
        batch.labels.fill_(IGNORED)
        batch.weights.zero_()
        batch.owners.fill_(-1)
        batch.ids = []
        with supervised_head(student, "chunked") as head:
            loss = Distillation(teacher, {"loss": "ce+kd", "kd": {"match": on}}, head)(
                student, batch
            )
        assert loss.item() == 0
        loss.backward()
        trained = [weight for weight in student.parameters() if weight.requires_grad]
        assert all(not weight.grad.any() for weight in trained)


def test_autocast_rounds_the_teachers_logits_as_the_students():
    student = tiny_model("llama", tie_word_embeddings=False)
    teacher = Teacher(student, [], TUNE)
    apply_plan(student, [], TUNE)
    batch = micro_batch(tiny_batch("llama"))
    for kind in ("supervised", "chunked"):
        with supervised_head(student, kind, 100) as head, torch.autocast("cpu", torch.bfloat16):
            loss = Distillation(teacher, {"loss": "kd"}, head)(student, batch)
        assert loss.item() == 0
        assert loss.dtype == torch.float32


def test_settings_that_make_no_sense_are_refused():
    _, _, teacher = pupil()
    with pytest.raises(InputError, match=r"finetune\.loss: 'ce' needs no teacher"):
        Distillation(teacher, {"loss": "ce", "kd": {}}, None)
    with pytest.raises(InputError, match=r"finetune\.kd\.match: 'weights'"):
        Distillation(teacher, {"loss": "kd", "kd": {"match": "weights"}}, None)
    with pytest.raises(AssertionError, match="hidden"):
        Distillation(teacher, {"loss": "kd", "kd": {"match": "hidden"}}, None)


def test_no_share_of_the_teacher_leaves_cross_entropy():
    tokens = Supervised(torch.ones(1, 3, dtype=torch.bool), torch.tensor([1, 0, 2]), torch.ones(3))
    states, weight = torch.randn(2, 1, 4, 5), torch.randn(3, 5)
    logits = torch.randn(3, 3)
    part = slice(None)
    only_ce, _ = DistilledTokens(tokens, states[0], weight, 2.0, 0.0)(logits, part)
    assert torch.equal(only_ce, CrossEntropy(tokens)(logits, part)[0])
