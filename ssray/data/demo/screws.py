"""Draws screws for the generated demo data: turned parts with a fine thread, at any angle.

A screw lies on its side. It is described in cylindrical coordinates: how far along its axis a
point lies (0 at the head, in shares of the image's side), and the angle around the axis, 0 where
the surface faces the camera and a quarter turn at either edge of its silhouette. The radius at
each of them gives the silhouette, and its slope along the axis the surface's normal, which is lit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from ssray.data.demo.defects import Canvas, Stages, sign
from ssray.data.demo.surfaces import Floats, Noise, inside, rotated

_BLUR = 0.005  # of a screw's edges; finer than the other products'
_LAMP = np.array([-0.42, -0.42, 0.8])  # towards the lamp: the upper left, and the camera


@dataclass(frozen=True)
class ScrewStyle:
    """The style of a screw: a countersunk head, a neck with ring grooves, a thread and a tip.

    ``ends`` are the places along the axis where rim, cone, neck, thread and tip end, ``rings``
    those of the grooves around the neck.
    """

    ends: Floats
    head: float
    shank: float
    pitch: float
    thread: float
    rings: Floats
    metal: float
    table: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """Draws a random style."""
        rim, cone = 0.018, rng.uniform(0.07, 0.085)
        neck = cone + rng.uniform(0.15, 0.18)
        thread = neck + rng.uniform(0.26, 0.3)
        tip = thread + rng.uniform(0.06, 0.08)
        first = cone + rng.uniform(0.03, 0.04)
        pitch = rng.uniform(0.019, 0.023)
        return cls(
            ends=np.array([rim, cone, neck, thread, tip]),
            head=rng.uniform(0.085, 0.1),
            shank=rng.uniform(0.042, 0.048),
            pitch=pitch,
            thread=0.36 * pitch,
            rings=first + np.array([0.0, 0.028, 0.056]),
            metal=rng.uniform(0.5, 0.6),
            table=rng.uniform(0.74, 0.8),
        )

    def specimen(self, rng: np.random.Generator) -> Screw:
        return Screw(
            style=self,
            centre=0.5 + rng.uniform(-0.1, 0.1, 2),
            angle=rng.uniform(0, 2 * np.pi),
            turn=rng.uniform(),
            tone=rng.uniform(0.95, 1.05),
            rings=self.rings + rng.normal(0, 0.0005, self.rings.shape),
            noise=Noise(rng),
        )


@dataclass(frozen=True)
class Screw:
    """One screw; ``rings`` are the places along its axis of the grooves around its neck.

    Attributes:
        style: its style.
        centre: where its middle lies, (x, y).
        angle: how far it is turned in the image, in radians.
        turn: how far it is turned around its axis, in turns.
        tone: how light its metal is, about 1.
        rings: the grooves around its neck.
        noise: the roughness of table and metal.
        dent: where its thread is crushed: place along the axis, angle around it, length.
        bend: how far the tip's end is bent aside.
    """

    style: ScrewStyle
    centre: Floats
    angle: float
    turn: float
    tone: float
    rings: Floats
    noise: Noise
    dent: tuple[float, float, float] | None = None
    bend: float = 0.0

    def reflectance(self, x: Floats, y: Floats) -> Floats:
        along, aside = self._local(x, y)
        shadow = inside(self._distance(*self._local(x - 0.012, y - 0.012)), 0.045)
        table = self.style.table * (1 + 0.02 * self.noise(6 * x, 6 * y)) * (1 - 0.3 * shadow)

        middle = self._radius(along, np.zeros_like(along))
        around = np.arcsin(np.clip(aside / np.maximum(middle, 1e-6), -1, 1))
        step = 0.001
        slope = self._radius(along + step, around) - self._radius(along - step, around)
        slope = slope / (2 * step)
        normal = np.stack((-slope, np.sin(around), np.cos(around)))
        normal = normal / np.linalg.norm(normal, axis=0)
        lamp_along, lamp_aside = rotated(_LAMP[[0]], _LAMP[[1]], self.angle)
        lamp = np.array([lamp_along[0], lamp_aside[0], _LAMP[2]])
        between = lamp + np.array([0, 0, 1])
        between = between / np.linalg.norm(between)
        matt = np.clip(np.tensordot(lamp, normal, 1), 0, 1)
        gloss = np.clip(np.tensordot(between, normal, 1), 0, 1) ** 14
        turned = 0.06 * self.noise(330 * along, 2 * around) + 0.04 * self.noise(70 * x, 70 * y)
        metal = self.style.metal * self.tone * (0.25 + 0.65 * matt + 0.9 * gloss) * (1 + turned)
        grey: Floats = table + inside(self._distance(along, aside), _BLUR) * (metal - table)
        return np.repeat(grey[..., None], 3, axis=-1)

    def solid(self, x: Floats, y: Floats) -> Floats:
        return inside(self._distance(*self._local(x, y)), _BLUR)

    def anchor(self, rng: np.random.Generator) -> tuple[float, float]:
        rim, _, neck, *_ = self.style.ends
        along = rng.uniform(rim, neck) - 0.5 * self.style.ends[-1]
        aside = rng.uniform(-0.6, 0.6) * self.style.shank
        x, y = rotated(np.array(along), np.array(aside), -self.angle)
        return self.centre[0] + float(x), self.centre[1] + float(y)

    def without_part(self, rng: np.random.Generator) -> Screw:
        """Returns the same screw with one ring groove never cut."""
        return self._without(int(rng.integers(len(self.rings))))

    def with_moved_part(self, rng: np.random.Generator) -> tuple[Screw, Screw]:
        """Returns the same screw without one ring groove, and with it cut beside its place."""
        index = int(rng.integers(len(self.rings)))
        without = self._without(index)
        moved = self.rings[[index]] + sign(rng) * rng.uniform(0.009, 0.013)
        return without, replace(without, rings=np.concatenate((without.rings, moved)))

    def with_dent(self, rng: np.random.Generator) -> Screw:
        """Returns the same screw with the flanks of one to three turns of its thread crushed."""
        _, _, neck, thread, _ = self.style.ends
        place = rng.uniform(neck + 2 * self.style.pitch, thread - self.style.pitch)
        around = sign(rng) * rng.uniform(0.2, 0.5) * math.pi
        return replace(self, dent=(place, around, rng.uniform(0.5, 1.3) * self.style.pitch))

    def with_bent_tip(self, rng: np.random.Generator) -> Screw:
        """Returns the same screw with its tip bent aside."""
        return replace(self, bend=sign(rng) * rng.uniform(0.012, 0.024))

    def _without(self, index: int) -> Screw:
        return replace(self, rings=np.delete(self.rings, index))

    def _local(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Returns how far points lie along the axis and aside of it, tip's bend included."""
        along, aside = rotated(x - self.centre[0], y - self.centre[1], self.angle)
        *_, thread, tip = self.style.ends
        along = along + 0.5 * tip
        beyond = np.clip((along - thread) / (tip - thread) + 0.6, 0, 1.6) / 1.6
        return along, aside - self.bend * beyond**2

    def _radius(self, along: Floats, around: Floats) -> Floats:
        """Returns the distance from the axis to the surface, 0 beyond the tip."""
        style = self.style
        rim, cone, neck, thread, tip = style.ends
        radius: Floats = np.interp(
            along,
            [0.0, rim, cone, thread, tip],
            [style.head, style.head, style.shank, style.shank, 0.0],
        )
        turns = along / style.pitch - around / (2 * np.pi) + self.turn
        crest = np.clip(1.4 * np.abs(2 * (turns - np.floor(turns)) - 1) - 0.2, 0, 1)
        full = [neck, neck + 1.5 * style.pitch, thread, tip - 0.3 * style.pitch]
        depth = np.interp(along, full, [0, style.thread, style.thread, 0])
        if self.dent is not None:
            place, angle, length = self.dent
            off = ((along - place) / length) ** 2 + ((around - angle) / 0.45) ** 2
            crest = crest + (0.25 - crest) * 0.9 * np.exp(-(off**2))
        radius = radius + depth * (crest - 0.6)
        for ring in self.rings:
            radius = radius - 0.004 * np.exp(-(((along - ring) / 0.0035) ** 2))
        return np.maximum(radius, 0)

    def _distance(self, along: Floats, aside: Floats) -> Floats:
        """The signed distance to the silhouette, negative inside."""
        edge = self._radius(along, np.sign(aside) * 0.5 * np.pi)
        within = np.maximum(-along, along - self.style.ends[-1])
        distance: Floats = np.maximum(np.abs(aside) - edge, within)
        return distance


def flank(specimen: Screw, clean: Floats, canvas: Canvas, rng: np.random.Generator) -> Stages:
    """Draws the screw with crushed flanks of its thread."""
    return (canvas.draw(specimen.with_dent(rng)),)


def bent(specimen: Screw, clean: Floats, canvas: Canvas, rng: np.random.Generator) -> Stages:
    """Draws the screw with a bent tip."""
    return (canvas.draw(specimen.with_bent_tip(rng)),)
