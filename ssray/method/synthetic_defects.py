"""Synthetic defects for judging models without test labels, from hair cracks to missing parts.

They are kept apart from the training corruption on purpose: a network that merely
recognises its own elastic distortion must not win. None of the kinds deforms the image.

Their sizes do not depend on what a network was taught to repair either. They are spread evenly over
the logarithm, from the finest detail that an image resolves to a large share of its side, and so
are their contrasts, from what is just visible to strong. What is visible depends on the image:
against noise of standard deviation s, something of n pixels is seen from a contrast of about
5 s / sqrt(n) on (A. Rose, "The sensitivity performance of the human eye on an absolute scale",
1948). An image's texture is no white noise, so that less than s never counts as visible, however
large a defect is.

Borders and lines are drawn with the share of each pixel that they cover, which is what a photograph
of higher resolution gives when it is shrunk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ssray.method.anomaly_map import smooth
from ssray.method.noise import log_uniform, signs, smooth_noise, uniform
from ssray.method.shapes import pixel_grid

KINDS = ("spot", "line", "stain", "foreign", "blur")
"""A *spot* is lighter or darker and has a sharp border, a *line* is a thin curve, a crack, scratch
or hair, a *stain* is faint and has a soft border, *foreign* is other texture, from elsewhere in the
image, upside down and twice as large, and *blur* is texture that is missing."""
FINEST = 1.5
"""The diameter of the smallest spot: the finest detail that an image resolves, in pixels."""
WIDTH = (1.0, 3.0)
"""The width of a line, pixels."""
SMALLEST = 8.0
"""The smallest of all other kinds, pixels: texture shows in several of its details."""
LARGEST = 0.4
"""The largest diameter, as a share of the image's shorter side; lines are up to twice as long."""
AT_EDGES = 1 / 3
"""The chance of a defect to lie where the image has strong edges."""
ROSE = 5.0
"""How many standard deviations of its mean a defect differs by if it is just visible."""
FAINTEST = 0.025
"""The least contrast of what is drawn, on the [0, 1] scale, in images without any noise."""
STRONG = 0.3
"""The contrast of the strongest spots and lines on the [0, 1] scale; twice what is just visible
where that is more."""
FAINT = 3.0
"""The contrast of the strongest stains, in multiples of what is just visible."""

OUTLINE = 0.02
"""The level of a defect's fading border that counts as ground truth: annotators draw around it."""
PERCEPTIBLE = 0.02
"""The least change that a defect makes, on the [0, 1] scale; fainter ones are no ground truth."""


@dataclass(frozen=True)
class Defects:
    """Images with a defect each.

    Attributes:
        images: (B, C, H, W) float32 in [0, 1].
        truth: (B, 1, H, W) bool, where the defect is.
        kind: (B,) int64, on the CPU, which of ``KINDS`` it is.
        size: (B,) float32, on the CPU, its diameter, or the length of a line, pixels.
        perceptible: (B,) bool, whether it changes the image by ``PERCEPTIBLE``.
    """

    images: Tensor
    truth: Tensor
    kind: Tensor
    size: Tensor
    perceptible: Tensor

    def visible(self) -> Self:
        """Those that are perceptible."""
        seen = self.perceptible
        there = seen.cpu()
        return type(self)(
            self.images[seen], self.truth[seen], self.kind[there], self.size[there], seen[seen]
        )


