"""One category of the generated demo data: specimens of a product, photographed one by one.

Every image draws from a random generator of its own, seeded by the data set's seed, its
category, its folder and its number. A larger data set therefore starts with the images
of a smaller one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ssray.data.decode import UInt8Image
from ssray.data.demo import defects
from ssray.data.demo.defects import Canvas
from ssray.data.demo.families import PRODUCT_FAMILIES, category_name
from ssray.data.demo.surfaces import Floats

_LUMA = np.array([0.299, 0.587, 0.114])
_OVERSAMPLING = 2
_ATTEMPTS = 200
_STYLE, _TRAIN, _TEST = range(3)  # stages of a category's seed; defects count on from here


@dataclass(frozen=True)
class Sample:
    """One photograph, with the truth about its defect.

    Attributes:
        image: (H, W, 3) uint8 sRGB-like values, or (H, W) for a monochrome camera.
        clean: the same photograph, with the same sensor noise, of the product without the defect.
        mask: (H, W) bool, True where the defect changed the image visibly.
    """

    image: UInt8Image
    clean: UInt8Image
    mask: npt.NDArray[np.bool_]


class Category:
    """One product, photographed again and again: every image is another specimen of it.

    Args:
        index: its index in the data set, from 0; decides its family and its style.
        seed: the data set's seed.
        size: the width of the images in pixels, (H, W) = (size * the family's height, size).
    """

    def __init__(self, index: int, seed: int, size: int) -> None:
        self.name = category_name(index)
        self.family = PRODUCT_FAMILIES[index % len(PRODUCT_FAMILIES)]
        self._seed = (seed, index)
        rng = self._rng(_STYLE, 0)
        self._style = self.family.style(rng)
        self._first_level = rng.uniform()
        side = size * _OVERSAMPLING
        rows = round(size * self.family.height)
        x, y = np.meshgrid(*((np.arange(n) + 0.5) / side for n in (side, rows * _OVERSAMPLING)))
        self._canvas = Canvas(x, y, pixel=1 / size, height=rows / size)

    def train(self, number: int) -> Sample:
        """Draws the defect-free training image of a number."""
        return self._photograph(_TRAIN, number, defect=None)

    def test(self, number: int, defect: str | None = None) -> Sample:
        """Draws the test image of a number, with the named defect of this family or with none."""
        folder = _TEST if defect is None else _TEST + 1 + list(self.family.defects).index(defect)
        return self._photograph(folder, number, defect)

    def _rng(self, folder: int, number: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([*self._seed, folder, number]))

    def _photograph(self, folder: int, number: int, defect: str | None) -> Sample:
        rng = self._rng(folder, number)
        specimen = self._style.specimen(rng)
        # Steps by irrational numbers cover the range evenly in folders of any length, so that
        # even a handful of defective images is neither darker nor lighter than the others.
        level = (self._first_level + 0.6180 * number + 0.7549 * folder) % 1
        lamps = self.family.lamps[folder >= _TEST]
        light = lamps.light(self._canvas, level, rng)
        clean = self._canvas.draw(specimen)
        stages = [self._expose(clean, light)]
        mask = np.zeros(stages[0].shape[:2], dtype=np.bool_)
        if defect is not None:
            make, (least, most) = self.family.defects[defect], self.family.areas
            for _ in range(_ATTEMPTS):
                later = make(specimen, clean, self._canvas, rng)
                drawn = [stages[0], *(self._expose(stage, light) for stage in later)]
                mask = defects.changed(tuple(drawn))
                if least <= mask.mean() <= most:
                    break
            else:
                raise RuntimeError(f"{self.name}: no {defect} of a fitting size was drawn")
            stages = drawn
        noise = rng.normal(0, 0.008, stages[0].shape)
        return Sample(_digitised(stages[-1] + noise), _digitised(stages[0] + noise), mask)

    def _expose(self, surface: Floats, light: Floats) -> Floats:
        """Lights a surface and averages it down to pixels, as a camera does.

        Returns:
            (H, W, 3) float64, or (H, W, 1) for a monochrome camera.
        """
        lit = surface * light
        if self.family.grey:
            lit = (lit @ _LUMA)[..., None]
        steps = range(_OVERSAMPLING)
        parts = [lit[r::_OVERSAMPLING, c::_OVERSAMPLING] for r in steps for c in steps]
        exposed: Floats = np.mean(parts, axis=0)
        return exposed


def _digitised(image: Floats) -> UInt8Image:
    """Turns [0, 1] floats into 8-bit values; an axis of a single channel is dropped."""
    levels = np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)
    return levels[..., 0] if levels.shape[-1] == 1 else levels
