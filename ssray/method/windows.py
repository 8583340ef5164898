"""Means over a window around each pixel, of the pixels that exist."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def window_means(values: Tensor, weights: Sequence[float], repeats: int = 1) -> Tensor:
    """Averages every plane by the same weights down and across.

    Near the border the mean runs over the pixels that exist, so no brightness leaks in from
    padding.

    Args:
        values: (B, C, H, W) float32.
        weights: an odd number of them, of the pixels around each; none is negative.
        repeats: how many times, one after the other.

    Returns:
        The same shape.

    >>> window_means(torch.tensor([[[[0.0, 3.0, 0.0, 0.0]]]]), [1, 1, 1])
    tensor([[[[1.5000, 1.0000, 1.0000, 0.0000]]]])
    """
    batch, channels, height, width = values.shape
    planes = values.reshape(1, batch * channels, height, width)
    # Each plane has a filter of its own, which torch's own kernel computes on a GPU, in float32.
    # A single plane would go to cuDNN, which may compute in TensorFloat-32.
    count, half = max(2, batch * channels), len(weights) // 2
    planes = planes.expand(1, count, height, width)
    line = torch.tensor(weights, dtype=torch.float32, device=values.device)
    line = line / line.sum()
    down_present, across_present = (_present(line, side) for side in (height, width))
    down, across = line.expand(count, 1, -1)[..., None], line.expand(count, 1, -1)[..., None, :]
    for _ in range(repeats):
        planes = F.conv2d(planes, down, padding=(half, 0), groups=count) / down_present[:, None]
        planes = F.conv2d(planes, across, padding=(0, half), groups=count) / across_present
    return planes[:, : batch * channels].view(batch, channels, height, width)


def _present(weights: Tensor, side: int) -> Tensor:
    """How much weight the pixels that exist around each of ``side`` in a row have, (side,)."""
    sums = F.pad(weights.double().cumsum(0), (1, 0))
    half, places = len(weights) // 2, torch.arange(side, device=weights.device)
    last = (half + side - places).clamp_max(len(weights))
    return (sums[last] - sums[(half - places).clamp_min(0)]).float()
