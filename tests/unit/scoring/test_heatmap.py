"""Levels keep the threshold exactly; pictures show what they claim."""

import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from ssray.scoring import heatmap

THRESHOLDS = [1.0, 0.1, 3e-7, 0.012345678901234567, 7.0e5, 1e-42, 3e38]


def around(threshold: float, seed: int) -> npt.NDArray[np.float32]:
    """(1, W) float32: zero, the 200 neighbours on either side of the threshold, and others."""
    limit = np.float32(threshold)
    bits = limit.view(np.uint32).astype(np.int64) + np.arange(-200, 201)
    neighbours = bits[bits >= 0].astype(np.uint32).view(np.float32)
    factors = np.random.default_rng(seed).lognormal(0, 2, 20_000)
    with np.errstate(over="ignore"):
        others = (np.float64(limit) * factors).astype(np.float32)
    values = np.concatenate([np.zeros(1, np.float32), neighbours, others])
    finite: npt.NDArray[np.float32] = values[np.isfinite(values)]
    return finite[np.newaxis]


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_predicted_mask_equals_the_comparison_for_every_float32(threshold: float) -> None:
    values = around(threshold, seed=1)
    levels = heatmap.encode_levels(values, threshold)
    assert levels.dtype == np.uint8
    np.testing.assert_array_equal(heatmap.predicted_mask(levels), values > threshold)


def test_random_thresholds_and_their_neighbours() -> None:
    thresholds = np.random.default_rng(2).lognormal(-3, 4, 3000).astype(np.float32)
    for threshold in thresholds:
        trio = np.array(
            [[np.nextafter(threshold, np.float32(0)), threshold, np.nextafter(threshold, np.inf)]],
            dtype=np.float32,
        )
        mask = heatmap.predicted_mask(heatmap.encode_levels(trio, float(threshold)))
        assert mask.tolist() == [[False, False, True]]


def test_levels_follow_the_documented_scale_and_never_fall() -> None:
    values = np.array([[0, 0.25, 1, 2.25, 3.93, 4, 1e30]], np.float32) * np.float32(0.5)
    assert heatmap.encode_levels(values, 0.5).tolist() == [[0, 64, 128, 192, 254, 255, 255]]
    ordered = np.sort(around(0.1, seed=3))
    assert (np.diff(heatmap.encode_levels(ordered, 0.1).astype(int)) >= 0).all()


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_maps_must_be_finite_and_non_negative(value: float) -> None:
    with pytest.raises(ValueError, match="non-negative"):
        heatmap.encode_levels(np.array([[value]], np.float32), 1.0)


@pytest.mark.parametrize("threshold", [0.0, -1.0, np.nan, np.inf, 1e-60, 1e60])
def test_thresholds_must_be_positive_and_finite(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold"):
        heatmap.encode_levels(np.ones((1, 1), np.float32), threshold)


def test_png_round_trip() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(8, 32)
    content = heatmap.levels_to_png(levels)
    assert Image.open(io.BytesIO(content)).format == "PNG"
    restored = heatmap.png_to_levels(content)
    assert restored.dtype == np.uint8
    np.testing.assert_array_equal(restored, levels)


def test_png_in_colour_is_refused() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "PNG")
    with pytest.raises(ValueError, match="RGB"):
        heatmap.png_to_levels(buffer.getvalue())


def photo(shape: tuple[int, int] = (48, 64)) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(4).integers(0, 256, (*shape, 3), dtype=np.uint8)


def test_overlay_leaves_normal_regions_and_colours_anomalous_ones() -> None:
    image = photo()
    levels = np.full(image.shape[:2], 30, np.uint8)
    levels[:, 40:] = 230
    picture = heatmap.overlay(image, levels)
    assert picture.shape == image.shape and picture.dtype == np.uint8
    np.testing.assert_array_equal(picture[:, :39], image[:, :39])
    distance_to_heat = np.abs(picture[:, 40:].astype(int) - heatmap.HEAT[230])
    assert distance_to_heat.max() <= 0.16 * 255
    assert (picture[:, 39] == heatmap.CONTOUR).all()


def test_overlay_changes_an_image_more_the_higher_the_level() -> None:
    image = np.full((4, 4, 3), 200, np.uint8)
    opacities = []
    for level in range(0, 129, 8):
        picture = heatmap.overlay(image, np.full((4, 4), level, np.uint8)).astype(float)
        opacities.append(((200 - picture) / (200 - heatmap.HEAT[level].astype(float))).mean())
    assert (np.diff(opacities) >= -1e-3).all()
    assert opacities[8] < 0.15 < 0.4 < opacities[16]


def test_heat_colours_grow_lighter_throughout() -> None:
    lightness = heatmap.HEAT @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness) >= -0.5).all()
    assert lightness[255] - lightness[0] > 200


def test_overlay_resizes_levels_to_the_image() -> None:
    image = photo((40, 60))
    levels = np.zeros((8, 12), np.uint8)
    levels[2:6, 4:8] = 255
    changed = (heatmap.overlay(image, levels) != image).any(axis=2)
    assert changed[20, 30]
    assert not changed[:, :10].any() and not changed[:, 50:].any()


def test_contour_lies_just_outside_and_skips_the_border() -> None:
    mask = np.zeros((9, 9), bool)
    mask[0:3, 3:6] = True
    line = heatmap.contour(mask)
    expected = np.zeros_like(mask)
    expected[0:4, 2:7] = True
    np.testing.assert_array_equal(line, expected & ~mask)
    assert not heatmap.contour(np.zeros((9, 9), bool)).any()
    assert not heatmap.contour(np.ones((9, 9), bool)).any()


def test_outcome_colours_by_class_of_pixel() -> None:
    image = np.full((2, 2, 3), 120, np.uint8)
    predicted = np.array([[True, True], [False, False]])
    truth = np.array([[True, False], [True, False]])
    hit, alarm, miss, normal = (
        heatmap.outcome_picture(image, predicted, truth).reshape(4, 3).astype(int)
    )
    assert hit.argmax() == 1 and alarm.argmax() == 2 and miss.argmax() == 0
    for colour in (hit, alarm, miss):
        assert np.ptp(colour) > 60
    assert np.ptp(normal) == 0 and normal[0] < 120


def test_outcome_resizes_the_prediction_by_nearest_neighbour() -> None:
    image = np.full((8, 8, 3), 100, np.uint8)
    predicted = np.array([[True, False], [False, False]])
    picture = heatmap.outcome_picture(image, predicted, np.zeros((8, 8), bool))
    alarm = picture[:, :, 2] > picture[:, :, 0]
    expected = np.zeros((8, 8), bool)
    expected[:4, :4] = True
    np.testing.assert_array_equal(alarm, expected)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 2


def test_outcome_refuses_a_truth_of_another_shape() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        heatmap.outcome_picture(photo((8, 8)), np.zeros((8, 8), bool), np.zeros((8, 9), bool))


def test_mask_picture_shows_truth_and_prediction() -> None:
    predicted = np.zeros((9, 9), bool)
    predicted[4, 4] = True
    truth = np.zeros((9, 9), bool)
    truth[4, 4] = True
    picture = heatmap.mask_picture(predicted, truth)
    assert picture[4, 4].tolist() == [255] * 3
    assert picture[3, 4].tolist() == list(heatmap.CONTOUR)
    assert picture[0, 0].tolist() == [0] * 3
    assert heatmap.mask_picture(predicted, None)[4, 4].tolist() == [0] * 3
