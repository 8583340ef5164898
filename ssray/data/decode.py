"""Decodes image files into upright RGB uint8 arrays; what is refused gets a reason code.

A photograph of many megapixels is decoded no larger than a network needs it, where its format
allows that: a JPEG comes out at a half, a quarter or an eighth of its size for a fraction of the
time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyvips
from PIL import Image

from ssray.config import STRIDE, Decoding
from ssray.data.depth import (
    DEEP_MODES,
    STORED_BITS,
    DeepImage,
    deep_channels,
    deep_pixels,
    depth_of,
    is_deep,
    to_8_bits,
    unsigned,
)
from ssray.data.headers import opened, reason_codes
from ssray.data.orientation import Shape, orientation, turned_shape, upright, upright_shape
from ssray.errors import DataError, ImageError
from ssray.storage.archives import read_file

UInt8Image = npt.NDArray[np.uint8]

_FEW = (16, 16)
AS_PHOTOGRAPHED = Decoding()
"""Upright; the bits in use are those of each image by itself."""


@dataclass(frozen=True)
class Photograph:
    """A decoded image.

    Attributes:
        image: in Pillow's mode L or RGB, upright; smaller than in the file if that was allowed.
        shape: the rows and columns that the upright image has in the file.
        notes: what of the file was ignored or is remarkable: ``animated`` (only the first frame was
            taken), ``16_bit`` (8 of its bits were taken), ``above_range`` (some values exceed the
            bits in use), ``cmyk`` (inks were turned into colours without a colour profile),
            ``constant`` (all pixels are alike).
    """

    image: Image.Image
    shape: Shape
    notes: tuple[str, ...] = ()

    @property
    def pixels(self) -> UInt8Image:
        """(H, W, 3) uint8; grey values are repeated over three channels."""
        return _in_colour(self.image)

    def resized(self, shape: Shape) -> UInt8Image:
        """(*shape, 3) uint8, as ``resize`` makes it of ``pixels``."""
        rows, columns = shape
        if self.image.size == (columns, rows):
            return self.pixels
        return _in_colour(self.image.resize((columns, rows), Image.Resampling.HAMMING))


def decode_photograph(
    content: bytes,
    decoding: Decoding | None = AS_PHOTOGRAPHED,
    least: Callable[[Shape], Shape] | None = None,
) -> Photograph:
    """Decodes an image of one of ``FORMATS``.

    An alpha channel is dropped (not blended in), and of several frames the first is taken.

    Args:
        content: the bytes of the file.
        decoding: the model's; None leaves images as they lie in the file and takes the upper 8 of
            16 bits, as models of earlier versions do.
        least: gives the fewest rows and columns that are needed of an upright image with the rows
            and columns that it is called with; a JPEG may come out smaller, but not below these.
            None decodes every pixel.

    Raises:
        ImageError: with code ``empty``, ``unknown_format``, ``too_large``, ``truncated`` or
            ``unsupported_mode``.
    """
    with reason_codes():
        image = opened(content)
        notes = _left_out(image)
        deep = is_deep(image, content)
        turned = _turned(image, content, decoding)
        shape = upright_shape(image, turned)
        if deep:
            found, deep_notes = _of_8_bits(deep_pixels(image, content), decoding)
            notes += deep_notes
        else:
            if decoding and least and image.format in ("JPEG", "MPO"):
                rows, columns = turned_shape(least(shape), turned)
                image.draft(image.mode, (columns, rows))
            found = _grey_or_colour(image, content)
        found = upright(found, turned)
        if _is_constant(found):
            notes += ("constant",)
        return Photograph(found, shape, notes)


def decode_image(content: bytes, decoding: Decoding | None = AS_PHOTOGRAPHED) -> UInt8Image:
    """Decodes every pixel of an image: (H, W, 3) uint8, upright.

    Raises:
        ImageError: as ``decode_photograph``.
    """
    return decode_photograph(content, decoding).pixels


def image_shape(content: bytes, decoding: Decoding | None = AS_PHOTOGRAPHED) -> Shape:
    """Returns the rows and columns that an image has once it is decoded, from its header alone.

    Raises:
        ImageError: as ``decode_photograph``.
    """
    with reason_codes():
        image = opened(content)
        return upright_shape(image, _turned(image, content, decoding))


def bits_in_use(content: bytes) -> int | None:
    """The bits in use of an image of more than 8 bits; None for others.

    Raises:
        ImageError: as ``decode_photograph``.
    """
    with reason_codes():
        image = opened(content)
        return depth_of(int(deep_pixels(image, content).max())) if is_deep(image, content) else None


def _turned(image: Image.Image, content: bytes, decoding: Decoding | None) -> int:
    """The orientation by which a decoded image is turned; 1 leaves it as it is."""
    if decoding is None and image.format != "TIFF":
        return 1
    by_pillow = image.mode in DEEP_MODES or not is_deep(image, content)
    return orientation(image, content, by_pillow)


def _left_out(image: Image.Image) -> tuple[str, ...]:
    """Notes of an image whose pixels are not decoded yet."""
    if image.format != "MPO" and _is_animated(image):
        return ("animated",)
    return ("cmyk",) if image.mode == "CMYK" else ()


def _of_8_bits(pixels: DeepImage, decoding: Decoding | None) -> tuple[Image.Image, tuple[str, ...]]:
    """An image of more than 8 bits in Pillow's mode L or RGB, with notes."""
    highest = int(pixels.max())
    bits = (decoding.bits or depth_of(highest)) if decoding else STORED_BITS
    if decoding is None and highest >= 2**STORED_BITS:
        raise ImageError("unsupported_mode", "integer pixels outside the 16 bits accepted")
    notes = ("16_bit", "above_range") if highest >= 2**bits else ("16_bit",)
    return Image.fromarray(to_8_bits(pixels, bits)), notes


