"""Moving tensors between the CPU and the device that computes, in few copies.

Random numbers are drawn on the CPU (``ssray.method.noise``), dozens of small tensors a step. One by
one each would cost a launch, and from pageable memory perhaps a wait. Images and maps are large: to
and from pageable memory a copy takes several times as long as through pinned memory.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Drawn = TypeVar("Drawn")

_ALIGNMENT = 16
"""A tensor may begin at multiples of so many bytes, whatever its type."""


def moved(drawn: Drawn, device: torch.device) -> Drawn:
    """Moves every tensor to the device, all of them in one copy.

    Args:
        drawn: a tensor on the CPU, or dataclasses and tuples that hold some, and anything else.
        device: where they go. On the CPU nothing is copied.
    """
    if device.type == "cpu":
        return drawn
    tensors = list(_tensors(drawn))
    sizes = [-(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT for tensor in tensors]
    starts = list(itertools.accumulate(sizes, initial=0))
    packed = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
    for start, tensor in zip(starts, tensors, strict=False):
        flat = tensor.contiguous().view(-1).view(torch.uint8)
        packed[start : start + tensor.nbytes] = flat
    there = packed.to(device, non_blocking=True)
    arrived = iter(
        [
            there[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            for start, tensor in zip(starts, tensors, strict=False)
        ]
    )
    return cast(Drawn, _replaced(drawn, arrived))


def uploaded(images: npt.NDArray[np.uint8], device: torch.device) -> Tensor:
    """Copies an array to a tensor on the device, through pinned memory where that is a GPU."""
    staged = torch.empty(images.shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
    staged.numpy()[...] = images
    return staged.to(device, non_blocking=True)


def downloaded(*tensors: Tensor) -> list[Tensor]:
    """Brings tensors to the CPU with one wait for all; those that are there stay as they are."""
    found = []
    for tensor in tensors:
        if tensor.device.type == "cuda":
            there = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            found.append(there.copy_(tensor, non_blocking=True))
        else:
            found.append(tensor)
    if any(tensor.device.type == "cuda" for tensor in tensors):
        torch.cuda.current_stream(tensors[0].device).synchronize()
    return found


def _tensors(drawn: Any) -> Iterator[Tensor]:
    if isinstance(drawn, Tensor):
        yield drawn
    else:
        for part in _parts(drawn):
            yield from _tensors(part)


def _parts(drawn: Any) -> list[Any]:
    if isinstance(drawn, tuple):
        return list(drawn)
    if dataclasses.is_dataclass(drawn):
        return [getattr(drawn, field.name) for field in dataclasses.fields(drawn)]
    return []


def _replaced(drawn: Any, tensors: Iterator[Tensor]) -> Any:
    """Copies ``drawn`` with the next of the tensors in place of each of its own."""
    if isinstance(drawn, Tensor):
        return next(tensors)
    parts = [_replaced(part, tensors) for part in _parts(drawn)]
    if isinstance(drawn, tuple):
        return tuple(parts)
    return type(drawn)(*parts) if parts else drawn