def draw_defects(
    images: Tensor,
    generator: torch.Generator,
    kind: Tensor | None = None,
    where: Tensor | None = None,
    pixel: float = 1.0,
) -> Defects:
    """Gives each image a defect.

    Args:
        images: (B, C, H, W) float32 in [0, 1], defect-free.
        generator: the source of all random numbers, on the CPU.
        kind: (B,) int64, on the CPU, which of ``KINDS`` each gets; default: they take turns.
        where: (B, 1, H, W) bool, where defects may have their centre; default: anywhere.
        pixel: how many pixels of these images the lengths above mean by a pixel; more than 1 draws
            for a network that sees the images smaller.

    Returns:
        All of them, also those that are not perceptible.
    """
    batch, _, height, width = images.shape
    device, side = images.device, min(height, width)
    kind = torch.arange(batch) % len(KINDS) if kind is None else kind
    spot, line, stain, foreign, blur = (_each(kind == number) for number in range(len(KINDS)))
    least = torch.where(spot, FINEST, SMALLEST) * pixel
    most = torch.where(line, 2 * LARGEST, LARGEST) * side
    size = least * (most / least).clamp_min(1) ** torch.rand(batch, 1, 1, 1, generator=generator)
    place = _places(images, where, generator)
    stroke = pixel * log_uniform((batch, 1, 1, 1), WIDTH, generator)
    patch = _patches(images, place, size, torch.where(stain, 1.0, 0.25), pixel, generator)
    mask = torch.where(line.to(device), _lines(images, place, size, stroke, generator), patch)
    visible = _just_visible(images, mask, pixel).cpu()
    strongest = torch.where(stain, FAINT, (STRONG / visible).clamp_min(2))
    contrast = visible * strongest ** torch.rand(batch, 1, 1, 1, generator=generator)
    contrast = contrast * signs((batch, 1, 1, 1), generator)
    tinted = images + mask * _coloured(images, contrast, generator)
    defective = tinted.clamp(0, 1)
    for chosen, content in ((foreign, _elsewhere(images, generator)), (blur, _blurred(images))):
        defective = torch.where(chosen.to(device), torch.lerp(images, content, mask), defective)
    change = (defective - images).abs().mean(dim=1, keepdim=True)
    strength = _total(change * mask) / _total(mask.square()).clamp_min(1e-6)
    return Defects(
        images=defective,
        truth=mask > OUTLINE,
        kind=kind,
        size=size.flatten(),
        perceptible=strength.flatten() > PERCEPTIBLE,
    )


def _each(chosen: Tensor) -> Tensor:
    """(B,) as (B, 1, 1, 1)."""
    return chosen.view(-1, 1, 1, 1)


def _total(values: Tensor) -> Tensor:
    """The sum over an image, (B, 1, 1, 1)."""
    return values.sum(dim=(1, 2, 3), keepdim=True)


def _places(images: Tensor, where: Tensor | None, generator: torch.Generator) -> Tensor:
    """Draws the centre of each defect, (B,) int64, as the number of a pixel counted row by row.

    All pixels of ``where`` are alike, or, for ``AT_EDGES`` of the images, weigh by the square of
    the slope there.
    """
    grey = smooth(images.mean(dim=1, keepdim=True), 3, 1)
    steep = sum(slope.square() for slope in torch.gradient(grey, dim=(2, 3)))
    assert isinstance(steep, Tensor)
    at_edge = torch.rand(len(images), 1, 1, 1, generator=generator) < AT_EDGES
    weights = torch.where(at_edge, steep.cpu() + 1e-9, 1.0)
    if where is not None:
        weights = weights * where.cpu()
    return torch.multinomial(weights.flatten(1), 1, generator=generator)[:, 0]


def _at(field: Tensor, place: Tensor) -> Tensor:
    """The value of a (B, 1, H, W) field at each image's place, (B, 1, 1, 1)."""
    return _each(field.flatten(1).gather(1, place[:, None].to(field.device)))


