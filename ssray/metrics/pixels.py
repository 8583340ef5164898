"""Measures how well anomaly maps find the defective pixels of masks."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ssray.metrics import ranking
from ssray.metrics.histogram import Histogram, Values
from ssray.metrics.labels import Ints
from ssray.metrics.values import Metrics

WHOLE = 1 << 32
"""The total weight of a region, or of an image's defects; an integer, so that sums are exact."""
PIXEL_METRICS = (
    "pixel_auroc",
    "pixel_ap",
    "pixel_f1max",
    "pixel_f1max_threshold",
    "aupro_30",
    "aupro_05",
    "aupimo",
)
"""The names of the metrics that ``PixelCounts.metrics`` computes."""
AUPRO_LIMITS = {"aupro_30": 0.30, "aupro_05": 0.05}
"""The false-positive rate up to which each AU-PRO integrates."""
AUPIMO_RATES = (1e-5, 1e-4)
"""The false-positive rates from which, and up to which, AUPIMO integrates."""
_CLEAN, _AROUND, _DEFECT, _REGIONS, _IMAGES = range(5)
"""The histogram's rows: pixels of defect-free images; good and defective pixels of images with a
defect; the weights of their regions; and the weights of these images."""
_EIGHT_NEIGHBOURS = np.ones((3, 3), bool)

Mask = npt.NDArray[np.bool_]


class PixelCounts:
    """Counts the pixels of anomaly maps by value, in the same memory for one map and a million.

    Attributes:
        regions: how many connected regions the masks had so far; pixels that touch by a side or a
            corner are connected.
        images: how many images with a defect were counted so far.

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
        """Counts the pixels of one map.

        Args:
            anomaly_map: (H, W) float32, at least 0 and finite.
            mask: (H, W) bool, True = defective; all False for a defect-free image.

        Raises:
            ValueError: if the shapes differ or a value is negative, infinite or NaN; nothing is
                counted in that case.
        """
        if anomaly_map.shape != mask.shape:
            raise ValueError(
                f"map {anomaly_map.shape} and mask {mask.shape} differ in shape; expected the same"
            )
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
        for counted in (self, other):
            total.merge(counted)
        return total

    def merge(self, other: PixelCounts) -> None:
        """Adds the counts of another worker, which are not changed."""
        self._histogram.merge(other._histogram)
        self.regions += other.regions
        self.images += other.images

    @property
    def good_pixels(self) -> int:
        """How many pixels without a defect have been counted so far."""
        return int(self._histogram.counts[[_CLEAN, _AROUND]].sum())

    @property
    def defective_pixels(self) -> int:
        """How many defective pixels have been counted so far."""
        return int(self._histogram.counts[_DEFECT].sum())

    @property
    def nbytes(self) -> int:
        """How many bytes of memory the counts take."""
        return self._histogram.nbytes

    def metrics(self) -> Metrics:
        """Computes all ``PIXEL_METRICS`` from the counts.

        AU-PRO is the mean overlap of the regions with the prediction, integrated over the
        false-positive rate of all good pixels up to a limit, and divided by that limit. AUPIMO
        (Bertoldo et al., 2024) is the mean share of its defective pixels that is found in an image
        with a defect, averaged over the logarithm of the false-positive rate from 1e-5 to 1e-4;
        that rate is taken over all pixels of the defect-free images together.
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
        """Returns the counts as bytes, which ``merge_bytes`` reads."""
        buffer = io.BytesIO()
        arrays = self._histogram.to_arrays()
        np.savez(buffer, seen=np.array([self.regions, self.images]), **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()

    def merge_bytes(self, content: bytes) -> None:
        """Adds the counts of another worker, given by what its ``to_bytes`` returned."""
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            self._histogram.merge_arrays(stored)
            regions, images = (int(seen) for seen in stored["seen"])
        self.regions += regions
        self.images += images


def pixel_auroc(maps: Values, masks: Mask) -> float:
    """Computes the pixel AUROC alone, of maps in memory; NaN if all pixels are of one class.

    Args:
        maps: float32 of any shape, at least 0 and finite.
        masks: bool of the same shape, True = defective.
    """
    histogram = Histogram(rows=2)
    columns = histogram.place(maps)
    for row, chosen in zip(histogram.counts, (~masks, masks), strict=True):
        row += np.bincount(columns[chosen], minlength=len(row))
    return float(ranking.auroc(*histogram.ordered()))


def _weigh(weights: Ints, columns: Ints, positions: Ints, groups: npt.NDArray[np.integer]) -> None:
    """Spreads a weight of ``WHOLE`` for each group of pixels over the columns of its pixels.

    A group is a region, or all defects of an image; all its pixels weigh the same. A column's
    weight is a difference of the rounded cumulative share, counted from the highest value down, so
    that the weights sum up exactly and stay the same when columns are merged.

    Args:
        weights: (V,) int64, to which the weights are added.
        columns: (P,) the column of each pixel.
        positions: (P,) the position of each pixel's column in the order of the values.
        groups: (P,) the number of each pixel's group, from 1 up.
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
