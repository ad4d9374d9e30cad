"""Turn a recipe's levers on a model, and say what of its head could not be had."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from interlace.data.packing import SamplePositions
from interlace.decoder.layers import decoder_layers
from interlace.errors import InputError
from interlace.training.attention import PackedAttention
from interlace.training.batches import MicroBatch, Packed, Padded
from interlace.training.distill import KD_DEFAULTS, Distillation, Teacher, kd_refusal
from interlace.training.head import SupervisedHead, choose_head, full_loss, head_refusal
from interlace.training.metrics import Exchange
from interlace.training.recipe import Recipe
from interlace.training.vision_tower import accept_features


def settle_head(recipe: Recipe, model: PreTrainedModel) -> tuple[Recipe, list[str]]:
    """Return `recipe` with a head that this model can have, and a line if that is not its own."""
    notes = []
    if recipe.head != "full" and (why := head_refusal(model)):
        recipe = replace(recipe, head="full")
        notes.append(f"head: full, {why}")
    if recipe.head == "auto":
        recipe = replace(recipe, head=choose_head("auto"))
    return recipe, notes


@dataclass
class Setup:
    """A model with a recipe's levers turned, and what computes its loss.

    `layout` of samples in micro-batches; `exchange` between ranks; `notes` on a head that was not had.
    """

    recipe: Recipe
    notes: list[str]
    layout: Padded | Packed
    exchange: Exchange
    objective: "Objective"

    def restore(self) -> None:
        """Give the model back its own head and attention."""
        if self.objective.head is not None:
            self.objective.head.restore()
        if self.objective.attention is not None:
            self.objective.attention.restore()


def make_teacher(
    model: PreTrainedModel, plan: Mapping[str, Any], settings: Mapping[str, Any], head: bool
) -> Teacher | None:
    """Return the dense `model`'s teacher for `finetune.loss` kd and ce+kd, before it is pruned.

    `head`: the student's head will be trained, so the teacher keeps a copy.
    """
    if settings.get("loss", "ce") == "ce":
        return None
    hidden = (settings.get("kd") or {}).get("match", KD_DEFAULTS["match"]) == "hidden"
    return Teacher(model, plan["drop"], plan["tune"], head=head, hidden=hidden)


def set_up(
    model: PreTrainedModel,
    recipe: Recipe,
    rows: int,
    budget: int,
    exchange: Exchange,
    settings: Mapping[str, Any],
    teacher: Teacher | None = None,
) -> Setup:
    """Turn the levers on `model`, whose trained weights have been chosen, before an engine wraps it.

    `recipe` is settled (`training.fit`) but for its head.

    `rows` of a padded micro-batch, `budget` tokens of a packed row, `settings` of distillation,
    whose `teacher` was made of the dense model. Raises InputError for what cannot be had.
    """
    recipe, notes = settle_head(recipe, model)
    layout: Padded | Packed = Padded(rows)
    attention = None
    if recipe.packing:
        layout = Packed(budget, SamplePositions(model))
        attention = PackedAttention(model, recipe.attention)
    head = None if recipe.head == "full" else SupervisedHead(model, recipe.head)
    distillation = None
    if teacher is not None:
        if why := kd_refusal(model, settings):
            raise InputError(f"finetune.loss: {settings['loss']} cannot be had, {why}")
        distillation = Distillation(teacher, settings, head)
    if recipe.vision == "cached":
        accept_features(model)
    _apply_graph(recipe, model)
    objective = Objective(exchange, head, attention, distillation)
    return Setup(recipe, notes, layout, exchange, objective)


def _apply_graph(recipe: Recipe, model: PreTrainedModel) -> None:
    """Let the graph of `model` start, and activations be recomputed, where the recipe says."""
    layers = decoder_layers(model)
    first = next(
        index
        for index, layer in enumerate(layers)
        if any(weight.requires_grad for weight in layer.parameters())
    )
    if recipe.checkpointing != "none":
        checkpoint_layers(model)
    if recipe.checkpointing == "tuned":
        kept = {id(layer) for layer in layers[first:]}
        for module in model.modules():
            if getattr(module, "gradient_checkpointing", False) and id(module) not in kept:
                module.gradient_checkpointing = False
    if recipe.graph == "all":
        model.enable_input_require_grads()
    if recipe.compile:
        for layer in layers:
            layer.compile(dynamic=True)


def checkpoint_layers(model: PreTrainedModel) -> None:
    """Let all layers recompute their activations; whether the embeddings' output needs a gradient,
    which transformers sees to then, is not said by that (`graph` does)."""
    # `gradient_checkpointing_enable` before transformers 5.18
    name = "activation_checkpointing_enable"
    enable = getattr(model, name, None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    model.disable_input_require_grads()


@dataclass
class Objective:
    """The loss of a micro-batch: its weighted sum, by the head that the recipe names.

    `attention` is told where the samples of a packed row start; `distillation` computes the loss
    with a teacher. `exchange` gets the loss of every
    supervised token, to name those that are not finite.
    """

    exchange: Exchange
    head: SupervisedHead | None
    attention: PackedAttention | None
    distillation: Distillation | None = None

    def __call__(self, model: torch.nn.Module, batch: MicroBatch) -> torch.Tensor:
        """Return the loss, a scalar with a graph (0 with one, where nothing is supervised)."""
        if self.attention is not None:
            self.attention.set(batch.starts)
        if self.distillation is not None:
            loss = self.distillation(model, batch)
            self.exchange.losses = self.distillation.losses
            return loss
        if self.head is None:
            logits = model(**batch.inputs, use_cache=False).logits
            loss, self.exchange.losses = full_loss(logits, batch.labels, batch.weights)
            return loss
        self.head.expect(batch.labels, batch.weights)
        loss = model(**batch.inputs, use_cache=False).logits
        self.exchange.losses = self.head.losses
        return loss
