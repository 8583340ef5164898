"""Turns photographs upright, as the EXIF orientation in their files says."""

from __future__ import annotations

import contextlib

from PIL import ExifTags, Image

Shape = tuple[int, int]
"""Rows and columns."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings an image of each EXIF orientation upright."""
LYING = (5, 6, 7, 8)
"""The EXIF orientations of an image that lies on its side."""


def orientation(image: Image.Image, content: bytes, by_pillow: bool) -> int:
    """The EXIF orientation by which an image has to be turned once it is decoded.

    Pillow turns TIFFs itself.

    Args:
        image: as Pillow has opened it.
        content: the bytes of its file.
        by_pillow: whether it is Pillow that decodes it.
    """
    if image.format == "TIFF":
        return 1 if by_pillow else int(image.tag_v2.get(ExifTags.Base.Orientation, 1))  # type: ignore[attr-defined]
    if image.format == "PNG" and b"eXIf" not in content:
        return 1
    with contextlib.suppress(Exception):  # damaged metadata do no harm to the pixels
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    return 1


def upright_shape(image: Image.Image, turned: int) -> Shape:
    """The rows and columns of the image once it is turned; of a TIFF, Pillow tells them so."""
    shape = image.height, image.width
    return shape if image.format == "TIFF" else turned_shape(shape, turned)


def turned_shape(shape: Shape, turned: int) -> Shape:
    """Rows and columns of an image after it was turned by an EXIF orientation, or before that."""
    return (shape[1], shape[0]) if turned in LYING else shape


def upright(image: Image.Image, turned: int) -> Image.Image:
    """An image turned by an EXIF orientation; one that does not exist leaves it as it is."""
    return image.transpose(_UPRIGHT[turned]) if turned in _UPRIGHT else image
