"""Draws the defects of the generated demo data, and the masks of what they changed.

The function of a defect returns the surface in one or two *stages*, each (H, W, 3) like the
surface it starts from. The last stage is what the camera sees. The mask covers what any stage
changed: a misplaced part passes through a stage without it, so its mask covers the place
where it is as well as the place where it should have been.

Marks are as often lighter as darker, so that brightness does not give them away.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ssray.data.demo.surfaces import Floats, Noise, Specimen, inside, smoothstep

VISIBLE = 0.03
"""The smallest local change that a mask marks, as a share of the full scale (8 of 255 levels)."""

_STRIP = 8192  # points drawn at a time

T = TypeVar("T", bound=np.generic)
P_co = TypeVar("P_co", covariant=True)


class HasParts(Protocol[P_co]):
    """A product from which a part can be missing."""

    def without_part(self, rng: np.random.Generator) -> P_co:
        """Returns the same product without one of its parts."""
        ...


class HasMovableParts(Protocol[P_co]):
    """A product whose parts can sit in the wrong place."""

    def with_moved_part(self, rng: np.random.Generator) -> tuple[P_co, P_co]:
        """Returns the same product without one part, and with that part in a wrong place."""
        ...


@dataclass(frozen=True)
class Canvas:
    """The points at which a surface is drawn.

    Attributes:
        x: (H, W) positions to the right, 0 to 1 over the image.
        y: (H, W) positions downwards, 0 to ``height`` over the image.
        pixel: the side of one pixel of the final image, as a share of its width.
        height: the height of the image, as a share of its width.
    """

    x: Floats
    y: Floats
    pixel: float
    height: float

    def draw(self, specimen: Specimen) -> Floats:
        """Returns the reflectance of a product at each point, (H, W, 3)."""
        return _in_strips(specimen.reflectance, self.x, self.y)


Stages = tuple[Floats, ...]


def scratch(specimen: Specimen, clean: Floats, canvas: Canvas, rng: np.random.Generator) -> Stages:
    """Draws a scratch: a thin, slightly curved line that fades at both ends."""
    points = curve(specimen.anchor(rng), rng.uniform(0.22, 0.5), 0.12, rng)
    distance, position = distance_to(points, canvas)
    width = max(rng.uniform(0.009, 0.015), canvas.pixel)
    fade = smoothstep(position / 0.15) * smoothstep((1 - position) / 0.15)
    cover = inside(distance - 0.5 * width, width) * fade * specimen.solid(canvas.x, canvas.y)
    return (shifted(clean, cover, sign(rng) * rng.uniform(0.16, 0.25)),)


def blob(specimen: Specimen, clean: Floats, canvas: Canvas, rng: np.random.Generator) -> Stages:
    """Draws a stain of low contrast with a soft, irregular edge and a slight tint."""
    cx, cy = specimen.anchor(rng)
    radius = rng.uniform(0.05, 0.09)
    noise, stretch = Noise(rng), rng.uniform(0.75, 1.3)
    dx, dy = (canvas.x - cx) * stretch, (canvas.y - cy) / stretch
    outline = 0.3 * noise(dx / radius, dy / radius) + 0.15 * noise(
        2.5 * dx / radius, 2.5 * dy / radius
    )
    depth = 1 - np.hypot(dx, dy) / radius + outline
    cover = smoothstep(depth / 0.45) * specimen.solid(canvas.x, canvas.y)
    strength = sign(rng) * rng.uniform(0.11, 0.16) * rng.uniform(0.75, 1.15, 3)
    return (shifted(clean, cover, strength),)


def thread(specimen: Specimen, clean: Floats, canvas: Canvas, rng: np.random.Generator) -> Stages:
    """Draws a loose strand of another tone on the surface, with its shadow."""
    points = curve(specimen.anchor(rng), rng.uniform(0.25, 0.5), 0.45, rng)
    width = max(rng.uniform(0.013, 0.02), canvas.pixel)
    tone = clean.mean(axis=(0, 1)) + sign(rng) * rng.uniform(0.2, 0.3)
    shade_distance, _ = distance_to(points + 0.013, canvas)
    shaded = clean * (1 - 0.2 * inside(shade_distance - 0.5 * width, 2 * width))[..., None]
    distance, position = distance_to(points, canvas)
    cover = inside(distance - 0.5 * width)
    rounded = 1 - 0.25 * np.clip(2 * distance / width, 0, 1) ** 2
    twist = 1 + 0.05 * np.sin(position * rng.uniform(60, 90))
    strand = np.clip(tone, 0.05, 0.92) * (rounded * twist)[..., None]
    return (shaded + cover[..., None] * (strand - shaded),)


def cut(specimen: Specimen, clean: Floats, canvas: Canvas, rng: np.random.Generator) -> Stages:
    """Draws a slit, along which the structure is displaced; its gap is lighter or darker."""
    points = curve(specimen.anchor(rng), rng.uniform(0.2, 0.34), 0.06, rng)
    distance, position = distance_to(points, canvas)
    ends = smoothstep(position / 0.3) * smoothstep((1 - position) / 0.3)
    along = points[-1] - points[0]
    along = along / np.hypot(*along)
    side = np.sign((canvas.x - points[0, 0]) * along[1] - (canvas.y - points[0, 1]) * along[0])
    slip = side * np.exp(-((distance / 0.035) ** 2)) * ends
    slide, gape = sign(rng) * rng.uniform(0.012, 0.024), rng.uniform(0.005, 0.011)
    slipped = _in_strips(
        specimen.reflectance,
        canvas.x + slip * (slide * along[0] - gape * along[1]),
        canvas.y + slip * (slide * along[1] + gape * along[0]),
    )
    width = max(rng.uniform(0.011, 0.016), canvas.pixel)
    slit = inside(distance - 0.5 * width * ends) * ends
    return (shifted(slipped, slit, sign(rng) * rng.uniform(0.17, 0.27)),)


def missing(
    specimen: HasParts[Specimen], clean: Floats, canvas: Canvas, rng: np.random.Generator
) -> Stages:
    """Draws the product with one part missing."""
    return (canvas.draw(specimen.without_part(rng)),)


def misplaced(
    specimen: HasMovableParts[Specimen], clean: Floats, canvas: Canvas, rng: np.random.Generator
) -> Stages:
    """Draws the product with one part in the wrong place; the mask covers both places."""
    without, moved = specimen.with_moved_part(rng)
    return canvas.draw(without), canvas.draw(moved)


def changed(stages: Stages) -> npt.NDArray[np.bool_]:
    """Finds the pixels that change visibly from any stage to the next.

    Args:
        stages: (H, W, C) float images in [0, 1] without sensor noise, the clean one first.

    Returns:
        (H, W) bool: the largest channel's change, averaged over 3 x 3 pixels, exceeds
        ``VISIBLE``. Gaps of up to two pixels are closed.
    """
    shape = stages[0].shape[:2]
    difference = np.zeros(shape)
    for before, after in pairwise(stages):
        difference = np.maximum(difference, np.abs(after - before).max(axis=-1))
    marked = np.mean(_neighbours(difference), axis=0) > VISIBLE
    grown = np.any(_neighbours(marked), axis=0)
    closed: npt.NDArray[np.bool_] = np.all(_neighbours(grown), axis=0)
    return closed


def _neighbours(image: npt.NDArray[T]) -> list[npt.NDArray[T]]:
    """Returns nine (H, W) views that hold every pixel's 3 x 3 neighbours, the border repeated."""
    padded = np.pad(image, 1, mode="edge")
    height, width = image.shape
    return [padded[r : r + height, c : c + width] for r in range(3) for c in range(3)]


