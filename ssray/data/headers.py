"""What an image's file says before it is decoded, and whether it will be."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator

from PIL import Image, PngImagePlugin, UnidentifiedImageError

from ssray.errors import ImageError

FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""The formats that are read, whatever a file's name says."""
MAX_PIXELS = 100_000_000
"""The largest image that is decoded at once, in pixels; ``ssray.data.large`` has larger ones."""
MAX_SIDE = 100_000
"""The longest side of an image in pixels; longer ones are refused before they are decoded."""
MAX_SCANNED_PIXELS = 3_000_000_000
"""The most pixels of a JPEG times its scans: each scan of a progressive one goes over all."""

PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
"""Pillow refuses images with more than 1 MB of text, as some cameras write; now 64 MB in all."""

_START_OF_SCAN = re.compile(rb"\xff\xda\x00(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")
"""The marker, the length of what follows it, and the number of colours in the scan, 1 to 4."""


def opened(content: bytes) -> Image.Image:
    """Reads an image's header and checks the size that it states; its pixels are not decoded yet.

    Raises:
        ImageError: with code ``empty`` or ``too_large``; what Pillow raises is for
            ``reason_codes``.
    """
    if not content:
        raise ImageError("empty", "the file has no content")
    with warnings.catch_warnings():
        # MAX_PIXELS below is stricter than the limit that Pillow warns about.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    check_size(image.width, image.height, MAX_PIXELS)
    if image.format in ("JPEG", "MPO"):
        scans = len(_START_OF_SCAN.findall(content))
        if scans * image.width * image.height > MAX_SCANNED_PIXELS:
            raise ImageError(
                "too_large",
                f"{image.width} x {image.height} pixels in {scans:,} scans; at most "
                f"{MAX_SCANNED_PIXELS:,} pixels times scans are accepted",
            )
    return image


def check_size(width: int, height: int, most: int) -> None:
    """Checks the size that an image's header states.

    Raises:
        ImageError: with code ``too_large``.
    """
    if max(width, height) > MAX_SIDE:
        raise ImageError(
            "too_large", f"{width} x {height} pixels; sides up to {MAX_SIDE:,} are accepted"
        )
    if width * height > most:
        raise ImageError("too_large", f"{width} x {height} pixels; at most {most:,} are accepted")


@contextlib.contextmanager
def reason_codes() -> Iterator[None]:
    """Turns every exception of Pillow inside the block into an ``ImageError``."""
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", str(error)) from None
    except UnidentifiedImageError:
        raise ImageError("unknown_format", f"none of {', '.join(FORMATS)}") from None
    except MemoryError:
        raise
    except Exception as error:  # what Pillow's format plugins raise on damaged data is open-ended
        raise ImageError("truncated", f"the image data is damaged or cut short ({error})") from None
