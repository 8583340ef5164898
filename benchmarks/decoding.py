"""How long does an image take from the bytes of its file to a network's pixels?

    python benchmarks/decoding.py [--rounds 30]

CPU milliseconds a photograph, the medians of interleaved rounds, one thread: as ssray does, every
pixel by Pillow and then resized, and PNGs so by libvips. The photographs are generated.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable

import numpy as np
import pyvips
from PIL import Image

from ssray.data.decode import resize
from ssray.data.large import decode_framed
from ssray.data.pose import Framing

SIZES = {"2448 x 2048 px": (2048, 2448), "512 x 512 px": (512, 512)}
"""Rows and columns of the photographs, by what they are called."""
NETWORKS = (128, 256)
"""The sides of the squares that networks see."""


def photograph(rows: int, columns: int, grey: bool) -> Image.Image:
    """A generated photograph of some fine structure and noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:rows, :columns]
    level = 120 + 60 * np.sin(x / 9) * np.cos(y / 11) + rng.normal(0, 4, (rows, columns))
    pixels = np.stack([level, level * 0.9, level * 0.7], axis=2).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if grey else pixels)


def encoded(image: Image.Image, kind: str) -> bytes:
    """The bytes of its file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return buffer.getvalue()


def by_pillow(content: bytes, shape: tuple[int, int]) -> None:
    """Decodes every pixel, and then resizes."""
    resize(np.asarray(Image.open(io.BytesIO(content)).convert("RGB")), shape)


def by_libvips(content: bytes, shape: tuple[int, int]) -> None:
    """The same of a PNG."""
    pixels = pyvips.Image.pngload_buffer(content, access="sequential").numpy()
    resize(pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2), shape)


def milliseconds(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median CPU time of each way, in turn within each round."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            begun = time.process_time()
            way()
            spent[name].append(1000 * (time.process_time() - begun))
    return {name: float(np.median(found)) for name, found in spent.items()}


def main() -> None:
    """Prints a row for each kind of photograph and network."""
    parser = argparse.ArgumentParser(description="Times decoding.")
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    print("| photograph | network | ssray | Pillow | libvips |\n|---|---|---|---|---|")
    for name, (rows, columns) in SIZES.items():
        for kind in ("JPEG", "PNG"):
            for grey in (False, True):
                content = encoded(photograph(rows, columns, grey), kind)
                for side in NETWORKS:
                    shape = (round(side * rows / max(rows, columns)), side)
                    ways: dict[str, Callable[[], object]] = {
                        "ssray": lambda c=content, s=shape: decode_framed(c, Framing(s)),  # type: ignore[misc]
                        "Pillow": lambda c=content, s=shape: by_pillow(c, s),  # type: ignore[misc]
                    }
                    if kind == "PNG":
                        ways["libvips"] = lambda c=content, s=shape: by_libvips(c, s)  # type: ignore[misc]
                    took = milliseconds(ways, rounds)
                    cells = [
                        f"{took[way]:.1f}" if way in took else ""
                        for way in ("ssray", "Pillow", "libvips")
                    ]
                    what = f"{'grey' if grey else 'colour'} {kind}, {name}"
                    print(f"| {what} | {shape[1]} x {shape[0]} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
