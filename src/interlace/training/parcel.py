"""What a worker of a DataLoader sends: all tensors of a step in one piece of shared memory.

Each tensor sent by itself holds a file open in both processes until it is gone; a step of many
micro-batches has hundreds.
"""

import io
import pickle
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

_ALIGNED = 64  # bytes; a view of another type must begin at a multiple of its size


class Parcel(NamedTuple):
    """An object pickled without its tensors, and their bytes one after the other (uint8)."""

    content: bytes
    data: torch.Tensor


class Parcels:
    """A collate function whose result travels as a `Parcel`."""

    def __init__(self, collate: Callable[[Sequence[Any]], Any]):
        self._collate = collate

    def __call__(self, items: Sequence[Any]) -> Parcel:
        """Return what the collate function makes of `items`, wrapped."""
        return wrap(self._collate(items))


def wrap(value: Any) -> Parcel:
    """Return any object with its tensors (on the CPU, without a graph) in one."""
    pickler = _Pickler(stream := io.BytesIO())
    pickler.dump(value)
    return Parcel(
        stream.getvalue(), torch.cat([*pickler.pieces, torch.empty(0, dtype=torch.uint8)])
    )


def unwrap(parcel: Parcel) -> Any:
    """Return the object; its tensors are views of the parcel's memory."""
    return _Unpickler(parcel).load()


class _Pickler(pickle.Pickler):
    def __init__(self, stream: io.BytesIO):
        super().__init__(stream, protocol=pickle.HIGHEST_PROTOCOL)
        self.pieces: list[torch.Tensor] = []
        self._end = 0

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return None
        piece = value.contiguous().reshape(-1).view(torch.uint8)
        gap = -piece.numel() % _ALIGNED
        start, self._end = self._end, self._end + piece.numel() + gap
        self.pieces += [piece, torch.zeros(gap, dtype=torch.uint8)]
        return start, piece.numel(), value.dtype, tuple(value.shape)


class _Unpickler(pickle.Unpickler):
    def __init__(self, parcel: Parcel):
        super().__init__(io.BytesIO(parcel.content))
        self._data = parcel.data

    def persistent_load(self, place: Any) -> torch.Tensor:
        start, count, dtype, shape = place
        return self._data[start : start + count].view(dtype).view(shape)
