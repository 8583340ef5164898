"""What test modules share that is no fixture."""

from __future__ import annotations

import os
import random
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

BUCKET = "factory"


TINY = (
    "image_size=64",
    "network.width=4",
    "schedule.crops=[0.5,1]",
    "schedule.batch=2",
    "schedule.holdout=0.1",
    "schedule.images=24",
    "anomaly_map.kernel=3",
    "anomaly_map.relative=false",
)
"""Settings with which the demo recipe trains in a second."""
TINY_FAMILY = (*TINY, "features.image_size=64", "features.memory_mib=0.02")
"""The same for the family, whose recipes have a second expert where the extra is installed."""


def write_images(images: torch.Tensor, folder: Path) -> list[str]:
    """Writes (N, H, W, 3) uint8 images as PNG files; returns their places, in order."""
    places = [str(folder / f"{number:02}.png") for number in range(len(images))]
    for image, place in zip(images, places, strict=True):
        Image.fromarray(image.numpy()).save(place)
    return places


@dataclass(frozen=True)
class Ended:
    """How a program ended: its exit code and what it wrote."""

    code: int
    out: str
    err: str


def breaking_off(
    begin: Callable[..., Iterator[Any]], at: int, failures: list[Exception]
) -> Callable[..., Iterator[Any]]:
    """Gives what ``begin`` gives; while there are failures it raises one before item ``at``."""

    def broken(*arguments: Any) -> Iterator[Any]:
        for number, item in enumerate(begin(*arguments)):
            if number == at and failures:
                raise failures.pop()
            yield item

    return broken


def large_png(side: int) -> bytes:
    """A colour PNG of so many pixels a side, a multiple of 80, written without holding them."""
    compressor = zlib.compressobj(1)
    row = b"\x00" + bytes(range(240)) * (side * 3 // 240)
    data = b"".join(compressor.compress(row) for _ in range(side)) + compressor.flush()

    def chunk(name: bytes, body: bytes) -> bytes:
        checked = name + body
        return struct.pack(">I", len(body)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now; SeaweedFS takes those 10000 above as well."""
    found: list[int] = []
    for port in random.Random(os.getpid()).sample(range(20100, 29000), 400):
        with socket.socket() as one, socket.socket() as other:
            try:
                one.bind(("127.0.0.1", port))
                other.bind(("127.0.0.1", port + 10000))
            except OSError:
                continue
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("no free ports")
