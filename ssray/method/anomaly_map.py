"""From an image and its reconstruction to an anomaly map and a score (equations 2 and 3)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ssray.config import AnomalyMap, ImageScore


def difference_map(images: Tensor, reconstruction: Tensor) -> Tensor:
    """Equation (2): the squared difference, averaged over the channels.

    Args:
        images: (B, C, H, W) float in [0, 1].
        reconstruction: same shape and range.

    Returns:
        (B, 1, H, W) float32 in [0, 1].
    """
    return (images.float() - reconstruction.float()).square().mean(dim=1, keepdim=True)


def smooth(maps: Tensor, kernel: int, repeats: int) -> Tensor:
    """Equation (3): a ``kernel`` x ``kernel`` mean filter, applied ``repeats`` times.

    Near the border the mean runs over the pixels that exist, so no brightness leaks in
    from padding.

    Args:
        maps: (B, 1, H, W) float.
        kernel: odd side of the filter, pixels.
        repeats: 0 returns the maps unchanged.

    Returns:
        Maps of the same shape.

    >>> import torch
    >>> smooth(torch.tensor([[[[0.0, 3.0, 0.0, 0.0]]]]), kernel=3, repeats=1)
    tensor([[[[1.5000, 1.0000, 1.0000, 0.0000]]]])
    """
    pad = kernel // 2
    for _ in range(repeats):
        for window, padding in (((kernel, 1), (pad, 0)), ((1, kernel), (0, pad))):
            maps = F.avg_pool2d(maps, window, stride=1, padding=padding, count_include_pad=False)
    return maps


def image_scores(maps: Tensor, reduction: ImageScore, top_fraction: float) -> Tensor:
    """Reduces each anomaly map to one number; larger is more anomalous.

    Args:
        maps: (B, 1, H, W) float.
        reduction: ``sum`` is the paper's; ``max`` looks at the worst place; ``topk`` is the
            mean of the worst ``top_fraction`` of the pixels (at least one).
        top_fraction: in (0, 1].

    Returns:
        (B,) float32.
    """
    flat = maps.flatten(1)
    if reduction == "sum":
        return flat.sum(dim=1)
    if reduction == "max":
        return flat.amax(dim=1)
    count = max(1, round(top_fraction * flat.shape[1]))
    return flat.topk(count, dim=1).values.mean(dim=1)


def anomaly_maps(images: Tensor, reconstruction: Tensor, settings: AnomalyMap) -> Tensor:
    """Equations (2) and (3) together: (B, 1, H, W) float32, 0 where nothing differs."""
    return smooth(difference_map(images, reconstruction), settings.kernel, settings.repeats)
