"""Masks: where an image is corrupted, and how sharply (section 3.2, Fig. 5).

A mask is the union of a few patches. Each patch is a disk, a rectangle, a blob or a stroke,
its outline distorted and its border fading smoothly.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ssray.config import Patches, Shape
from ssray.method.noise import SmoothNoise, draw_noise, log_uniform, uniform
from ssray.method.transfer import moved


@dataclass(frozen=True)
class DrawnPatches:
    """The random numbers of a batch of masks; tensors are (B, K, 1, 1), K patches an image.

    Attributes:
        size: the rows and columns of the masks.
        shapes: the shapes that ``kind`` numbers.
        fade: the share of the radius over which a border fades.
        distortion: how far outlines are bent, as a share of the radius.
        radius: the radius, in pixels of half the resolution, as all lengths here.
        y: the row of the centre.
        x: the column of the centre.
        cosine: the cosine of the angle that rectangles are turned by.
        sine: its sine.
        stretch: the square root of a rectangle's length over its breadth.
        half_stroke: half the breadth of a stroke.
        kind: the number of the patch's shape.
        present: bool, which of the patches there are.
        outline: the noise that bends the outlines.
        level: the noise whose level lines blobs and strokes follow.
    """

    size: tuple[int, int]
    shapes: tuple[Shape, ...]
    fade: float
    distortion: float
    radius: Tensor
    y: Tensor
    x: Tensor
    cosine: Tensor
    sine: Tensor
    stretch: Tensor
    half_stroke: Tensor
    kind: Tensor
    present: Tensor
    outline: SmoothNoise
    level: SmoothNoise | None

    def masks(self) -> Tensor:
        """Computes the masks where the tensors are, as ``patch_masks`` describes them."""
        along_y, along_x = pixel_grid(*self.outline.size, self.radius.device)
        down, across = (along_y - self.y) / self.radius, (along_x - self.x) / self.radius
        reach = 1 + self.distortion * self.outline.field()
        level = None if self.level is None else self.level.field()
        disks = self._inside(torch.hypot(down, across), reach)
        inside = disks
        for number, shape in enumerate(self.shapes):
            if shape == "disk":
                continue
            if shape == "rectangle":
                formed = self._rectangles(down, across, reach)
            else:
                assert level is not None  # it is drawn where a shape follows it
                formed = disks * (self._blobs(level) if shape == "blob" else self._strokes(level))
            inside = torch.where(self.kind == number, formed, inside)
        union = torch.where(self.present, inside, 0.0).amax(dim=1, keepdim=True)
        smooth = union.square() * (3 - 2 * union)
        return F.interpolate(smooth, size=self.size, mode="bilinear", align_corners=False)

    def _inside(self, distance: Tensor, reach: Tensor) -> Tensor:
        """From 1 well inside to 0 outside of a shape.

        Args:
            distance: from the patch's centre, in units of its radius; 1 on the outline.
            reach: where the outline is, bent by noise.
        """
        return ((reach - distance) / self.fade).clamp(0, 1)

    def _rectangles(self, down: Tensor, across: Tensor, reach: Tensor) -> Tensor:
        """Turned by a random angle, as large as the disks, some longer than broad."""
        along = (self.cosine * across + self.sine * down).abs() / self.stretch
        athwart = (self.cosine * down - self.sine * across).abs() * self.stretch
        return self._inside(torch.maximum(along, athwart), reach)

    def _blobs(self, level: Tensor) -> Tensor:
        """Where a smooth random field is above 0."""
        return (level / self.fade).clamp(0, 1)

    def _strokes(self, level: Tensor) -> Tensor:
        """Along the line where a smooth random field is 0: the field over its slope is about the
        distance from it in pixels.
        """
        slope = torch.hypot(*torch.gradient(level, dim=(2, 3))).clamp_min(1e-4)
        return (self.half_stroke + 0.5 - level.abs() / slope).clamp(0, 1)


def draw_patches(
    batch: int,
    height: int,
    width: int,
    settings: Patches,
    side: float,
    generator: torch.Generator,
) -> DrawnPatches:
    """Draws what ``patch_masks`` is computed from, on the CPU."""
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
    # Noise as wide as the larger patches, so that outlines bend rather than fray.
    grid = (batch, 1, rows, columns)
    outline = draw_noise(grid, (max(high / 3, 4.0), max(high, 4.0)), generator)
    level = None
    if {"blob", "stroke"} & {*settings.shapes}:
        level = draw_noise(grid, (max(low, 3.0), max(high, 4.0)), generator)
    return DrawnPatches(
        size=(height, width),
        shapes=settings.shapes,
        fade=settings.fade,
        distortion=settings.outline,
        radius=radius,
        y=y,
        x=x,
        cosine=angle.cos(),
        sine=angle.sin(),
        stretch=stretch,
        half_stroke=half_stroke,
        kind=kind,
        present=torch.arange(settings.count).view(1, -1, 1, 1) < drawn,
        outline=outline,
        level=level,
    )


def patch_masks(
    batch: int,
    height: int,
    width: int,
    settings: Patches,
    side: float,
    generator: torch.Generator,
    device: torch.device,
) -> Tensor:
    """Draws a mask for each image, a union of patches.

    The masks are drawn at half the resolution and interpolated: their borders are smooth.

    Args:
        batch: the number of masks B.
        height: their height H, pixels.
        width: their width W, pixels.
        settings: the number, sizes and shapes of the patches.
        side: what lengths are shares of, pixels: the shorter side of the whole image.
        generator: the source of all random numbers, on the CPU.
        device: where the result is.

    Returns:
        (B, 1, H, W) float32 in [0, 1]; between one and ``settings.count`` patches each. Radii
        are limited to half the image's shorter side. A blob or a stroke follows a random level
        line, which may pass by: about one in six of these is empty, and one in a hundred disks.
    """
    return moved(draw_patches(batch, height, width, settings, side, generator), device).masks()


@functools.lru_cache(maxsize=64)
def pixel_grid(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Numbers rows, (H, 1), and columns, (1, W), in float32; not to be changed in place."""
    rows = torch.arange(height, device=device, dtype=torch.float32).view(height, 1)
    columns = torch.arange(width, device=device, dtype=torch.float32).view(1, width)
    return rows, columns
