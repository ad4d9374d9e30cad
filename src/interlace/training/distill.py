"""Distillation: the dense model, run beside the pruned one, is what the tuned layers learn from.

Shapes: B rows, T tokens, D width, V vocabulary, N supervised tokens, n of them at a time.
"""

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from interlace.decoder.layers import decoder_layers, decoder_stack, text_config
from interlace.errors import InputError
from interlace.training.head import (
    Criterion,
    Supervised,
    SupervisedHead,
    full_loss,
    head_refusal,
    widened,
)

if TYPE_CHECKING:
    from interlace.training.batches import MicroBatch


KD_DEFAULTS = {"match": "logits", "temperature": 2.0, "weight": 0.5}


class Anchor(NamedTuple):
    """Where hidden states are compared: behind which layer of either model, in dense numbers."""

    student: int
    teacher: int


def anchors(drop: Sequence[int], tune: Sequence[int], num_layers: int) -> list[Anchor]:
    """Return one anchor for each stretch of dropped layers: the kept layer behind it.

    That layer is the tuned one where a plan drops a layer and tunes the next; it has to give back
    what the dropped ones did too. Behind a stretch at the decoder's end there is none: there the
    student's last layer is compared with the teacher's. Below the first tuned layer nothing can be
    learnt, so there are no anchors. Raises InputError where none is left.
    """
    gone = set(drop)
    kept = [layer for layer in range(num_layers) if layer not in gone]
    found = []
    for layer in sorted(gone):
        if layer + 1 == num_layers:
            found.append(Anchor(kept[-1], layer))
        elif layer + 1 not in gone:
            found.append(Anchor(layer + 1, layer + 1))
    # The deepest teacher of a student: what is dropped at the end comes after a stretch before it.
    found = [a for a in {a.student: a for a in found}.values() if tune and a.student >= min(tune)]
    if not found:
        raise InputError(
            "finetune.kd.match: hidden compares states behind dropped layers, and this plan has none"
            " at or above its first tuned layer; use logits"
        )
    return found


def kd_refusal(model: PreTrainedModel, settings: Mapping[str, Any]) -> str | None:
    """Return why `settings` (the config's section `finetune`) cannot be distilled, or None."""
    on = (settings.get("kd") or {}).get("match", KD_DEFAULTS["match"])
    return head_refusal(model) if on == "logits" else None


class TeacherStates(NamedTuple):
    """What the teacher says of a micro-batch: its last hidden state, after the final norm, and its
    raw outputs at the anchors, all (B, T, D) without a graph."""

    hidden_BTD: torch.Tensor
    anchors_BTD: list[torch.Tensor]


class Teacher:
    """The dense model, living in the model that is trained.

    Make it of the dense model before `apply_plan` drops and training changes layers. It keeps the
    dropped layers, copies of those that will be tuned and, with `head`, of a head that will be
    trained; all else is the student's own, which is frozen. While it runs, the dense layers stand
    in the student's place: masks, packing, vision features and whatever else the student's forward
    takes are the same, and DeepStack features enter at the dense model's positions. (A layer's own
    number, which dropping changes, only addresses a key-value cache; there is none.)
    """

    def __init__(
        self,
        model: PreTrainedModel,
        drop: Sequence[int],
        tune: Sequence[int],
        head: bool = False,
        hidden: bool = False,
    ):
        """`head` as for `apply_plan`: no head that is tied to the embeddings is trained.

        `hidden`: states at the `anchors` are wanted too (InputError where there are none).
        """
        self._model = model
        self._stack = decoder_stack(model)
        dense = list(decoder_layers(model))
        self.anchors = anchors(drop, tune, len(dense)) if hidden else []
        self.student_layers = [dense[anchor.student] for anchor in self.anchors]
        tuned = {index: _frozen_copy(dense[index]) for index in tune}
        self._layers = torch.nn.ModuleList(
            tuned.get(index, layer) for index, layer in enumerate(dense)
        )
        own = [self._layers[index] for index in {*drop, *tune}]
        output = model.get_output_embeddings()
        head = head and output.weight is not model.get_input_embeddings().weight
        self._head = _frozen_copy(output) if head else output
        self._own = torch.nn.ModuleList([*own, self._head] if head else own)
        self._own.requires_grad_(False).eval()
        holders = [model, self._stack, *self._layers.modules()]
        configs = [text_config(module.config) for module in holders if hasattr(module, "config")]
        self._entries = [
            (config, {key: value for key, value in vars(config).items() if "layer" in key})
            for config in {id(config): config for config in configs}.values()
        ]

    @property
    def head_weight(self) -> torch.Tensor:
        """The (V, D) weight that makes the teacher's logits of its last hidden state."""
        return self._head.weight

    @torch.no_grad()
    def run(self, inputs: Mapping[str, Any]) -> TeacherStates:
        """Return the dense model's states of a micro-batch, in evaluation mode.

        `inputs` are the student's; the student's modules are afterwards as they were. The weights
        that both share must not be partitioned (`recipe.resolve`).
        """
        assert not any(hasattr(weight, "ds_id") for weight in self._model.parameters())
        self._own.to(self._model.device)
        inputs = {key: value for key, value in inputs.items() if key != "labels"}
        states: list[torch.Tensor] = []
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._in_place())
            stack.enter_context(_taking_states(self._model.get_output_embeddings(), states))
            layers = [self._layers[anchor.teacher] for anchor in self.anchors]
            outputs = stack.enter_context(outputs_of(layers))
            self._model(**{**inputs, "use_cache": False})
        return TeacherStates(states[0], outputs)

    @contextlib.contextmanager
    def _in_place(self) -> Iterator[None]:
        """Put the dense layers, and what configs say of them, in the student's place."""
        student = self._stack.layers
        entries = [
            (config, {key: getattr(config, key) for key in body}) for config, body in self._entries
        ]
        modes = [(module, module.training) for module in self._model.modules()]
        try:
            self._stack.layers = self._layers
            _set_entries(self._entries)
            self._model.eval()
            trained = [n for n, weight in self._model.named_parameters() if weight.requires_grad]
            assert set(trained) <= self._head_names(), f"teacher and student share {trained}"
            yield
        finally:
            self._stack.layers = student
            _set_entries(entries)
            for module, training in modes:
                module.training = training

    def _head_names(self) -> set[str]:
        """Return the names of the student's head where the teacher has one of its own."""
        output = self._model.get_output_embeddings()
        if output is self._head:
            return set()
        whole = next(name for name, module in self._model.named_modules() if module is output)
        return {f"{whole}.{name}" for name, _ in output.named_parameters()}


