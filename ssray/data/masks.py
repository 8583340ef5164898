"""Ground-truth masks as annotation tools write them: which pixels they call defective.

A mask is read by the first of these rules that applies:

- A palette image by its indices, whatever the palette's colours: 0 is background, every other index
  is defective. If it has but black and white, by these: white is defective. A bilevel image by its
  bits.
- A mask with transparent pixels by its alpha, if all opaque ones (alpha above half of the range)
  have the same colour, which then says nothing. If they differ in colour they are read by the next
  rule, and transparent pixels are not defective.
- Otherwise by its values; of a pixel's channels the largest counts. A pixel is defective above half
  of the range, 127 of 255 or 32767 of 65535. If all masks of a category have but 0 and one other
  value, the same in all and no larger than that half, or numbers of classes up to
  ``MOST_CLASSES``, all but 0 is defective instead (``common_level``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from ssray.data.decode import decode_as_stored
from ssray.data.depth import DeepImage
from ssray.data.image_files import some
from ssray.errors import ImageError
from ssray.storage.fetch import Fetcher

MOST_CLASSES = 32
"""The highest number of a class of defects in masks whose values are such numbers."""
_READERS = 8
_HALF = {8: 127, 16: 32767}
"""Half of the range, by the bits of a value."""

Mask = npt.NDArray[np.bool_]
_Values = npt.NDArray[Any]


def read_masks(uris: Sequence[str], level: int | None = None, fetch: Fetcher | None = None) -> Mask:
    """Reads the mask of an image, which is the union of one or several files.

    Args:
        uris: of the files, at least one.
        level: as for ``decode_mask``.
        fetch: reads the files; default: a ``Fetcher`` of its own.

    Returns:
        (H, W) bool, True where the image is defective.

    Raises:
        ImageError: as ``read_mask`` does, or with code ``sizes_differ`` if the files do.
    """
    fetch = fetch or Fetcher()
    parts = [read_mask(uri, level, fetch) for uri in uris]
    if len({part.shape for part in parts}) > 1:
        raise ImageError("sizes_differ", f"{some(uris)}: the parts of one mask differ in size")
    union: Mask = np.logical_or.reduce(parts)
    return union


def read_mask(uri: str, level: int | None = None, fetch: Fetcher | None = None) -> Mask:
    """Reads and decodes one file of a mask.

    Args:
        uri: the path or URI of a file, or ``ARCHIVE#MEMBER``.
        level: as for ``decode_mask``.
        fetch: reads the file; default: a ``Fetcher`` of its own.

    Returns:
        (H, W) bool, True where the image is defective.

    Raises:
        ImageError: as ``Fetcher`` and ``decode_mask`` do; the message names the file.
    """
    content = (fetch or Fetcher())(uri)
    try:
        return decode_mask(content, level)
    except ImageError as error:
        raise ImageError(error.code, f"{uri}: {error}") from None


def decode_mask(content: bytes, level: int | None = None) -> Mask:
    """Decodes a mask by the rules above.

    Args:
        content: the bytes of the file.
        level: the lowest value of defective pixels, as ``common_level`` finds it; None: above half
            of the range.

    Returns:
        (H, W) bool, True where the image is defective.

    Raises:
        ImageError: with code ``empty``, ``unknown_format``, ``too_large``, ``truncated`` or
            ``unsupported_mode``.
    """
    values = _values(decode_as_stored(content))
    if values.dtype == np.bool_:
        return values
    mask: Mask = values > _half(values) if level is None else values >= level
    return mask


def _values(stored: Image.Image | DeepImage) -> _Values:
    """The pixels of a mask, (H, W): bool if they say themselves what is defective, else uint8 or
    uint16 values.

    Raises:
        ImageError: with code ``unsupported_mode``.
    """
    if isinstance(stored, np.ndarray):
        return _of_channels(stored)
    image = stored
    if image.mode == "P" and _is_black_and_white(image):
        image = image.convert("L")
    if image.mode in ("1", "P", "PA"):
        indices = np.asarray(image)
        found: Mask = (indices if indices.ndim == 2 else indices[:, :, 0]) > 0
        return found
    if image.mode.startswith("I"):  # grey of 16 or 32 bits
        deep = np.asarray(image)
        if deep.min() < 0 or deep.max() > 65535:
            raise ImageError("unsupported_mode", "integer pixels outside the 16 bits accepted")
        return deep.astype(np.uint16)
    if image.mode == "F":
        raise ImageError("unsupported_mode", "floating-point pixels; expected 8 or 16 bits")
    return _of_channels(np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB")))


def _is_black_and_white(image: Image.Image) -> bool:
    """Whether a palette image has these two colours alone, in whatever order."""
    used = image.convert("RGB").getcolors(2)
    return used is not None and {colour for _, colour in used} == {(0, 0, 0), (255, 255, 255)}


def _of_channels(pixels: _Values) -> _Values:
    """The values of an image in grey or colour, (H, W, channels) uint8 or uint16; of two or four
    channels the last one is alpha, which is read by the second rule above.
    """
    if pixels.shape[2] not in (2, 4):
        highest: _Values = pixels.max(axis=2)
        return highest
    colours, alpha = pixels[:, :, :-1], pixels[:, :, -1]
    opaque = alpha > _half(alpha)
    values: _Values = colours.max(axis=2)
    if opaque.all():
        return values
    counted = opaque if opaque.any() else ~opaque
    seen = colours[counted]
    if (seen == seen[0]).all():
        return alpha
    return np.where(counted, values, np.zeros_like(values))


def _half(values: _Values) -> int:
    return _HALF[8 * values.dtype.itemsize]


def same_aspect(shape: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one of two shapes, (rows, columns), may be the other one scaled, to within a pixel.

    >>> same_aspect((32, 64), (64, 64)), same_aspect((333, 500), (1000, 1501))
    (False, True)
    """
    (rows, columns), (other_rows, other_columns) = shape, other
    return abs(rows * other_columns - columns * other_rows) <= max(*shape, *other)


