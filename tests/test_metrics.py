"""AUROC against scikit-learn, and the properties of the pixel counts."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ssray.metrics.auroc import PixelCounts, image_auroc, roc_points


def heavy_tailed(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    mask = rng.random((64, 64)) < 0.05
    return (rng.pareto(1.5, (64, 64)) * (1 + mask) * 1e-3).astype(np.float32), mask


def many_ties(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    mask = rng.random((64, 64)) < 0.3
    return (rng.integers(0, 4, (64, 64)) + mask).astype(np.float32), mask


def denormal(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    mask = rng.random((64, 64)) < 0.3
    return (rng.random((64, 64)) * 1e-38 * (1 + 9 * mask)).astype(np.float32), mask


@pytest.mark.parametrize("make", [heavy_tailed, many_ties, denormal])
def test_pixel_auroc_is_scikit_learns(make) -> None:
    values, mask = make(np.random.default_rng(0))
    found = PixelCounts.of(values, mask).auroc()
    assert found == pytest.approx(roc_auc_score(mask.ravel(), values.ravel()), abs=1e-4)


def test_a_constant_map_scores_one_half() -> None:
    mask = np.eye(8, dtype=bool)
    assert PixelCounts.of(np.zeros((8, 8), np.float32), mask).auroc() == 0.5


def test_merging_equals_one_pass_in_any_order() -> None:
    rng = np.random.default_rng(1)
    maps = [heavy_tailed(rng) for _ in range(6)]
    counts = [PixelCounts.of(*m) for m in maps]
    forward, backward = PixelCounts.zero(), PixelCounts.zero()
    for count in counts:
        forward += count
    for count in reversed(counts):
        backward += count
    whole = PixelCounts.of(np.vstack([m for m, _ in maps]), np.vstack([t for _, t in maps]))
    for merged in (forward, backward):
        np.testing.assert_array_equal(merged.good, whole.good)
        np.testing.assert_array_equal(merged.defect, whole.defect)


def test_counts_survive_storage_and_are_small() -> None:
    counts = PixelCounts.of(*heavy_tailed(np.random.default_rng(2)))
    stored = counts.to_bytes()
    restored = PixelCounts.from_bytes(stored)
    np.testing.assert_array_equal(restored.good, counts.good)
    np.testing.assert_array_equal(restored.defect, counts.defect)
    assert len(stored) < 50_000


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_impossible_values_are_refused(bad: float) -> None:
    values = np.zeros((4, 4), np.float32)
    values[1, 2] = bad
    with pytest.raises(ValueError, match="finite and non-negative"):
        PixelCounts.of(values, np.zeros((4, 4), bool))


def test_negative_zero_counts_as_zero() -> None:
    values = np.array([[-0.0, 0.0]], np.float32)
    assert PixelCounts.of(values, np.array([[True, False]])).auroc() == 0.5


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        PixelCounts.of(np.zeros((4, 4), np.float32), np.zeros((4, 5), bool))


def test_one_class_has_no_auroc() -> None:
    assert np.isnan(image_auroc(np.zeros(3, int), np.arange(3.0)))
    assert np.isnan(PixelCounts.zero().auroc())
    assert roc_points(np.ones(3, int), np.arange(3.0))[0].size == 0


def test_roc_points_enclose_the_auroc() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 50)
    scores = rng.normal(size=50) + labels
    false_positive, true_positive = roc_points(labels, scores)
    area = np.trapezoid(true_positive, false_positive)
    assert area == pytest.approx(image_auroc(labels, scores))
