"""Turns photographs upright, as their files say: by the EXIF orientation, or where there is none by
that of XMP, as Pillow's ``ImageOps.exif_transpose`` does.
"""

from __future__ import annotations

import contextlib
import re

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

_METADATA_OF_PNG = (b"eXIf", b"XML:com.adobe.xmp", b"Raw profile type exif")
"""What a PNG that states an orientation has somewhere in its file."""
_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def orientation(image: Image.Image, content: bytes, by_pillow: bool) -> int:
    """The orientation by which an image has to be turned once it is decoded, as EXIF numbers them.

    Pillow turns TIFFs itself.

    Args:
        image: as Pillow has opened it.
        content: the bytes of its file.
        by_pillow: whether it is Pillow that decodes it.
    """
    if image.format == "TIFF" and by_pillow:
        return 1
    if image.format == "PNG" and not any(each in content for each in _METADATA_OF_PNG):
        return 1
    return _stated(image)


def _stated(image: Image.Image) -> int:
    """The orientation that the file of an image states."""
    with contextlib.suppress(Exception):  # damaged metadata do no harm to the pixels
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    return 1


def orientation_in_xmp(packet: bytes) -> int:
    """The orientation that a packet of XMP states.

    >>> orientation_in_xmp(b'<rdf:Description tiff:Orientation="6"/>'), orientation_in_xmp(b"")
    (6, 1)
    """
    found = _XMP.search(packet)
    return int(found[1]) if found else 1


def upright_shape(image: Image.Image, turned: int) -> Shape:
    """The rows and columns of the image once it is turned; its pixels are not decoded yet."""
    shape = image.height, image.width
    if image.format != "TIFF":
        return turned_shape(shape, turned)
    told = image.tag_v2.get(ExifTags.Base.Orientation, 1)  # type: ignore[attr-defined]
    stored = turned_shape(shape, told)  # Pillow tells them turned by that tag, without XMP
    return turned_shape(stored, _stated(image))


def turned_shape(shape: Shape, turned: int) -> Shape:
    """Rows and columns of an image after it was turned by an EXIF orientation, or before that."""
    return (shape[1], shape[0]) if turned in LYING else shape


def upright(image: Image.Image, turned: int) -> Image.Image:
    """An image turned by an EXIF orientation; one that does not exist leaves it as it is."""
    return image.transpose(_UPRIGHT[turned]) if turned in _UPRIGHT else image
