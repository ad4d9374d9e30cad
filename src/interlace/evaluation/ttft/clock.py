"""One first token: how long it takes, and where the time goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

now = time.perf_counter
"""The clock of everything that is timed here, in seconds."""


@dataclass(frozen=True)
class FirstToken:
    """A first token's id, the seconds to it, and those of each of `ratios.STAGES`."""

    token: int
    seconds: float
    stages: dict[str, float]


@torch.inference_mode()
def first_token(model: Any, inputs: dict[str, torch.Tensor]) -> FirstToken:
    """Run one prompt, whose inputs lie on the model's device, to its first token, greedily."""
    with _marked(model) as marks:
        synchronize(model.device)
        start = now()
        output = model(**inputs, use_cache=True, logits_to_keep=1)
        token = int(output.logits[0, -1].argmax())
        marks.set("end")
        seconds = now() - start
    return FirstToken(token, seconds, _stages(marks, seconds))


def _stages(marks: "_Marks", seconds: float) -> dict[str, float]:
    tower, projector = marks.spans("vision"), marks.spans("projector")
    stages = {
        "vision": tower - projector,
        "projector": projector,
        "decoder": marks.spans("decoder"),
        "first_sampling": marks.between("decoder end", "end"),
    }
    return stages | {"rest": seconds - sum(stages.values())}


class _Marks:
    """Moments of a pass, by name. On a GPU they are events in its stream, so nothing waits there."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        self._moments: dict[str, list[Any]] = {}

    def set(self, name: str) -> None:
        moment: Any
        if self._stream is None:
            moment = now()
        else:
            moment = torch.cuda.Event(enable_timing=True)
            moment.record(self._stream)
        self._moments.setdefault(name, []).append(moment)

    def spans(self, name: str) -> float:
        """Return the seconds between all `<name>` and `<name> end`; 0.0 if there is none."""
        pairs = zip(self._moments.get(name, []), self._moments.get(f"{name} end", []), strict=True)
        return sum(self._seconds(begin, end) for begin, end in pairs)

    def between(self, first: str, second: str) -> float:
        """Return the seconds from the last moment of one name to the last of another."""
        return self._seconds(self._moments[first][-1], self._moments[second][-1])

    def _seconds(self, begin: Any, end: Any) -> float:
        if self._stream is None:
            return end - begin
        end.synchronize()
        return begin.elapsed_time(end) / 1000


@contextmanager
def _marked(model: Any) -> Iterator[_Marks]:
    """Hook marks to the beginning and end of vision tower, mergers and decoder, head included."""
    marks = _Marks(model.device)

    def hook(name: str) -> Any:
        return lambda *_: marks.set(name)

    visual = getattr(model.model, "visual", None)
    inner = (getattr(visual, name, None) for name in ("merger", "deepstack_merger_list"))
    mergers = [
        module
        for found in inner
        if found is not None
        for module in (found if isinstance(found, torch.nn.ModuleList) else [found])
    ]
    spans = [("vision", visual, visual)] if visual is not None else []
    spans += [("projector", merger, merger) for merger in mergers]
    spans.append(("decoder", model.get_decoder(), model.get_output_embeddings()))
    hooks = []
    try:
        for name, first, last in spans:
            hooks.append(first.register_forward_pre_hook(hook(name)))
            hooks.append(last.register_forward_hook(hook(f"{name} end")))
        yield marks
    finally:
        for handle in hooks:
            handle.remove()


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
