"""Draws the textures of the generated demo data: woven fabric and wood grain."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from ssray.data.demo.surfaces import Floats, Noise, anywhere, colour, over, rotated, smoothstep


@dataclass(frozen=True)
class WeaveStyle:
    """The style of a fabric: warp threads run down the image, weft threads across it."""

    threads: float
    pattern: npt.NDArray[np.float64]
    colours: Floats  # (3, 3): RGB of the warp, the weft and what shows between them

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """Draws a random style."""
        hue = rng.uniform()
        near = (hue - 0.06, hue + 0.06)
        colours = [
            colour(rng, near, (0.15, 0.35), value)
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
    """Where a thread is missing: its axis and index, and the range along it, in threads."""

    axis: int
    index: int
    start: float
    stop: float


@dataclass(frozen=True)
class Weave:
    """One piece of woven fabric; positions are counted in threads from the image's corner."""

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
        return anywhere(rng)

    def without_part(self, rng: np.random.Generator) -> Weave:
        """Returns the same fabric with one thread missing over a few crossings."""
        axis = int(rng.integers(2))
        across, along = (np.array(anywhere(rng)) * self.style.threads) + (
            self.phase if axis == 0 else self.phase[::-1]
        )
        half = rng.uniform(1.2, 3.2)
        return replace(self, gap=_Gap(axis, math.floor(across), along - half, along + half))

    def _threads(self, axis: int, across: Floats, along: Floats) -> tuple[Floats, Floats, Floats]:
        """Returns height, tone and coverage of the threads along one axis, each about 0 to 1."""
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
        """Returns 1 where a thread passes over the crossing ones, -1 where it passes under them."""
        before = np.floor(along - 0.5)
        first, second = (
            self.style.pattern[(thread + before + step).astype(np.intp) % len(self.style.pattern)]
            for step in (0, 1)
        )
        lift: Floats = first + smoothstep(along - 0.5 - before) * (second - first)
        return lift


@dataclass(frozen=True)
class GrainStyle:
    """The style of a veneer: dark lines of late wood along the grain, fine pores between them."""

    lines: float
    angle: float
    sharpness: float
    light: Floats
    dark: Floats

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """Draws a random style."""
        hue = rng.uniform(0.05, 0.1)
        light = colour(rng, (hue, hue), (0.3, 0.5), (0.68, 0.8))
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
    """One piece of wood veneer."""

    TABLE = 32

    style: GrainStyle
    tilt: float
    phase: Floats
    depth: Floats
    noise: Noise

    def reflectance(self, x: Floats, y: Floats) -> Floats:
        along, across = rotated(x, y, self.style.angle + self.tilt)
        along = along + self.phase[0]
        line = across * self.style.lines + self.phase[1]
        line = line + 0.45 * self.noise(1.5 * along, 2.5 * across)
        ring = np.floor(line)
        late = (0.5 - 0.5 * np.cos(2 * np.pi * (line - ring))) ** self.style.sharpness
        late = late * self.depth[ring.astype(np.intp) % self.TABLE]
        pores = self.noise(7 * along, 55 * across)
        surface = over(np.broadcast_to(self.style.light, (*x.shape, 3)), self.style.dark, late)
        return surface * (1 + 0.035 * pores)[..., None]

    def solid(self, x: Floats, y: Floats) -> Floats:
        return np.ones_like(x)

    def anchor(self, rng: np.random.Generator) -> tuple[float, float]:
        return anywhere(rng)
