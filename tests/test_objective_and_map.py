"""Equations (1) to (3) against calculations written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssray.config import AnomalyMap
from ssray.method.anomaly_map import anomaly_maps, difference_map, image_scores, smooth
from ssray.method.objective import reconstruction_objective


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_objective_is_equation_1(lam: float) -> None:
    rng = np.random.default_rng(0)
    x, f = rng.random((2, 3, 5, 4)), rng.random((2, 3, 5, 4))
    m = rng.random((2, 1, 5, 4))
    clean = corrupted = norm_clean = norm_corrupted = 0.0
    for b, c, i, j in np.ndindex(x.shape):
        weight = m[b, 0, i, j]
        clean += ((1 - weight) * (f[b, c, i, j] - x[b, c, i, j])) ** 2
        corrupted += (weight * (f[b, c, i, j] - x[b, c, i, j])) ** 2
        norm_clean += 1 - weight
        norm_corrupted += weight
    expected = (1 - lam) / norm_clean * clean + lam / norm_corrupted * corrupted
    found = reconstruction_objective(*(torch.from_numpy(a).float() for a in (f, x, m)), lam)
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_objective_with_nothing_or_everything_masked_is_finite(value: float) -> None:
    x = torch.rand(1, 3, 4, 4)
    loss = reconstruction_objective(x * 0, x, torch.full((1, 1, 4, 4), value), 0.5)
    assert float(loss) == pytest.approx(0.5 * float(x.square().mean()), rel=1e-4)


def test_difference_is_the_mean_square_over_channels() -> None:
    x, y = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    expected = ((x - y) ** 2).sum(1, keepdim=True) / 3
    torch.testing.assert_close(difference_map(x, y), expected)


@pytest.mark.parametrize(("kernel", "repeats"), [(1, 1), (3, 1), (5, 2), (7, 3)])
def test_smoothing_is_the_direct_mean_over_pixels_that_exist(kernel: int, repeats: int) -> None:
    maps = torch.rand(1, 1, 9, 11)
    expected = maps[0, 0].numpy().astype(np.float64)
    reach = kernel // 2
    for _ in range(repeats):
        step = np.empty_like(expected)
        for i, j in np.ndindex(expected.shape):
            rows = slice(max(i - reach, 0), i + reach + 1)
            columns = slice(max(j - reach, 0), j + reach + 1)
            step[i, j] = expected[rows, columns].mean()
        expected = step
    np.testing.assert_allclose(smooth(maps, kernel, repeats)[0, 0], expected, rtol=1e-5)


def test_no_repeats_leave_the_map() -> None:
    maps = torch.rand(1, 1, 8, 8)
    assert torch.equal(smooth(maps, 11, 0), maps)


def test_image_scores() -> None:
    maps = torch.arange(100.0).view(1, 1, 10, 10)
    assert image_scores(maps, "sum", 0.5) == 4950
    assert image_scores(maps, "max", 0.5) == 99
    assert image_scores(maps, "topk", 0.04) == pytest.approx(97.5)
    assert image_scores(maps, "topk", 1e-9) == 99


def test_anomaly_map_of_a_perfect_reconstruction_is_zero() -> None:
    x = torch.rand(1, 3, 16, 16)
    assert torch.equal(anomaly_maps(x, x, AnomalyMap()), torch.zeros(1, 1, 16, 16))
