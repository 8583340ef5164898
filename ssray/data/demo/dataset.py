"""Generates a data set in the layout of MVTec AD, to try ssray without any download.

Every image draws from a random generator of its own, seeded by the data set's seed, its
category, its folder and its number. A larger data set therefore starts with the images
of a smaller one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from ssray.data.decode import UInt8Image
from ssray.data.demo import defects
from ssray.data.demo.brackets import Bracket, BracketStyle
from ssray.data.demo.defects import Canvas, Stages
from ssray.data.demo.objects import Connector, ConnectorStyle, Washer, WasherStyle
from ssray.data.demo.surfaces import Floats, Specimen, Style
from ssray.data.demo.textures import Grain, GrainStyle, Weave, WeaveStyle
from ssray.errors import ConfigError

MARKER = "demo-data.json"
"""The file in a demo data set's folder that says with which arguments it was written."""
FORMAT = 2
"""The version of the generator; a data set of another version is written anew."""

_GOOD = "good"
_LUMA = np.array([0.299, 0.587, 0.114])
_OVERSAMPLING = 2
_AREA = (0.003, 0.045)  # share of the image that a defect may cover
_ATTEMPTS = 200
_STYLE, _TRAIN, _TEST = range(3)  # stages of a category's seed; defects count on from here

S = TypeVar("S", bound=Specimen)


@dataclass(frozen=True)
class ProductFamily(Generic[S]):
    """A kind of product, such as washers, of which there can be several categories.

    Attributes:
        name: the name of its first category; further ones append a number.
        grey: whether its camera is monochrome.
        style: draws at random what all images of one category have in common.
        defects: the functions that draw its defects, by the name of the defect's folder.
    """

    name: str
    grey: bool
    style: Callable[[np.random.Generator], Style[S]]
    defects: Mapping[str, Callable[[S, Floats, Canvas, np.random.Generator], Stages]]


PRODUCT_FAMILIES: tuple[ProductFamily[Any], ...] = (
    ProductFamily[Weave](
        "weave",
        grey=False,
        style=WeaveStyle.draw,
        defects={
            "blob": defects.blob,
            "cut": defects.cut,
            "missing": defects.missing,
            "thread": defects.thread,
        },
    ),
    ProductFamily[Grain](
        "grain",
        grey=False,
        style=GrainStyle.draw,
        defects={
            "blob": defects.blob,
            "cut": defects.cut,
            "scratch": defects.scratch,
            "thread": defects.thread,
        },
    ),
    ProductFamily[Washer](
        "washer",
        grey=True,
        style=WasherStyle.draw,
        defects={
            "blob": defects.blob,
            "misplaced": defects.misplaced,
            "missing": defects.missing,
            "scratch": defects.scratch,
        },
    ),
    ProductFamily[Connector](
        "connector",
        grey=False,
        style=ConnectorStyle.draw,
        defects={
            "blob": defects.blob,
            "misplaced": defects.misplaced,
            "missing": defects.missing,
            "scratch": defects.scratch,
        },
    ),
    ProductFamily[Bracket](
        "bracket",
        grey=True,
        style=BracketStyle.draw,
        defects={
            "blob": defects.blob,
            "misplaced": defects.misplaced,
            "missing": defects.missing,
            "scratch": defects.scratch,
        },
    ),
)
"""The kinds of product; the categories of a data set take them in turn."""


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


@dataclass(frozen=True)
class Request:
    """The arguments of ``write_demo_data``, which decide every pixel of a demo data set."""

    categories: int
    images: int
    seed: int
    size: int

    def __post_init__(self) -> None:
        for name, least in (("categories", 1), ("images", 4), ("seed", 0), ("size", 64)):
            value = getattr(self, name)
            if value < least:
                raise ConfigError(
                    f"demo data: found {name}={value}, expected at least {least}; "
                    f"choose a larger {name}."
                )


