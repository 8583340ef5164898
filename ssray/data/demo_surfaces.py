"""The normal products of the generated demo data: two textures and two objects.

A *style* is what all images of a category share (colours, counts, sizes); a *specimen*
is one product in front of the camera, with its own pose, jitter and grain. Both are
frozen once drawn, and a specimen gives its reflectance at any point. A defect can
therefore move the points it is asked for, or take a part away, and everything else
stays exactly as it was.

Lengths are shares of the image side, so the same product can be drawn at any size. Points
are given as x (to the right) and y (downwards), each an (H, W) array, 0 to 1 over the image.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass, replace
from typing import Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.intp]

S_co = TypeVar("S_co", bound="Specimen", covariant=True)

_EDGE = 0.012  # blur of the camera: an edge rises over this length


class Specimen(Protocol):
    """One product in front of the camera."""

    def reflectance(self, x: Floats, y: Floats) -> Floats:
        """(H, W, 3) linear RGB, about 0 to 0.9, at (H, W) points."""
        ...

    def solid(self, x: Floats, y: Floats) -> Floats:
        """(H, W) in [0, 1]: where there is material that can be scratched or stained."""
        ...

    def anchor(self, rng: np.random.Generator) -> tuple[float, float]:
        """A random point (x, y) on the material."""
        ...


class Style(Protocol[S_co]):
    """What the products of one category share."""

    def specimen(self, rng: np.random.Generator) -> S_co:
        """A product with its normal variation."""
        ...


class Noise:
    """Smooth noise of about unit range: values on a lattice of spacing 1, interpolated."""

    _SIDE = 128  # the lattice repeats after this length; a power of two

    def __init__(self, rng: np.random.Generator) -> None:
        self._values = rng.uniform(-1, 1, self._SIDE * self._SIDE)

    def __call__(self, x: Floats, y: Floats) -> Floats:
        """(H, W) in [-1, 1] at (H, W) points, in lattice units."""
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
    """0 below 0, 1 above 1, a smooth cubic between."""
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)


def inside(distance: Floats, blur: float = _EDGE) -> Floats:
    """Coverage in [0, 1] of a shape by its signed distance (negative inside)."""
    return smoothstep(0.5 - distance / blur)


def _colour(
    rng: np.random.Generator,
    hue: tuple[float, float],
    saturation: tuple[float, float],
    value: tuple[float, float],
) -> Floats:
    return np.array(
        colorsys.hsv_to_rgb(rng.uniform(*hue) % 1, rng.uniform(*saturation), rng.uniform(*value))
    )


def _over(below: Floats, above: Floats, coverage: Floats) -> Floats:
    mixed: Floats = below + coverage[..., None] * (above - below)
    return mixed


def _rotated(x: Floats, y: Floats, angle: float) -> tuple[Floats, Floats]:
    cos, sin = math.cos(angle), math.sin(angle)
    return cos * x + sin * y, cos * y - sin * x


def _anywhere(rng: np.random.Generator) -> tuple[float, float]:
    return rng.uniform(0.15, 0.85), rng.uniform(0.15, 0.85)


@dataclass(frozen=True)
class WeaveStyle:
    """A woven fabric: warp threads run down the image, weft threads across it."""

    threads: float
    pattern: npt.NDArray[np.float64]
    colours: Floats  # (3, 3): RGB of the warp, the weft and what shows between them

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        hue = rng.uniform()
        near = (hue - 0.06, hue + 0.06)
        colours = [
            _colour(rng, near, (0.15, 0.35), value)
            for value in ((0.68, 0.76), (0.56, 0.64), (0.36, 0.42))
        ]
        patterns = ([1, -1], [1, -1], [1, 1, -1, -1])
        return cls(
            threads=rng.uniform(8, 11),
            pattern=np.array(patterns[rng.integers(len(patterns))], dtype=np.float64),
            colours=np.stack(colours),
        )

    def specimen(self, rng: np.random.Generator) -> Weave:
        table = (2, Weave.TABLE)
        return Weave(
            style=self,
            phase=rng.uniform(0, Weave.TABLE, 2),
            offset=rng.normal(0, 0.02, table),
            width=rng.normal(0.94, 0.02, table),
            tone=rng.normal(1, 0.015, table),
            noise=Noise(rng),
        )


@dataclass(frozen=True)
class _Gap:
    axis: int
    index: int
    start: float
    stop: float


@dataclass(frozen=True)
class Weave:
    """A piece of woven fabric. Thread positions count threads, from the image's corner."""

    TABLE = 48  # a multiple of every pattern's length

    style: WeaveStyle
    phase: Floats
    offset: Floats
    width: Floats
    tone: Floats
    noise: Noise
    gap: _Gap | None = None

    def reflectance(self, x: Floats, y: Floats) -> Floats:
        n = self.style.threads
        u = x * n + self.phase[0] + 0.1 * self.noise(2 * x, 2 * y)
        v = y * n + self.phase[1] + 0.1 * self.noise(2 * x + 40, 2 * y + 40)
        warp, warp_tone, warp_cover = self._threads(0, u, v)
        weft, weft_tone, weft_cover = self._threads(1, v, u)
        warp_lift = self._lift(np.floor(u), v)
        weft_lift = -self._lift(np.floor(v), u)
        on_top = smoothstep(0.5 + (0.5 * (warp - weft) + 0.5 * (warp_lift - weft_lift)) / 0.6)

        warp_share = warp_cover * (1 - (1 - on_top) * weft_cover)
        weft_share = weft_cover * (1 - on_top * warp_cover)
        fuzz = 1 + 0.025 * self.noise(60 * x, 60 * y)
        shares = (
            warp_share * warp_tone * fuzz * (0.93 + 0.07 * warp_lift),
            weft_share * weft_tone * fuzz * (0.93 + 0.07 * weft_lift),
            1 - warp_share - weft_share,
        )
        surface: Floats = np.stack(shares, axis=-1) @ self.style.colours
        return surface

    def solid(self, x: Floats, y: Floats) -> Floats:
        return np.ones_like(x)

    def anchor(self, rng: np.random.Generator) -> tuple[float, float]:
        return _anywhere(rng)

    def without_part(self, rng: np.random.Generator) -> Weave:
        """The same fabric, one thread missing over a few crossings."""
        axis = int(rng.integers(2))
        across, along = (np.array(_anywhere(rng)) * self.style.threads) + (
            self.phase if axis == 0 else self.phase[::-1]
        )
        half = rng.uniform(1.2, 3.2)
        return replace(self, gap=_Gap(axis, math.floor(across), along - half, along + half))

    def _threads(self, axis: int, across: Floats, along: Floats) -> tuple[Floats, Floats, Floats]:
        """Height, tone and coverage, each in about [0, 1], of the threads along one axis."""
        index = np.floor(across)
        row = index.astype(np.intp) % self.TABLE
        wander = 0.04 * self.noise(7 * index + 61 * axis, 0.3 * along)
        centre = index + 0.5 + self.offset[axis][row] + wander
        height = np.clip(1 - ((across - centre) / (0.5 * self.width[axis][row])) ** 2, 0, 1)
        if self.gap is not None and self.gap.axis == axis:
            present = smoothstep((self.gap.start - along) / 0.4) + smoothstep(
                (along - self.gap.stop) / 0.4
            )
            height = np.where(index == self.gap.index, height * present, height)
        tone = self.tone[axis][row] * (0.8 + 0.2 * height)
        return height, tone, smoothstep(height / 0.4)

    def _lift(self, thread: Floats, along: Floats) -> Floats:
        """1 where a thread passes over the crossing ones, -1 where it passes under."""
        before = np.floor(along - 0.5)
        first, second = (
            self.style.pattern[(thread + before + step).astype(np.intp) % len(self.style.pattern)]
            for step in (0, 1)
        )
        lift: Floats = first + smoothstep(along - 0.5 - before) * (second - first)
        return lift