def _distance(images: Tensor, place: Tensor) -> Tensor:
    """The distance of each pixel from each image's place, (B, 1, H, W), pixels."""
    height, width = images.shape[2:]
    rows, columns = pixel_grid(height, width, images.device)
    place = _each(place.to(images.device))
    return torch.hypot(rows - place // width, columns - place % width)


def _patches(
    images: Tensor,
    place: Tensor,
    size: Tensor,
    fade: Tensor,
    pixel: float,
    generator: torch.Generator,
) -> Tensor:
    """Masks, (B, 1, H, W) in [0, 1], of round regions, the larger the less regular.

    Args:
        images: (B, C, H, W).
        place: of their centres.
        size: (B, 1, 1, 1), their diameters, pixels.
        fade: (B, 1, 1, 1), over which share of their radius their border fades; a pixel at least.
        pixel: as for ``draw_defects``.
        generator: draws how their outlines are bent.
    """
    batch, _, height, width = images.shape
    side, radius = min(height, width), (size / 2).to(images.device)
    bend = smooth_noise((batch, 1, height, width), (side / 16, side / 4), generator, images.device)
    reach = radius * (1 + 0.35 * (bend - _at(bend, place)).clamp(-1.5, 1.5))
    border = (fade.to(images.device) * radius).clamp_min(pixel)
    return ((reach - _distance(images, place)) / border + 0.5).clamp(0, 1)


def _lines(
    images: Tensor, place: Tensor, length: Tensor, breadth: Tensor, generator: torch.Generator
) -> Tensor:
    """Masks, (B, 1, H, W) in [0, 1], of curves that taper at their ends.

    A curve is where a smooth random field has the value that it has in the centre: the difference
    over the slope is about the distance in pixels. Some have branches.
    """
    batch, _, height, width = images.shape
    device, side = images.device, min(height, width)
    level = smooth_noise((batch, 1, height, width), (side / 8, side), generator, device)
    level = level - _at(level, place)
    slope = torch.hypot(*torch.gradient(level, dim=(2, 3))).clamp_min(1e-4)
    radius = (length / 2).to(device)
    ends = ((radius - _distance(images, place)) / (0.25 * radius) + 0.5).clamp(0, 1)
    return (breadth.to(device) / 2 + 0.5 - level.abs() / slope).clamp(0, 1) * ends


def _just_visible(images: Tensor, mask: Tensor, pixel: float) -> Tensor:
    """The contrast, (B, 1, 1, 1), from which a defect with that mask can be seen: relative to the
    local standard deviation where it lies, over a sixteenth of the image.
    """
    grey = images.mean(dim=1, keepdim=True)
    window = max(5, min(images.shape[2:]) // 32 * 2 + 1)
    variance = smooth(grey.square(), window, 1) - smooth(grey, window, 1).square()
    noise = _total(variance.clamp_min(0).sqrt() * mask) / _total(mask).clamp_min(1e-6)
    pixels = _total(mask.square()).clamp_min(1) / pixel**2
    return (noise * (ROSE / pixels.sqrt()).clamp_min(1)).clamp(FAINTEST, 1)


def _coloured(images: Tensor, contrast: Tensor, generator: torch.Generator) -> Tensor:
    """The contrast in each channel, (B, C, 1, 1): slightly coloured, but in grey images."""
    batch, channels = images.shape[:2]
    colour = 0.2 * torch.randn(batch, channels, 1, 1, generator=generator)
    grey = (images == images[:, :1]).flatten(1).all(dim=1)
    tint = contrast * (1 + colour - colour.mean(dim=1, keepdim=True))
    return torch.where(_each(grey), contrast.to(images.device), tint.to(images.device))


def _elsewhere(images: Tensor, generator: torch.Generator) -> Tensor:
    """The middle of the image at twice its size, upside down and moved by a quarter to three
    quarters of the side.
    """
    height, width = images.shape[2:]
    rows, columns = math.ceil(height / 2), math.ceil(width / 2)
    middle = images[:, :, height // 4 :, width // 4 :][:, :, :rows, :columns]
    enlarged = F.interpolate(middle, size=(height, width), mode="bilinear")
    shift = [int(side * uniform((), (0.25, 0.75), generator)) for side in (height, width)]
    return enlarged.flip(2).roll(shift, dims=(2, 3))


def _blurred(images: Tensor) -> Tensor:
    """The local mean over a sixth of the image."""
    return smooth(images, min(images.shape[2:]) // 12 * 2 + 1, 1)
