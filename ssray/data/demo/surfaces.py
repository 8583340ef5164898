"""The protocols and drawing helpers that all products of the generated demo data share.

A *style* is what all images of a category share (colours, counts, sizes); a *specimen*
is one product in front of the camera, with its own pose, jitter and grain. Both are
frozen once drawn, and a specimen gives its reflectance at any point. A defect can
therefore move the points it is asked for, or take a part away, and everything else
stays exactly as it was.

Lengths are shares of the image's width, its shorter side, so the same product can be drawn at
any size. Points are given as x (to the right, 0 to 1 over the image) and y (downwards, 0 to 1
over a square image), each an (H, W) array.
"""

from __future__ import annotations

import colorsys
import math
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.intp]

S_co = TypeVar("S_co", bound="Specimen", covariant=True)

EDGE = 0.012  # blur of the camera: an edge rises over this length


class Specimen(Protocol):
    """One product in front of the camera, which can be drawn at any point."""

    def reflectance(self, x: Floats, y: Floats) -> Floats:
        """Returns the reflectance at (H, W) points: (H, W, 3) linear RGB, about 0 to 0.9."""
        ...

    def solid(self, x: Floats, y: Floats) -> Floats:
        """Returns 1 where there is material that can be scratched or stained, else 0: (H, W)."""
        ...

    def anchor(self, rng: np.random.Generator) -> tuple[float, float]:
        """Draws a random point (x, y) on the material."""
        ...


class Style(Protocol[S_co]):
    """What all products of one category have in common."""

    def specimen(self, rng: np.random.Generator) -> S_co:
        """Draws a random product of this style."""
        ...


class Noise:
    """Smooth random noise in [-1, 1], interpolated between values on a lattice of spacing 1."""

    _SIDE = 128  # the lattice repeats after this length; a power of two

    def __init__(self, rng: np.random.Generator) -> None:
        self._values = rng.uniform(-1, 1, self._SIDE * self._SIDE)

    def __call__(self, x: Floats, y: Floats) -> Floats:
        """Returns the noise, (H, W) in [-1, 1], at (H, W) points in units of the lattice."""
        left, top = np.floor(x), np.floor(y)
        fx, fy = smoothstep(x - left), smoothstep(y - top)
        repeat = self._SIDE - 1
        column, row = left.astype(np.intp), top.astype(np.intp)
        columns = column & repeat, (column + 1) & repeat
        upper, lower = (
            self._between(r * self._SIDE, columns, fx) for r in (row & repeat, (row + 1) & repeat)
        )
        return upper + fy * (lower - upper)

    def _between(self, row: Integers, columns: tuple[Integers, Integers], share: Floats) -> Floats:
        first, second = (self._values.take(row + column) for column in columns)
        mixed: Floats = first + share * (second - first)
        return mixed


def smoothstep(t: Floats) -> Floats:
    """Rises from 0 at t = 0 to 1 at t = 1 as a smooth cubic, and is constant outside."""
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)


def inside(distance: Floats, blur: float = EDGE) -> Floats:
    """Turns the signed distance to a shape (negative inside) into its coverage in [0, 1]."""
    return smoothstep(0.5 - distance / blur)


def box(px: Floats, py: Floats, half_length: float, half_breadth: float, corner: float) -> Floats:
    """The signed distance to a rectangle around 0 with rounded corners, negative inside."""
    dx = np.abs(px) - half_length + corner
    dy = np.abs(py) - half_breadth + corner
    outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
    distance: Floats = outside + np.minimum(np.maximum(dx, dy), 0) - corner
    return distance


def colour(
    rng: np.random.Generator,
    hue: tuple[float, float],
    saturation: tuple[float, float],
    value: tuple[float, float],
) -> Floats:
    """Draws a random RGB colour, (3,), from ranges of hue, saturation and value."""
    return np.array(
        colorsys.hsv_to_rgb(rng.uniform(*hue) % 1, rng.uniform(*saturation), rng.uniform(*value))
    )


def over(below: Floats, above: Floats, coverage: Floats) -> Floats:
    """Lays one (H, W, 3) layer over another where ``coverage``, (H, W), is 1."""
    mixed: Floats = below + coverage[..., None] * (above - below)
    return mixed


def rotated(x: Floats, y: Floats, angle: float) -> tuple[Floats, Floats]:
    """Returns the coordinates of points in a frame turned by ``angle`` radians."""
    cos, sin = math.cos(angle), math.sin(angle)
    return cos * x + sin * y, cos * y - sin * x


def anywhere(rng: np.random.Generator) -> tuple[float, float]:
    """Draws a random point (x, y) that is not close to the image's border."""
    return rng.uniform(0.15, 0.85), rng.uniform(0.15, 0.85)
