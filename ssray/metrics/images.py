"""Measures how well image scores tell good images from defective ones, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
from scipy import special

from ssray.metrics import ranking
from ssray.metrics.labels import DEFECT, GOOD, Floats, Ints, Labels
from ssray.metrics.values import Metrics

SAMPLES = 1000
"""How many bootstrap samples an interval comes from."""
LEVEL = 0.95
"""The confidence level of the intervals."""
_VALUES_AT_ONCE = 1 << 21

MEASURES: dict[str, Callable[[Ints, Ints], Floats]] = {
    "image_auroc": ranking.auroc,
    "image_ap": ranking.average_precision,
    "image_f1max": lambda good, defect: ranking.f1_max(good, defect)[0],
    "image_tpr_at_fpr_1": lambda good, defect: ranking.recall_at(good, defect, 0.01),
    "image_tpr_at_fpr_01": lambda good, defect: ranking.recall_at(good, defect, 0.001),
    "image_tnr_at_tpr_100": ranking.good_passed_without_a_miss,
}
"""The measures of ``image_metrics``, each a function of the counts of good and defective images.

The last three are the share of defects found while at most 1 % or 0.1 % of the good images are
rejected, and the share of good images that pass if no defect may be missed.
"""
DECISIONS = tuple(
    f"{name}{end}" for name in ("false_alarms", "defects_flagged") for end in ("", "_low", "_high")
)
"""The metrics of ``decision_metrics``: the share of the good images that is flagged, the share of
the defective images that is flagged, and the ends of the 95 % interval of each."""
HELD_OUT = "image_auroc_held_out"
"""The metric of ``held_out_metrics``."""


def image_metrics(
    labels: npt.NDArray[np.integer], scores: npt.NDArray[np.floating], seed: int = 0
) -> Metrics:
    """Computes all ``MEASURES`` with their 95 % intervals, and the threshold of the best F1.

    The ends of an interval are called ``NAME_low`` and ``NAME_high``, the threshold
    ``image_f1max_threshold``. The interval comes from the percentile bootstrap, which draws good
    and defective images apart: it shows how the figure would vary over other test images of the
    same kinds with this model. If the scores of the classes don't overlap, every sample gives 1, so
    the interval has no width and says nothing.

    Args:
        labels: (N,) 1 = defect, 0 = good.
        scores: (N,) finite; larger = more anomalous.
        seed: the seed of the bootstrap.

    Raises:
        ValueError: if a score is infinite or NaN.
    """
    values, members, (good, defect) = _by_value(labels, scores)
    why = None
    if not len(members[0]):
        why = "no good image"
    if not len(members[1]):
        why = "no image with a defect"
    metrics = Metrics()
    drawn: dict[str, list[Floats]] = {name: [] for name in MEASURES}
    if not why:
        for sample in _samples(members, len(values), seed):
            for name, measure in MEASURES.items():
                drawn[name].append(measure(*sample))
    for name, measure in MEASURES.items():
        tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
        low, high = (math.nan,) * 2 if why else np.quantile(np.concatenate(drawn[name]), tails)
        metrics.put(name, math.nan if why else measure(good, defect), why)
        metrics.put(f"{name}_low", low, why)
        metrics.put(f"{name}_high", high, why)
    threshold = math.nan if why else values[ranking.f1_max(good, defect)[1]]
    metrics.put("image_f1max_threshold", threshold, why)
    return metrics


def decision_metrics(labels: npt.NDArray[np.integer], flagged: npt.NDArray[np.bool_]) -> Metrics:
    """Computes ``DECISIONS``: how the model's own threshold does on labelled images.

    The intervals are Clopper and Pearson's exact 95 % intervals.

    Args:
        labels: (N,) 0 = good, 1 = defect; images with other labels are ignored.
        flagged: (N,) whether each image was flagged as defective.
    """
    metrics = Metrics()
    for name, label, missing in (
        ("false_alarms", GOOD, "no good image"),
        ("defects_flagged", DEFECT, "no image with a defect"),
    ):
        of_class = flagged[labels == label]
        count, of = int(of_class.sum()), len(of_class)
        low, high = _clopper_pearson(count, of) if of else (math.nan, math.nan)
        why = None if of else missing
        metrics.put(name, count / of if of else math.nan, why)
        metrics.put(f"{name}_low", low, why)
        metrics.put(f"{name}_high", high, why)
    return metrics


def held_out_metrics(
    labels: npt.NDArray[np.integer],
    scores: npt.NDArray[np.floating],
    held_out: npt.NDArray[np.floating],
) -> Metrics:
    """Computes ``HELD_OUT``: the image AUROC of the defects against good images that were held out
    from training.

    These are of the same session as the images to train on. Where the figure is not that of the
    good test images, these differ from them in more than defects, in their light for example.

    Args:
        labels: (N,) 1 = defect; other images are ignored.
        scores: (N,) finite; larger = more anomalous.
        held_out: (M,) the scores of held-out good images.
    """
    defects = scores[labels == DEFECT]
    both = np.concatenate([np.full(len(held_out), GOOD), np.full(len(defects), DEFECT)])
    why = None
    if not len(held_out):
        why = "the model keeps no scores of held-out images"
    if not len(defects):
        why = "no image with a defect"
    metrics = Metrics()
    metrics.put(HELD_OUT, image_auroc(both, np.concatenate([held_out, defects])), why)
    return metrics


def _clopper_pearson(count: int, of: int) -> tuple[float, float]:
    """Returns the ends of the exact 95 % interval of a share, quantiles of beta distributions."""
    tail = (1 - LEVEL) / 2
    low = special.betaincinv(count, of - count + 1, tail) if count else 0.0
    high = special.betaincinv(count + 1, of - count, 1 - tail) if count < of else 1.0
    return float(low), float(high)


def image_auroc(labels: npt.NDArray[np.integer], scores: npt.NDArray[np.floating]) -> float:
    """Computes the AUROC alone, as scikit-learn does; NaN if only one class is present.

    Args:
        labels: (N,) 1 = defect, 0 = good.
        scores: (N,) finite; larger = more anomalous.

    Raises:
        ValueError: if a score is infinite or NaN.
    """
    _, _, counts = _by_value(labels, scores)
    return float(ranking.auroc(*counts))


def standard_error(auroc: float, good: int, defective: int) -> tuple[float, float]:
    """The AUROC as it may be taken for certain at most, and its standard error.

    The error is that of Hanley and McNeil, "The meaning and use of the area under a receiver
    operating characteristic (ROC) curve" (Radiology, 1982). An AUROC of 0 or 1 counts as half a
    pair of images away from it: so few can't tell.

    Args:
        auroc: as measured.
        good: the number of good images.
        defective: the number of images with a defect.

    >>> auroc, error = standard_error(1.0, good=10, defective=20)
    >>> auroc, error < 0.01
    (0.9975, True)
    """
    nearest = 1 / (2 * good * defective)
    auroc = min(max(auroc, nearest), 1 - nearest)
    exceeds_one_of_each = auroc * (1 - auroc)
    two_defective = auroc / (2 - auroc) - auroc**2
    two_good = 2 * auroc**2 / (1 + auroc) - auroc**2
    variance = exceeds_one_of_each + (defective - 1) * two_defective + (good - 1) * two_good
    return auroc, math.sqrt(variance / (good * defective))


def roc_points(
    labels: npt.NDArray[np.integer], scores: npt.NDArray[np.floating]
) -> tuple[Floats, Floats]:
    """Computes the points of the ROC curve, one for each distinct score besides the start.

    Returns:
        The false-positive and the true-positive rates, both (P,) and rising from 0 to 1; empty if
        only one class is present.
    """
    _, _, counts = _by_value(labels, scores)
    if not all(each.any() for each in counts):
        return np.empty(0), np.empty(0)
    good, defect = (np.append(0, np.cumsum(each[::-1])) / each.sum() for each in counts)
    return good, defect


def _by_value(
    labels: npt.NDArray[np.integer], scores: npt.NDArray[np.floating]
) -> tuple[npt.NDArray[np.floating], list[Ints], list[Ints]]:
    """Groups images by their scores.

    Returns:
        The V distinct scores, rising; for the good and for the defective images, which of the
        scores each has; and for both, how many have each score, (V,).
    """
    if not np.isfinite(scores).all():
        raise ValueError(
            f"{int((~np.isfinite(scores)).sum())} of {len(scores)} image scores are infinite or "
            "NaN; expected finite scores"
        )
    values, columns = np.unique(scores, return_inverse=True)
    members = [columns[labels == 0], columns[labels == 1]]
    return values, members, [np.bincount(each, minlength=len(values)) for each in members]


def _samples(members: list[Ints], values: int, seed: int) -> Iterator[tuple[Ints, Ints]]:
    """Yields S bootstrap samples at a time: (S, ``values``) counts of good and of defective images.

    Args:
        members: which distinct score each good, and each defective, image has.
        values: the number of distinct scores.
        seed: fixes the samples.
    """
    generator = np.random.default_rng(seed)
    at_once = max(1, min(SAMPLES, _VALUES_AT_ONCE // values))
    for start in range(0, SAMPLES, at_once):
        size = min(at_once, SAMPLES - start)
        offsets = values * np.arange(size)[:, None]
        good, defect = (
            np.bincount(
                (offsets + generator.choice(each, (size, len(each)))).ravel(),
                minlength=size * values,
            ).reshape(size, values)
            for each in members
        )
        yield good, defect


def best_threshold(labels: Labels, scores: Floats) -> float | None:
    """Finds the threshold with the highest balanced accuracy, that of Youden's largest J.

    An image counts as defective if its score is above the threshold, which lies midway between two
    scores; of several equally good ones the lowest is taken. It is found with the labels, so it
    illustrates how far the classes separate and predicts nothing for new images.

    Args:
        labels: (N,) 1 = defect, 0 = good; images with other labels are ignored.
        scores: (N,); images whose score is NaN are ignored.

    Returns:
        The threshold; None if a class is missing or no threshold beats chance.

    >>> best_threshold(np.array([0, 0, 1]), np.array([1.0, 2.0, 4.0]))
    3.0
    """
    finite = np.isfinite(scores)
    good = np.sort(scores[finite & (labels == GOOD)]).astype(np.float64)
    defects = np.sort(scores[finite & (labels == DEFECT)]).astype(np.float64)
    if not len(good) or not len(defects):
        return None
    values = np.unique(np.concatenate([good, defects]))
    candidates = (values[:-1] + values[1:]) / 2
    below_good = np.searchsorted(good, candidates, side="right") / len(good)
    below_defects = np.searchsorted(defects, candidates, side="right") / len(defects)
    youden = below_good - below_defects
    if youden.max(initial=0) <= 0:
        return None
    return float(candidates[youden.argmax()])
