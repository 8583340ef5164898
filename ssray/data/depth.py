"""Pixels of more than 8 bits: how many of the bits are in use, and how they become 8.

Cameras of 10 or 12 bits are often stored in files of 16, with their values at the lower end. Which
bits are in use is found over the training images and kept by the model, so that a dark image stays
dark.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyvips
from PIL import Image

from ssray.errors import ImageError

DEPTHS = (8, 10, 12, 14, 16, 24, 32)
"""The numbers of bits that cameras and their drivers use."""
DEEP_MODES = ("I;16", "I;16L", "I;16B", "I")
"""Pillow's modes of grey images of more than 8 bits."""
STORED_BITS = 16
"""How many bits models of earlier versions took for granted."""

DeepImage = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]

_BIT_DEPTH_OF_PNG = 24
"""The position of the bit depth in a PNG's header."""
_BITS_PER_SAMPLE = 258


def is_deep(image: Image.Image, content: bytes) -> bool:
    """Tells whether an image that Pillow has opened has more than 8 bits for a value.

    Pillow says so of grey images only.
    """
    if image.mode in DEEP_MODES:
        return True
    if image.format == "PNG":
        return content[_BIT_DEPTH_OF_PNG] == STORED_BITS
    if image.format != "TIFF" or image.mode == "F":
        return False
    bits: tuple[int, ...] = image.tag_v2.get(_BITS_PER_SAMPLE, (1,))  # type: ignore[attr-defined]
    return max(bits) > DEPTHS[0]


def deep_pixels(image: Image.Image, content: bytes) -> DeepImage:
    """The values of a deep image as they are stored, without an alpha channel.

    Args:
        image: as Pillow has opened it.
        content: the bytes of its file.

    Returns:
        (H, W) for grey and (H, W, 3) for colour, uint16 or uint32.

    Raises:
        ImageError: with code ``unsupported_mode`` or ``truncated``.
    """
    pixels = deep_channels(image, content)
    if pixels.ndim == 2:
        return pixels
    return pixels[:, :, 0] if pixels.shape[2] < 3 else pixels[:, :, :3]


def deep_channels(image: Image.Image, content: bytes) -> DeepImage:
    """The values of a deep image as they are stored, an alpha channel among them.

    Pillow decodes those in grey. Of colours it keeps 8 bits, so that libvips decodes these.

    Args:
        image: as Pillow has opened it.
        content: the bytes of its file.

    Returns:
        (H, W) for grey, otherwise (H, W, channels) with alpha last; uint16 or uint32.

    Raises:
        ImageError: with code ``unsupported_mode`` or ``truncated``.
    """
    if image.mode in DEEP_MODES:
        return unsigned(np.asarray(image))
    loader = "pngload_buffer" if image.format == "PNG" else "tiffload_buffer"
    try:
        opened = getattr(pyvips.Image, loader)(content, fail_on="truncated")
        if opened.interpretation == "cmyk":
            raise ImageError("unsupported_mode", "inks of more than 8 bits; expected grey or RGB")
        pixels = opened.numpy()
    except pyvips.Error as error:
        raise ImageError("truncated", f"the image data is damaged or cut short ({error})") from None
    return unsigned(pixels)


def unsigned(pixels: npt.NDArray[np.generic]) -> DeepImage:
    """Values as unsigned ones.

    Raises:
        ImageError: with code ``unsupported_mode`` if they are not whole or one is negative.
    """
    if pixels.dtype.kind not in "iu" or (pixels.dtype.kind == "i" and pixels.min() < 0):
        raise ImageError(
            "unsupported_mode",
            "pixels that are negative or no whole numbers; expected 8 to 32 bits",
        )
    if pixels.dtype.itemsize <= 2:
        return pixels.astype(np.uint16)
    return pixels.astype(np.uint32)


def depth_of(highest: int) -> int:
    """The bits in use of values up to ``highest``.

    >>> depth_of(200), depth_of(4095), depth_of(4096)
    (8, 12, 14)
    """
    return next(bits for bits in DEPTHS if highest < 2**bits)


def to_8_bits(pixels: DeepImage, bits: int) -> npt.NDArray[np.uint8]:
    """The upper 8 of the bits in use; values beyond these become 255."""
    return (pixels >> (bits - 8)).clip(0, 255).astype(np.uint8)
