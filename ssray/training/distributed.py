"""The processes that train together, and how they agree.

They agree on a few numbers on the CPU, which are exchanged over gloo. Over NCCL every step would
have to wait until the GPU has computed them. Gradients and statistics are exchanged on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
"""The backend to initialise ``torch.distributed`` with, by the type of the training device."""


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train together.

    Every method that exchanges something must be called by all of them together.

    Attributes:
        rank: the number of this process, from 0.
        size: the number of processes.
    """

    rank: int
    size: int

    @classmethod
    def current(cls) -> ProcessGroup:
        """The group of this process; it is alone where torch.distributed is not initialised."""
        if not dist.is_initialized():
            return cls(rank=0, size=1)
        return cls(rank=dist.get_rank(), size=dist.get_world_size())

    def first(self, *values: float) -> list[float]:
        """Gives every process rank 0's values, so that all take the same decisions."""
        if self.size == 1:
            return list(values)
        message = torch.tensor(values, dtype=torch.float64)
        dist.broadcast(message, src=0)
        numbers: list[float] = message.tolist()
        return numbers

    def least(self, value: float) -> float:
        """The smallest of all processes' values."""
        if self.size == 1:
            return value
        message = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(message, dist.ReduceOp.MIN)
        return float(message)

    def total(self, *values: float) -> list[float]:
        """The sum of each value over all processes."""
        if self.size == 1:
            return list(values)
        message = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(message)
        numbers: list[float] = message.tolist()
        return numbers

    @torch.no_grad()
    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replaces tensors of one data type by their sums over all processes, in one exchange."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def share(self, parts: int) -> range:
        """The numbers of the parts that this process takes of a work in so many parts.

        >>> list(ProcessGroup(rank=1, size=2).share(5))
        [1, 3]
        """
        return range(self.rank, parts, self.size)

    def gather(self, own: Sequence[Tensor], parts: int) -> list[Tensor]:
        """Collects one CPU tensor for each part of a work from the processes that took them.

        Args:
            own: this process's tensors, one for each number in ``share``; all have one shape.
            parts: in how many parts the work came.

        Returns:
            The tensors of all parts in order, the same on every process.
        """
        if self.size == 1:
            return list(own)
        most = -(-parts // self.size)
        padded = torch.stack([*own, *[own[0]] * (most - len(own))])
        gathered = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(gathered, padded)
        return [gathered[part % self.size][part // self.size] for part in range(parts)]
