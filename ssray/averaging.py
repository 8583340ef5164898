"""The exponential average of a network's weights that is kept in place of the last ones."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential average of a network's weights and buffers.

    Its memory grows with the run, up to ``limit``: short runs would otherwise still remember
    their random initial weights at the end.

    Attributes:
        model: the network with the averaged weights.
        steps: how many have been averaged.
    """

    def __init__(self, model: nn.Module, limit: float) -> None:
        self.model = copy.deepcopy(model)
        self.steps = 0
        self._limit = limit

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        decay = min(self._limit, (1 + self.steps) / (10 + self.steps)) if self.steps else 0.0
        self.steps += 1
        pairs = list(zip(_state(self.model), _state(model), strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_(
            [mine for mine, _ in floats], [theirs for _, theirs in floats], 1 - decay
        )
        for mine, theirs in pairs:
            if not mine.is_floating_point():
                mine.copy_(theirs)


def _state(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
