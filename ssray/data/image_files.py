"""Tells by their paths which of the listed files are images, and which of these are masks."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import PurePosixPath

from PIL import Image

from ssray.data.headers import FORMATS

MASKS = "ground_truth"
"""The folder of masks, which are no photographs."""
_NOT_DECODED = (".avif", ".heic", ".heif")
"""The extensions of photographs, as of phones, whose format is not decoded: each is an image that
can't be read, so that none is passed over in silence."""
_SHOWN = 3


@functools.cache
def image_extensions() -> frozenset[str]:
    """Returns the file extensions of images, in lower case with the dot."""
    known = Image.registered_extensions()
    decoded = (ext.lower() for ext, kind in known.items() if kind in FORMATS)
    return frozenset({".mpo", *decoded, *_NOT_DECODED})


def has_image_extension(path: str) -> bool:
    """Tells whether a path ends like an image's.

    >>> has_image_extension("grid/0.PNG"), has_image_extension("grid/notes.txt")
    (True, False)
    """
    return PurePosixPath(path).suffix.lower() in image_extensions()


def passed_over_as(path: str) -> str | None:
    """Returns what a file that is no photograph is counted as; None for a photograph.

    >>> passed_over_as("grid/notes.TXT"), passed_over_as("grid/README"), passed_over_as("IMG.HEIC")
    ('.txt', 'README', None)
    >>> passed_over_as("grid/ground_truth/bent/0.png"), passed_over_as("grid/test/bent/0.png")
    ('ground_truth/', None)
    """
    parts = PurePosixPath(path)
    if MASKS in parts.parent.parts:
        return f"{MASKS}/"
    if not has_image_extension(path):
        return parts.suffix.lower() or parts.name
    return None


def some(paths: Sequence[str]) -> str:
    """Names the first of some paths, for an error message.

    >>> some(["a.png", "b.png", "c.png", "d.png"]), some([])
    ('a.png, b.png, c.png and others', 'nothing')
    """
    return (", ".join(paths[:_SHOWN]) or "nothing") + " and others" * (len(paths) > _SHOWN)