def _grey_or_colour(image: Image.Image, content: bytes) -> Image.Image:
    """The pixels of an opened image of 8 bits, in Pillow's mode L or RGB."""
    if image.format == "PNG" and image.mode in ("RGB", "RGBA") and not _is_animated(image):
        return _colours_of_png(content)
    image.load()
    return grey_or_colour(image)


def _colours_of_png(content: bytes) -> Image.Image:
    """A PNG's colours, by libvips, which takes three quarters of Pillow's time."""
    try:
        opened = pyvips.Image.pngload_buffer(content, access="sequential", fail_on="truncated")
        return Image.fromarray(np.ascontiguousarray(opened.numpy()[:, :, :3]))
    except pyvips.Error as error:
        raise ImageError("truncated", f"the image data is damaged or cut short ({error})") from None


def grey_or_colour(image: Image.Image) -> Image.Image:
    """An image of 8 bits in Pillow's mode L or RGB, without its alpha channel.

    Raises:
        ImageError: with code ``unsupported_mode``.
    """
    if image.mode in ("L", "RGB"):
        return image
    if image.mode in ("1", "LA"):
        return image.convert("LA").getchannel("L") if image.mode == "LA" else image.convert("L")
    if image.mode == "F":
        raise ImageError("unsupported_mode", "floating-point pixels; expected 8 to 32 bits")
    if image.has_transparency_data:
        return Image.merge("RGB", image.convert("RGBA").split()[:3])
    return image.convert("RGB")


def _is_animated(image: Image.Image) -> bool:
    return bool(getattr(image, "is_animated", False))


def _in_colour(image: Image.Image) -> UInt8Image:
    """(H, W, 3) uint8 of an image in Pillow's mode L or RGB."""
    pixels = np.asarray(image)
    return np.repeat(pixels[:, :, np.newaxis], 3, axis=2) if pixels.ndim == 2 else pixels


def _is_constant(image: Image.Image) -> bool:
    """Whether all pixels are alike: a few are looked at first, which mostly settles it."""
    few = image.resize(_FEW, Image.Resampling.NEAREST)
    return all(_is_alike(each) for each in (few, image))


def _is_alike(image: Image.Image) -> bool:
    extrema = image.getextrema()
    ranges = extrema if isinstance(extrema[0], tuple) else (extrema,)
    return all(low == high for low, high in ranges)


def to_rgb(image: Image.Image, decoding: Decoding | None = AS_PHOTOGRAPHED) -> UInt8Image:
    """The pixels of a Pillow image in colour, (H, W, 3) uint8, as ``decode_photograph`` makes them;
    it is taken to be upright.

    Raises:
        ImageError: with code ``unsupported_mode``.
    """
    if image.mode in DEEP_MODES:
        return _in_colour(_of_8_bits(unsigned(np.asarray(image)), decoding)[0])
    return _in_colour(grey_or_colour(image))


def decode_as_stored(content: bytes) -> Image.Image | DeepImage:
    """Decodes an image upright, and otherwise as its file has it: palette indices, bits and alpha.

    Returns:
        Of colours of more than 8 bits, for which Pillow has no mode, and of grey ones with alpha,
        (H, W, channels) uint16 with alpha last.

    Raises:
        ImageError: as ``decode_image`` does.
    """
    with reason_codes():
        image = opened(content)
        if image.mode in DEEP_MODES or not is_deep(image, content):
            turned = orientation(image, content, by_pillow=True)
            image.load()
            return upright(image, turned)
        turned = orientation(image, content, by_pillow=False)
        channels = np.atleast_3d(deep_channels(image, content))
        if channels.dtype != np.uint16:
            raise ImageError("unsupported_mode", "colours of more than 16 bits")
        planes = [Image.fromarray(plane) for plane in np.moveaxis(channels, 2, 0)]
        return np.dstack([np.asarray(upright(plane, turned)) for plane in planes])


def read_image(uri: str, decoding: Decoding | None = AS_PHOTOGRAPHED) -> UInt8Image:
    """Reads and decodes one image.

    Args:
        uri: the path or URI of a file, or ``ARCHIVE#MEMBER``.
        decoding: as for ``decode_photograph``.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ImageError: as ``decode_image`` does, or with code ``missing`` or ``unreadable`` if the
            file can't be read.
    """
    return decode_image(fetched(uri), decoding)


def network_shape(height: int, width: int, side: int) -> tuple[int, int]:
    """Returns the rows and columns that an image is resized to for the network.

    They have about as many pixels as a square of ``side``, so that long images lose no more detail
    than others. The aspect ratio is kept, but no side gets shorter than 8 pixels.

    >>> network_shape(1024, 1024, 256)
    (256, 256)
    >>> network_shape(450, 640, 256)
    (215, 305)
    """
    scale = side / math.sqrt(height * width)
    rows, columns = (max(STRIDE, round(side * scale)) for side in (height, width))
    return rows, columns


def resize(image: UInt8Image, shape: tuple[int, int]) -> UInt8Image:
    """Resizes a (H, W, 3) uint8 image to ``shape`` (rows, columns) with an antialiasing filter."""
    if image.shape[:2] == shape:
        return image
    rows, columns = shape
    resized = Image.fromarray(image).resize((columns, rows), Image.Resampling.HAMMING)
    return np.asarray(resized)


def fetched(uri: str) -> bytes:
    """The bytes of a file or an archive's member.

    Raises:
        ImageError: with code ``missing`` or ``unreadable``, or one that its archive gives.
    """
    try:
        return read_file(uri)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError("missing", f"{uri}: there is no such file") from None
    except (OSError, DataError) as error:
        raise ImageError("unreadable", f"{uri}: cannot be read. ({error})") from None
