"""Generates a data set in the layout of MVTec AD, to try ssray without any download."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ssray.data.demo.category import Category
from ssray.data.demo.families import PRODUCT_FAMILIES, category_name
from ssray.errors import ConfigError

MARKER = "demo-data.json"
"""The file in a demo data set's folder that says with which arguments it was written."""
FORMAT = 3
"""The version of the generator; a data set of another version is written anew."""

_FAMILIES_OF_FORMAT_2 = 5  # its marker doesn't say in how many kinds its categories take turns
_GOOD = "good"


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


def write_demo_data(
    out: Path, *, categories: int = 3, images: int = 60, seed: int = 0, size: int = 128
) -> list[str]:
    """Generates a data set and writes it in the layout of MVTec AD.

    ``CATEGORY/train/good``, ``CATEGORY/test/good`` and ``CATEGORY/test/DEFECT`` hold 8-bit
    PNG images of ``size`` x ``size`` pixels (strips are 2.52 times as high) named 000.png and so
    on, three channels or, for washers, brackets, strips and screws, one.
    ``CATEGORY/ground_truth/DEFECT/000_mask.png`` is 255 where the defect changed the image visibly
    and 0 elsewhere. The same arguments give the same pixels.

    A demo data set written with the same arguments is left as it is; one written with other
    arguments is replaced.

    Args:
        out: a new or empty folder, or one that holds a demo data set.
        categories: number of categories, at least 1; they take weave, grain, washer, connector,
            bracket, strip, screw and relay in turn, each with its own colours, counts and sizes.
        images: training images a category, at least 4. Half as many good and half as many
            defective test images come with them, at least 8 of each.
        seed: the seed of all random choices, at least 0.
        size: the width of the images in pixels, at least 64.

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
    families = found.get("families", _FAMILIES_OF_FORMAT_2)
    written = {category_name(i, families) for i in range(found["categories"])}
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
    families = len(PRODUCT_FAMILIES)
    return {"format": FORMAT, "families": families, "complete": complete, **asdict(request)}


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
