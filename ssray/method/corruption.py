"""Elastic corruption inside faded, distorted disks (section 3.2, Fig. 5).

``x_hat = m * y + (1 - m) * x``: ``y`` is the same image under an elastic deformation,
so that a corrupted region keeps the colours of its surroundings, and ``m`` is a union
of disks whose border fades smoothly and is itself distorted. The paper cuts a patch,
deforms it and glues it back; deforming the whole crop and blending only inside ``m``
gives the same pixels and lets the whole batch be drawn by a fixed number of tensor
operations on the training device.

The paper states neither the strength and smoothness of the deformation nor size and
number of the patches; ``ssray.config.Corruption`` holds our choices.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ssray.config import Corruption

_OCTAVES = 3


def corrupt(
    images: Tensor, settings: Corruption, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Distorts each image locally.

    Args:
        images: (B, C, H, W) float32 in [0, 1].
        settings: strengths and sizes, in pixels of ``images``.
        generator: on the device of ``images``; the same state gives the same output.

    Returns:
        ``x_hat``, shaped and ranged like ``images``, equal to them wherever the mask is 0;
        and the mask, (B, 1, H, W) float32 in [0, 1], 1 = corrupted.
    """
    batch, _, height, width = images.shape
    mask = faded_disks(batch, height, width, settings, generator)
    strength = _log_uniform((batch, 1, 1, 1), settings.displacement, generator)
    field = strength * smooth_noise(batch, 2, height, width, settings.smoothness, generator)
    return torch.lerp(images, warp(images, field), mask), mask


def warp(images: Tensor, displacement: Tensor) -> Tensor:
    """Samples every image at displaced positions, bilinearly; outside, the border repeats.

    Args:
        images: (B, C, H, W) float32.
        displacement: (B, 2, H, W) float32, pixels: x (columns) first, then y (rows).

    Returns:
        (B, C, H, W) float32, within the range of ``images``.
    """
    height, width = images.shape[-2:]
    rows, columns = _pixel_grid(height, width, images.device)
    x = (columns + displacement[:, 0]) * (2 / width) + (1 / width - 1)
    y = (rows + displacement[:, 1]) * (2 / height) + (1 / height - 1)
    return F.grid_sample(
        images, torch.stack((x, y), dim=-1), padding_mode="border", align_corners=False
    )


def smooth_noise(
    batch: int,
    channels: int,
    height: int,
    width: int,
    smoothness: tuple[float, float],
    generator: torch.Generator,
) -> Tensor:
    """Gaussian noise of unit variance, its correlation length drawn per image.

    White noise on a few coarse grids, upsampled by cubic interpolation, stands in for
    white noise under a Gaussian filter: the cost does not grow with the length. Every
    image mixes neighbouring octaves by a position drawn between the two lengths.

    Returns:
        (batch, channels, height, width) float32 with variance about 1.
    """
    low, high = smoothness
    octaves = _OCTAVES if high > low else 1
    # A hat function over the octaves, centred where this image's length lies.
    position = _uniform((batch, 1, 1, 1), 0.0, octaves - 1.0, generator)
    noise = torch.zeros(batch, channels, height, width, device=generator.device)
    for octave in range(octaves):
        length = low * (high / low) ** (octave / max(octaves - 1, 1))
        weight = (1 - (position - octave).abs()).clamp_min(0)
        noise += weight * _upsampled_noise(batch, channels, height, width, length, generator)
    norm = noise.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    return noise / norm.clamp_min(torch.finfo(noise.dtype).eps)


def faded_disks(
    batch: int, height: int, width: int, settings: Corruption, generator: torch.Generator
) -> Tensor:
    """A union of disks an image, each with a smooth border and a distorted outline.

    Returns:
        (batch, 1, height, width) float32 in [0, 1]; at most ``settings.disks`` disks each,
        at least one. Radii are limited to half the image's shorter side.
    """
    disks = settings.disks
    limit = min(height, width) / 2
    low, high = (min(r, limit) for r in settings.radius)
    per_disk = (batch, disks, 1, 1)
    radius = _log_uniform(per_disk, (low, high), generator)
    centre_row = _uniform(per_disk, 0.0, float(height), generator)
    centre_column = _uniform(per_disk, 0.0, float(width), generator)
    drawn = _uniform((batch, 1, 1, 1), 1.0, disks + 1.0, generator).floor()
    present = torch.arange(disks, device=generator.device).view(1, disks, 1, 1) < drawn

    rows, columns = _pixel_grid(height, width, generator.device)
    distance = torch.hypot(rows - centre_row, columns - centre_column) / radius
    # Noise as wide as the larger disks, so that outlines bend rather than fray.
    wide = (max(high / 3, 4.0), max(high, 4.0))
    outline = smooth_noise(batch, 1, height, width, wide, generator)
    depth = (1 + settings.outline * outline - distance) / settings.fade
    inside = torch.where(present, depth.clamp(0, 1), 0.0).amax(dim=1, keepdim=True)
    return inside.square() * (3 - 2 * inside)


def _upsampled_noise(
    batch: int, channels: int, height: int, width: int, length: float, generator: torch.Generator
) -> Tensor:
    shape = (batch, channels, math.ceil(height / length) + 1, math.ceil(width / length) + 1)
    coarse = torch.randn(shape, generator=generator, device=generator.device)
    return F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)


def _pixel_grid(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    rows = torch.arange(height, device=device, dtype=torch.float32).view(height, 1)
    columns = torch.arange(width, device=device, dtype=torch.float32).view(1, width)
    return rows, columns


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    unit = torch.rand(shape, generator=generator, device=generator.device)
    return low + (high - low) * unit


def _log_uniform(
    shape: tuple[int, ...], bounds: tuple[float, float], generator: torch.Generator
) -> Tensor:
    return _uniform(shape, math.log(bounds[0]), math.log(bounds[1]), generator).exp()
