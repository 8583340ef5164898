"""Decodes and resizes images of hundreds of millions of pixels, a strip of rows at a time.

The result is the same as from decoding the whole image and ``ssray.data.decode.resize``: Pillow
resizes each row by itself, rounds to 8 bits, and then resizes the columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyvips
from PIL import Image

from ssray.data.decode import UInt8Image, decode_noted, network_shape, resize
from ssray.data.pose import Framing, Placement
from ssray.errors import ImageError

MAX_LARGE_PIXELS = 1_000_000_000
"""The largest image, in pixels; larger ones are refused before they are decoded."""
LARGE_SIDE = 8_192
"""Of a square with as many pixels as a larger image is shrunk to before its part is located."""
_STRIP_PIXELS = 8_000_000
_FORMATS = {"uchar": 8, "ushort": 16}
"""The bits of each type of pixel that is accepted, by the name libvips has for it."""
_COLOURS = ("srgb", "rgb16", "b-w", "grey16", "rgb")


def decode_resized(
    content: bytes, shape: tuple[int, int]
) -> tuple[UInt8Image, tuple[int, int], str | None]:
    """Decodes an image of any size and resizes it.

    Args:
        content: the bytes of the file.
        shape: the rows and columns to resize to. For an image of more than
            ``ssray.data.decode.MAX_PIXELS`` they must not exceed its own.

    Returns:
        The resized image, (*shape, 3) uint8; the rows and columns that it had in the file; and the
        note of ``decode_noted``.

    Raises:
        ImageError: as ``decode_noted`` and ``decode_large`` do.
    """
    try:
        image, note = decode_noted(content)
    except ImageError as error:
        if error.code != "too_large":
            raise
        return *decode_large(content, shape), None
    return resize(image, shape), (image.shape[0], image.shape[1]), note


@dataclass(frozen=True)
class Decoded:
    """An image of a network's size.

    Attributes:
        image: (h, w, 3) uint8.
        shape: rows and columns that it had in the file.
        placement: where the part lies in it, if the framing aligns parts.
        note: of ``ssray.data.decode.decode_noted``.
    """

    image: UInt8Image
    shape: tuple[int, int]
    placement: Placement | None = None
    note: str | None = None


def decode_framed(content: bytes, framing: Framing) -> Decoded:
    """Decodes an image of any size and makes a network's input of it.

    Raises:
        ImageError: as ``decode_resized`` does, or with code ``part_not_found``.
    """
    if framing.alignment is None:
        image, shape, note = decode_resized(content, framing.shape)
        return Decoded(framing.lit(image), shape, note=note)
    try:
        photograph, note = decode_noted(content)
        shape = photograph.shape[0], photograph.shape[1]
    except ImageError as error:
        if error.code != "too_large":
            raise
        opened = _opened(content)
        shape, note = (opened.height, opened.width), None
        smaller = network_shape(*shape, LARGE_SIDE)
        photograph, _ = decode_large(content, smaller)
    image, placement = framing(photograph)
    return Decoded(image, shape, placement, note)


def decode_large(content: bytes, shape: tuple[int, int]) -> tuple[UInt8Image, tuple[int, int]]:
    """Decodes and resizes a PNG, JPEG or TIFF of up to ``MAX_LARGE_PIXELS``, in strips.

    Grey, alpha and 16 bits are treated as by ``ssray.data.decode.decode_image``.

    Args:
        content: the bytes of the file.
        shape: the rows and columns to resize to, each at most the image's own.

    Returns:
        The resized image, (*shape, 3) uint8, and the rows and columns that it had in the file.

    Raises:
        ImageError: with code ``too_large``, ``truncated``, ``unknown_format`` or
            ``unsupported_mode``.
    """
    image = _opened(content)
    if image.format not in _FORMATS or image.interpretation not in _COLOURS:
        raise ImageError(
            "unsupported_mode", f"{image.interpretation} of {image.format}; expected grey or RGB"
        )
    rows, columns = shape
    narrow = np.empty((image.height, columns, 3), np.uint8)
    height = max(1, _STRIP_PIXELS // image.width)
    region = pyvips.Region.new(image)
    try:
        for top in range(0, image.height, height):
            strip = _strip(image, region, top, min(height, image.height - top))
            resized = Image.fromarray(strip).resize(
                (columns, strip.shape[0]), Image.Resampling.HAMMING
            )
            narrow[top : top + strip.shape[0]] = np.asarray(resized)
    except pyvips.Error as error:
        raise ImageError("truncated", f"the image data is damaged or cut short ({error})") from None
    whole = Image.fromarray(narrow).resize((columns, rows), Image.Resampling.HAMMING)
    return np.asarray(whole), (image.height, image.width)


def _opened(content: bytes) -> pyvips.Image:
    """Reads the header of a large image, and checks the size that it states."""
    try:
        image = pyvips.Image.new_from_buffer(content, "", access="sequential", fail_on="truncated")
    except pyvips.Error as error:
        raise ImageError(
            "unknown_format",
            f"too large to decode at once, and no PNG, JPEG or TIFF to decode in strips ({error})",
        ) from None
    if image.width * image.height > MAX_LARGE_PIXELS:
        raise ImageError(
            "too_large",
            f"{image.width} x {image.height} pixels; at most {MAX_LARGE_PIXELS:,} are accepted",
        )
    return image


def _strip(image: pyvips.Image, region: pyvips.Region, top: int, height: int) -> UInt8Image:
    """Decodes ``height`` rows of an image from row ``top`` on: (height, W, 3) uint8."""
    bits = _FORMATS[image.format]
    content = region.fetch(0, top, image.width, height)
    if bits == 16:
        pixels = (np.frombuffer(content, np.uint16) >> 8).astype(np.uint8)
    else:
        pixels = np.frombuffer(content, np.uint8)
    pixels = pixels.reshape(height, image.width, image.bands)
    colours = pixels[:, :, :1] if image.bands < 3 else pixels[:, :, :3]
    return np.ascontiguousarray(np.broadcast_to(colours, (height, image.width, 3)))
