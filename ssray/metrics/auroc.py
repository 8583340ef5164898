"""Area under the ROC curve, of images and of pixels.

Pixels are counted, not kept: non-negative float32 values sort like their bit patterns, so
the upper 18 bits below the sign make a histogram that needs no range, adds up over
workers and has the same size for one image and for a million.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score, roc_curve

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

_DROPPED_BITS = 13
BINS = 1 << (31 - _DROPPED_BITS)


def image_auroc(labels: npt.NDArray[np.integer], scores: npt.NDArray[np.floating]) -> float:
    """AUROC as scikit-learn's, ties included; NaN where only one class is present.

    Args:
        labels: (N,) 1 = defect, 0 = good.
        scores: (N,) larger = more anomalous.
    """
    if len(np.unique(labels)) < 2:
        return math.nan
    return float(roc_auc_score(labels, scores))


def roc_points(
    labels: npt.NDArray[np.integer], scores: npt.NDArray[np.floating]
) -> tuple[Floats, Floats]:
    """False- and true-positive rates of the ROC curve, both (P,) rising from 0 to 1.

    Empty where only one class is present.
    """
    if len(np.unique(labels)) < 2:
        return np.empty(0), np.empty(0)
    false_positive_rate, true_positive_rate, _ = roc_curve(labels, scores)
    return false_positive_rate, true_positive_rate


@dataclass(frozen=True)
class PixelCounts:
    """Histograms of anomaly-map values over good and over defective pixels.

    Attributes:
        good: (262144,) int64.
        defect: (262144,) int64.

    >>> counts = PixelCounts.of(np.array([[0.1, 0.9]], np.float32), np.array([[False, True]]))
    >>> (counts + counts).auroc()
    1.0
    """

    good: Counts
    defect: Counts

    @classmethod
    def zero(cls) -> PixelCounts:
        return cls(np.zeros(BINS, np.int64), np.zeros(BINS, np.int64))

    @classmethod
    def of(cls, anomaly_map: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]) -> PixelCounts:
        """Counts one map.

        Args:
            anomaly_map: (H, W) float32, non-negative and finite.
            mask: (H, W) bool, True = defective.

        Raises:
            ValueError: if the shapes differ or a value is negative, infinite or NaN.
        """
        if anomaly_map.shape != mask.shape:
            raise ValueError(f"map {anomaly_map.shape} and mask {mask.shape} differ in shape")
        values = np.ascontiguousarray(anomaly_map, dtype=np.float32)
        if not np.isfinite(values).all() or values.min(initial=0) < 0:
            raise ValueError("anomaly maps must be finite and non-negative")
        bins = (values + 0.0).view(np.uint32) >> _DROPPED_BITS  # + 0.0 turns -0.0 into 0.0
        return cls(
            np.bincount(bins[~mask], minlength=BINS), np.bincount(bins[mask], minlength=BINS)
        )

    def __add__(self, other: PixelCounts) -> PixelCounts:
        return PixelCounts(self.good + other.good, self.defect + other.defect)

    def auroc(self) -> float:
        """AUROC over all counted pixels; values in one bin (a relative 1e-3) count as ties.

        NaN where all pixels are good, or all defective.
        """
        good, defect = float(self.good.sum()), float(self.defect.sum())
        if not good or not defect:
            return math.nan
        good_below = np.cumsum(self.good) - self.good
        wins = self.defect @ (good_below + self.good / 2)
        return float(wins / (good * defect))

    def to_bytes(self) -> bytes:
        """The occupied bins alone, compressed; ``from_bytes`` reads them."""
        occupied = np.flatnonzero(self.good + self.defect)
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            bins=occupied.astype(np.uint32),
            good=self.good[occupied],
            defect=self.defect[occupied],
        )
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> PixelCounts:
        counts = cls.zero()
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            counts.good[stored["bins"]] = stored["good"]
            counts.defect[stored["bins"]] = stored["defect"]
        return counts
