"""Averages a network's weights over the steps, and its statistics over the parts of a step."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ssray.training.distributed import ProcessGroup


class WeightAverage:
    """Keeps an exponential average of a network's weights and buffers.

    The average looks back further the longer the run is, up to the decay ``limit``. With a fixed
    decay, short runs would still remember their random initial weights at the end. The network's
    weights and buffers must stay the same tensors, as all of them are averaged in place.

    Attributes:
        model: the network with the averaged weights.
        steps: how many steps have been averaged.
    """

    def __init__(self, model: nn.Module, limit: float) -> None:
        """Copies the network.

        Args:
            model: the network that is trained.
            limit: the largest decay a step, in [0, 1).
        """
        self.model = copy.deepcopy(model)
        self.steps = 0
        self._limit = limit
        pairs = list(zip(_state(self.model), _state(model), strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self._averages, self._values = ([*side] for side in zip(*floats, strict=True))
        self._counts = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the network's weights; to be called after each step of its optimizer."""
        decay = min(self._limit, (1 + self.steps) / (10 + self.steps)) if self.steps else 0.0
        self.steps += 1
        torch._foreach_lerp_(self._averages, self._values, 1 - decay)
        for mine, theirs in self._counts:
            mine.copy_(theirs)


class PartStatistics:
    """Keeps a network's running statistics right in a step whose batch comes in parts.

    They end as the mean of what each part alone would have made of them.
    """

    def __init__(self, model: nn.Module, parts: int) -> None:
        """Takes note of the statistics before the step.

        Args:
            model: the network that is trained.
            parts: how many parts the batch has over all processes.
        """
        self._parts = parts
        self._buffers = list(model.buffers()) if parts > 1 else []
        self._before = [buffer.clone() for buffer in self._buffers]
        self._statistics = [buffer for buffer in self._buffers if buffer.is_floating_point()]
        self._sums = [torch.zeros_like(buffer) for buffer in self._statistics]

    @contextmanager
    def part(self) -> Iterator[None]:
        """Wraps a block that runs one part through the network in training mode."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._before)
        yield
        if self._buffers:
            torch._foreach_add_(self._sums, self._statistics)

    def join(self, processes: ProcessGroup) -> None:
        """Ends the step: gives the network the mean over all parts, which the processes ran."""
        if self._buffers:
            torch._foreach_copy_(self._statistics, self._sums)
            processes.add(self._statistics)
            torch._foreach_div_(self._statistics, self._parts)


def _state(model: nn.Module) -> list[Tensor]:
    """All weights and buffers in a fixed order."""
    return [*model.parameters(), *model.buffers()]
