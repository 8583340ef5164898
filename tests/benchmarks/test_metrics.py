"""Exactness and cost of the metrics on many pixels, beside sorting and beside binning."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score
from torchmetrics import Metric
from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision

from ssray.metrics.pixels import PixelCounts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SIDE = 1024
MAPS = 83
Maps = list[npt.NDArray[np.float32]]
Masks = list[npt.NDArray[np.bool_]]
Figures = dict[str, float]


def defective_maps(count: int, seed: int = 0) -> tuple[Maps, Masks]:
    """Smooth maps as a network makes them; three in four have a few defects that stand out."""
    rng = np.random.default_rng(seed)
    maps, masks = [], []
    for number in range(count):
        mask = np.zeros((SIDE, SIDE), bool)
        for _ in range(rng.integers(1, 5) if number % 4 else 0):
            row, column = rng.integers(0, SIDE, 2)
            height, width = rng.integers(8, 128, 2)
            mask[row : row + height, column : column + width] = True
        noise = np.exp(ndimage.uniform_filter(rng.normal(size=(SIDE, SIDE)), 11) * 11 - 2)
        maps.append((noise * (1 + 3 * ndimage.uniform_filter(mask * 1.0, 21))).astype(np.float32))
        masks.append(mask)
    return maps, masks


def counted(maps: Maps, masks: Masks) -> Figures:
    counts = PixelCounts()
    for values, mask in zip(maps, masks, strict=True):
        counts.add(values, mask)
    return counts.metrics().values


def sorted_out(maps: Maps, masks: Masks) -> Figures:
    """scikit-learn's figures, and AU-PRO from one sort of all pixels."""
    values = np.concatenate([each.ravel() for each in maps])
    truth = np.concatenate([each.ravel() for each in masks])
    figures = {
        "pixel_auroc": float(roc_auc_score(truth, values)),
        "pixel_ap": float(average_precision_score(truth, values)),
    }
    weights, regions = [], 0
    for mask in masks:
        labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
        sizes = np.bincount(labels.ravel())
        share = 1 / sizes
        share[0] = 0
        weights.append(share[labels].ravel())
        regions += count
    order = np.argsort(values, kind="stable")[::-1]
    last_of_ties = np.append(np.diff(values[order]) != 0, True)
    rates = np.cumsum(~truth[order])[last_of_ties] / (~truth).sum()
    overlap = np.cumsum(np.concatenate(weights)[order])[last_of_ties] / regions
    for name, limit in (("aupro_30", 0.3), ("aupro_05", 0.05)):
        end = np.searchsorted(rates, limit)
        x = np.concatenate([[0], rates[:end], [limit]])
        y = np.concatenate([[0], overlap[:end], [np.interp(limit, rates, overlap)]])
        figures[name] = float(np.trapezoid(y, x) / limit)
    return figures


def binned(maps: Maps, masks: Masks) -> Figures:
    """torchmetrics with its usual 200 thresholds; it needs values from 0 to 1."""
    measures: dict[str, Metric] = {
        "pixel_auroc": BinaryAUROC(thresholds=200),
        "pixel_ap": BinaryAveragePrecision(thresholds=200),
    }
    highest = max(float(each.max()) for each in maps)
    for values, mask in zip(maps, masks, strict=True):
        for measure in measures.values():
            measure.update(torch.from_numpy(values / highest), torch.from_numpy(mask).int())
    return {name: float(measure.compute()) for name, measure in measures.items()}


def timed(
    make: Callable[[Maps, Masks], Figures], maps: Maps, masks: Masks
) -> tuple[float, Figures]:
    started = time.perf_counter()
    figures = make(maps, masks)
    return time.perf_counter() - started, figures


def test_twenty_times_faster_than_sorting_and_as_exact() -> None:
    maps, masks = defective_maps(MAPS)
    counted(maps[:2], masks[:2])
    ours, found = timed(counted, maps, masks)
    sorting, exact = timed(sorted_out, maps, masks)
    binning, rough = timed(binned, maps, masks)
    print(f"\n{MAPS} maps of {SIDE} x {SIDE}")
    print(f"{'':12} {'sorting':>10} {'ssray':>10} {'error':>9} {'torchmetrics':>13} {'error':>9}")
    for name, value in exact.items():
        other = rough.get(name, float("nan"))
        print(
            f"{name:12} {value:10.6f} {found[name]:10.6f} {abs(found[name] - value):9.1e} "
            f"{other:13.6f} {abs(other - value):9.1e}"
        )
    print(f"{'seconds':12} {sorting:10.2f} {ours:10.2f} {'':9} {binning:13.2f}")
    print(f"{'ratio':12} {sorting / ours:10.1f} {1:10.1f} {'':9} {binning / ours:13.1f}")
    assert abs(found["pixel_auroc"] - exact["pixel_auroc"]) <= 1e-6
    assert abs(found["pixel_ap"] - exact["pixel_ap"]) <= 1e-3
    for name in ("aupro_30", "aupro_05"):
        assert abs(found[name] - exact[name]) <= 1e-5
    assert sorting >= 20 * ours


def test_cost_grows_linearly_and_memory_not_at_all() -> None:
    maps, masks = defective_maps(20)
    counts, seconds, peaks = PixelCounts(), list[float](), list[int]()
    tracemalloc.start()
    for number in range(1000):
        values = maps[number % 20] * np.float32(1 + number / 1000)
        tracemalloc.reset_peak()
        started = time.perf_counter()
        counts.add(values, masks[number % 20])
        seconds.append(time.perf_counter() - started)
        peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    first, last = (np.median(seconds[part]) for part in (slice(0, 100), slice(-100, None)))
    peak = [max(part) / 1e6 for part in (peaks[:20], peaks[-20:])]
    print(f"\n1,000 maps: {sum(seconds):.1f} s; the last hundred {last / first:.2f} x the first")
    print(f"state {counts.nbytes / 1e6:.1f} MB, stored {len(counts.to_bytes()) / 1e6:.1f} MB")
    print(f"peak while counting: {peak[0]:.0f} MB at first, {peak[1]:.0f} MB at last")
    assert last <= 1.5 * first
    assert counts.nbytes < 32e6
    assert peak[1] < 1.1 * peak[0]


def test_a_hundred_million_pixels_with_heavy_tails() -> None:
    rng = np.random.default_rng(1)
    maps, masks = [], []
    for _ in range(96):
        mask = ndimage.uniform_filter(rng.random((SIDE, SIDE), np.float32), 31) > 0.52
        tails = rng.pareto(0.5, (SIDE, SIDE)) * (1 + mask) + 1e-30
        maps.append(tails.astype(np.float32))
        masks.append(mask)
    found, exact = counted(maps, masks), sorted_out(maps, masks)
    for name, most in (("pixel_auroc", 1e-6), ("pixel_ap", 1e-3), ("aupro_30", 1e-5)):
        print(f"\n{name}: {found[name]:.7f}, exact {exact[name]:.7f}")
        assert abs(found[name] - exact[name]) <= most
