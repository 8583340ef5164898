"""Decodes image files into RGB uint8 arrays; an image that is refused gets a reason code."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from ssray.config import STRIDE
from ssray.errors import DataError, ImageError
from ssray.storage.archives import read_file

MAX_PIXELS = 100_000_000
"""The largest image, in pixels; larger ones are refused before they are decoded."""

UInt8Image = npt.NDArray[np.uint8]

_DEEP_MODES = ("I;16", "I;16L", "I;16B", "I")


def decode_image(content: bytes) -> UInt8Image:
    """Decodes an image of any format that Pillow reads into RGB.

    Grey values are repeated over three channels, an alpha channel is dropped (not blended in), of
    16 bits the upper 8 are kept, and of several frames the first.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ImageError: with code ``empty``, ``unknown_format``, ``too_large``, ``truncated`` or
            ``unsupported_mode``.
    """
    return decode_noted(content)[0]


def decode_noted(content: bytes) -> tuple[UInt8Image, str | None]:
    """Decodes as ``decode_image`` does, and names what of the file was ignored.

    Returns:
        The (H, W, 3) uint8 image, and a note: ``animated`` (only the first frame was taken),
        ``16_bit`` (only the upper 8 bits were taken), ``cmyk`` (inks were turned into colours
        without a colour profile), or None.

    Raises:
        ImageError: as ``decode_image`` does.
    """
    with _reason_codes():
        image = _opened(content)
        note = _left_out(image)
        image.load()
        return to_rgb(image), note


def _left_out(image: Image.Image) -> str | None:
    """Returns the note of ``decode_noted`` for an image whose pixels are not decoded yet."""
    if getattr(image, "is_animated", False):
        return "animated"
    if image.mode in _DEEP_MODES:
        return "16_bit"
    return "cmyk" if image.mode == "CMYK" else None


def image_shape(content: bytes) -> tuple[int, int]:
    """Returns the rows and columns of an image from its header alone.

    Raises:
        ImageError: as ``decode_image`` does.
    """
    with _reason_codes():
        image = _opened(content)
        return image.height, image.width


def _opened(content: bytes) -> Image.Image:
    """Reads an image's header and checks the size that it states."""
    if not content:
        raise ImageError("empty", "the file has no content")
    with warnings.catch_warnings():
        # MAX_PIXELS below is stricter than the limit that Pillow warns about.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(io.BytesIO(content))
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(
            "too_large",
            f"{image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are accepted",
        )
    return image


@contextlib.contextmanager
def _reason_codes() -> Iterator[None]:
    """Turns every exception of Pillow inside the block into an ``ImageError``."""
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", str(error)) from None
    except UnidentifiedImageError:
        raise ImageError("unknown_format", "not an image format that Pillow reads") from None
    except MemoryError:
        raise
    except Exception as error:  # what Pillow's format plugins raise on damaged data is open-ended
        raise ImageError("truncated", f"the image data is damaged or cut short ({error})") from None


def decode_mask(content: bytes) -> npt.NDArray[np.bool_]:
    """Decodes a ground-truth mask: a pixel is defective if its value is above 127 of 255.

    Returns:
        (H, W) bool, True where the image is defective.

    Raises:
        ImageError: as ``decode_image`` does.
    """
    mask: npt.NDArray[np.bool_] = decode_image(content).max(axis=2) > 127
    return mask


def read_image(uri: str) -> UInt8Image:
    """Reads and decodes one image.

    Args:
        uri: the path or URI of a file, or ``ARCHIVE#MEMBER``.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ImageError: as ``decode_image`` does, or with code ``unreadable`` if the file can't be read.
    """
    return decode_image(_fetch(uri))


def read_image_shape(uri: str) -> tuple[int, int]:
    """Reads one image file and returns the image's rows and columns; decodes only its header.

    Raises:
        ImageError: as ``read_image`` does.
    """
    return image_shape(_fetch(uri))


def read_mask(uri: str) -> npt.NDArray[np.bool_]:
    """Reads and decodes one mask, (H, W) bool, True where the image is defective.

    Raises:
        ImageError: as ``read_image`` does.
    """
    return decode_mask(_fetch(uri))


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


def _fetch(uri: str) -> bytes:
    try:
        return read_file(uri)
    except (OSError, DataError) as error:
        raise ImageError("unreadable", f"{uri}: cannot be read. ({error})") from None


def to_rgb(image: Image.Image) -> UInt8Image:
    """The pixels of a Pillow image in colour, (H, W, 3) uint8, as ``decode_image`` makes them.

    Raises:
        ImageError: with code ``unsupported_mode``.
    """
    if image.mode in _DEEP_MODES:
        deep = np.asarray(image)
        if deep.min() < 0 or deep.max() > 65535:
            raise ImageError("unsupported_mode", "integer pixels outside the 16 bits accepted")
        grey = (deep.astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, np.newaxis], 3, axis=2)
    if image.mode == "F":
        raise ImageError("unsupported_mode", "floating-point pixels; expected 8 or 16 bits")
    if image.has_transparency_data:
        return np.ascontiguousarray(np.asarray(image.convert("RGBA"))[:, :, :3])
    return np.asarray(image.convert("RGB"))
