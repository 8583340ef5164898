"""Decodes and resizes images of hundreds of millions of pixels, a strip of rows at a time.

The result is the same as from decoding the whole image and ``ssray.data.decode.resize``: Pillow
resizes each row by itself, rounds to 8 bits, and then resizes the columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyvips
from PIL import Image

from ssray.config import Decoding
from ssray.data.decode import (
    AS_PHOTOGRAPHED,
    UInt8Image,
    decode_photograph,
    image_shape,
    network_shape,
)
from ssray.data.depth import STORED_BITS, to_8_bits
from ssray.data.headers import MAX_PIXELS, check_size
from ssray.data.orientation import Shape, orientation_in_xmp, turned_shape, upright
from ssray.data.pose import NOTED_STRETCH, Framing, Placement
from ssray.errors import ImageError

MAX_LARGE_PIXELS = 1_000_000_000
"""The largest image, in pixels; larger ones are refused before they are decoded."""
LARGE_SIDE = 8_192
"""Of a square with as many pixels as a larger image is shrunk to before its part is located."""
_STRIP_PIXELS = 8_000_000
_FORMATS = ("uchar", "ushort")
"""The types of pixels that are accepted, by the names libvips has for them."""
_JPEG = b"\xff\xd8\xff"
_LOADERS = {
    b"\x89PNG": "pngload_buffer",
    _JPEG: "jpegload_buffer",
    b"II*\0": "tiffload_buffer",
    b"MM\0*": "tiffload_buffer",
    b"II+\0": "tiffload_buffer",
    b"MM\0+": "tiffload_buffer",
}
"""Of the formats that can be decoded in strips, by how their files begin."""
_COLOURS = ("srgb", "rgb16", "b-w", "grey16", "rgb")


@dataclass(frozen=True)
class Decoded:
    """An image of the size that was asked for.

    Attributes:
        image: (h, w, 3) uint8.
        shape: rows and columns of the upright image in the file.
        placement: where the part lies in it, if parts are aligned.
        notes: as ``ssray.data.decode.Photograph`` has them, and ``stretched`` if its aspect differs
            from that of the network's input.
    """

    image: UInt8Image
    shape: Shape
    placement: Placement | None = None
    notes: tuple[str, ...] = ()


def shape_of(content: bytes, decoding: Decoding | None = AS_PHOTOGRAPHED) -> Shape:
    """Returns the rows and columns that an image of any size has once it is decoded, from its
    header alone.

    Raises:
        ImageError: as ``decode_resized``.
    """
    try:
        return image_shape(content, decoding)
    except ImageError as error:
        if error.code != "too_large":
            raise
    image = _opened(content)
    return turned_shape((image.height, image.width), _orientation(image) if decoding else 1)


def decode_resized(
    content: bytes, shape: Shape, decoding: Decoding | None = AS_PHOTOGRAPHED
) -> Decoded:
    """Decodes an image of any size and resizes it.

    Args:
        content: the bytes of the file.
        shape: the rows and columns to resize to. For an image of more than
            ``ssray.data.headers.MAX_PIXELS`` they must not exceed its own.
        decoding: as for ``ssray.data.decode.decode_photograph``.

    Raises:
        ImageError: as ``decode_photograph`` and ``decode_large`` do.
    """
    try:
        photograph = decode_photograph(content, decoding, lambda _: shape)
    except ImageError as error:
        if error.code != "too_large":
            raise
        return decode_large(content, lambda _: shape, decoding)
    return Decoded(photograph.resized(shape), photograph.shape, notes=photograph.notes)


def decode_framed(content: bytes, framing: Framing) -> Decoded:
    """Decodes an image of any size and makes a network's input of it.

    Raises:
        ImageError: as ``decode_resized`` does, or with code ``part_not_found`` or ``shape``.
    """
    try:
        photograph = decode_photograph(content, framing.decoding, framing.least)
    except ImageError as error:
        if error.code != "too_large":
            raise
        return _framed_in_strips(content, framing)
    shape, notes = photograph.shape, photograph.notes
    if framing.alignment:
        image, placement = framing(photograph.pixels)
        return Decoded(image, shape, placement, notes)
    notes += stretch_note(framing, shape)
    return Decoded(framing.lit(photograph.resized(framing.shape)), shape, notes=notes)


def _framed_in_strips(content: bytes, framing: Framing) -> Decoded:
    """``decode_framed`` for an image that is too large to be decoded at once."""
    if framing.alignment is None:
        whole = decode_large(content, lambda shape: _fitting(shape, framing), framing.decoding)
        notes = whole.notes + stretch_note(framing, whole.shape)
        return Decoded(framing.lit(whole.image), whole.shape, notes=notes)
    smaller = decode_large(
        content, lambda shape: network_shape(*shape, LARGE_SIDE), framing.decoding
    )
    image, placement = framing(smaller.image)
    return Decoded(image, smaller.shape, placement, smaller.notes)


def _fitting(shape: Shape, framing: Framing) -> Shape:
    framing.stretch(shape)
    return framing.shape


def decode_large(
    content: bytes, wanted: Callable[[Shape], Shape], decoding: Decoding | None = AS_PHOTOGRAPHED
) -> Decoded:
    """Decodes and resizes a PNG, JPEG or TIFF of up to ``MAX_LARGE_PIXELS``, in strips.

    Grey and alpha are treated as by ``ssray.data.decode.decode_photograph``, and so is what lies on
    its side. Of 16 bits the upper 8 are taken if ``decoding`` does not say which are in use.

    Args:
        content: the bytes of the file.
        wanted: gives the rows and columns to resize to, each at most the image's own, for those
            that the upright image has.
        decoding: as for ``decode_photograph``.

    Raises:
        ImageError: with code ``too_large``, ``truncated``, ``unknown_format`` or
            ``unsupported_mode``, or as ``wanted`` does.
    """
    image = _opened(content)
    if image.format not in _FORMATS or image.interpretation not in _COLOURS:
        raise ImageError(
            "unsupported_mode", f"{image.interpretation} of {image.format}; expected grey or RGB"
        )
    turned = _orientation(image) if decoding else 1
    bits = (decoding and decoding.bits) or STORED_BITS
    shape = turned_shape((image.height, image.width), turned)
    rows, columns = turned_shape(wanted(shape), turned)
    if decoding and content.startswith(_JPEG):
        shrink = max(
            by
            for by in (1, 2, 4, 8)
            if by == 1 or (by * rows <= image.height and by * columns <= image.width)
        )
        image = pyvips.Image.jpegload_buffer(
            content, shrink=shrink, access="sequential", fail_on="truncated"
        )
    narrow = np.empty((image.height, columns, 3), np.uint8)
    height = max(1, _STRIP_PIXELS // image.width)
    region = pyvips.Region.new(image)
    try:
        for top in range(0, image.height, height):
            strip = _strip(image, region, top, min(height, image.height - top), bits)
            resized = Image.fromarray(strip).resize(
                (columns, strip.shape[0]), Image.Resampling.HAMMING
            )
            narrow[top : top + strip.shape[0]] = np.asarray(resized)
    except pyvips.Error as error:
        raise ImageError("truncated", f"the image data is damaged or cut short ({error})") from None
    whole = Image.fromarray(narrow).resize((columns, rows), Image.Resampling.HAMMING)
    return Decoded(np.asarray(upright(whole, turned)), shape)


def _opened(content: bytes) -> pyvips.Image:
    """Reads the header of a large image, and checks the size that it states."""
    loader = next((name for magic, name in _LOADERS.items() if content.startswith(magic)), None)
    if loader is None:
        raise ImageError(
            "unknown_format",
            "too large to decode at once, and no PNG, JPEG or TIFF to decode in strips",
        )
    try:
        image = getattr(pyvips.Image, loader)(content, access="sequential", fail_on="truncated")
    except pyvips.Error as error:
        raise ImageError("truncated", f"the image data is damaged or cut short ({error})") from None
    check_size(image.width, image.height, MAX_LARGE_PIXELS)
    if "interlaced" in image.get_fields():
        raise ImageError(
            "too_large",
            f"{image.width} x {image.height} pixels, interlaced or progressive, which can't be "
            f"decoded in strips; at most {MAX_PIXELS:,} are accepted",
        )
    return image


def _orientation(image: pyvips.Image) -> int:
    """The orientation that an image's file states, as EXIF numbers them.

    Of a TIFF without one libvips says 1.
    """
    fields = image.get_fields()
    stated = int(image.get("orientation")) if "orientation" in fields else None
    if "xmp-data" in fields and (stated is None or image.get("vips-loader").startswith("tiff")):
        return stated if stated and stated > 1 else orientation_in_xmp(image.get("xmp-data"))
    return stated or 1


def _strip(
    image: pyvips.Image, region: pyvips.Region, top: int, height: int, bits: int
) -> UInt8Image:
    """Decodes ``height`` rows of an image from row ``top`` on: (height, W, 3) uint8."""
    content = region.fetch(0, top, image.width, height)
    if image.format == "ushort":
        pixels = to_8_bits(np.frombuffer(content, np.uint16), bits)
    else:
        pixels = np.frombuffer(content, np.uint8)
    pixels = pixels.reshape(height, image.width, image.bands)
    colours = pixels[:, :, :1] if image.bands < 3 else pixels[:, :, :3]
    return np.ascontiguousarray(np.broadcast_to(colours, (height, image.width, 3)))


def stretch_note(framing: Framing, shape: Shape) -> tuple[str, ...]:
    """The note of a photograph whose aspect changes when it is resized.

    Raises:
        ImageError: as ``Framing.stretch``.
    """
    return ("stretched",) if framing.stretch(shape) > NOTED_STRETCH else ()
