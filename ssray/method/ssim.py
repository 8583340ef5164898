"""Structural similarity as a distance (Wang, Bovik, Sheikh and Simoncelli, 2004)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ssray.method.windows import window_means

RADIUS = 5
SIGMA = 1.5
WEIGHTS = [math.exp(-0.5 * (off / SIGMA) ** 2) for off in range(-RADIUS, RADIUS + 1)]
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
    moments = window_means(torch.cat((x, y, x * x + y * y, x * y)), WEIGHTS)
    mean_x, mean_y, squares, product = moments.split(first.shape[0])
    covariance = product - mean_x * mean_y
    variances = squares - mean_x.square() - mean_y.square()
    level_x, level_y = mean_x + center, mean_y + center
    luminance = (2 * level_x * level_y + C1) / (level_x.square() + level_y.square() + C1)
    structure = (2 * covariance + C2) / (variances + C2)
    similarity: Tensor = luminance * structure
    return similarity
