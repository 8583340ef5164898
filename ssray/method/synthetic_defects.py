"""Synthetic defects for choosing settings without test labels.

They are kept apart from the training corruption on purpose: a network that merely
recognises its own elastic distortion must not win. None of the kinds deforms the image.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ssray.config import Patches
from ssray.method.anomaly_map import smooth
from ssray.method.noise import signs, smooth_noise, uniform
from ssray.method.shapes import patch_masks

RADIUS = (0.02, 0.15)
"""The defects' radius where nothing better is known: shares of the image's shorter side."""

OUTLINE = 0.02
"""The level of a defect's fading border that counts as ground truth: annotators draw around it."""

PERCEPTIBLE = 0.02
"""The least mean change inside a defect, on the [0, 1] scale; fainter ones are no ground truth."""


def add_defects(
    images: Tensor, generator: torch.Generator, radius: tuple[float, float] = RADIUS
) -> tuple[Tensor, Tensor]:
    """Gives each image a defect; the kinds take turns over the batch.

    Args:
        images: (B, C, H, W) float32 in [0, 1], defect-free.
        generator: the source of all random numbers, on the CPU.
        radius: the smallest and the largest, as shares of the image's shorter side (log-uniform).

    Returns:
        Images with a perceptible defect, (D, C, H, W) with D <= B, and their ground truth,
        (D, 1, H, W) bool.
    """
    defective, truth, perceptible = draw_defects(images, generator, radius)
    return defective[perceptible], truth[perceptible]


def draw_defects(
    images: Tensor, generator: torch.Generator, radius: tuple[float, float] = RADIUS
) -> tuple[Tensor, Tensor, Tensor]:
    """Does the same as ``add_defects``, and keeps the images whose defect is not perceptible.

    Returns:
        (B, C, H, W) images with a defect, their ground truth, (B, 1, H, W) bool, and which defects
        are perceptible, (B,) bool.
    """
    batch, _, height, width = images.shape
    shape = Patches(count=1, radius=radius, fade=0.25, outline=0.5)
    mask = patch_masks(batch, height, width, shape, min(height, width), generator, images.device)
    turn = torch.arange(batch, device=images.device) % len(KINDS)
    defective = images.clone()
    for number, kind in enumerate(KINDS):
        chosen = turn == number
        if chosen.any():
            defective[chosen], mask[chosen] = kind(images[chosen], mask[chosen], generator)
    truth = mask > OUTLINE
    change = (defective - images).abs().mean(dim=1, keepdim=True) * truth
    visible = change.sum(dim=(1, 2, 3)) > PERCEPTIBLE * truth.sum(dim=(1, 2, 3))
    return defective, truth, visible


# Each kind takes (B, C, H, W) images and the (B, 1, H, W) mask of a region, both float32 in [0, 1],
# and returns the changed images and, as the mask, how far each pixel belongs to the defect.


def transplant(images: Tensor, mask: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Puts content from elsewhere in the image there, upside down: structure out of place."""
    shift = _offset(images.shape[2], generator), _offset(images.shape[3], generator)
    foreign = images.flip(2).roll(shift, dims=(2, 3))
    return torch.lerp(images, foreign, mask), mask


def stain(images: Tensor, mask: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Lays a lighter or darker, slightly coloured patch over the structure, which shows through."""
    return _tint(images, mask, generator), mask


def blur(images: Tensor, mask: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Takes the structure away: the region gets its local mean, over a twelfth of the image."""
    kernel = min(images.shape[2:]) // 12 * 2 + 1
    return torch.lerp(images, smooth(images, kernel, 1), mask), mask


def strand(images: Tensor, mask: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws a thin curved line, lighter or darker: a scratch or a thread within the region."""
    batch, _, height, width = images.shape
    length = min(height, width) / 4
    level = smooth_noise((batch, 1, height, width), (length, length), generator, images.device)
    slope = torch.hypot(*torch.gradient(level, dim=(2, 3))).clamp_min(1e-4)
    pixels_from_line = level.abs() / slope
    line = (2.0 - pixels_from_line).clamp(0, 1) * (mask > 0)
    return _tint(images, line, generator), line


KINDS: tuple[Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]], ...] = (
    transplant,
    stain,
    blur,
    strand,
)


def _tint(images: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
    batch, channels, _, _ = images.shape
    lightness = signs((batch, 1, 1, 1), generator) * uniform(
        (batch, 1, 1, 1), (0.1, 0.3), generator
    )
    colour = torch.randn(batch, channels, 1, 1, generator=generator) * 0.03
    return (images + mask * (lightness + colour).to(images.device)).clamp(0, 1)


def _offset(side: int, generator: torch.Generator) -> int:
    """Draws a shift by a quarter to three quarters of the side, so that content differs."""
    return int(side * uniform((), (0.25, 0.75), generator))
