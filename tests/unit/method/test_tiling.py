"""Reconstructions in tiles: what is local comes out as in one pass, and no seam shows."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssray.config import STRIDE, Network
from ssray.method.autoencoder import Autoencoder
from ssray.method.inference import reconstruct
from ssray.method.tiling import Tiling, in_tiles

RADIUS = 3


def blurred(images: Tensor) -> Tensor:
    """Each pixel depends on those within ``RADIUS``; what lies outside counts as black."""
    return F.avg_pool2d(images, 2 * RADIUS + 1, stride=1, padding=RADIUS)


@given(st.integers(1, 400), st.integers(3, 12), st.integers(0, 7))
@settings(max_examples=200, deadline=None)
def test_tiles_cover_a_side_and_overlap_enough(length: int, side: int, overlap: int) -> None:
    tiling = Tiling(side * STRIDE, min(overlap, side - 1) * STRIDE)
    spans = tiling.spans(length)
    assert spans[0][0] == 0
    assert spans[-1][1] == length
    assert all(start % STRIDE == 0 and end - start <= tiling.side for start, end in spans)
    for (_, end), (start, _) in itertools.pairwise(spans):
        assert end - start >= tiling.overlap


@pytest.mark.parametrize("shape", [(64, 64), (65, 300), (200, 64), (131, 257)])
def test_what_is_local_is_the_same_as_in_one_pass(shape: tuple[int, int]) -> None:
    images = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    tiled = in_tiles(blurred, images, Tiling(64, 4 * (RADIUS + 1)))
    assert torch.allclose(tiled, blurred(images), atol=1e-5)


def test_tiles_that_do_not_overlap_show_their_seams() -> None:
    images = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    tiled = in_tiles(blurred, images, Tiling(64, 0))
    off = (tiled - blurred(images)).abs().amax(dim=(0, 1, 2))
    assert off[64 - RADIUS : 64 + RADIUS].min() > 0.1


def test_no_tile_is_larger_than_asked_for() -> None:
    seen = []

    def remember(images: Tensor) -> Tensor:
        seen.append(tuple(images.shape[-2:]))
        return images

    images = torch.rand(1, 3, 500, 100)
    assert torch.allclose(in_tiles(remember, images, Tiling(128, 32)), images, atol=1e-6)
    assert max(map(max, seen)) <= 128
    assert len(seen) == 5


def test_a_network_sees_small_images_whole() -> None:
    network = Autoencoder(Network(width=2)).eval()
    image = torch.rand(1, 3, 40, 56)
    with torch.no_grad():
        assert torch.equal(reconstruct(network, image, torch.float32), network(image))


def test_tilings_that_cover_nothing_are_refused() -> None:
    for side, overlap in ((64, 64), (60, 8), (64, -1)):
        with pytest.raises(ValueError, match="must overlap by less"):
            Tiling(side, overlap)