@dataclass(frozen=True)
class GrainStyle:
    """Wood veneer: dark lines of late wood along the grain, fine pores between them."""

    lines: float
    angle: float
    sharpness: float
    light: Floats
    dark: Floats

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        hue = rng.uniform(0.05, 0.1)
        light = _colour(rng, (hue, hue), (0.3, 0.5), (0.68, 0.8))
        return cls(
            lines=rng.uniform(7, 11),
            angle=rng.uniform(-0.15, 0.15) + rng.integers(2) * math.pi / 2,
            sharpness=rng.uniform(1.5, 3),
            light=light,
            dark=light * rng.uniform(0.66, 0.74) * np.array([1, 0.95, 0.9]),
        )

    def specimen(self, rng: np.random.Generator) -> Grain:
        return Grain(
            style=self,
            tilt=rng.uniform(-0.04, 0.04),
            phase=rng.uniform(0, Grain.TABLE, 2),
            depth=rng.uniform(0.75, 1.0, Grain.TABLE),
            noise=Noise(rng),
        )


@dataclass(frozen=True)
class Grain:
    """A piece of veneer."""

    TABLE = 32

    style: GrainStyle
    tilt: float
    phase: Floats
    depth: Floats
    noise: Noise

    def reflectance(self, x: Floats, y: Floats) -> Floats:
        along, across = _rotated(x, y, self.style.angle + self.tilt)
        along = along + self.phase[0]
        line = across * self.style.lines + self.phase[1]
        line = line + 0.45 * self.noise(1.5 * along, 2.5 * across)
        ring = np.floor(line)
        late = (0.5 - 0.5 * np.cos(2 * np.pi * (line - ring))) ** self.style.sharpness
        late = late * self.depth[ring.astype(np.intp) % self.TABLE]
        pores = self.noise(7 * along, 55 * across)
        surface = _over(np.broadcast_to(self.style.light, (*x.shape, 3)), self.style.dark, late)
        return surface * (1 + 0.035 * pores)[..., None]

    def solid(self, x: Floats, y: Floats) -> Floats:
        return np.ones_like(x)

    def anchor(self, rng: np.random.Generator) -> tuple[float, float]:
        return _anywhere(rng)


