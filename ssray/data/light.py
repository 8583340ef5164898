"""Brings images to one light: the level, contrast and slope that training images have on average.

A lamp that ages, a hood that is moved or another exposure changes all of an image; what differs
from its reconstruction then grows or shrinks with it, and good parts are flagged. Gain, offset and
a slope of grey across the image are few numbers, measured so that a defect hardly moves them, and
are taken out before anything else looks at the image. Colours keep their relations. This is ours,
not the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass

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
OUTLIERS, ROUNDS = 2.0, 3
"""How many deviations off a pixel may be, and how often the light is measured."""
SIDE = 128
"""About how many pixels of the shorter side it is measured on."""
_TINY = 1e-6


@dataclass(frozen=True)
class _Seen:
    """The light of B images: mean, deviation, slope down and across, each (B, 1, 1, 1) float64."""

    mean: Tensor
    deviation: Tensor
    down: Tensor
    across: Tensor

    @classmethod
    def of(cls, images: Tensor) -> _Seen:
        """Measures it on some of the pixels of (B, 3, H, W) images.

        What is off by more than ``OUTLIERS`` deviations is drawn in and all measured again, so that
        a defect has no say in it: a speck on a plain surface would else double the deviation.
        """
        stride = max(1, min(images.shape[2:]) // SIDE)
        pixels = images[..., ::stride, ::stride].double()
        down, across = _ramps(pixels)
        for _ in range(ROUNDS):
            mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
            rising = _slope(pixels, down), _slope(pixels, across)
            plane = mean + rising[0] * down + rising[1] * across
            deviation = (pixels - plane).square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
            seen = cls(mean, deviation, *rising)
            reach = OUTLIERS * deviation
            pixels = torch.minimum(torch.maximum(pixels, plane - reach), plane + reach)
        return seen


def usual_light(images: Tensor) -> Light:
    """The light that images have on average.

    Args:
        images: (N, 3, H, W) float32 in [0, 1], N at least 1.
    """
    seen = _Seen.of(images)
    mean, deviation, down, across = (
        round(float(each.mean()), 4) for each in (seen.mean, seen.deviation, seen.down, seen.across)
    )
    return Light(mean=mean, deviation=max(1e-3, deviation), slope=(down, across))


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
    seen = _Seen.of(images)
    gain = (light.deviation / seen.deviation.clamp_min(_TINY)).clamp(1 / MOST_GAIN, MOST_GAIN)
    level = seen.mean + (light.mean - seen.mean).clamp(-MOST_SHIFT, MOST_SHIFT)
    change = level - gain * seen.mean
    for ramp, slope, usual in zip(
        _ramps(images), (seen.down, seen.across), light.slope, strict=True
    ):
        off = slope.clamp(usual - MOST_SHIFT, usual + MOST_SHIFT)
        change = change + (usual - gain * off) * ramp
    return (gain.float() * images + change.float()).clamp(0, 1)


def levels(images: Tensor, light: Light) -> Tensor:
    """``levelled`` images as the 8-bit values that networks get, whole float32 from 0 to 255."""
    return (255 * levelled(images, light)).round()


def levelled_photograph(image: UInt8Image, light: Light) -> UInt8Image:
    """Brings one image, (H, W, 3) uint8, to a light, rounded to the nearest value."""
    pixels = torch.tensor(image).permute(2, 0, 1)[None].float() / 255
    lit: UInt8Image = levels(pixels, light).byte()[0].permute(1, 2, 0).numpy()
    return np.ascontiguousarray(lit)


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
