"""What training draws from the defect-free images: crops, turned and lit in different ways."""

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
    """Random crops, flipped or turned as the augmentation allows.

    Args:
        images: (N, H, W, C) uint8 on any device.
        batch: number of crops B, drawn with replacement.
        crop: its rows and columns h, w, at most H and W; equal where crops are turned.
        generator: on the CPU.

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
    """Each image a little lighter or darker, of more or less contrast.

    Args:
        images: (B, C, H, W) float32 in [0, 1].
        change: largest relative change of either, in [0, 1).
        generator: on the CPU.

    Returns:
        The same shape and range: ``gain * (mean + contrast * (image - mean))``, clipped.
    """
    per_image = (len(images), 1, 1, 1)
    bounds = (1 - change, 1 + change)
    drawn = (uniform(per_image, bounds, generator), uniform(per_image, bounds, generator))
    gain, contrast = moved(drawn, images.device)
    return relight(images, gain, contrast)


def relight(images: Tensor, gain: Tensor | float, contrast: Tensor | float) -> Tensor:
    """``gain * (mean + contrast * (image - mean))``, clipped to [0, 1]; the mean is each image's.

    >>> relight(torch.tensor([[[[0.2, 0.4]]]]), gain=1.0, contrast=2.0)
    tensor([[[[0.1000, 0.5000]]]])
    """
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    scaled = adjust_contrast(images, gain * contrast, clip_output=False)
    return adjust_brightness(scaled, gain * (1 - contrast) * mean)
