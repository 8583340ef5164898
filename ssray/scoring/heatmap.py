"""Anomaly maps as 8-bit levels, and the pictures drawn from them.

A level is the square root of the anomaly value in units of the pixel threshold, times 128
and rounded up:

    level = min(255, ceil(128 * sqrt(map / threshold)))

Level 128 is the threshold, 64 a quarter of it and 255 about four times it or more. The
square root spends half of the levels below the threshold, where a linear scale would
spend a quarter; rounding up lets every value above the threshold, however close, land
above level 128 and no other, so the predicted mask survives the 8 bits exactly.
"""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from ssray.data.decode import UInt8Image

Mask = npt.NDArray[np.bool_]

THRESHOLD_LEVEL = 128

CONTOUR = (0, 229, 255)
TRUE_POSITIVE = (52, 211, 110)
FALSE_POSITIVE = (64, 140, 255)
FALSE_NEGATIVE = (248, 60, 70)

_ANCHORS = {  # inferno without its black end, which would hide the image
    0: (22, 11, 57),
    64: (87, 16, 110),
    128: (188, 55, 84),
    192: (249, 142, 9),
    255: (252, 255, 164),
}
HEAT: UInt8Image = np.stack(
    [
        np.interp(np.arange(256), list(_ANCHORS), channel)
        for channel in zip(*_ANCHORS.values(), strict=True)
    ],
    axis=1,
).astype(np.uint8)
"""(256, 3) uint8: the colour of each level; lightness rises with the level throughout."""

LONGEST_SIDE = 4096
"""Pixels of a picture's longer side; larger images are drawn smaller."""

_CLEAR_BELOW, _FULL_FROM, _FULL_OPACITY = 32, 192, 0.85
_FILL_OPACITY = 0.65
_DIMMED = 0.55


def encode_levels(anomaly_map: npt.NDArray[np.float32], threshold: float) -> UInt8Image:
    """Compands a map to 8 bits; see the head of this module.

    ``predicted_mask`` of the result equals ``anomaly_map > threshold`` for every float32.

    Args:
        anomaly_map: (H, W) float32, non-negative and finite.
        threshold: the pixel threshold, positive; rounded to float32, as numpy does with a
            Python float in the comparison above.

    Returns:
        (H, W) uint8.

    Raises:
        ValueError: if a value is negative, infinite or NaN, or the threshold is not positive
            and finite in float32.

    >>> encode_levels(np.array([[0.0, 0.5, 2.0, 2.001, 9.0]], np.float32), 2.0)
    array([[  0,  64, 128, 129, 255]], dtype=uint8)
    """
    if not np.isfinite(anomaly_map).all() or anomaly_map.min(initial=0) < 0:
        raise ValueError("anomaly maps must be finite and non-negative")
    with np.errstate(over="ignore"):
        limit = float(np.float32(threshold))
    if not 0 < limit < np.inf:
        raise ValueError(f"the threshold must be positive and finite, found {threshold}")
    # Two float32 differ by 2**-24 relatively or not at all; float64 keeps that over the root.
    ratio = anomaly_map.astype(np.float64) / limit
    levels: UInt8Image = np.minimum(np.ceil(THRESHOLD_LEVEL * np.sqrt(ratio)), 255).astype(np.uint8)
    return levels


def levels_to_png(levels: UInt8Image) -> bytes:
    """Levels, (H, W) uint8, as an 8-bit greyscale PNG."""
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "PNG")
    return buffer.getvalue()


def png_to_levels(content: bytes) -> UInt8Image:
    """The (H, W) uint8 levels that ``levels_to_png`` stored.

    Raises:
        ValueError: if the image is not 8-bit greyscale.
    """
    image = Image.open(io.BytesIO(content))
    if image.mode != "L":
        raise ValueError(f"levels are 8-bit greyscale, found an image of mode {image.mode}")
    return np.asarray(image)


