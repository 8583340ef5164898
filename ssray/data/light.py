"""Brings images to one light: the level, contrast and slope that training images have on average.

A lamp that ages, a hood that is moved or another exposure changes all of an image; what differs
from its reconstruction then grows or shrinks with it, and good parts are flagged. Gain, offset and
a slope of grey across the image are few numbers that a defect hardly moves, so they are taken out
before anything else looks at the image. Colours keep their relations. This is ours, not the
paper's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ssray.config import Light
from ssray.data.decode import UInt8Image

MOST_GAIN = 2.0
"""The largest factor, up or down, by which contrast is changed."""
MOST_SHIFT = 0.25
"""The largest change of level, and of slope, on the [0, 1] scale: an image that is black or white
stays conspicuous."""


def usual_light(images: Tensor) -> Light:
    """The light that images have on average.

    Args:
        images: (N, 3, H, W) float32 in [0, 1], N at least 1.
    """
    down, across = (float(_slope(images, ramp).mean()) for ramp in _ramps(images))
    deviation = _without_slope(images, (down, across)).std(dim=(1, 2, 3), correction=0).mean()
    return Light(
        mean=round(float(images.mean()), 4),
        deviation=max(1e-3, round(float(deviation), 4)),
        slope=(round(down, 4), round(across, 4)),
    )


def levelled(images: Tensor, light: Light) -> Tensor:
    """Images brought to a light, each by a gain, an offset and a slope, the same in all colours.

    Args:
        images: (B, 3, H, W) float32 in [0, 1].
        light: the light to bring them to.

    Returns:
        The same shape and range.

    >>> dark = torch.tensor([0.1, 0.1, 0.2, 0.2]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    >>> levelled(dark, usual_light(2 * dark))[0, 0]
    tensor([[0.2000, 0.2000],
            [0.4000, 0.4000]])
    """
    flat = _without_slope(images, light.slope)
    mean = flat.mean(dim=(1, 2, 3), keepdim=True)
    deviation = flat.std(dim=(1, 2, 3), correction=0, keepdim=True)
    gain = (light.deviation / deviation.clamp_min(_TINY)).clamp(1 / MOST_GAIN, MOST_GAIN)
    level = mean + (light.mean - mean).clamp(-MOST_SHIFT, MOST_SHIFT)
    for ramp, usual in zip(_ramps(images), light.slope, strict=True):
        level = level + usual * ramp
    return (gain * (flat - mean) + level).clamp(0, 1)


def levelled_photograph(image: UInt8Image, light: Light) -> UInt8Image:
    """Brings one image, (H, W, 3) uint8, to a light, rounded to the nearest value."""
    pixels = torch.tensor(image).permute(2, 0, 1)[None].float() / 255
    lit: UInt8Image = (levelled(pixels, light) * 255).round().byte()[0].permute(1, 2, 0).numpy()
    return np.ascontiguousarray(lit)


_TINY = 1e-6


def _without_slope(images: Tensor, usual: Sequence[float]) -> Tensor:
    """The images without their slope of grey, as far as it is within ``MOST_SHIFT`` of the usual,
    down and across.
    """
    for ramp, middle in zip(_ramps(images), usual, strict=True):
        slope = _slope(images, ramp)
        images = images - slope.clamp(middle - MOST_SHIFT, middle + MOST_SHIFT) * ramp
    return images


def _slope(images: Tensor, ramp: Tensor) -> Tensor:
    """How much grey rises from the middle to the far side, (B, 1, 1, 1), by least squares."""
    projected = (images * ramp).mean(dim=(1, 2, 3), keepdim=True)
    return projected / ramp.square().mean().clamp_min(_TINY)


def _ramps(images: Tensor) -> tuple[Tensor, Tensor]:
    """What rises from -1 to 1 over the edges of the image: (1, 1, H, 1) down, (1, 1, 1, W) across.

    Both are 0 on average, and neither has a part in the other.
    """
    height, width = images.shape[2:]
    down, across = (
        (2 * torch.arange(side, device=images.device) + 1 - side) / side for side in (height, width)
    )
    return down.view(1, 1, -1, 1), across.view(1, 1, 1, -1)
