"""The optimizer of the base models and its schedule."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Muon:
    """torch.optim.Muon with the Newton-Schulz iteration batched over matrices of one shape.

    36 layers hold 250 small matrices; one at a time the iteration costs more than the step itself.
    Coefficients and scaling are torch's ("original" adjustment), momentum is Nesterov's.
    """

    def __init__(self, matrices: Sequence[nn.Parameter], rate: float, decay: float = 0.01):
        groups: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
        for matrix in matrices:
            groups[min(matrix.shape), max(matrix.shape)].append(matrix)
        self.groups = list(groups.values())
        self.momentum = [torch.zeros(len(g), min(g[0].shape), max(g[0].shape)) for g in self.groups]
        self.rate, self.decay = rate, decay

    @staticmethod
    def _flat(x: Tensor) -> Tensor:
        return x.T if x.shape[0] > x.shape[1] else x

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """One update at `scale` times the base rate."""
        rate = self.rate * scale
        for group, momentum in zip(self.groups, self.momentum, strict=True):
            # A step of text-only batches leaves the vision tower without gradients.
            gradient = torch.stack(
                [self._flat(torch.zeros_like(p) if p.grad is None else p.grad) for p in group]
            )
            momentum.lerp_(gradient, 0.05)
            update = gradient.lerp(momentum, 0.95)
            update = update / update.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
            for _ in range(5):
                gram = update @ update.mT
                poly = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
                update = torch.baddbmm(update, poly, update, beta=3.4445)
            for p, u in zip(group, update, strict=True):
                grow = max(1.0, p.shape[0] / p.shape[1]) ** 0.5
                p.mul_(1 - rate * self.decay)
                p.add_(u.T if p.shape[0] > p.shape[1] else u, alpha=-rate * grow)

    def state_dict(self) -> list[Tensor]:
        """What a checkpoint needs."""
        return self.momentum

    def load_state_dict(self, state: list[Tensor]) -> None:
        """Take up a checkpoint's momentum."""
        self.momentum = state


class Optimizer:
    """Muon on the matrices of all blocks, AdamW on embeddings, head, norms and biases."""

    def __init__(self, model: nn.Module, rates: tuple[float, float]):
        matrices, others = [], []
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            block = parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
            (matrices if block else others).append(parameter)
        self.parameters = matrices + others
        self.muon = Muon(matrices, rates[0])
        self.adamw = torch.optim.AdamW(
            others, rates[1], betas=(0.9, 0.98), weight_decay=0, fused=True
        )
        self.rate = rates[1]

    def step(self, scale: float) -> None:
        """Clip to norm 1, update, forget the gradients."""
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.muon.step(scale)
        self.adamw.param_groups[0]["lr"] = self.rate * scale
        self.adamw.step()
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict:
        """What a checkpoint needs."""
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Take up a checkpoint."""
        self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])


def rate_scale(step: int, steps: int, warmup: int, decay: float, final: float) -> float:
    """Warm up, stay, and fall linearly to `final` over the last share `decay` of the steps."""
    scale = min(1.0, (step + 1) / warmup)
    left = 1 - step / steps
    return scale * (1.0 if left > decay else final + (1 - final) * left / decay)
