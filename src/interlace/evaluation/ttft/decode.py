"""How fast a model generates once the first token is there."""

from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from interlace.evaluation.ttft import clock


class _Clock(StoppingCriteria):
    """Notes when each token was there; never stops."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.moments = device, []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        clock.synchronize(self.device)
        self.moments.append(clock.now())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@torch.inference_mode()
def decode_rate(model: Any, inputs: dict[str, torch.Tensor], tokens: int) -> float:
    """Return tokens per second after the first, of `tokens` (2 or more) generated for one prompt.

    Greedy, with the cache; an end of text does not end it.
    """
    assert tokens >= 2, tokens
    watch = _Clock(model.device)
    output = model.generate(
        **inputs,
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        stopping_criteria=StoppingCriteriaList([watch]),
    )
    assert output.shape[1] - inputs["input_ids"].shape[1] == tokens == len(watch.moments)
    return (tokens - 1) / (watch.moments[-1] - watch.moments[0])
