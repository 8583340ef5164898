"""Prepared images on their way through Ray's object store."""

from __future__ import annotations

import numpy as np

from ssray.cluster.prepared import packed, unpacked
from ssray.data.pose import Placement
from ssray.scoring.judge import Prepared


def test_an_image_comes_out_as_it_went_in() -> None:
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    image = Prepared(pixels, (20, 30), Placement(1.0, 2.0, 0.5), note="cmyk", size_bytes=7)
    found = unpacked(packed(image), (2, 3))
    assert found.image is not None
    np.testing.assert_array_equal(found.image, pixels)
    assert (found.shape, found.placement) == ((20, 30), Placement(1.0, 2.0, 0.5))
    assert (found.note, found.size_bytes, found.error) == ("cmyk", 7, None)


def test_pixels_are_left_out_where_the_model_can_not_be_used() -> None:
    assert unpacked(packed(Prepared(np.zeros((2, 3, 3), np.uint8))), (0, 0)).image is None
