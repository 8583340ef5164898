"""What training images show, and what a recipe takes from it: decided before training, without
labels.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ssray.config import Alignment, Light
from ssray.data.light import usual_light
from ssray.data.pose import Framing, Part, locate
from ssray.errors import ImageError
from ssray.method.inference import to_network
from ssray.method.projection import TEXTURE_SHARE, PositionMoments

Images = npt.NDArray[np.uint8]

COMPARED_SIDE = 128
"""Of a square with as many pixels as images have when it is measured how alike they are."""
LEAST_FOUND = 0.95
"""The share of the images in which a part has to be found, for all to be aligned."""
LEAST_GAIN = 0.15
"""How much more alike images have to be once aligned, as a difference of two shares.

Measured on up to 64 training images each, as they are and aligned in the better way: MVTec AD screw
0.10 and 0.70; transistor 0.63 and 0.61, cookie 0.47 and 0.38, hazelnut 0.56 and 0.49, which lie in
a fixed place.
"""
TURNING_GAIN = 0.02
"""How much more alike they have to be to be turned as well: a round part has no angle."""
MARGIN = 0.04
"""Around the part in its frame, as a share of the photograph's shorter side."""
OUTLIERS = 2
"""The percentage of parts on each side that may reach into the margin."""


@dataclass(frozen=True)
class Survey:
    """What some training images show.

    Attributes:
        texture: whether places do not matter: pixels are distributed alike everywhere.
        alignment: the frame around a part that lies elsewhere in every image; None where that does
            not make the images more alike, as for parts that are in place.
        images: how many were looked at.
        alike: the share of the pixels' variance that is explained by their place, from 0 to 1.
        aligned: the same once parts are aligned; None where too few parts are found.
        covered: the share of an image that a part covers; 0 where too few are found.
        spread: the angle in degrees, either way, within which most parts' axes lie; 90 is any.
        light: what photographs have on average; None where that was not looked at.
        aligned_light: what aligned parts have on average; None where none are aligned.
        aspect: the longer side of a photograph over the shorter one.
    """

    texture: bool
    alignment: Alignment | None
    images: int
    alike: float
    aligned: float | None = None
    covered: float = 0.0
    spread: float = 0.0
    light: Light | None = None
    aligned_light: Light | None = None
    aspect: float = 1.0

    @classmethod
    def of(cls, photographs: Images) -> Survey:
        """Looks at training images, (N, H, W, 3) uint8; a few dozen give a firm answer.

        One alone counts as an object in its place.
        """
        light = usual_light(_stacked(list(photographs)))
        aspect = max(photographs.shape[1:3]) / min(photographs.shape[1:3])
        if len(photographs) < 2:
            return cls(False, None, len(photographs), 1.0, light=light, aspect=aspect)
        whole = Framing((COMPARED_SIDE, COMPARED_SIDE))
        alike = _alike([whole(each)[0] for each in photographs])
        found = list(_found(photographs))
        parts = [part for _, part in found]
        if len(parts) < LEAST_FOUND * len(photographs):
            return cls(
                alike < TEXTURE_SHARE, None, len(photographs), alike, light=light, aspect=aspect
            )
        moved, upright = (_frame(parts, turned) for turned in (False, True))
        framings = [Framing.around(each, COMPARED_SIDE) for each in (moved, upright)]
        framed = [
            [framing.cut(photograph, part.placement) for photograph, part in found]
            for framing in framings
        ]
        aligned, turned = map(_alike, framed)
        best, shown = moved, framed[0]
        if turned > aligned + TURNING_GAIN:
            aligned, best, shown = turned, upright, framed[1]
        worth_it = aligned > alike + LEAST_GAIN
        return cls(
            texture=max(alike, aligned) < TEXTURE_SHARE,
            alignment=best if worth_it else None,
            images=len(photographs),
            alike=alike,
            aligned=aligned,
            covered=float(np.mean([part.share for part in parts])),
            spread=_spread(parts),
            light=light,
            aligned_light=usual_light(_stacked(shown)) if worth_it else None,
            aspect=aspect,
        )

    def in_words(self) -> str:
        """What was seen, in a line."""
        seen = f"{self.images} training images"
        if self.texture:
            return (
                f"{seen} show a texture: places don't matter ({self.alike:.0%} explained by them)"
            )
        if self.alignment is None:
            return f"{seen} show parts in their place ({self.alike:.0%} explained by it)"
        left, top, right, bottom = self.alignment.frame
        how = "located and turned upright" if self.alignment.turned else "located"
        return (
            f"{seen} show parts that cover {self.covered:.0%} of a plain background, turned by up "
            f"to {self.spread:.0f} degrees: each is {how}, in a frame of {right - left:.2f} x "
            f"{bottom - top:.2f} of the shorter side; places then explain {self.aligned:.0%} of "
            f"them, as photographed {self.alike:.0%}"
        )


def _found(photographs: Images) -> Iterator[tuple[Images, Part]]:
    """The photographs in which there is a part, each with it."""
    for photograph in photographs:
        with contextlib.suppress(ImageError):
            yield photograph, locate(photograph)


def _frame(parts: Sequence[Part], turned: bool) -> Alignment:
    """The frame in which nearly all parts lie, with a margin."""
    extents = np.array([part.extent(turned) for part in parts])
    left, top, _, _ = np.percentile(extents, OUTLIERS, axis=0) - MARGIN
    _, _, right, bottom = np.percentile(extents, 100 - OUTLIERS, axis=0) + MARGIN
    left, top, right, bottom = (round(float(each), 3) for each in (left, top, right, bottom))
    return Alignment(frame=(left, top, right, bottom), turned=turned)


def _alike(framed: Sequence[Images]) -> float:
    """The share of the variance of images' pixels that their place explains, from 0 to 1."""
    pixels = _stacked(framed)
    return PositionMoments.of(pixels, (pixels.shape[2], pixels.shape[3])).position_share()


def _stacked(images: Sequence[Images]) -> Tensor:
    """(H, W, 3) uint8 images as (N, 3, H, W) float32 in [0, 1]."""
    return to_network(torch.from_numpy(np.stack(images)), torch.device("cpu"))


def _spread(parts: Sequence[Part]) -> float:
    """The range of angles in degrees, either way, that holds most parts' axes; at most 90."""
    axes = np.array([2 * part.placement.angle for part in parts])
    middle = np.angle(np.exp(1j * axes).mean())
    off = np.abs(np.angle(np.exp(1j * (axes - middle)))) / 2
    return math.degrees(float(np.percentile(off, 95)))
