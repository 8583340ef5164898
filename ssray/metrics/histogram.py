"""Histograms of float32 numbers that need no range, take constant memory and add up exactly.

Non-negative floats sort like their bit patterns. A pattern without its lowest bits is the number
of a bin; as few bits are dropped as let ``BINS`` bins hold the smallest and the largest value
seen, 13 at most. The bins therefore depend on these two values alone, and all that is added up
is integers: any order of the values and any split over workers ends in the same state.

The patterns are those of float64, which has no denormals in the range of float32: the bins are
never wider than a thousandth of their values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

BINS = 1 << 19
_INFINITY = 0x7F800000
"""As bits of float32; those of negative numbers are above it."""
_UNUSED_BITS = 29
"""Of a float64's mantissa, where its value is a float32."""
_NONE = (1 << 62, 0)
"""Lowest and highest key where there is none yet."""

Values = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class Histogram:
    """Counts, or integer weights, in several rows over common bins.

    Attributes:
        counts: (rows, 1 + BINS) int64, by rising value; column 0 is for zeros, which would
            otherwise stretch the bins over every float there is.
    """

    def __init__(self, rows: int) -> None:
        self.counts = np.zeros((rows, 1 + BINS), np.int64)
        self._lowest, self._highest = _NONE
        self._shift, self._first = 0, 0

    def place(self, values: Values) -> Ints:
        """The column of each value, after the bins have been made to hold them all.

        Args:
            values: float32 of any shape.

        Raises:
            ValueError: if one is negative, infinite or NaN; the bins are as before then.
        """
        values = np.ascontiguousarray(values, dtype=np.float32)
        if values.view(np.uint32).max(initial=0) >= _INFINITY:
            values = values + np.float32(0)  # turns -0.0 into 0.0
            if values.view(np.uint32).max(initial=0) >= _INFINITY:
                raise ValueError("not all values are finite and at least 0")
        keys = values.astype(np.float64).view(np.int64) >> _UNUSED_BITS
        zeros = keys == 0 if keys.min(initial=1) == 0 else None
        above_zero = keys if zeros is None else keys[~zeros]
        if above_zero.size:
            self._reach(int(above_zero.min()), int(above_zero.max()))
        columns = (keys >> self._shift) - (self._first - 1)
        if zeros is not None:
            columns[zeros] = 0
        return columns

    def merge(self, other: Histogram) -> None:
        """Adds the counts of ``other``, which stays as it is."""
        self._reach(other._lowest, other._highest)
        self.counts[:, 0] += other.counts[:, 0]
        self._insert(other.counts, other._shift, other._first)

    def thresholds(self) -> npt.NDArray[np.float64]:
        """(1 + BINS,), rising: every value in a column is at least this, and none below it is."""
        keys = (self._first + np.arange(BINS)) << self._shift
        return np.append(0, keys << _UNUSED_BITS).view(np.float64)

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What is occupied, in the narrowest types; ``from_arrays`` reads it."""
        arrays: dict[str, npt.NDArray[Any]] = {"range": np.array([self._lowest, self._highest])}
        for number, row in enumerate(self.counts):
            columns = np.flatnonzero(row)
            counts = row[columns]
            arrays[f"columns{number}"] = columns.astype(np.uint32)
            arrays[f"counts{number}"] = counts.astype(np.min_scalar_type(counts.max(initial=0)))
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Any, rows: int) -> Histogram:
        histogram = cls(rows)
        histogram._reach(*(int(end) for end in arrays["range"]))
        for number, row in enumerate(histogram.counts):
            row[arrays[f"columns{number}"]] = arrays[f"counts{number}"]
        return histogram

    def _reach(self, lowest: int, highest: int) -> None:
        """Makes the bins hold the keys from ``lowest`` to ``highest``, and all before."""
        lowest, highest = min(lowest, self._lowest), max(highest, self._highest)
        if lowest > highest:
            return
        shift = 0
        while (highest >> shift) - (lowest >> shift) >= BINS:
            shift += 1
        before = self.counts, self._shift, self._first
        self._lowest, self._highest = lowest, highest
        self._shift, self._first = shift, lowest >> shift
        if before[1:] != (self._shift, self._first):
            self.counts = np.zeros_like(before[0])
            self.counts[:, 0] = before[0][:, 0]
            self._insert(*before)

    def _insert(self, counts: Ints, shift: int, first: int) -> None:
        """Adds counts made with bins that are as fine as the present ones, or finer."""
        occupied = np.flatnonzero(counts[:, 1:].any(axis=0))
        if not occupied.size:
            return
        columns = ((first + occupied) << shift >> self._shift) - (self._first - 1)
        starts = np.flatnonzero(np.diff(columns, prepend=-1))
        sums = np.add.reduceat(counts[:, 1 + occupied], starts, axis=1)
        self.counts[:, columns[starts]] += sums