@dataclass(frozen=True)
class WasherStyle:
    """A turned metal flange with a ring of bolt holes on a plain table, seen in grey."""

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
    """A flange; ``holes`` are the (N, 2) centres of its bolt holes about its own centre."""

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
        """The same flange, one hole never drilled."""
        return self._without(int(rng.integers(len(self.holes))))

    def with_moved_part(self, rng: np.random.Generator) -> tuple[Washer, Washer]:
        """The same flange without one hole, and with that hole drilled beside its place."""
        index = int(rng.integers(len(self.holes)))
        without = self._without(index)
        turn = rng.choice((-1, 1)) * rng.uniform(0.5, 0.9) * self.style.hole / self.style.hole_ring
        x, y = _rotated(self.holes[[index], 0], self.holes[[index], 1], turn)
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
    """A packaged part on a board, a row of pins along its upper and its lower side."""

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
        return cls(
            half_length=rng.uniform(0.36, 0.41),
            half_width=rng.uniform(0.15, 0.2),
            pins=int(rng.integers(6, 9)),
            pin_length=rng.uniform(0.12, 0.15),
            print=rng.integers(0, 2, (2, 9)).astype(np.float64),
            board=_colour(rng, (0.3, 0.65), (0.3, 0.55), (0.36, 0.5)),
            body=_colour(rng, (0, 1), (0.02, 0.2), (0.24, 0.32)),
            metal=_colour(rng, (0.1, 0.16), (0.03, 0.25), (0.66, 0.74)),
        )

    @property
    def pitch(self) -> float:
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
    """A packaged part; (2, N) tables hold its upper and lower pins, length 0 = no pin.

    ``shift`` moves a whole pin along the row, ``bend`` only its tip.
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
        surface = _over(surface, style.metal * sheen[..., None], cover)

        distance = self._body(px, py)
        rim = np.exp(-(((distance + 0.012) / 0.009) ** 2)) * np.where(px + py < 0, 1.0, -0.6)
        body = style.body * self.tone * (1 + 0.05 * self.noise(45 * x, 45 * y))[..., None]
        body = body + (0.06 * rim + 0.26 * self._print(px, py))[..., None]
        notch = inside(np.hypot(px + style.half_length, py) - 0.035)
        body = body * (1 - 0.3 * notch)[..., None]
        return _over(surface, body, inside(distance))

    def solid(self, x: Floats, y: Floats) -> Floats:
        return inside(self._body(*self._local(x, y)))

    def anchor(self, rng: np.random.Generator) -> tuple[float, float]:
        along, across = rng.uniform(-0.8, 0.8), rng.uniform(-0.7, 0.7)
        return (
            self.centre[0] + along * self.style.half_length,
            self.centre[1] + across * self.style.half_width,
        )

    def without_part(self, rng: np.random.Generator) -> Connector:
        """The same part, one pin broken off."""
        return self._without(self._some_pin(rng))

    def with_moved_part(self, rng: np.random.Generator) -> tuple[Connector, Connector]:
        """The same part without one pin, and with that pin bent sideways."""
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
        return _rotated(x - self.centre[0], y - self.centre[1], self.angle)

    def _body(self, px: Floats, py: Floats) -> Floats:
        corner = 0.02
        dx = np.abs(px) - self.style.half_length + corner
        dy = np.abs(py) - self.style.half_width + corner
        outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
        distance: Floats = outside + np.minimum(np.maximum(dx, dy), 0) - corner
        return distance

    def _pins(self, px: Floats, py: Floats) -> tuple[Floats, Floats]:
        """Coverage and brightness of the pins, (H, W) each, about 0 to 1."""
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
        """Coverage of two lines of printed bars and the mark of pin 1."""
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
