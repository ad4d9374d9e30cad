"""Memory of the models that are timed: what fits together, and how much a pass needs."""

import resource
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

SHARE = (
    0.8  # of the free memory that weights may fill; the rest is for a pass of the longest prompt
)
CUDA = "CUDA, allocated, the other loaded models' weights taken off"
RSS = "resident set of the process, the other loaded models' weights taken off"

_SIZES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


def weights_on_disk(checkpoint: Path) -> int:
    """Return the bytes of a checkpoint's safetensors files."""
    return sum(path.stat().st_size for path in Path(checkpoint).glob("*.safetensors"))


def weights_loaded(checkpoint: Path, dtype: str) -> int:
    """Return the bytes that a checkpoint's weights take once loaded as `dtype`; `auto` is its own."""
    if dtype not in _SIZES:
        return weights_on_disk(checkpoint)
    elements = 0
    for path in sorted(Path(checkpoint).glob("*.safetensors")):
        with safe_open(path, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118 (no mapping)
                shape = handle.get_slice(name).get_shape()
                elements += int(torch.Size(shape).numel())
    return elements * _SIZES[dtype]


def groups(needs: Mapping[str, int], free: int) -> list[list[str]]:
    """Return the names of `needs` in groups that fit into `free` bytes, its first in every one.

    The first is the dense model. Variants keep their order; a group has at least one, fit or not:
    whether that really is too much is for the device to say.
    """
    first, *others = needs
    room = SHARE * free - needs[first]
    found: list[list[str]] = [[first]]
    taken = 0
    for name in others:
        if len(found[-1]) > 1 and taken + needs[name] > room:
            found.append([first])
            taken = 0
        found[-1].append(name)
        taken += needs[name]
    return found


def load_measured(device: torch.device, load: Callable[[], Any]) -> tuple[Any, int]:
    """Return what `load` returns, a model, and the bytes of its weights on the device."""
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    model = load()
    if device.type == "cuda":
        return model, torch.cuda.memory_allocated(device) - before
    return model, sum(weight.numel() * weight.element_size() for weight in model.parameters())


class PeakMemory:
    """The peak memory of each model's passes, while others are loaded too.

    `resident` are the bytes of each model's weights. On a GPU, what torch had allocated at most; on
    the CPU the process's resident set at its highest, everything but the others' weights in it.
    """

    def __init__(self, device: torch.device, resident: Mapping[str, int]) -> None:
        self._device, self._resident = device, resident
        self.kind = CUDA if device.type == "cuda" else RSS
        self.peaks: dict[str, int] = {}

    def start(self) -> None:
        """Forget the peak so far, untimed; where the system does not let us, `kind` says so."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        except OSError:
            self.kind = f"{RSS}, highest so far (not reset)"

    def stop(self, name: str) -> None:
        """Take the peak since `start` for one of the model `name`."""
        others = sum(size for other, size in self._resident.items() if other != name)
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device)
        else:
            peak = _peak_resident()
        self.peaks[name] = max(self.peaks.get(name, 0), peak - others)


def _peak_resident() -> int:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
