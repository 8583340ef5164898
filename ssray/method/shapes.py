"""Masks: where an image is corrupted, and how sharply (section 3.2, Fig. 5).

A mask is the union of a few patches. Each patch is a disk, a rectangle, a blob or a stroke,
its outline distorted and its border fading smoothly.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ssray.config import Patches
from ssray.method.noise import log_uniform, smooth_noise, uniform


def patch_masks(
    batch: int,
    height: int,
    width: int,
    settings: Patches,
    side: float,
    generator: torch.Generator,
    device: torch.device,
) -> Tensor:
    """A union of patches for each image.

    The masks are drawn at half the resolution and interpolated: their borders are smooth.

    Args:
        batch: number of masks B.
        height: H, pixels.
        width: W, pixels.
        settings: number, sizes and shapes of the patches.
        side: what lengths are shares of, pixels: the shorter side of the whole image.
        generator: on the CPU.
        device: of the result.

    Returns:
        (B, 1, H, W) float32 in [0, 1]; between one and ``settings.count`` patches each. Radii
        are limited to half the image's shorter side. A blob or a stroke follows a random level
        line, which may pass by: about one in six of these is empty, and one in a hundred disks.
    """
    rows, columns = (height + 1) // 2, (width + 1) // 2
    limit = min(height, width) / 2
    low, high = (min(max(r * side, 1.0), limit) / 2 for r in settings.radius)
    per_patch = (batch, settings.count, 1, 1)
    radius = log_uniform(per_patch, (low, high), generator)
    y = uniform(per_patch, (0.0, float(rows)), generator)
    x = uniform(per_patch, (0.0, float(columns)), generator)
    angle = uniform(per_patch, (0.0, math.pi), generator)
    stretch = log_uniform(per_patch, settings.elongation, generator).sqrt()
    half_stroke = side * log_uniform(per_patch, settings.stroke, generator) / 4
    kind = torch.randint(len(settings.shapes), per_patch, generator=generator)
    drawn = torch.randint(1, settings.count + 1, (batch, 1, 1, 1), generator=generator)
    present = torch.arange(settings.count).view(1, -1, 1, 1) < drawn

    radius, y, x, half_stroke, kind, present = (
        t.to(device, non_blocking=True) for t in (radius, y, x, half_stroke, kind, present)
    )
    along_y, along_x = pixel_grid(rows, columns, device)
    down, across = (along_y - y) / radius, (along_x - x) / radius
    distance = torch.hypot(down, across)
    # Noise as wide as the larger patches, so that outlines bend rather than fray.
    wide = (max(high / 3, 4.0), max(high, 4.0))
    grid = (batch, 1, rows, columns)
    reach = 1 + settings.outline * smooth_noise(grid, wide, generator, device)
    inside = ((reach - distance) / settings.fade).clamp(0, 1)
    level: Tensor | None = None
    for number, shape in enumerate(settings.shapes):
        if shape == "disk":
            continue
        if shape == "rectangle":
            cosine, sine, aspect = (
                t.to(device, non_blocking=True) for t in (angle.cos(), angle.sin(), stretch)
            )
            u = (cosine * across + sine * down).abs() / aspect
            v = (cosine * down - sine * across).abs() * aspect
            formed = ((reach - torch.maximum(u, v)) / settings.fade).clamp(0, 1)
        else:
            if level is None:
                lengths = (max(low, 3.0), max(high, 4.0))
                level = smooth_noise(grid, lengths, generator, device)
            if shape == "blob":
                formed = inside * (level / settings.fade).clamp(0, 1)
            else:
                slope = torch.hypot(*torch.gradient(level, dim=(2, 3))).clamp_min(1e-4)
                from_line = level.abs() / slope
                formed = inside * (half_stroke + 0.5 - from_line).clamp(0, 1)
        inside = torch.where(kind == number, formed, inside)
    union = torch.where(present, inside, 0.0).amax(dim=1, keepdim=True)
    smooth = union.square() * (3 - 2 * union)
    return F.interpolate(smooth, size=(height, width), mode="bilinear", align_corners=False)


def pixel_grid(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row numbers, (H, 1), and column numbers, (1, W), float32."""
    rows = torch.arange(height, device=device, dtype=torch.float32).view(height, 1)
    columns = torch.arange(width, device=device, dtype=torch.float32).view(1, width)
    return rows, columns
