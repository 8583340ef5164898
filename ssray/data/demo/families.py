"""The kinds of product in the generated demo data, each with its camera, lamps and defects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np

from ssray.data.demo import defects, fine_defects, strips
from ssray.data.demo.brackets import Bracket, BracketStyle
from ssray.data.demo.defects import Canvas, Stages
from ssray.data.demo.lamps import DRIFTED, DRIFTING, STEADY, Lamps
from ssray.data.demo.objects import Connector, ConnectorStyle, Washer, WasherStyle
from ssray.data.demo.screws import Screw, ScrewStyle, bent, flank
from ssray.data.demo.strips import Strip, StripStyle
from ssray.data.demo.surfaces import Floats, Specimen, Style
from ssray.data.demo.textures import Grain, GrainStyle, Weave, WeaveStyle

S = TypeVar("S", bound=Specimen)

_PARTS: Mapping[str, Callable[[Any, Floats, Canvas, np.random.Generator], Stages]] = {
    "blob": defects.blob,
    "misplaced": defects.misplaced,
    "missing": defects.missing,
    "scratch": defects.scratch,
}
"""The defects of products that consist of parts."""


@dataclass(frozen=True)
class ProductFamily(Generic[S]):
    """A kind of product, such as washers, of which there can be several categories.

    Attributes:
        name: the name of its first category; further ones append a number.
        grey: whether its camera is monochrome.
        style: draws at random what all images of one category have in common.
        defects: the functions that draw its defects, by the name of the defect's folder.
        height: the height of its images, as a share of their width.
        areas: the least and the largest share of the image that a defect may cover.
        lamps: the lamps of the training images and of the test images.
    """

    name: str
    grey: bool
    style: Callable[[np.random.Generator], Style[S]]
    defects: Mapping[str, Callable[[S, Floats, Canvas, np.random.Generator], Stages]]
    height: float = 1.0
    areas: tuple[float, float] = (0.003, 0.045)
    lamps: tuple[Lamps, Lamps] = (STEADY, STEADY)


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
    ProductFamily[Washer]("washer", grey=True, style=WasherStyle.draw, defects=_PARTS),
    ProductFamily[Connector]("connector", grey=False, style=ConnectorStyle.draw, defects=_PARTS),
    ProductFamily[Bracket]("bracket", grey=True, style=BracketStyle.draw, defects=_PARTS),
    ProductFamily[Strip](
        "strip",
        grey=True,
        style=StripStyle.draw,
        defects={
            "crack": fine_defects.crack,
            "pit": fine_defects.pit,
            "scratch": partial(fine_defects.scratch, length=(0.2, 0.6)),
        },
        height=strips.HEIGHT,
        areas=(0.00004, 0.02),
    ),
    ProductFamily[Screw](
        "screw",
        grey=True,
        style=ScrewStyle.draw,
        defects={
            "bent": bent,
            "flank": flank,
            "misplaced": defects.misplaced,
            "missing": defects.missing,
            "scratch": partial(fine_defects.scratch, length=(0.05, 0.12)),
        },
        areas=(0.0001, 0.02),
    ),
    ProductFamily[Connector](
        "relay",
        grey=False,
        style=ConnectorStyle.draw,
        defects=_PARTS,
        lamps=(DRIFTING, DRIFTED),
    ),
)
"""The kinds of product; the categories of a data set take them in turn."""


def category_name(index: int, families: int = len(PRODUCT_FAMILIES)) -> str:
    """Returns the name of the category with this index, counted from 0.

    Args:
        index: the category's index.
        families: how many kinds of product the categories take in turn.

    >>> [category_name(i) for i in range(9)]
    ['weave', 'grain', 'washer', 'connector', 'bracket', 'strip', 'screw', 'relay', 'weave_2']
    """
    turn, family = divmod(index, families)
    name = PRODUCT_FAMILIES[family].name
    return name if turn == 0 else f"{name}_{turn + 1}"
