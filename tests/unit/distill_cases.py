"""What the tests of distillation share: a student with its teacher, and a micro-batch."""

import types

import torch

from interlace.data.collate import IGNORED
from interlace.training.distill import Teacher
from interlace.training.freeze import apply_plan
from interlace.training.head import full_loss
from tests.tiny_families import tiny_model

DROP, TUNE = [1, 3], [2, 4]
SETTINGS = {"loss": "ce+kd", "kd": {"match": "logits", "temperature": 2.0, "weight": 0.3}}


def micro_batch(inputs, seed=0):
    """Return what the trainer hands over: two samples in a row, a token of each and the tail bare."""
    ids = inputs["input_ids"]
    labels, owners = ids.clone(), torch.zeros_like(ids)
    owners[:, ids.shape[1] // 2 :] = 1
    owners[:, -1] = -1
    labels[:, 0] = labels[:, ids.shape[1] // 2] = labels[:, -1] = IGNORED
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(ids.shape, generator=generator).masked_fill(labels == IGNORED, 0)
    return types.SimpleNamespace(
        inputs=inputs, labels=labels, weights=weights, owners=owners, ids=["a", "b"]
    )


def pupil(family="llama", drop=DROP, tune=TUNE, trained_head=False, hidden=False, **text):
    """Return a dense model, its pruned student (float64) and the teacher in it."""
    dense = tiny_model(family, tie_word_embeddings=False, **text).double()
    student = tiny_model(family, tie_word_embeddings=False, **text).double()
    teacher = Teacher(student, drop, tune, trained_head, hidden)
    apply_plan(student, drop, tune, trained_head)
    return dense, student, teacher


def doubled(inputs):
    return {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}


def train_a_step(student, inputs, rate=0.1):
    loss, _ = full_loss(
        student(**inputs).logits, inputs["input_ids"], torch.ones(inputs["input_ids"].shape)
    )
    loss.backward()
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.grad is not None:
                parameter -= rate * parameter.grad.sign()
    student.zero_grad()