def sign(rng: np.random.Generator) -> float:
    """Draws -1 or 1."""
    return float(rng.choice((-1.0, 1.0)))


def shifted(surface: Floats, cover: Floats, strength: float | Floats) -> Floats:
    """Makes a surface lighter or darker by ``strength`` where ``cover``, (H, W), is 1."""
    changed_surface: Floats = np.clip(surface + cover[..., None] * strength, 0.02, 0.98)
    return changed_surface


def curve(
    middle: tuple[float, float], length: float, bow: float, rng: np.random.Generator
) -> Floats:
    """Draws a random cubic arc through the neighbourhood of a point.

    Args:
        middle: the point, (x, y).
        length: the distance between the two ends.
        bow: how far the arc leaves the straight line at most, as a share of ``length``.
        rng: draws direction and shape.

    Returns:
        (N, 2) points along the arc.
    """
    angle = rng.uniform(0, 2 * np.pi)
    along = length * np.array([math.cos(angle), math.sin(angle)])
    across = np.array([-along[1], along[0]])
    controls = np.array(middle) + np.array(
        [
            -0.5 * along,
            -along / 6 + rng.uniform(-bow, bow) * across,
            along / 6 + rng.uniform(-bow, bow) * across,
            0.5 * along,
        ]
    )
    t = np.linspace(0, 1, 17)[:, None]
    weights = np.hstack(((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3))
    points: Floats = weights @ controls
    return points


def distance_to(points: Floats, canvas: Canvas) -> tuple[Floats, Floats]:
    """Measures, for each point of a canvas, how far away a line through ``points`` is.

    Returns:
        The (H, W) distances, and how far along the line its nearest point lies, from 0 to 1.
    """

    def nearest(x: Floats, y: Floats) -> Floats:
        best, position = np.full_like(x, np.inf), np.zeros_like(x)
        for i, (start, stop) in enumerate(pairwise(points)):
            dx, dy = stop - start
            px, py = x - start[0], y - start[1]
            share = np.clip((px * dx + py * dy) / (dx * dx + dy * dy), 0, 1)
            distance = np.hypot(px - share * dx, py - share * dy)
            position = np.where(distance < best, (i + share) / (len(points) - 1), position)
            best = np.minimum(best, distance)
        return np.stack((best, position), axis=-1)

    both = _in_strips(nearest, canvas.x, canvas.y)
    return both[..., 0], both[..., 1]


def _in_strips(draw: Callable[[Floats, Floats], Floats], x: Floats, y: Floats) -> Floats:
    """Computes ``draw(x, y)`` a few rows at a time, which keeps its arrays small and is faster."""
    rows = max(1, _STRIP // x.shape[1])
    starts = range(0, len(x), rows)
    return np.concatenate([draw(x[i : i + rows], y[i : i + rows]) for i in starts])