class Category:
    """One product, photographed again and again: every image is another specimen of it."""

    def __init__(self, index: int, seed: int, size: int) -> None:
        self.name = category_name(index)
        self.family = PRODUCT_FAMILIES[index % len(PRODUCT_FAMILIES)]
        self._seed = (seed, index)
        self._size = size
        rng = self._rng(_STYLE, 0)
        self._style = self.family.style(rng)
        self._first_level = rng.uniform()
        side = size * _OVERSAMPLING
        x, y = np.meshgrid(*2 * [(np.arange(side) + 0.5) / side])
        self._canvas = Canvas(x, y, pixel=1 / size)

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
        light = _light(self._canvas, level, rng)
        clean = self._canvas.draw(specimen)
        stages = [self._expose(clean, light)]
        mask = np.zeros((self._size, self._size), dtype=np.bool_)
        if defect is not None:
            make = self.family.defects[defect]
            for _ in range(_ATTEMPTS):
                later = make(specimen, clean, self._canvas, rng)
                drawn = [stages[0], *(self._expose(stage, light) for stage in later)]
                mask = defects.changed(tuple(drawn))
                if _AREA[0] <= mask.mean() <= _AREA[1]:
                    break
            else:
                raise RuntimeError(f"{self.name}: no {defect} of a fitting size was drawn")
            stages = drawn
        noise = rng.normal(0, 0.008, stages[0].shape)
        return Sample(_digitised(stages[-1] + noise), _digitised(stages[0] + noise), mask)

    def _expose(self, surface: Floats, light: Floats) -> Floats:
        """Lights a surface and averages it down to pixels, as a camera does.

        Returns:
            (size, size, 3) float64, or (size, size, 1) for a monochrome camera.
        """
        lit = surface * light[..., None]
        if self.family.grey:
            lit = (lit @ _LUMA)[..., None]
        steps = range(_OVERSAMPLING)
        parts = [lit[r::_OVERSAMPLING, c::_OVERSAMPLING] for r in steps for c in steps]
        exposed: Floats = np.mean(parts, axis=0)
        return exposed


def category_name(index: int) -> str:
    """Returns the name of the category with this index, counted from 0.

    >>> [category_name(i) for i in range(6)]
    ['weave', 'grain', 'washer', 'connector', 'bracket', 'weave_2']
    """
    turn, family = divmod(index, len(PRODUCT_FAMILIES))
    name: str = PRODUCT_FAMILIES[family].name
    return name if turn == 0 else f"{name}_{turn + 1}"


def write_demo_data(
    out: Path, *, categories: int = 3, images: int = 60, seed: int = 0, size: int = 128
) -> list[str]:
    """Generates a data set and writes it in the layout of MVTec AD.

    ``CATEGORY/train/good``, ``CATEGORY/test/good`` and ``CATEGORY/test/DEFECT`` hold 8-bit
    PNG images of ``size`` x ``size`` pixels named 000.png and so on, three channels or, for
    washers and brackets, one. ``CATEGORY/ground_truth/DEFECT/000_mask.png`` is 255 where the defect
    changed the image visibly and 0 elsewhere. The same arguments give the same pixels.

    A demo data set written with the same arguments is left as it is; one written with other
    arguments is replaced.

    Args:
        out: a new or empty folder, or one that holds a demo data set.
        categories: number of categories, at least 1; they take weave, grain, washer, connector and
            bracket in turn, each with its own colours, counts and sizes.
        images: training images a category, at least 4. Half as many good and half as many
            defective test images come with them, at least 8 of each.
        seed: the seed of all random choices, at least 0.
        size: the side of the images in pixels, at least 64.

    Returns:
        The names of the categories.

    Raises:
        ConfigError: if an argument is out of range, or ``out`` holds other files that
            would be mixed with or replaced by the demo data.
    """
    request = Request(categories, images, seed, size)
    names = [category_name(i) for i in range(categories)]
    if _prepare(out, request, names):
        return names
    _write_marker(out, request, complete=False)
    for index, name in enumerate(names):
        _write_category(out / name, Category(index, seed, size), images)
    _write_marker(out, request, complete=True)
    return names


