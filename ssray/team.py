"""The processes that train together, and what they must agree on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Team:
    """The processes that train together; alone where torch.distributed is not initialised."""

    rank: int
    size: int

    @classmethod
    def current(cls) -> Team:
        if not dist.is_initialized():
            return cls(rank=0, size=1)
        return cls(rank=dist.get_rank(), size=dist.get_world_size())

    def agree(self, spent: float, row_due: bool) -> tuple[float, bool]:
        """Rank 0's clock decides for all, so that every process takes the same steps."""
        spent, due = self._from_first(spent, float(row_due))
        return spent, bool(due)

    def first(self, value: float) -> float:
        """Rank 0's value for all: batch statistics, and so measurements, are each rank's own."""
        [value] = self._from_first(value)
        return value

    def mean(self, value: Tensor) -> float:
        if self.size > 1:
            dist.all_reduce(value)
        return float(value) / self.size

    def _from_first(self, *values: float) -> list[float]:
        if self.size == 1:
            return list(values)
        message = torch.tensor(values, dtype=torch.float64)
        if dist.get_backend() == "nccl":
            message = message.cuda()
        dist.broadcast(message, src=0)
        numbers: list[float] = message.tolist()
        return numbers