def _set_entries(entries: list[tuple[Any, dict[str, Any]]]) -> None:
    for config, body in entries:
        for key, value in body.items():
            setattr(config, key, value)


def _frozen_copy(module: torch.nn.Module) -> torch.nn.Module:
    """Copy a module, not the config it may hold: attention is set there for all layers at once."""
    configs = [part.config for part in module.modules() if hasattr(part, "config")]
    copied = copy.deepcopy(module, {id(config): config for config in configs})
    return copied.requires_grad_(False)


@contextlib.contextmanager
def _taking_states(head: torch.nn.Module, states: list[torch.Tensor]) -> Iterator[None]:
    """Let the head take its input down in `states`, and make no logits of it."""

    def forward(hidden_BTD: torch.Tensor) -> torch.Tensor:
        states.append(hidden_BTD)
        return hidden_BTD[..., :0]

    before = vars(head).get("forward")
    head.forward = forward
    try:
        yield
    finally:
        if before is None:
            del head.forward
        else:
            head.forward = before


@contextlib.contextmanager
def outputs_of(layers: Sequence[torch.nn.Module]) -> Iterator[list[torch.Tensor]]:
    """Yield a list that the layers' raw outputs (B, T, D) come into, in the order they run."""
    outputs: list[torch.Tensor] = []

    def hook(_module: Any, _args: tuple, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def kd_losses(
    student_nV: torch.Tensor, teacher_nV: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Return tau^2 KL(teacher || student) at temperature tau of each row, (n,).

    Hinton, Vinyals and Dean 2015 (arXiv 1503.02531), section 2: tau^2 keeps the gradient's size
    whatever tau is. In float32, or float64 for logits in it.
    """
    student = F.log_softmax(widened(student_nV) / temperature, dim=-1)
    teacher = F.log_softmax(widened(teacher_nV) / temperature, dim=-1)
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    return temperature**2 * divergence


def hidden_loss(
    student_BTD: Sequence[torch.Tensor],
    teacher_BTD: Sequence[torch.Tensor],
    weights_BT: torch.Tensor,
) -> torch.Tensor:
    """Return sum_t w_t mean_a |s_ta - h_ta|^2 / |h_ta|^2 over tokens t and anchors a.

    s and h are the student's and the teacher's states. The squared error is that of TinyBERT (Jiao
    et al. 2020, arXiv 1909.10351, equation 8); relative to the teacher's state, since a few tokens
    have states hundreds of times as long as all others (Sun et al. 2024, arXiv 2402.17762), which
    would be all that counts, and states grow with depth. Unlike the directions that PKD compares
    (Sun et al. 2019, arXiv 1908.09355), it also holds the length, on which a residual stream adds.
    Tokens without a weight are not looked at.
    """
    counts = weights_BT > 0
    weights = weights_BT[counts]
    total = torch.zeros((), device=weights_BT.device)
    for student, teacher in zip(student_BTD, teacher_BTD, strict=True):
        target = widened(teacher[counts])
        errors = (widened(student[counts]) - target).square().sum(-1)
        sizes = target.square().sum(-1).clamp_min(torch.finfo(target.dtype).tiny)
        total = total + (weights * errors / sizes).sum()
    return total / len(student_BTD)


def token_weights(weights_BT: torch.Tensor, owners_BT: torch.Tensor, count: int) -> torch.Tensor:
    """Return (B, T): each of `count` samples' weight in the loss, spread evenly over its tokens.

    weights_BT are those of the labels, owners_BT whose each token is, -1 for padding (which has no
    weights). They sum up as weights_BT do, however the samples are laid out.
    """
    owners = (owners_BT + 1).flatten()
    whole = weights_BT.new_zeros(count + 1).index_add(0, owners, weights_BT.flatten())
    lengths = weights_BT.new_zeros(count + 1).index_add(
        0, owners, torch.ones_like(weights_BT).flatten()
    )
    share = whole / lengths.clamp_min(1)
    return share[owners].view_as(weights_BT)


class DistilledTokens:
    """The criterion (1-a) CE + a tau^2 KL(teacher || student) of the supervised tokens."""

    def __init__(
        self,
        tokens: Supervised,
        teacher_BTD: torch.Tensor,
        head_weight_VD: torch.Tensor,
        temperature: float,
        share: float,
    ):
        """teacher_BTD are the teacher's last hidden states, `share` is a."""
        self._tokens, self._temperature, self._share = tokens, temperature, share
        self._teacher_ND = teacher_BTD[:, :-1][tokens.mask_BT]
        self._weight_VD = head_weight_VD

    def __call__(self, logits_nV: torch.Tensor, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """See `interlace.training.head.Criterion`."""
        with torch.no_grad(), torch.autocast(logits_nV.device.type, enabled=False):
            self._weight_VD = self._weight_VD.to(logits_nV.dtype)  # rounded as the student's are
            teacher = F.linear(self._teacher_ND[part].to(logits_nV.dtype), self._weight_VD)
        targets, weights = self._tokens.targets_N[part], self._tokens.weights_N[part]
        losses = F.cross_entropy(widened(logits_nV), targets, reduction="none")
        distilled = kd_losses(logits_nV, teacher, self._temperature)
        mixed = (1 - self._share) * losses + self._share * distilled
        return (weights * mixed).sum(), losses.detach()


class Distillation:
    """The loss of a micro-batch with a teacher: (1-a) CE + a KD, a 1 for the loss `kd`.

    `settings` is the config's section `finetune`: `loss` (kd or ce+kd) and `kd` (`match`: logits or
    hidden, `temperature`, `weight`: a of ce+kd). After a call `losses` holds the plain
    cross-entropy of the supervised tokens as in `SupervisedHead`.
    """

    def __init__(self, teacher: Teacher, settings: Mapping[str, Any], head: SupervisedHead | None):
        """`head` is None where the model makes logits of all tokens."""
        loss, kd = settings["loss"], {**KD_DEFAULTS, **(settings.get("kd") or {})}
        if loss not in ("kd", "ce+kd"):
            raise InputError(f"finetune.loss: {loss!r} needs no teacher; choose kd or ce+kd")
        if kd["match"] not in ("logits", "hidden"):
            raise InputError(f"finetune.kd.match: {kd['match']!r} is neither logits nor hidden")
        assert teacher.anchors or kd["match"] == "logits", "the teacher was made without `hidden`"
        self._teacher, self._head = teacher, head
        self._on, self._temperature = kd["match"], kd["temperature"]
        self._share = 1.0 if loss == "kd" else kd["weight"]
        self.losses: torch.Tensor | None = None

    def __call__(self, model: torch.nn.Module, batch: "MicroBatch") -> torch.Tensor:
        """Return the loss, a scalar with a graph; runs the teacher, then `model`, on the inputs."""
        states = self._teacher.run(batch.inputs)
        if self._on == "logits":
            tokens = Supervised.of(batch.labels, batch.weights)
            weight = self._teacher.head_weight
            criterion = DistilledTokens(
                tokens, states.hidden_BTD, weight, self._temperature, self._share
            )
            return self._learn(model, batch, criterion)
        with outputs_of(self._teacher.student_layers) as outputs:
            loss = self._learn(model, batch, None)
        # A reentrant checkpoint hides the graph of what it runs.
        assert not torch.is_grad_enabled() or any(output.requires_grad for output in outputs)
        weights = token_weights(batch.weights, batch.owners, len(batch.ids))
        compared = hidden_loss(outputs, states.anchors_BTD, weights)
        return (1 - self._share) * loss + self._share * compared

    def _learn(
        self,
        model: torch.nn.Module,
        batch: "MicroBatch",
        criterion: Criterion | None,
    ) -> torch.Tensor:
        """Return the head's loss, and keep the plain cross-entropy of its tokens."""
        if self._head is not None:
            self._head.expect(batch.labels, batch.weights, criterion)
        logits = model(**batch.inputs, use_cache=False).logits
        if self._head is not None:
            self.losses = self._head.losses
            return logits
        loss, self.losses = full_loss(logits, batch.labels, batch.weights, criterion)
        return loss
