"""What training draws from the defect-free images: crops, turned and lit in different ways.

Light and contrast are changed by kornia. Crops, flips and quarter turns are ours: all of them are
one choice of rows and columns, read from the 8-bit images in one operation.
"""

from __future__ import annotations

import torch
from kornia.enhance import adjust_brightness, adjust_contrast
from torch import Tensor

from ssray.config import Augmentation
from ssray.method.noise import uniform
from ssray.method.transfer import moved


def draw_crops(
    images: Tensor,
    batch: int,
    crop: tuple[int, int],
    augmentation: Augmentation,
    generator: torch.Generator,
) -> Tensor:
    """Draws random crops, flipped or turned as the augmentation allows.

    Args:
        images: (N, H, W, C) uint8 on any device.
        batch: the number of crops B, from images drawn with replacement.
        crop: rows and columns h, w of a crop, at most H and W; equal where crops are turned.
        augmentation: which flips and turns there are.
        generator: the source of all random numbers, on the CPU.

    Returns:
        (B, C, h, w) float32 in [0, 1], channels-last in memory.
    """
    count, height, width, _ = images.shape
    device = images.device

    def draw(high: int) -> Tensor:
        return torch.randint(high, (batch, 1), generator=generator)

    index = draw(count)
    if crop == (height, width) and augmentation == "none":
        whole = images.index_select(0, moved(index, device).squeeze(1))
        return whole.permute(0, 3, 1, 2).float().div_(255)
    rows = draw(height - crop[0] + 1) + torch.arange(crop[0])
    columns = draw(width - crop[1] + 1) + torch.arange(crop[1])
    upside_down, mirrored, turned = (draw(2) == 1 for _ in range(3))
    if augmentation == "turn":  # a quarter turn is a transposition and one flip
        mirrored = upside_down ^ turned
    if augmentation in ("flip", "turn", "dihedral"):
        rows = torch.where(upside_down, rows.flip(1), rows)
    if augmentation != "none":
        columns = torch.where(mirrored, columns.flip(1), columns)
    index, rows, columns, turned = moved((index, rows, columns, turned), device)
    crops = images[index.unsqueeze(2), rows.unsqueeze(2), columns.unsqueeze(1)]
    if augmentation in ("turn", "dihedral"):
        crops = torch.where(turned.view(batch, 1, 1, 1), crops.transpose(1, 2), crops)
    return crops.permute(0, 3, 1, 2).float().div_(255)


def random_light(images: Tensor, change: float, generator: torch.Generator) -> Tensor:
    """Makes each image a little lighter or darker, with more or less contrast.

    Args:
        images: (B, C, H, W) float32 in [0, 1].
        change: the largest relative change of either, in [0, 1).
        generator: the source of all random numbers, on the CPU.

    Returns:
        The same shape and range: ``gain * (mean + contrast * (image - mean))``, clipped.
    """
    per_image = (len(images), 1, 1, 1)
    bounds = (1 - change, 1 + change)
    drawn = (uniform(per_image, bounds, generator), uniform(per_image, bounds, generator))
    gain, contrast = moved(drawn, images.device)
    return relight(images, gain, contrast)


def relight(images: Tensor, gain: Tensor | float, contrast: Tensor | float) -> Tensor:
    """Changes light and contrast: ``gain * (mean + contrast * (image - mean))``, clipped to [0, 1].

    The mean is that of each image, over its pixels and channels.

    Args:
        images: (B, C, H, W) float32 in [0, 1].
        gain: the factor of the light, at least 0: a number, or (B, 1, 1, 1).
        contrast: the factor of the differences from the mean, likewise.

    >>> relight(torch.tensor([[[[0.2, 0.4]]]]), gain=1.0, contrast=2.0)
    tensor([[[[0.1000, 0.5000]]]])
    """
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    scaled = adjust_contrast(images, gain * contrast, clip_output=False)
    return adjust_brightness(scaled, gain * (1 - contrast) * mean)
