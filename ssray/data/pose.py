"""Where a part lies in its photograph, and the way from there into an upright frame and back.

The paper names it for parts that are photographed at any angle: "extracting (and aligning) the
objects of interest" (section 5). A part is what stands out from a plain background. Its centre and
its principal axis are those of what it covers, and its heavier half comes to lie on the right.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from ssray.config import STRIDE, Alignment, Decoding, Light, Recipe
from ssray.data.decode import AS_PHOTOGRAPHED, UInt8Image, resize
from ssray.data.light import levelled_photograph
from ssray.data.orientation import Shape
from ssray.errors import ImageError

SIDE = 256
"""Pixels of the longer side of a photograph in which its part is searched."""
BORDER = 0.04
"""Breadth of the border that shows what the background is like, as a share of the shorter side."""
AREAS = (0.003, 0.7)
"""The smallest and the largest share of a photograph that a part covers."""
CONTRAST = 0.04
"""How much a part differs from the background at least; the full scale is 1."""
MOST_STRETCH = 1.5
"""By how much an image's aspect may differ from that of the network's input, as a factor."""
NOTED_STRETCH = 1.05
"""Beyond this factor it is noted."""
MOST_ENLARGED = 32
"""By how much an image may be enlarged along a side."""

Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.float32]
Region = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Placement:
    """Where a part lies in a photograph. Lengths are shares of the photograph's shorter side.

    Attributes:
        x: of its centre, from the left.
        y: of its centre, from the top.
        angle: by which it is turned clockwise, in radians; 0 is lying along the rows, the heavier
            half to the right.
    """

    x: float
    y: float
    angle: float


@dataclass(frozen=True)
class Part:
    """What was found in a photograph.

    Attributes:
        placement: where it lies.
        across: how far its pixels lie to the right of its centre once it is turned upright, as
            shares of the photograph's shorter side.
        down: how far they lie below it.
        share: of the photograph that it covers.
    """

    placement: Placement
    across: Floats
    down: Floats
    share: float

    def extent(self, turned: bool) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of what it covers, from its centre.

        Args:
            turned: whether it is turned upright; otherwise it has its angle in the photograph.
        """
        across, down = self.across, self.down
        if not turned:
            cosine, sine = math.cos(self.placement.angle), math.sin(self.placement.angle)
            across, down = across * cosine - down * sine, across * sine + down * cosine
        return (
            float(across.min()),
            float(down.min()),
            float(across.max()),
            float(down.max()),
        )


def locate(image: UInt8Image) -> Part:
    """Finds the part in a photograph, (H, W, 3) uint8.

    Raises:
        ImageError: with code ``part_not_found``.
    """
    height, width = image.shape[:2]
    covered = _found(image)
    rows, columns = covered.shape
    rows_of, columns_of = np.nonzero(covered)
    unit = min(height, width)
    x = (columns_of + 0.5) * (width / columns / unit)
    y = (rows_of + 0.5) * (height / rows / unit)
    middle_x, middle_y = float(x.mean()), float(y.mean())
    x, y = x - middle_x, y - middle_y
    angle = 0.5 * math.atan2(2 * float((x * y).mean()), float((x**2).mean() - (y**2).mean()))
    across = x * math.cos(angle) + y * math.sin(angle)
    down = y * math.cos(angle) - x * math.sin(angle)
    if float((across**3).mean()) > 0:  # its thin end lies on the right
        angle, across, down = angle + math.pi, -across, -down
    placement = Placement(middle_x, middle_y, math.remainder(angle, 2 * math.pi))
    return Part(placement, across, down, float(covered.mean()))


def covered_by_part(image: UInt8Image) -> Region:
    """Where the part is in an image, (H, W, 3) uint8, as (H, W) bool.

    Raises:
        ImageError: with code ``part_not_found``.
    """
    size = (image.shape[1], image.shape[0])
    return np.asarray(Image.fromarray(_found(image)).resize(size, Image.Resampling.NEAREST))


