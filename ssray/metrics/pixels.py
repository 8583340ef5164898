"""Anomaly maps against masks: pixels counted as they come, and what the counts are worth."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ssray.metrics import ranking
from ssray.metrics.histogram import Histogram, Ints, Values
from ssray.metrics.values import Metrics

WHOLE = 1 << 32
"""The weight of a region, or of an image's defects: an integer, so that sums are exact."""
PIXEL_METRICS = (
    "pixel_auroc",
    "pixel_ap",
    "pixel_f1max",
    "pixel_f1max_threshold",
    "aupro_30",
    "aupro_05",
    "aupimo",
)
"""What ``PixelCounts.metrics`` gives."""
AUPRO_LIMITS = {"aupro_30": 0.30, "aupro_05": 0.05}
AUPIMO_RATES = (1e-5, 1e-4)
_CLEAN, _AROUND, _DEFECT, _REGIONS, _IMAGES = range(5)
_EIGHT_NEIGHBOURS = np.ones((3, 3), bool)

Mask = npt.NDArray[np.bool_]


class PixelCounts:
    """Histograms of anomaly-map values, of one size for one image and for a million.

    Attributes:
        regions: connected regions of the ground truth seen; pixels touch by side or corner.
        images: images with a defect seen.

    >>> counts = PixelCounts()
    >>> counts.add(np.array([[0.1, 0.9]], np.float32), np.array([[False, True]]))
    >>> (counts + counts).metrics()["pixel_auroc"]
    1.0
    """

    def __init__(self) -> None:
        self.regions = 0
        self.images = 0
        self._histogram = Histogram(rows=5)

    def add(self, anomaly_map: Values, mask: Mask) -> None:
        """Counts one map.

        Args:
            anomaly_map: (H, W) float32, non-negative and finite.
            mask: (H, W) bool, True = defective; none is for a defect-free image.

        Raises:
            ValueError: if the shapes differ or a value is negative, infinite or NaN; nothing is
                counted then.
        """
        if anomaly_map.shape != mask.shape:
            raise ValueError(f"map {anomaly_map.shape} and mask {mask.shape} differ in shape")
        columns = self._histogram.place(anomaly_map)
        counts = self._histogram.counts
        every = np.bincount(columns.ravel(), minlength=counts.shape[1])
        if not mask.any():
            counts[_CLEAN] += every
            return
        inside = columns[mask]
        defective = np.bincount(inside, minlength=counts.shape[1])
        counts[_AROUND] += every - defective
        counts[_DEFECT] += defective
        labels, regions = ndimage.label(mask, structure=_EIGHT_NEIGHBOURS)
        positions = self._histogram.positions(inside)
        _weigh(counts[_REGIONS], inside, positions, labels[mask])
        _weigh(counts[_IMAGES], inside, positions, np.ones_like(inside))
        self.regions += regions
        self.images += 1

    def __add__(self, other: PixelCounts) -> PixelCounts:
        total = PixelCounts()
        for part in (self, other):
            total.merge(part)
        return total

    def merge(self, other: PixelCounts) -> None:
        """Adds what another worker has counted."""
        self._histogram.merge(other._histogram)
        self.regions += other.regions
        self.images += other.images

    @property
    def good_pixels(self) -> int:
        """How many pixels without a defect have been counted."""
        return int(self._histogram.counts[[_CLEAN, _AROUND]].sum())

    @property
    def defective_pixels(self) -> int:
        """How many defective pixels have been counted."""
        return int(self._histogram.counts[_DEFECT].sum())

    @property
    def nbytes(self) -> int:
        """Memory of the state."""
        return self._histogram.nbytes

    def metrics(self) -> Metrics:
        """``PIXEL_METRICS``.

        AU-PRO: mean over the regions of their overlap with the prediction, against the
        false-positive rate of all pixels that are not defective; area up to the limit, divided by
        it. AUPIMO (Bertoldo et al., 2024): mean over the images with a defect of the share of
        their defective pixels found, over the logarithm of the false-positive rate in defect-free
        images, all their pixels together, from 1e-5 to 1e-4.
        """
        clean, around, defect, regions, images = self._histogram.ordered()
        good = clean + around
        f1, best = ranking.f1_max(good, defect)
        why = None
        if not defect.any():
            why = "no defective pixel"
        if not good.any():
            why = "no good pixel"
        metrics = Metrics()
        metrics.put("pixel_auroc", ranking.auroc(good, defect), why)
        metrics.put("pixel_ap", ranking.average_precision(good, defect), why)
        metrics.put("pixel_f1max", f1, why)
        metrics.put("pixel_f1max_threshold", self._histogram.thresholds()[best], why)
        for name, limit in AUPRO_LIMITS.items():
            metrics.put(name, ranking.area_up_to(good, regions, limit), why)
        found, needed = int(clean.sum()), round(1 / AUPIMO_RATES[0])
        if found < needed:
            why = why or f"{found} pixels in defect-free images, {needed} needed"
        metrics.put("aupimo", ranking.area_over_log(clean, images, *AUPIMO_RATES), why)
        return metrics

    def to_bytes(self) -> bytes:
        """The occupied bins; ``merge_bytes`` reads them."""
        buffer = io.BytesIO()
        arrays = self._histogram.to_arrays()
        np.savez(buffer, seen=np.array([self.regions, self.images]), **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()

    def merge_bytes(self, content: bytes) -> None:
        """Adds what ``to_bytes`` gave for another's counts."""
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            self._histogram.merge_arrays(stored)
            regions, images = (int(seen) for seen in stored["seen"])
        self.regions += regions
        self.images += images


def pixel_auroc(maps: Values, masks: Mask) -> float:
    """AUROC alone, over the pixels of maps that fit in memory; NaN if all are of one class.

    Args:
        maps: float32 of any shape, non-negative and finite.
        masks: bool of that shape, True = defective.
    """
    histogram = Histogram(rows=2)
    columns = histogram.place(maps)
    for row, chosen in zip(histogram.counts, (~masks, masks), strict=True):
        row += np.bincount(columns[chosen], minlength=len(row))
    return float(ranking.auroc(*histogram.ordered()))


def _weigh(weights: Ints, columns: Ints, positions: Ints, groups: npt.NDArray[np.integer]) -> None:
    """Adds every group's distribution over the columns, ``WHOLE`` in all for each group.

    Weights are differences of the rounded cumulative share, counted from the highest value down:
    they sum up exactly, and stay the same when columns are merged.

    Args:
        weights: (V,) int64, added to.
        columns: (P,) of each pixel.
        positions: (P,) of the pixels' values, in rising order.
        groups: (P,) of each pixel, from 1 up.
    """
    keys, pixels, counts = np.unique(
        groups.astype(np.int64) * len(weights) + positions, return_index=True, return_counts=True
    )
    group = keys // len(weights)
    sizes = np.bincount(group, weights=counts).astype(np.int64)
    below = np.cumsum(counts) - counts - (np.cumsum(sizes) - sizes)[group]
    size = sizes[group]
    least = (size - below) * WHOLE // size
    more = (size - below - counts) * WHOLE // size
    np.add.at(weights, columns[pixels], least - more)
