"""Verdicts on photographs, as the Python API gives them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from ssray.config import Decoding
from ssray.scoring.heatmap import CONTOUR, overlay
from ssray.scoring.verdict import Verdict


def verdict(anomaly_map: np.ndarray, **changes: object) -> Verdict:
    values: dict[str, object] = {
        "score": 1.0,
        "p_value": 0.5,
        "flagged": False,
        "anomaly_map": anomaly_map.astype(np.float32),
        "pixel_threshold": 0.5,
        "shape": (100, 100),
    }
    return Verdict(**(values | changes))  # type: ignore[arg-type]


def test_boxes_are_in_pixels_of_the_photograph_and_the_largest_is_first() -> None:
    mask = np.zeros((10, 20))
    mask[1, 1] = 1
    mask[4:8, 10:16] = 1
    found = verdict(mask)
    assert found.boxes == [(50, 40, 30, 40), (5, 10, 5, 10)]
    assert found.defect_share == pytest.approx(25 / 200)
    assert verdict(np.zeros((4, 4)), shape=(8, 8)).boxes == []


def test_the_decision_is_a_word() -> None:
    assert verdict(np.zeros((4, 4))).decision == "passed"
    assert verdict(np.zeros((4, 4)), flagged=True).decision == "flagged"


def test_the_heatmap_has_the_photographs_size_and_an_outline() -> None:
    mask = np.zeros((10, 10))
    mask[4:6, 4:6] = 1
    photograph = np.full((100, 100, 3), 128, np.uint8)
    picture = np.asarray(verdict(mask, source=photograph).heatmap())
    assert picture.shape == (100, 100, 3)
    assert (picture == CONTOUR).all(axis=2).any()
    assert (picture[:20] == 128).all()


@pytest.mark.parametrize("decoding", [Decoding(), None])
def test_the_heatmap_is_drawn_over_what_the_model_saw(decoding: Decoding | None) -> None:
    """Models of earlier formats saw photographs without their EXIF orientation."""
    stored = np.repeat(np.arange(60, dtype=np.uint8)[:, None, None] + 90, 80, axis=1)
    stored = np.repeat(stored, 3, axis=2)
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x112] = 6
    Image.fromarray(stored).save(file, "PNG", exif=exif)
    seen = np.rot90(stored, -1) if decoding else stored
    anomaly_map = np.zeros((10, 10))
    anomaly_map[0, 0] = 1
    picture = verdict(
        anomaly_map, shape=seen.shape[:2], source=file.getvalue(), decoding=decoding
    ).heatmap()
    expected = overlay(seen, verdict(anomaly_map).levels)
    assert np.array_equal(np.asarray(picture), expected)


def test_a_verdict_without_its_photograph_says_so() -> None:
    with pytest.raises(ValueError, match="no photograph"):
        verdict(np.zeros((4, 4))).heatmap()