def _found(image: UInt8Image) -> Region:
    """Where the part is in a photograph that was shrunk to ``SIDE``, as ``_covered`` says."""
    height, width = image.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    rows, columns = (max(1, round(side * scale)) for side in (height, width))
    small = Image.fromarray(image).resize((columns, rows), Image.Resampling.BOX)
    planes = np.ascontiguousarray(np.asarray(small).transpose(2, 0, 1)).astype(np.float32)
    return _covered(planes / np.float32(255))


def _covered(pixels: Pixels) -> Region:
    """Where the part is, (H, W) bool, of (3, H, W) in [0, 1]: the largest region that stands out
    from the background, and what it encloses.
    """
    distance = ndimage.uniform_filter(np.abs(pixels - _background(pixels)).max(axis=0), 3)
    region = _largest(ndimage.binary_closing(distance > otsu(distance), np.ones((3, 3)), 2))
    region = ~_reaching_the_border(~region)
    share = float(region.mean())
    if not AREAS[0] <= share <= AREAS[1]:
        raise ImageError(
            "part_not_found",
            f"what stands out from the background covers {share:.1%} of the image; expected "
            f"{AREAS[0]:.1%} to {AREAS[1]:.0%}",
        )
    contrast = float(distance[region].mean() - distance[~region].mean())
    if contrast < CONTRAST:
        raise ImageError(
            "part_not_found",
            f"what stands out differs by {contrast:.1%} of full scale from the background; "
            f"expected {CONTRAST:.0%}",
        )
    return region


def _largest(region: Region) -> Region:
    """The largest connected part of a region."""
    labels, _ = ndimage.label(region)
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    largest: Region = (labels == areas.argmax()) & region
    return largest


def _reaching_the_border(region: Region) -> Region:
    """The connected parts of a region that touch the image's border."""
    labels, count = ndimage.label(region)
    touches = np.zeros(count + 1, bool)
    for line in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        touches[line] = True
    touches[0] = False
    reaching: Region = touches[labels]
    return reaching


def _background(pixels: Pixels) -> Pixels:
    """The background continued over the whole image: a plane fitted to the image's border."""
    plane, border = _plane(pixels.shape[1], pixels.shape[2])
    terms, seen = plane[:, border].T, pixels[:, border].T
    kept = np.ones(len(seen), bool)
    for _ in range(3):  # a part that reaches the border is left out
        factors = np.linalg.lstsq(terms[kept], seen[kept], rcond=None)[0]
        off = np.abs(seen - terms @ factors).max(axis=1)
        kept = off <= max(3 * float(np.median(off)), 1 / 255)
    background: Pixels = np.tensordot(factors.T, plane, axes=1)
    return background


@functools.lru_cache(maxsize=8)
def _plane(rows: int, columns: int) -> tuple[Pixels, Region]:
    """The terms of a plane over an image, (3, rows, columns), and the border it is fitted to."""
    breadth = max(2, round(BORDER * min(rows, columns)))
    border = np.ones((rows, columns), bool)
    border[breadth:-breadth, breadth:-breadth] = False
    down, across = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j].astype(np.float32)
    return np.stack([np.ones_like(down), down, across]), border


def otsu(values: npt.NDArray[np.floating]) -> float:
    """The threshold that splits values into two groups with the least variance within them (Otsu,
    1979).

    >>> 0.2 <= otsu(np.array([0.1, 0.2, 0.2, 0.8, 0.9])) < 0.8
    True
    """
    counts, edges = np.histogram(values, 256)
    middles = (edges[:-1] + edges[1:]) / 2
    below, mass = np.cumsum(counts), np.cumsum(counts * middles)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (mass / below - (mass[-1] - mass) / above) ** 2
    if np.isnan(between).all():
        return float(edges[-1])
    return float(edges[1 + int(np.nanargmax(between))])


