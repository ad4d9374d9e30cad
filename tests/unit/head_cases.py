"""What the tests of the head share: states, labels, weights, and the loss of them by hand."""

import contextlib

import torch
from transformers import PreTrainedConfig

from interlace.data.collate import IGNORED
from interlace.training.head import SupervisedHead


@contextlib.contextmanager
def supervised_head(model, kind, rows=None):
    """Put a supervised head in a model's head's place while in the block."""
    head = SupervisedHead(model, kind, rows)
    try:
        yield head
    finally:
        head.restore()


class OnlyHead(torch.nn.Module):
    """The end of a model: states in, what its head makes of them out."""

    def __init__(self, head):
        super().__init__()
        self.head, self.config = head, PreTrainedConfig()

    def get_output_embeddings(self):
        return self.head

    def forward(self, hidden):
        return self.head(hidden)


def case(rows=2, tokens=7, width=5, vocabulary=11, seed=0, share=0.6, dtype=torch.float64):
    """Return states, a head, labels and weights; two tokens of three are learnt or so."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, tokens, width, generator=generator, dtype=dtype)
    head = torch.nn.Linear(width, vocabulary, bias=False, dtype=dtype)
    head.weight.data.normal_(generator=generator)
    labels = torch.randint(0, vocabulary, (rows, tokens), generator=generator)
    weights = torch.rand(rows, tokens, generator=generator)
    ignored = torch.rand(rows, tokens, generator=generator) > share
    return hidden, head, labels.masked_fill(ignored, IGNORED), weights.masked_fill(ignored, 0.0)


def by_hand(hidden, weight, labels, weights):
    """sum w CE, token by token, from logits of all tokens."""
    log_probs = (hidden @ weight.T).log_softmax(-1)
    terms = [
        -weights[b, t + 1] * log_probs[b, t, labels[b, t + 1]]
        for b in range(labels.shape[0])
        for t in range(labels.shape[1] - 1)
        if labels[b, t + 1] != IGNORED
    ]
    return sum(terms, start=log_probs[:0].sum())


def gradients(loss, *tensors):
    return torch.autograd.grad(loss, tensors)
