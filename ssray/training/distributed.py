"""The processes that train together, and what they must agree on.

What they agree on are a few numbers on the CPU, exchanged over gloo: over NCCL every step would
have to wait for the GPU to tell them. Gradients and statistics are exchanged where they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
"""What ``torch.distributed`` is to be initialised with, by the device that trains."""


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train together; alone where torch.distributed is not initialised."""

    rank: int
    size: int

    @classmethod
    def current(cls) -> ProcessGroup:
        if not dist.is_initialized():
            return cls(rank=0, size=1)
        return cls(rank=dist.get_rank(), size=dist.get_world_size())

    def first(self, *values: float) -> list[float]:
        """Rank 0's values for all, so that every process takes the same decisions."""
        if self.size == 1:
            return list(values)
        message = torch.tensor(values, dtype=torch.float64)
        dist.broadcast(message, src=0)
        numbers: list[float] = message.tolist()
        return numbers

    def least(self, value: float) -> float:
        """The least of all processes' values."""
        if self.size == 1:
            return value
        message = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(message, dist.ReduceOp.MIN)
        return float(message)

    def total(self, *values: float) -> list[float]:
        """Sums over all processes."""
        if self.size == 1:
            return list(values)
        message = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(message)
        numbers: list[float] = message.tolist()
        return numbers

    @torch.no_grad()
    def add(self, tensors: Sequence[Tensor]) -> None:
        """Puts the sum over all processes into tensors of one type, in one exchange."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def share(self, parts: int) -> range:
        """The parts of some work that are this process's.

        >>> list(ProcessGroup(rank=1, size=2).share(5))
        [1, 3]
        """
        return range(self.rank, parts, self.size)

    def gather(self, own: Sequence[Tensor], parts: int) -> list[Tensor]:
        """A CPU tensor for each part, from the processes whose share it is; all of one shape."""
        if self.size == 1:
            return list(own)
        most = -(-parts // self.size)
        padded = torch.stack([*own, *[own[0]] * (most - len(own))])
        gathered = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(gathered, padded)
        return [gathered[part % self.size][part // self.size] for part in range(parts)]