def resize_levels(levels: UInt8Image, shape: tuple[int, int]) -> UInt8Image:
    """Resamples (h, w) uint8 levels bilinearly to ``shape`` (rows, columns)."""
    if levels.shape == shape:
        return levels
    rows, columns = shape
    resized = Image.fromarray(levels).resize((columns, rows), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def pictured_shape(shape: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the picture of an image: its own, or smaller ones of about its aspect.

    >>> pictured_shape((600, 800)), pictured_shape((8192, 4096))
    ((600, 800), (4096, 2048))
    """
    shrunk = min(1.0, LONGEST_SIDE / max(shape))
    return max(1, round(shrunk * shape[0])), max(1, round(shrunk * shape[1]))


def predicted_mask(levels: UInt8Image) -> Mask:
    """(H, W) bool: where the anomaly map exceeded the threshold."""
    mask: Mask = levels > THRESHOLD_LEVEL
    return mask


def overlay(image: UInt8Image, levels: UInt8Image) -> UInt8Image:
    """Heat colours over an image, with a contour around the predicted mask.

    Opacity rises with the level, so what is far below the threshold stays as it looks.

    Args:
        image: (H, W, 3) uint8.
        levels: (h, w) uint8, resized to the image.

    Returns:
        (H, W, 3) uint8.
    """
    levels = resize_levels(levels, image.shape[:2])
    ramp = np.clip((np.arange(256) - _CLEAR_BELOW) / (_FULL_FROM - _CLEAR_BELOW), 0, 1)
    opacity = (_FULL_OPACITY * ramp**2 * (3 - 2 * ramp)).astype(np.float32)
    picture = _blend(image, HEAT[levels], opacity[levels][:, :, np.newaxis])
    picture[contour(predicted_mask(levels))] = CONTOUR
    return picture


def outcome_picture(image: UInt8Image, predicted: Mask, truth: Mask) -> UInt8Image:
    """What was found and missed: hits green, false alarms blue, misses red.

    Args:
        image: (H, W, 3) uint8; shown grey and dimmed.
        predicted: (h, w) bool; resized to the image by nearest neighbour.
        truth: (H, W) bool, True = defective.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: if image and truth differ in shape.
    """
    if truth.shape != image.shape[:2]:
        raise ValueError(f"image {image.shape[:2]} and truth {truth.shape} differ in shape")
    if predicted.shape != truth.shape:
        rows, columns = truth.shape
        resized = Image.fromarray(predicted).resize((columns, rows), Image.Resampling.NEAREST)
        predicted = np.asarray(resized)
    grey = np.asarray(Image.fromarray(image).convert("L"))
    picture = np.repeat((grey * _DIMMED).astype(np.uint8)[:, :, np.newaxis], 3, axis=2)
    for region, colour in (
        (predicted & truth, TRUE_POSITIVE),
        (predicted & ~truth, FALSE_POSITIVE),
        (~predicted & truth, FALSE_NEGATIVE),
    ):
        picture[region] = _blend(picture[region], np.array(colour, np.uint8), _FILL_OPACITY)
    return picture


def mask_picture(predicted: Mask, truth: Mask | None) -> UInt8Image:
    """The truth in white on black, with a contour around the predicted mask.

    Args:
        predicted: (H, W) bool.
        truth: (H, W) bool, True = defective; None where unknown, which leaves the contour.

    Returns:
        (H, W, 3) uint8.
    """
    picture = np.zeros((*predicted.shape, 3), np.uint8)
    if truth is not None:
        picture[truth] = 255
    picture[contour(predicted)] = CONTOUR
    return picture


def contour(mask: Mask) -> Mask:
    """(H, W) bool: a line just outside ``mask``, 1/256 of the longer side in width."""
    width = max(1, round(max(mask.shape) / 256))
    grown = ndimage.maximum_filter(mask, 2 * width + 1, mode="constant")
    line: Mask = grown & ~mask
    return line


def _blend(
    below: UInt8Image, above: UInt8Image, opacity: float | npt.NDArray[np.float32]
) -> UInt8Image:
    mixed = below.astype(np.float32) * (1 - opacity) + above.astype(np.float32) * opacity
    return np.rint(mixed).astype(np.uint8)
