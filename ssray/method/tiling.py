"""Reconstructing images that are too large for one pass, from tiles that overlap.

A network sees the border of a tile as it would see the border of an image: it pads. So tiles
overlap, what lies next to a border inside the image is thrown away, and from there one tile fades
into the next. Tiles begin at multiples of the network's stride, where pooling falls on the same
pixels as in one pass. What remains is that a tile's pixels know nothing of what lies beyond it; the
stacked dilated convolutions would look more than a thousand pixels far.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ssray.config import STRIDE


@dataclass(frozen=True)
class Tiling:
    """How large images are cut into tiles.

    Attributes:
        side: the side of a tile, pixels; images whose longer side is at most this are not cut.
        overlap: by how much neighbouring tiles overlap at least, pixels. The outer quarter of it is
            thrown away, over the rest they fade.
    """

    side: int = 1024
    overlap: int = 256

    def __post_init__(self) -> None:
        """Refuses tiles that can't cover an image.

        Raises:
            ValueError: if tiles do not move on by a stride at least.
        """
        if not 0 <= self.overlap <= self.side - STRIDE or self.side % STRIDE:
            raise ValueError(
                f"tiles of {self.side} pixels, a multiple of {STRIDE}, must overlap by less, found "
                f"{self.overlap}"
            )

    def spans(self, length: int) -> list[tuple[int, int]]:
        """Finds where tiles begin and end along a side of an image, pixels.

        >>> Tiling(side=64, overlap=16).spans(150)
        [(0, 64), (48, 112), (88, 150)]
        """
        if length <= self.side:
            return [(0, length)]
        step = self.side - self.overlap
        count = -(-(length - self.overlap) // step)
        last = -(-(length - self.side) // STRIDE) * STRIDE
        starts = [round(last * n / (count - 1) / STRIDE) * STRIDE for n in range(count)]
        return [(start, min(start + self.side, length)) for start in starts]


def in_tiles(reconstruct: Callable[[Tensor], Tensor], images: Tensor, tiling: Tiling) -> Tensor:
    """Puts a reconstruction together from those of tiles, one at a time.

    Args:
        reconstruct: what reconstructs (B, 3, h, w) images, to the same shape.
        images: (B, 3, H, W) float in [0, 1].
        tiling: how to cut them.

    Returns:
        (B, 3, H, W) float32.
    """
    height, width = images.shape[-2:]
    rows, columns = tiling.spans(height), tiling.spans(width)
    if len(rows) == len(columns) == 1:
        return reconstruct(images)
    total = torch.zeros_like(images, dtype=torch.float32)
    weight = torch.zeros(height, width, device=images.device)
    for down, across in itertools.product(rows, columns):
        fade = _fade(down, height, tiling.overlap).view(-1, 1) * _fade(
            across, width, tiling.overlap
        )
        fade = fade.to(images.device)
        place = (..., slice(*down), slice(*across))
        total[place] += fade * reconstruct(images[place])
        weight[place] += fade
    return total / weight


def _fade(span: tuple[int, int], length: int, overlap: int) -> Tensor:
    """Weighs the pixels along a tile: 0 next to a border inside the image, 1 beyond the overlap."""
    start, end = span
    margin = overlap // 4
    places = torch.arange(start, end) + 0.5
    weights = torch.ones(end - start)
    for distance, inside in ((places - start, start > 0), (end - places, end < length)):
        if inside:
            weights *= ((distance - margin) / max(1, overlap - 2 * margin)).clamp(1e-6, 1)
    return weights
