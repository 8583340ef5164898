"""Draws the objects of the generated demo data: washers and connectors."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from ssray.data.demo.surfaces import Floats, Noise, box, colour, inside, over, rotated


@dataclass(frozen=True)
class WasherStyle:
    """The style of a washer: a turned metal flange with a ring of bolt holes, on a plain table."""

    outer: float
    inner: float
    hole_ring: float
    hole: float
    holes: int
    grooves: float
    metal: float
    table: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """Draws a random style."""
        outer, inner = rng.uniform(0.36, 0.41), rng.uniform(0.11, 0.16)
        width = outer - inner
        return cls(
            outer=outer,
            inner=inner,
            hole_ring=inner + width * rng.uniform(0.48, 0.56),
            hole=width * rng.uniform(0.17, 0.22),
            holes=int(rng.integers(5, 9)),
            grooves=rng.uniform(18, 26),
            metal=rng.uniform(0.58, 0.66),
            table=rng.uniform(0.36, 0.44),
        )

    def specimen(self, rng: np.random.Generator) -> Washer:
        turn = rng.uniform(-0.05, 0.05)
        angles = turn + 2 * np.pi * np.arange(self.holes) / self.holes
        ring = np.stack((np.cos(angles), np.sin(angles)), axis=1) * self.hole_ring
        return Washer(
            style=self,
            centre=0.5 + rng.uniform(-0.012, 0.012, 2),
            scale=rng.uniform(0.98, 1.02),
            tone=rng.uniform(0.96, 1.04),
            sheen=rng.uniform(-0.25, 0.25) - np.pi / 4,
            holes=ring + rng.normal(0, 0.0015, ring.shape),
            noise=Noise(rng),
        )


@dataclass(frozen=True)
class Washer:
    """One washer; ``holes`` are the (N, 2) centres of its bolt holes relative to its own centre."""

    style: WasherStyle
    centre: Floats
    scale: float
    tone: float
    sheen: float
    holes: Floats
    noise: Noise

    def reflectance(self, x: Floats, y: Floats) -> Floats:
        px, py = self._local(x, y)
        lamp = 0.008  # the light comes from the upper left
        lit = self._distance(px - lamp, py - lamp)
        unlit = self._distance(px + lamp, py + lamp)
        distance = 0.5 * (lit + unlit)
        shadow = inside(self._distance(px - 0.014, py - 0.014), 0.05)
        table = self.style.table * (1 + 0.03 * self.noise(6 * x, 6 * y)) * (1 - 0.25 * shadow)

        radius = np.hypot(px, py)
        grooves = np.sin(2 * np.pi * self.style.grooves * radius)
        sheen = np.cos(2 * (np.arctan2(py, px) - self.sheen))
        bevel = np.clip((lit - unlit) / (2 * lamp), -1, 1) * np.exp(-((distance / 0.014) ** 2))
        metal = self.style.metal * self.tone * (1 + 0.02 * grooves + 0.06 * sheen)
        metal = metal * (1 + 0.02 * self.noise(70 * radius, 9 * sheen)) - 0.1 * bevel
        grey: Floats = table + inside(distance) * (metal - table)
        return np.repeat(grey[..., None], 3, axis=-1)

    def solid(self, x: Floats, y: Floats) -> Floats:
        return inside(self._distance(*self._local(x, y)))

    def anchor(self, rng: np.random.Generator) -> tuple[float, float]:
        angle = rng.uniform(0, 2 * np.pi)
        radius = rng.uniform(0.85 * self.style.hole_ring, 0.93 * self.style.outer)
        return (
            self.centre[0] + radius * math.cos(angle),
            self.centre[1] + radius * math.sin(angle),
        )

    def without_part(self, rng: np.random.Generator) -> Washer:
        """Returns the same washer with one hole never drilled."""
        return self._without(int(rng.integers(len(self.holes))))

    def with_moved_part(self, rng: np.random.Generator) -> tuple[Washer, Washer]:
        """Returns the same washer without one hole, and with that hole drilled beside its place."""
        index = int(rng.integers(len(self.holes)))
        without = self._without(index)
        turn = rng.choice((-1, 1)) * rng.uniform(0.5, 0.9) * self.style.hole / self.style.hole_ring
        x, y = rotated(self.holes[[index], 0], self.holes[[index], 1], turn)
        moved = np.stack((x, y), axis=1) * rng.uniform(0.95, 1.05)
        return without, replace(without, holes=np.concatenate((without.holes, moved)))

    def _without(self, index: int) -> Washer:
        return replace(self, holes=np.delete(self.holes, index, axis=0))

    def _local(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        return (x - self.centre[0]) / self.scale, (y - self.centre[1]) / self.scale

    def _distance(self, px: Floats, py: Floats) -> Floats:
        radius = np.hypot(px, py)
        distance = np.maximum(radius - self.style.outer, self.style.inner - radius)
        for hx, hy in self.holes:
            distance = np.maximum(distance, self.style.hole - np.hypot(px - hx, py - hy))
        return distance


@dataclass(frozen=True)
class ConnectorStyle:
    """The style of a connector: a body on a board, with pins along its upper and lower side."""

    half_length: float
    half_width: float
    pins: int
    pin_length: float
    print: Floats
    board: Floats
    body: Floats
    metal: Floats

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """Draws a random style."""
        return cls(
            half_length=rng.uniform(0.36, 0.41),
            half_width=rng.uniform(0.15, 0.2),
            pins=int(rng.integers(6, 9)),
            pin_length=rng.uniform(0.12, 0.15),
            print=rng.integers(0, 2, (2, 9)).astype(np.float64),
            board=colour(rng, (0.3, 0.65), (0.3, 0.55), (0.36, 0.5)),
            body=colour(rng, (0, 1), (0.02, 0.2), (0.24, 0.32)),
            metal=colour(rng, (0.1, 0.16), (0.03, 0.25), (0.66, 0.74)),
        )

    @property
    def pitch(self) -> float:
        """The distance between the middles of neighbouring pins."""
        return 1.84 * self.half_length / self.pins

    def specimen(self, rng: np.random.Generator) -> Connector:
        table = (2, self.pins)
        return Connector(
            style=self,
            centre=0.5 + rng.uniform(-0.02, 0.02, 2),
            angle=rng.uniform(-0.03, 0.03),
            tone=rng.uniform(0.95, 1.05),
            shift=rng.normal(0, 0.015 * self.pitch, table),
            bend=np.zeros(table),
            length=self.pin_length * rng.normal(1, 0.01, table),
            noise=Noise(rng),
        )


@dataclass(frozen=True)
class Connector:
    """One connector; ``shift``, ``bend`` and ``length`` are (2, N) tables of its pins.

    The first row is that of the upper pins. ``shift`` moves a whole pin along the row, ``bend``
    only its tip, and a pin of length 0 is missing.
    """

    style: ConnectorStyle
    centre: Floats
    angle: float
    tone: float
    shift: Floats
    bend: Floats
    length: Floats
    noise: Noise

    def reflectance(self, x: Floats, y: Floats) -> Floats:
        px, py = self._local(x, y)
        style = self.style
        board = style.board * (1 + 0.04 * self.noise(8 * x, 8 * y))[..., None]
        shadow = np.maximum(
            inside(self._body(px - 0.012, py - 0.012), 0.05), self._pins(px - 0.01, py - 0.01)[0]
        )
        surface = board * (1 - 0.35 * shadow)[..., None]

        cover, sheen = self._pins(px, py)
        surface = over(surface, style.metal * sheen[..., None], cover)

        distance = self._body(px, py)
        rim = np.exp(-(((distance + 0.012) / 0.009) ** 2)) * np.where(px + py < 0, 1.0, -0.6)
        body = style.body * self.tone * (1 + 0.05 * self.noise(45 * x, 45 * y))[..., None]
        body = body + (0.06 * rim + 0.26 * self._print(px, py))[..., None]
        notch = inside(np.hypot(px + style.half_length, py) - 0.035)
        body = body * (1 - 0.3 * notch)[..., None]
        return over(surface, body, inside(distance))

    def solid(self, x: Floats, y: Floats) -> Floats:
        return inside(self._body(*self._local(x, y)))

    def anchor(self, rng: np.random.Generator) -> tuple[float, float]:
        along, across = rng.uniform(-0.8, 0.8), rng.uniform(-0.7, 0.7)
        return (
            self.centre[0] + along * self.style.half_length,
            self.centre[1] + across * self.style.half_width,
        )

    def without_part(self, rng: np.random.Generator) -> Connector:
        """Returns the same connector with one pin broken off."""
        return self._without(self._some_pin(rng))

    def with_moved_part(self, rng: np.random.Generator) -> tuple[Connector, Connector]:
        """Returns the same connector without one pin, and with that pin bent sideways."""
        pin = self._some_pin(rng)
        bend = self.bend.copy()
        bend[pin] = rng.choice((-1, 1)) * rng.uniform(0.35, 0.6) * self.style.pitch
        return self._without(pin), replace(self, bend=bend)

    def _some_pin(self, rng: np.random.Generator) -> tuple[int, int]:
        return int(rng.integers(2)), int(rng.integers(self.style.pins))

    def _without(self, pin: tuple[int, int]) -> Connector:
        length = self.length.copy()
        length[pin] = 0
        return replace(self, length=length)

    def _local(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        return rotated(x - self.centre[0], y - self.centre[1], self.angle)

    def _body(self, px: Floats, py: Floats) -> Floats:
        return box(px, py, self.style.half_length, self.style.half_width, corner=0.02)

    def _pins(self, px: Floats, py: Floats) -> tuple[Floats, Floats]:
        """Returns the coverage and brightness of the pins, (H, W) each, about 0 to 1."""
        style = self.style
        side = (py > 0).astype(np.intp)
        out = np.abs(py) - style.half_width
        nearest = np.rint(px / style.pitch + 0.5 * (style.pins - 1))
        cover, sheen = np.zeros_like(px), np.ones_like(px)
        for step in (-1, 0, 1):
            index = np.clip(nearest + step, 0, style.pins - 1).astype(np.intp)
            reach = np.clip(out / style.pin_length, 0, 1)
            centre = (index - 0.5 * (style.pins - 1)) * style.pitch + self.shift[side, index]
            offset = px - centre - self.bend[side, index] * reach
            half = 0.24 * style.pitch
            length = self.length[side, index]
            this = inside(np.maximum(np.abs(offset) - half, out - length)) * (length > 0)
            shine = 0.78 + 0.22 * np.cos(np.clip(offset / half, -1, 1) * 0.5 * np.pi)
            sheen = np.where(this > cover, shine - 0.12 * (reach < 0.3), sheen)
            cover = np.maximum(cover, this)
        return cover, sheen

    def _print(self, px: Floats, py: Floats) -> Floats:
        """Returns the coverage, (H, W), of two lines of printed bars and the mark of pin 1."""
        style = self.style
        rows, columns = style.print.shape
        cell = 1.3 * style.half_length / columns
        line = 0.3 * style.half_width
        column = np.floor(px / cell + 0.5 * columns)
        row = np.floor(py / (2 * line) + 0.5 * rows)
        within = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
        dx = np.abs(px - (column + 0.5 - 0.5 * columns) * cell) - 0.25 * cell
        dy = np.abs(py - (row + 0.5 - 0.5 * rows) * 2 * line) - 0.6 * line
        chosen = style.print[
            np.clip(row, 0, rows - 1).astype(np.intp),
            np.clip(column, 0, columns - 1).astype(np.intp),
        ]
        bars = inside(np.maximum(dx, dy)) * within * chosen
        mark = np.hypot(px + 0.88 * style.half_length, py - 0.7 * style.half_width)
        printed: Floats = np.maximum(bars, inside(mark - 0.015))
        return printed
