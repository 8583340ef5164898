"""Draws brackets for the generated demo data: flat punched parts that lie at any angle."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from ssray.data.demo.surfaces import Floats, Noise, box, inside, rotated


@dataclass(frozen=True)
class BracketStyle:
    """The style of a bracket: a shank with a row of holes and a broad head, brushed along its
    length, thrown onto a plain table.
    """

    shank: tuple[float, float]
    head: tuple[float, float]
    holes: Floats
    hole: float
    notch: float
    metal: float
    table: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """Draws a random style."""
        length, breadth = rng.uniform(0.2, 0.23), rng.uniform(0.05, 0.06)
        side, height = rng.uniform(0.075, 0.09), rng.uniform(0.12, 0.14)
        count = int(rng.integers(3, 5))
        along = np.linspace(-length * 0.85, length * 0.55, count)
        row = np.stack((along, np.zeros(count)), axis=1)
        pair = np.array([[length + side, -0.55 * height], [length + side, 0.55 * height]])
        return cls(
            shank=(length, breadth),
            head=(side, height),
            holes=np.concatenate((row, pair)),
            hole=rng.uniform(0.021, 0.025),
            notch=rng.uniform(0.03, 0.04),
            metal=rng.uniform(0.56, 0.66),
            table=rng.uniform(0.26, 0.34),
        )

    def specimen(self, rng: np.random.Generator) -> Bracket:
        return Bracket(
            style=self,
            centre=0.5 + rng.uniform(-0.05, 0.05, 2),
            angle=rng.uniform(0, 2 * np.pi),
            tone=rng.uniform(0.95, 1.05),
            holes=self.holes + rng.normal(0, 0.0015, self.holes.shape),
            noise=Noise(rng),
        )


@dataclass(frozen=True)
class Bracket:
    """One bracket; ``holes`` are the (N, 2) centres of its holes in its own upright frame."""

    style: BracketStyle
    centre: Floats
    angle: float
    tone: float
    holes: Floats
    noise: Noise

    def reflectance(self, x: Floats, y: Floats) -> Floats:
        px, py = self._local(x, y)
        lamp = rotated(np.array(0.006), np.array(0.006), self.angle)  # from the upper left
        lit = self._distance(px - lamp[0], py - lamp[1])
        unlit = self._distance(px + lamp[0], py + lamp[1])
        distance = 0.5 * (lit + unlit)
        cast = rotated(np.array(0.012), np.array(0.012), self.angle)
        shadow = inside(self._distance(px - cast[0], py - cast[1]), 0.04)
        table = self.style.table * (1 + 0.03 * self.noise(6 * x, 6 * y)) * (1 - 0.25 * shadow)
        bevel = np.clip((lit - unlit) / 0.012, -1, 1) * np.exp(-((distance / 0.012) ** 2))
        brushed = 0.03 * self.noise(6 * px, 110 * py) + 0.02 * self.noise(30 * px, 150 * py)
        metal = self.style.metal * self.tone * (1 + brushed) - 0.1 * bevel
        grey: Floats = table + inside(distance) * (metal - table)
        return np.repeat(grey[..., None], 3, axis=-1)

    def solid(self, x: Floats, y: Floats) -> Floats:
        return inside(self._distance(*self._local(x, y)))

    def anchor(self, rng: np.random.Generator) -> tuple[float, float]:
        length, breadth = self.style.shank
        along, across = rng.uniform(-0.9, 1.3) * length, rng.uniform(-0.6, 0.6) * breadth
        x, y = rotated(np.array(along), np.array(across), -self.angle)
        return self.centre[0] + float(x), self.centre[1] + float(y)

    def without_part(self, rng: np.random.Generator) -> Bracket:
        """Returns the same bracket with one hole never punched."""
        return self._without(int(rng.integers(len(self.holes))))

    def with_moved_part(self, rng: np.random.Generator) -> tuple[Bracket, Bracket]:
        """Returns the same bracket without one hole, and with that hole beside its place."""
        index = int(rng.integers(len(self.holes)))
        without = self._without(index)
        towards = rng.uniform(0, 2 * np.pi)
        step = rng.uniform(0.9, 1.3) * self.style.hole
        moved = self.holes[[index]] + step * np.array([[math.cos(towards), math.sin(towards)]])
        return without, replace(without, holes=np.concatenate((without.holes, moved)))

    def _without(self, index: int) -> Bracket:
        return replace(self, holes=np.delete(self.holes, index, axis=0))

    def _local(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        return rotated(x - self.centre[0], y - self.centre[1], self.angle)

    def _distance(self, px: Floats, py: Floats) -> Floats:
        length, breadth = self.style.shank
        side, height = self.style.head
        shank = box(px, py, length, breadth, corner=0.0)
        head = box(px - length - side, py, side, height, corner=0.0)
        distance = np.minimum(shank, head)
        notch = np.hypot(px - length - 2 * side, py + height) - self.style.notch
        distance = np.maximum(distance, -notch)
        for hx, hy in self.holes:
            distance = np.maximum(distance, self.style.hole - np.hypot(px - hx, py - hy))
        return distance
