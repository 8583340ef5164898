"""Mutated images, and what decodes them."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ssray.data.decode import decode_photograph
from ssray.data.large import decode_framed
from ssray.data.pose import Framing
from ssray.errors import ImageError
from tests.fuzz.harness import Input
from tests.fuzz.mutations import (
    EXTREMES,
    cut,
    flip_bits,
    mutated,
    repeat,
    set_number,
    splice,
    take_out,
)

SECONDS = 20.0
"""How long an image may take."""
MEMORY_BYTES = 2 * 1024**3
"""How much address space an image may take above what the imports took."""


def inputs(seed: int, count: int) -> Iterator[Input]:
    """Yields mutated images; the same for the same seed."""
    files = seeds()
    general = [flip_bits, set_number, cut, take_out, repeat, splice(list(files.values()))]
    names = sorted(files)
    for number in range(count):
        draw = random.Random(f"{seed} {number}")
        name = draw.choice(names)
        own = [set_chunk, set_chunk] if name.endswith(".png") else [set_number]
        yield Input(name, mutated(files[name], [*general, *own], draw))


def read(place: Path) -> str:
    """Decodes an image in both ways; returns the reason codes, if it was refused."""
    content = place.read_bytes()
    found = []
    try:
        image = decode_photograph(content).pixels
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
        found.append("decoded")
    except ImageError as error:
        found.append(error.code)
    try:
        decoded = decode_framed(content, Framing((40, 56)))
        assert decoded.image.shape == (40, 56, 3) and decoded.image.dtype == np.uint8
        found.append("framed")
    except ImageError as error:
        found.append(error.code)
    return " ".join(dict.fromkeys(found))


def seeds() -> dict[str, bytes]:
    """Small images in many formats and modes."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 4), dtype=np.uint8)
    noise[8:30] //= 16
    colour, grey = Image.fromarray(noise[..., :3]), Image.fromarray(noise[..., 0])
    deep = Image.fromarray(noise[..., 0].astype(np.uint16) * 250)
    exif = Image.Exif()
    exif[0x112] = 6
    found = {
        "rgb.png": saved(colour, "PNG"),
        "rgba.png": saved(Image.fromarray(noise), "PNG"),
        "grey.png": saved(grey, "PNG"),
        "deep.png": saved(deep, "PNG"),
        "palette.png": saved(colour.quantize(16), "PNG"),
        "bits.png": saved(grey.convert("1"), "PNG"),
        "text.png": saved(grey, "PNG", exif=exif, dpi=(300, 300)),
        "rgb.jpg": saved(colour, "JPEG", exif=exif),
        "grey.jpg": saved(grey, "JPEG", quality=30),
        "progressive.jpg": saved(colour, "JPEG", progressive=True),
        "cmyk.jpg": saved(colour.convert("CMYK"), "JPEG"),
        "rgb.bmp": saved(colour, "BMP"),
        "palette.bmp": saved(colour.quantize(16), "BMP"),
        "rgb.webp": saved(colour, "WEBP"),
        "lossless.webp": saved(Image.fromarray(noise), "WEBP", lossless=True),
        "still.gif": saved(grey, "GIF"),
        "moving.gif": saved(grey, "GIF", save_all=True, append_images=[colour.convert("L")]),
        "deep.tif": saved(deep, "TIFF"),
        "grey.pgm": saved(grey, "PPM"),
        "colour.jp2": saved(colour, "JPEG2000"),
    }
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        found[f"{compression}.tif"] = saved(colour, "TIFF", compression=compression)
    return found


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def set_chunk(content: bytearray, draw: random.Random) -> None:
    """Changes a PNG's chunk, makes its checksum right, and perhaps writes it twice."""
    places = []
    at = 8
    while at + 12 <= len(content):
        (size,) = struct.unpack_from(">I", content, at)
        places.append((at, size))
        at += 12 + size
    if not places:
        return
    at, size = draw.choice([places[0], draw.choice(places)])
    body = bytearray(content[at + 8 : at + 8 + size])
    if body and draw.random() < 0.5:
        where, width = draw.randrange(len(body)), draw.choice((1, 4))
        value = draw.choice(EXTREMES) % 256**width
        body[where : where + width] = value.to_bytes(width, "big")
    elif body:
        flip_bits(body, draw)
    kind = bytes(content[at + 4 : at + 8])
    if draw.random() < 0.1:
        kind = draw.choice((b"tRNS", b"PLTE", b"zTXt", b"iCCP", b"eXIf", b"acTL", b"fdAT", b"gAMA"))
    whole = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    content[at : at + 12 + size] = whole * draw.choice((1, 1, 1, 2, 20))