def _prepare(out: Path, request: Request, names: list[str]) -> bool:
    """Empties ``out`` of an earlier demo data set; returns True if it holds the requested one."""
    advice = "choose a new or empty folder, or remove it yourself"
    if out.exists() and not out.is_dir():
        raise ConfigError(f"demo data: {out} is a file, expected a folder; {advice}.")
    found = _read_marker(out)
    if found is None:
        if out.exists() and any(out.iterdir()):
            raise ConfigError(
                f"demo data: {out} is not empty and was not written by ssray (it has no valid "
                f"{MARKER}), expected a folder to write to; {advice}."
            )
        out.mkdir(parents=True, exist_ok=True)
        return False
    if found == _marker(request, complete=True) and all((out / name).is_dir() for name in names):
        return True
    written = {category_name(i) for i in range(found["categories"])}
    for name in names:
        if name not in written and (out / name).exists():
            raise ConfigError(
                f"demo data: {out / name} exists but is not part of the demo data in {out}, "
                f"expected it to be free; {advice}."
            )
    _write_marker(out, request, complete=False)
    for name in written:
        if (out / name).exists():
            shutil.rmtree(out / name)
    return False


def _marker(request: Request, *, complete: bool) -> dict[str, int]:
    return {"format": FORMAT, "complete": complete, **asdict(request)}


def _read_marker(out: Path) -> dict[str, int] | None:
    try:
        marker = json.loads((out / MARKER).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    valid = isinstance(marker, dict) and isinstance(marker.get("categories"), int)
    return marker if valid else None


def _write_marker(out: Path, request: Request, *, complete: bool) -> None:
    text = json.dumps(_marker(request, complete=complete), indent=2)
    (out / MARKER).write_text(text + "\n", encoding="utf-8")


def _write_category(folder: Path, category: Category, images: int) -> None:
    """Writes all images and masks of one category."""
    for part, draw, count in (
        ("train", category.train, images),
        ("test", category.test, max(8, images // 2)),
    ):
        (folder / part / _GOOD).mkdir(parents=True)
        for number in range(count):
            path = folder / part / _GOOD / f"{number:03d}.png"
            Image.fromarray(draw(number).image).save(path)
    for defect, count in _shares(max(8, images // 2), list(category.family.defects)):
        pictures, masks = folder / "test" / defect, folder / "ground_truth" / defect
        pictures.mkdir(parents=True)
        masks.mkdir(parents=True)
        for number in range(count):
            sample = category.test(number, defect)
            Image.fromarray(sample.image).save(pictures / f"{number:03d}.png")
            mask = np.where(sample.mask, 255, 0).astype(np.uint8)
            Image.fromarray(mask).save(masks / f"{number:03d}_mask.png")


def _shares(total: int, names: list[str]) -> list[tuple[str, int]]:
    """Splits ``total`` as evenly as it goes, the first names taking the rest."""
    each, rest = divmod(total, len(names))
    return [(name, each + (i < rest)) for i, name in enumerate(names)]


def _light(canvas: Canvas, level: float, rng: np.random.Generator) -> Floats:
    """Draws the light on each point: the lamp, a gradient across the image, the lens's falloff.

    Args:
        canvas: the points.
        level: the lamp's level, from 0 for the darkest (-6 %) to 1 for the brightest (+6 %).
        rng: draws the gradient, which is at most 6 % from the middle to a side.

    Returns:
        (H, W) factors by which the surface's reflectance is multiplied.
    """
    slope, angle = rng.uniform(0, 0.06), rng.uniform(0, 2 * np.pi)
    x, y = 2 * canvas.x - 1, 2 * canvas.y - 1
    gradient = slope * (np.cos(angle) * x + np.sin(angle) * y)
    light: Floats = (0.94 + 0.12 * level) * (1 + gradient - 0.02 * (x * x + y * y))
    return light


def _digitised(image: Floats) -> UInt8Image:
    """Turns [0, 1] floats into 8-bit values; an axis of a single channel is dropped."""
    levels = np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)
    return levels[..., 0] if levels.shape[-1] == 1 else levels
