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
    count, half = batch * channels, len(weights) // 2
    planes = values.reshape(1, count, height, width)  # each has a filter of its own
    line = torch.tensor(weights, dtype=torch.float32, device=values.device)
    line = (line / line.sum()).view(1, 1, -1)
    present = [
        F.conv1d(line.new_ones(1, 1, side), line, padding=half).view(-1) for side in (height, width)
    ]
    down, across = line.expand(count, 1, -1)[..., None], line.expand(count, 1, -1)[..., None, :]
    with torch.backends.cudnn.flags(enabled=False):  # it may compute in TensorFloat-32
        for _ in range(repeats):
            planes = F.conv2d(planes, down, padding=(half, 0), groups=count)
            planes = planes / present[0][:, None]
            planes = F.conv2d(planes, across, padding=(0, half), groups=count)
            planes = planes / present[1]
    return planes.view_as(values)
