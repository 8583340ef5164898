"""Draws the light of the generated demo data's photographs: steady lamps, and lamps that drift."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ssray.data.demo.defects import Canvas
from ssray.data.demo.surfaces import Floats


@dataclass(frozen=True)
class Lamps:
    """The range of lamps under which photographs are taken.

    Attributes:
        gain: the lowest and the highest factor of brightness.
        slope: by how much the light changes at most from the middle of the image to a side.
        warmth: the lowest and the highest share by which red gains and blue loses.
    """

    gain: tuple[float, float]
    slope: float
    warmth: tuple[float, float] = (0.0, 0.0)

    def light(self, canvas: Canvas, level: float, rng: np.random.Generator) -> Floats:
        """Draws the light on each point: the lamp, a gradient across the image, the lens's falloff.

        Args:
            canvas: the points.
            level: the lamp's level, from 0 for the lowest gain to 1 for the highest.
            rng: draws the gradient and the warmth.

        Returns:
            (H, W, 3) factors by which the surface's reflectance is multiplied.
        """
        slope, angle = rng.uniform(0, self.slope), rng.uniform(0, 2 * np.pi)
        # By a generator of its own, so that what is drawn afterwards is the same without warmth.
        warmth = rng.spawn(1)[0].uniform(*self.warmth)
        x, y = 2 * canvas.x - 1, 2 * canvas.y / canvas.height - 1
        gradient = slope * (np.cos(angle) * x + np.sin(angle) * y)
        low, high = self.gain
        light = (low + (high - low) * level) * (1 + gradient - 0.02 * (x * x + y * y))
        tinted: Floats = light[..., None] * np.array([1 + warmth, 1, 1 - warmth])
        return tinted


STEADY = Lamps(gain=(0.94, 1.06), slope=0.06)
DRIFTING = Lamps(gain=(0.92, 1.06), slope=0.08, warmth=(-0.02, 0.04))
DRIFTED = Lamps(gain=(0.76, 1.0), slope=0.18, warmth=(-0.02, 0.12))
"""``DRIFTING`` lamps after a while: dimmer by a tenth and warmer on average, and less even."""
