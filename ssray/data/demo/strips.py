"""Draws strips for the generated demo data: long ground surfaces that fill the photograph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from ssray.data.demo.surfaces import Floats, Noise, inside, rotated

HEIGHT = 2.52
"""The length of a strip in breadths: 500 x 1260 pixels, the format of commutators' photographs."""


@dataclass(frozen=True)
class StripStyle:
    """The style of a strip: a moulded surface with pores, ground along its length."""

    tone: float
    tilt: float
    streaks: float
    grain: float
    pores: float  # share of the cells of a lattice that hold one
    bow: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """Draws a random style."""
        return cls(
            tone=rng.uniform(0.4, 0.5),
            tilt=rng.uniform(-0.04, 0.04),
            streaks=rng.uniform(0.07, 0.1),
            grain=rng.uniform(0.09, 0.13),
            pores=rng.uniform(0.2, 0.35),
            bow=rng.uniform(0.1, 0.18),
        )

    def specimen(self, rng: np.random.Generator) -> Strip:
        table = (Strip.CELLS, Strip.CELLS)
        radius = rng.uniform(0.06, 0.14, table) + 0.12 * rng.uniform(0, 1, table) ** 4
        return Strip(
            style=self,
            tone=rng.uniform(0.94, 1.06),
            tilt=self.tilt + rng.normal(0, 0.008),
            bow=self.bow * rng.uniform(0.7, 1.3),
            middle=rng.uniform(0.4, 0.6),
            place=rng.uniform(0.3, 0.7, (2, *table)),
            radius=np.where(rng.uniform(size=table) < self.pores, radius, 0),
            depth=rng.uniform(0.15, 0.45, table),
            coarse=Noise(rng),
            fine=Noise(rng),
        )


@dataclass(frozen=True)
class Strip:
    """One strip; x runs across it and y along it, which is bowed around ``middle``.

    ``place``, (2, N, N), ``radius`` and ``depth``, (N, N), are those of the pores in the cells of a
    lattice, 40 of them across the strip; lengths are shares of a cell.
    """

    CELLS = 128  # the lattice repeats after as many, more than a strip is long

    style: StripStyle
    tone: float
    tilt: float
    bow: float
    middle: float
    place: Floats
    radius: Floats
    depth: Floats
    coarse: Noise
    fine: Noise

    def reflectance(self, x: Floats, y: Floats) -> Floats:
        style, coarse, fine = self.style, self.coarse, self.fine
        across, along = rotated(x, y, self.tilt)
        shape = 1 - self.bow * (2 * (x - self.middle)) ** 2
        clouds = 0.06 * coarse(2.5 * x, 2.5 * y) + 0.04 * coarse(7 * x + 40, 5 * y)
        streaks = style.streaks * (
            0.6 * coarse(24 * across + 9, 0.9 * along)
            + 0.7 * fine(90 * across, 2.1 * along)
            + 0.7 * fine(230 * across + 50, 7 * along + 50)
        )
        grain = style.grain * (
            fine(*rotated(203 * x, 203 * y, 0.6)) + 0.7 * coarse(*rotated(83 * x, 83 * y, 0.9))
        )
        surface = self.tone * style.tone * shape * (1 + clouds + streaks + grain)
        grey: Floats = surface * (1 - self._pores(x, y))
        return np.repeat(grey[..., None], 3, axis=-1)

    def solid(self, x: Floats, y: Floats) -> Floats:
        return np.ones_like(x)

    def anchor(self, rng: np.random.Generator) -> tuple[float, float]:
        return rng.uniform(0.1, 0.9), rng.uniform(0.1, HEIGHT - 0.1)

    def _pores(self, x: Floats, y: Floats) -> Floats:
        """Returns by what share pores darken the surface, (H, W)."""
        u, v = 40 * x, 40 * y
        column, row = np.floor(u), np.floor(v)
        cell = row.astype(np.intp) % self.CELLS, column.astype(np.intp) % self.CELLS
        (px, py), radius = (place[cell] for place in self.place), self.radius[cell]
        ragged = 0.05 * self.fine(5 * u, 5 * v)
        distance = np.hypot(u - column - px, v - row - py) + ragged - radius
        darker: Floats = self.depth[cell] * inside(distance, 0.1) * (radius > 0)
        return darker
