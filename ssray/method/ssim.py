"""Structural similarity as a distance (Wang, Bovik, Sheikh and Simoncelli, 2004)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

RADIUS = 5
SIGMA = 1.5
C1 = 0.01**2
C2 = 0.03**2


def ssim_map(first: Tensor, second: Tensor) -> Tensor:
    """Computes the SSIM at each pixel and channel in an 11 x 11 Gaussian window of sigma 1.5.

    Near the border the window's weights are those of the pixels that exist.

    Args:
        first: (B, C, H, W) float in [0, 1].
        second: what they are compared with, same shape and range.

    Returns:
        (B, C, H, W) float32 in [-1, 1]; 1 where the neighbourhoods are equal.

    >>> x = torch.rand(1, 1, 16, 16)
    >>> torch.allclose(ssim_map(x, x), torch.ones(1))
    True
    """
    # Variances are differences of almost equal numbers: about the planes' means they are small.
    center = first.float().mean(dim=(2, 3), keepdim=True)
    x, y = first.float() - center, second.float() - center
    moments = _window_means(torch.cat((x, y, x * x, y * y, x * y)))
    mean_x, mean_y, square_x, square_y, product = moments.split(first.shape[0])
    covariance = product - mean_x * mean_y
    variances = square_x - mean_x.square() + square_y - mean_y.square()
    level_x, level_y = mean_x + center, mean_y + center
    luminance = (2 * level_x * level_y + C1) / (level_x.square() + level_y.square() + C1)
    structure = (2 * covariance + C2) / (variances + C2)
    similarity: Tensor = luminance * structure
    return similarity


def _window_means(values: Tensor) -> Tensor:
    """Averages every plane of (B, C, H, W) by a Gaussian over the pixels that exist.

    It adds up shifted planes: a GPU may compute convolutions in TensorFloat-32.
    """
    offsets = torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offsets / SIGMA).square()).tolist()
    for dim in (2, 3):
        values = _weighted_sums(values, weights, dim) / _weighted_sums(
            torch.ones_like(values[:1, :1]), weights, dim
        )
    return values


def _weighted_sums(values: Tensor, weights: list[float], dim: int) -> Tensor:
    side = values.shape[dim]
    pad = (0, 0, RADIUS, RADIUS) if dim == 2 else (RADIUS, RADIUS)
    padded = F.pad(values, pad)
    total = torch.zeros_like(values)
    for start, weight in enumerate(weights):
        total.add_(padded.narrow(dim, start, side), alpha=weight)
    return total
