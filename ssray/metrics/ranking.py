"""Measures of how well a score ranks defective items above good ones, such as the AUROC.

The items are images or pixels. The arguments ``good`` and ``defect`` hold how many items have each
distinct value, from the lowest value to the highest, along the last axis; axes before it are
independent rankings, such as bootstrap samples. Weights may take the place of counts. Items of
equal value are ties: no threshold parts them.

A measure that is not defined, because a class is absent, is NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ssray.metrics.labels import Floats

Counts = npt.NDArray[Any]


def auroc(good: Counts, defect: Counts) -> Floats:
    """Computes the area under the ROC curve, as ``sklearn.metrics.roc_auc_score`` does.

    >>> float(auroc(np.array([1, 1, 0]), np.array([0, 1, 1])))
    0.875
    """
    below = np.cumsum(good, axis=-1) - good
    won = (_floats(defect) * (below + 0.5 * good)).sum(axis=-1)
    return _ratio(won, _floats(good).sum(axis=-1) * _floats(defect).sum(axis=-1))


def average_precision(good: Counts, defect: Counts) -> Floats:
    """Computes the average precision, as ``sklearn.metrics.average_precision_score`` does."""
    found, precision = np.asarray(defect), _precision(good, defect)
    return _ratio((found * precision).sum(axis=-1), _floats(defect).sum(axis=-1))


def f1_max(good: Counts, defect: Counts) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Finds the best F1 of any threshold, and the position of that threshold among the values.

    An item is predicted defective if its value is at least the threshold. Of several equally good
    thresholds the highest is taken.
    """
    false, true = _at_least(good), _at_least(defect)
    defects = _floats(defect).sum(axis=-1, keepdims=True)
    f1 = _ratio(2.0 * true, true + false + defects)[..., ::-1]
    best = np.where(np.isnan(f1), -1.0, f1).argmax(axis=-1)
    value = np.take_along_axis(f1, best[..., None], axis=-1)[..., 0]
    return np.where(defects[..., 0] > 0, value, np.nan), f1.shape[-1] - 1 - best


def recall_at(good: Counts, defect: Counts, false_positive_rate: float) -> Floats:
    """Computes the share of defects found if at most the given share of the good is rejected."""
    false = _ratio(_at_least(good), _floats(good).sum(axis=-1, keepdims=True))
    allowed = np.where(false <= false_positive_rate, _at_least(defect), 0.0).max(axis=-1)
    return np.where(np.isnan(false[..., 0]), np.nan, _ratio(allowed, _floats(defect).sum(axis=-1)))


def good_passed_without_a_miss(good: Counts, defect: Counts) -> Floats:
    """Computes the share of good items that pass if no defect may be missed."""
    none_yet = np.cumsum(defect, axis=-1) == 0
    passed = (none_yet * _floats(good)).sum(axis=-1)
    rate = _ratio(passed, _floats(good).sum(axis=-1))
    return np.where(_floats(defect).sum(axis=-1) > 0, rate, np.nan)


def area_up_to(good: Counts, found: Counts, limit: float) -> float:
    """Computes the mean share of ``found`` over the false-positive rates from 0 to ``limit``.

    If ``found`` gives each connected region the same weight, this is AU-PRO: the mean overlap of
    the regions with the prediction.

    Args:
        good: (V,) counts.
        found: (V,) counts or weights.
        limit: the highest false-positive rate, in (0, 1]; the curve is interpolated there.
    """
    rate, recall = _curve_between(good, found, 0.0, limit)
    return float(np.trapezoid(recall, rate)) / limit


def area_over_log(good: Counts, found: Counts, lowest: float, highest: float) -> float:
    """Computes the mean share of ``found`` over the logarithm of the false-positive rate.

    If ``found`` gives the defects of each image the same weight, this is AUPIMO.

    Args:
        good: (V,) counts.
        found: (V,) counts or weights.
        lowest: the lowest false-positive rate, above 0; the curve is interpolated there.
        highest: the highest false-positive rate; the curve is interpolated there.
    """
    rate, recall = _curve_between(good, found, lowest, highest)
    left, width = rate[:-1], np.diff(rate)
    slope = np.divide(np.diff(recall), width, out=np.zeros_like(width), where=width > 0)
    log_width = np.log(rate[1:] / left)
    area = (recall[:-1] - slope * left) * log_width + slope * width
    return float(area.sum() / np.log(highest / lowest))


def _curve_between(good: Counts, found: Counts, start: float, end: float) -> tuple[Floats, Floats]:
    """Returns the false-positive rates from ``start`` to ``end``, and the share found at each."""
    rate, recall = (
        np.append(0.0, _ratio(_at_least(each)[::-1], _floats(each).sum())) for each in (good, found)
    )
    inside = (start < rate) & (rate < end)
    first = np.interp(start, rate, recall)  # where the curve is vertical, its upper end
    last = np.interp(-end, -rate[::-1], recall[::-1])  # and here its lower
    return (
        np.concatenate([[start], rate[inside], [end]]),
        np.concatenate([[first], recall[inside], [last]]),
    )


def _precision(good: Counts, defect: Counts) -> Floats:
    """Computes the precision at each value as the threshold; 0 if nothing is predicted there."""
    true = _at_least(defect)
    return np.nan_to_num(_ratio(true, true + _at_least(good)))


def _at_least(counts: Counts) -> Floats:
    """Sums up, for each value, the counts of the items that are at least as high."""
    return _floats(np.cumsum(counts[..., ::-1], axis=-1)[..., ::-1])


def _floats(counts: Counts) -> Floats:
    return np.asarray(counts, dtype=np.float64)


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Divides; the result is NaN where the denominator is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominator > 0, numerator / denominator, np.nan)