def common_level(uris: Sequence[str]) -> int | None:
    """The lowest value of defective pixels, where the masks of a category have low values alone.

    Masks that say themselves what is defective, are empty or can't be read have no part in it. The
    first mask with a value above half of the range decides, so mostly one is read.

    Args:
        uris: the masks of one category.

    Returns:
        The one value beside 0 that they have, or the lowest of their classes; None if they have
        others, or one above half of the range.
    """
    lowest, highest = 0, 0
    for found in _found(uris):
        if found is None:
            continue
        if found.highest > found.half:
            return None
        lowest, highest = min(lowest or found.lowest, found.lowest), max(highest, found.highest)
        if lowest < highest and highest > MOST_CLASSES:
            return None
    return lowest or None


class _Found(NamedTuple):
    """The values above 0 in a mask: the lowest and the highest, and half of the mask's range."""

    lowest: int
    highest: int
    half: int


def _found(uris: Sequence[str]) -> Iterator[_Found | None]:
    """Yields what each mask has; None for one that has no part in it. The first is read alone."""
    fetch = Fetcher()

    def find(uri: str) -> _Found | None:
        try:
            values = _values(decode_as_stored(fetch(uri)))
        except ImageError:
            return None
        marked = values[values > 0]
        if values.dtype == np.bool_ or not marked.size:
            return None
        return _Found(int(marked.min()), int(marked.max()), _half(values))

    yield from map(find, uris[:1])
    with ThreadPoolExecutor(_READERS) as pool:
        yield from pool.map(find, uris[1:])


def with_mask_levels(images: pa.Table) -> pa.Table:
    """An image table with its column ``mask_level`` filled in, by ``common_level``.

    Args:
        images: of ``ssray.data.dataset.IMAGE_TABLE_SCHEMA``.
    """
    rows = images.select(["category", "mask_uris"]).to_pylist()
    uris = defaultdict[str, list[str]](list)
    for row in rows:
        uris[row["category"]] += row["mask_uris"] or ()
    levels = {category: common_level(masks) for category, masks in uris.items()}
    column = pa.array([levels.get(row["category"]) for row in rows], pa.int32())
    number = images.schema.get_field_index("mask_level")
    return images.set_column(number, images.schema.field(number), column)


def mask_levels(images: pa.Table) -> dict[str, int]:
    """The level of each category of an image table whose masks agree on one below the half."""
    found = zip(images["category"].to_pylist(), images["mask_level"].to_pylist(), strict=True)
    return {category: level for category, level in found if level is not None}