@dataclass(frozen=True)
class Framing:
    """How photographs become images of one size for a network, and its maps go back.

    Attributes:
        shape: rows and columns of the network's input.
        alignment: the frame around a part that is located first; None takes whole photographs.
        light: what every image is brought to; None leaves it as it is.
        decoding: how files become photographs.
    """

    shape: tuple[int, int]
    alignment: Alignment | None = None
    light: Light | None = None
    decoding: Decoding | None = AS_PHOTOGRAPHED

    @classmethod
    def of(cls, recipe: Recipe, shape: tuple[int, int]) -> Framing:
        """The framing of a recipe whose network sees images of ``shape``."""
        return cls(shape, recipe.alignment, recipe.light, recipe.decoding)

    @classmethod
    def around(cls, alignment: Alignment, side: int) -> Framing:
        """The framing with about ``side`` squared pixels in the frame."""
        left, top, right, bottom = alignment.frame
        scale = side / math.sqrt((right - left) * (bottom - top))
        sides = (bottom - top, right - left)
        rows, columns = (max(STRIDE, round(scale * each)) for each in sides)
        return cls((rows, columns), alignment)

    def covered(self, photograph: tuple[int, ...]) -> float:
        """The share of a photograph of some rows and columns that the network sees.

        A frame that reaches over the border counts as if it lay within.
        """
        if self.alignment is None:
            return 1.0
        left, top, right, bottom = self.alignment.frame
        height, width = photograph[:2]
        return min(1.0, (right - left) * (bottom - top) * min(height, width) / max(height, width))

    def least(self, photograph: Shape) -> Shape:
        """The fewest rows and columns of a photograph that show the network all it can see.

        Args:
            photograph: the rows and columns that there are.
        """
        if self.alignment is None:
            return self.shape
        left, top, right, bottom = self.alignment.frame
        unit = max(self.shape[0] / (bottom - top), self.shape[1] / (right - left))
        factor = max(unit / min(photograph), SIDE / max(photograph))
        return math.ceil(factor * photograph[0]), math.ceil(factor * photograph[1])

    def stretch(self, photograph: Shape) -> float:
        """The factor by which a photograph's aspect changes when it is resized whole.

        Raises:
            ImageError: with code ``shape`` if it is so long, or so small, that what the network
                would see is not what was photographed.
        """
        if self.alignment is not None:
            return 1.0
        down, across = (own / seen for own, seen in zip(photograph, self.shape, strict=True))
        stretch = max(down / across, across / down)
        if stretch > MOST_STRETCH or min(down, across) < 1 / MOST_ENLARGED:
            (rows, columns), (height, width) = photograph, self.shape
            raise ImageError(
                "shape",
                f"{columns} x {rows} pixels; the model sees {width} x {height}: expected this "
                f"aspect within a factor of {MOST_STRETCH:g} and at least 1/{MOST_ENLARGED} of it",
            )
        return stretch

    def __call__(self, photograph: UInt8Image) -> tuple[UInt8Image, Placement | None]:
        """Resizes a photograph, or cuts its part out and turns it upright.

        Args:
            photograph: (H, W, 3) uint8.

        Returns:
            (*shape, 3) uint8, and where the part lies. Beyond the photograph's border its outermost
            pixels go on.

        Raises:
            ImageError: with code ``part_not_found``.
        """
        if self.alignment is None:
            return self.lit(resize(photograph, self.shape)), None
        placement = locate(photograph).placement
        return self.lit(self.cut(photograph, placement)), placement

    def lit(self, image: UInt8Image) -> UInt8Image:
        """An image of the network's size, (*shape, 3) uint8, brought to ``light``."""
        return levelled_photograph(image, self.light) if self.light else image

    def cut(self, photograph: UInt8Image, placement: Placement) -> UInt8Image:
        """The frame around a part that lies where ``placement`` says, (*shape, 3) uint8."""
        matrix = self._to_photograph(placement, photograph.shape[:2])
        step = math.sqrt(abs(float(np.linalg.det(matrix[:, :2]))))
        if step > 1:  # the transform below takes single pixels: shrink first
            rows, columns = (max(1, round(side / step)) for side in photograph.shape[:2])
            factors = np.array([columns / photograph.shape[1], rows / photograph.shape[0]])
            photograph, matrix = resize(photograph, (rows, columns)), matrix * factors[:, None]
        pad = 2 + math.ceil(max(0.0, *self._overhang(matrix, photograph.shape[:2])))
        padded = np.pad(photograph, ((pad, pad), (pad, pad), (0, 0)), mode="edge")
        return np.asarray(_transformed(padded, matrix + _shifted(pad), self.shape, _BICUBIC))

    def mask(self, truth: Region, placement: Placement | None) -> Region:
        """What a mask of a photograph, (H, W) bool, shows in the frame, (*shape) bool; the nearest
        pixels are taken.
        """
        rows, columns = truth.shape
        matrix = np.array([[columns / self.shape[1], 0, 0], [0, rows / self.shape[0], 0]])
        if placement is not None:
            matrix = self._to_photograph(placement, truth.shape)
        levels = truth.astype(np.uint8)
        return np.asarray(_transformed(levels, matrix, self.shape, _NEAREST)).astype(bool)

    def laid_back(
        self, anomaly_map: Pixels, placement: Placement | None, photograph: tuple[int, int]
    ) -> Pixels:
        """An anomaly map over the whole photograph.

        Args:
            anomaly_map: (*shape) float32, non-negative.
            placement: where the part lies; None for a photograph that was taken whole.
            photograph: rows and columns of the photograph.

        Returns:
            (h, w) float32 in pixels about as large as the network's; 0 outside of the frame.
        """
        if placement is None:
            return anomaly_map
        matrix = self._to_photograph(placement, photograph)
        step = math.sqrt(abs(float(np.linalg.det(matrix[:, :2]))))
        rows, columns = (max(1, round(side / step)) for side in photograph)
        matrix = matrix * np.array([columns / photograph[1], rows / photograph[0]])[:, None]
        back = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2] + _shifted(1)
        return np.array(_transformed(np.pad(anomaly_map, 1), back, (rows, columns), _BILINEAR))

    def _to_photograph(self, placement: Placement, photograph: tuple[int, ...]) -> Floats:
        """The 2 x 3 matrix from (x, y) in the frame to (x, y) in the photograph, both in pixels
        from the upper left corner.
        """
        assert self.alignment is not None
        unit = min(photograph)
        left, top, right, bottom = (unit * length for length in self.alignment.frame)
        across, down = (right - left) / self.shape[1], (bottom - top) / self.shape[0]
        angle = placement.angle if self.alignment.turned else 0.0
        cosine, sine = math.cos(angle), math.sin(angle)
        return np.array(
            [
                [cosine * across, -sine * down, unit * placement.x + cosine * left - sine * top],
                [sine * across, cosine * down, unit * placement.y + sine * left + cosine * top],
            ]
        )

    def _overhang(self, matrix: Floats, photograph: tuple[int, ...]) -> Sequence[float]:
        """By how many pixels the frame reaches over each side of the photograph."""
        rows, columns = self.shape
        corners = np.array([[0, 0, 1], [columns, 0, 1], [0, rows, 1], [columns, rows, 1]])
        x, y = matrix @ corners.T
        return -x.min(), -y.min(), x.max() - photograph[1], y.max() - photograph[0]


_BICUBIC, _BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR
_NEAREST = Image.Resampling.NEAREST


def _shifted(by: int) -> Floats:
    """What is added to a matrix into an image that got so many pixels on every side."""
    return np.array([[0.0, 0.0, by], [0.0, 0.0, by]])


def _transformed(
    pixels: npt.NDArray[np.generic],
    matrix: Floats,
    shape: tuple[int, int],
    resampling: Image.Resampling,
) -> Image.Image:
    """Takes each pixel of the result from where ``matrix`` says."""
    size, data = (shape[1], shape[0]), tuple(matrix.ravel().tolist())
    return Image.fromarray(pixels).transform(size, Image.Transform.AFFINE, data, resampling)
