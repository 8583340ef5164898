"""A histogram of float32 numbers that needs no range, takes constant memory and adds up exactly.

Non-negative floats sort like their bit patterns. A pattern without its lowest bits is the number of
a bin. Bins come in pages of ``PAGE`` neighbours, and only pages that hold a value take memory:
``PAGES`` at most. As few bits are dropped as that allows. The bins therefore depend on the set of
values alone, and all that is added up is integers: any order of the values and any split over
workers ends in the same state. Values far from the others cost a page each and don't widen the bins
of the rest.

The patterns are those of float64, which has no denormals in the range of float32. At worst, with
values of all magnitudes, a bin is a thousandth of its value wide.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ssray.metrics.labels import Ints

PAGE = 1 << 10
"""How many bins a page has."""
PAGES = 1 << 9
"""The largest number of pages."""
_PAGE_BITS = 10
_INFINITY = 0x7F800000
"""The bits of a float32 infinity; negative numbers have larger bit patterns."""
_UNUSED_BITS = 29
"""How many bits of a float64's mantissa are 0 if its value is a float32."""
_LEAST = int(np.array(2.0**-149).view(np.int64)) >> _UNUSED_BITS
"""The key of the smallest float32 above 0."""
_END = int(np.array(2.0**128).view(np.int64)) >> _UNUSED_BITS
"""The key after that of the largest float32."""

Values = npt.NDArray[np.float32]


class Histogram:
    """Counts, or integer weights, of values in common bins; each row is a histogram of its own.

    A *key* is a value's bit pattern without the bits that no float32 uses; a *column* is the place
    of its bin in ``counts``.

    Attributes:
        counts: (rows, 1 + PAGES * PAGE) int64, in the columns that ``place`` gives: column 0 is for
            zeros, the pages follow in the order in which they were first needed. ``ordered`` gives
            them in the order of the values.
    """

    def __init__(self, rows: int) -> None:
        self.counts = np.zeros((rows, 1 + PAGES * PAGE), np.int64)
        self._shift = 0
        self._pages = np.zeros(0, np.int64)
        self._places = self._table()

    def place(self, values: Values) -> Ints:
        """Makes bins for values, if there are none yet, and returns the column of each value.

        Args:
            values: float32 of any shape, finite and at least 0.

        Returns:
            The columns, int64 of the same shape.

        Raises:
            ValueError: if a value is negative, infinite or NaN; the bins stay as they were.
        """
        values = np.ascontiguousarray(values, dtype=np.float32)
        if values.view(np.uint32).max(initial=0) >= _INFINITY:
            values = values + np.float32(0)  # turns -0.0 into 0.0
            if values.view(np.uint32).max(initial=0) >= _INFINITY:
                raise ValueError(
                    "some values are negative, infinite or NaN; expected finite values of at "
                    "least 0"
                )
        keys = values.astype(np.float64).view(np.int64) >> _UNUSED_BITS
        zeros = keys == 0 if keys.min(initial=1) == 0 else None
        if zeros is not None:
            keys[zeros] = keys.max()
        if not keys.max(initial=0):
            return np.zeros(values.shape, np.int64)
        pages = self._page_of(keys)
        if self._places[pages].min() < 0:
            needed = np.zeros(len(self._places), bool)
            needed[pages] = True
            self._hold(self._shift, np.flatnonzero(needed) + self._first_page)
        columns = self._columns(keys)
        if zeros is not None:
            columns[zeros] = 0
        return columns

    @property
    def nbytes(self) -> int:
        """How many bytes the counts and the table of pages take."""
        return self.counts.nbytes + self._places.nbytes

    def merge(self, other: Histogram) -> None:
        """Adds the counts of another histogram, which is not changed."""
        self._hold(other._shift, other._pages)
        self._insert(other.ordered(), other._keys())

    def merge_arrays(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Adds the counts of another histogram, given by what its ``to_arrays`` returned."""
        shift, pages = int(arrays["shift"]), arrays["pages"]
        self._hold(shift, pages)
        for number, row in enumerate(self.counts):
            columns = np.cumsum(arrays[f"steps{number}"], dtype=np.int64)
            self._add(row, _keys(columns, pages, shift), arrays[f"counts{number}"])

    def ordered(self) -> Ints:
        """Returns the counts in the order of rising values: (rows, V) int64, zeros first."""
        pages = self.counts[:, 1:].reshape(len(self.counts), PAGES, PAGE)
        in_order = pages[:, np.argsort(self._pages)].reshape(len(self.counts), -1)
        return np.concatenate([self.counts[:, :1], in_order], axis=1)

    def positions(self, columns: Ints) -> Ints:
        """Returns where in ``ordered`` the columns are that ``place`` gave."""
        ranks = np.argsort(np.argsort(self._pages))
        positions, above_zero = np.zeros_like(columns), columns > 0
        bins = columns[above_zero] - 1
        positions[above_zero] = 1 + (ranks[bins >> _PAGE_BITS] << _PAGE_BITS) + bins % PAGE
        return positions

    def thresholds(self) -> npt.NDArray[np.float64]:
        """Returns the lowest value of each column of ``ordered``: (V,) float64, rising."""
        return (self._keys() << _UNUSED_BITS).view(np.float64)

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Returns the bins that are not empty as compact arrays, which ``merge_arrays`` reads."""
        arrays: dict[str, npt.NDArray[Any]] = {
            "shift": np.array(self._shift),
            "pages": np.sort(self._pages),
        }
        for number, row in enumerate(self.ordered()):
            columns = np.flatnonzero(row)
            arrays[f"steps{number}"] = _narrow(np.diff(columns, prepend=0))
            arrays[f"counts{number}"] = _narrow(row[columns])
        return arrays

    @property
    def _first_page(self) -> int:
        """The number of the page that holds the smallest float32 above 0."""
        return _LEAST >> (self._shift + _PAGE_BITS)

    def _page_of(self, keys: Ints) -> Ints:
        """Returns the numbers of the keys' pages, counted from ``_first_page``."""
        pages = keys >> (self._shift + _PAGE_BITS)
        pages -= self._first_page
        return pages

    def _columns(self, keys: Ints) -> Ints:
        """Returns the columns of keys, whose pages must be held."""
        columns = (self._places[self._page_of(keys)].astype(np.int64) << _PAGE_BITS) + 1
        columns += (keys >> self._shift) & (PAGE - 1)
        return columns

    def _table(self) -> npt.NDArray[np.int16]:
        """Makes the table that has the place in memory of every possible page, -1 if not held."""
        last_page = _END >> (self._shift + _PAGE_BITS)
        places = np.full(last_page - self._first_page + 1, -1, np.int16)
        places[self._pages - self._first_page] = np.arange(len(self._pages))
        return places

    def _keys(self) -> Ints:
        """Returns the lowest key of each column of ``ordered``."""
        columns = np.arange(1 + len(self._pages) * PAGE)
        return _keys(columns, np.sort(self._pages), self._shift)

    def _hold(self, shift: int, pages: Ints) -> None:
        """Makes room for further pages, whose numbers are those for ``shift`` dropped bits."""
        dropped = max(shift, self._shift)
        both = np.append(self._pages >> (dropped - self._shift), pages >> (dropped - shift))
        both = _distinct(np.sort(both))
        while len(both) > PAGES:
            dropped += 1
            both = _distinct(both >> 1)
        if dropped == self._shift:
            new = both[self._places[both - self._first_page] < 0]
            self._places[new - self._first_page] = len(self._pages) + np.arange(len(new))
            self._pages = np.append(self._pages, new)
            return
        before, keys = self.ordered(), self._keys()
        self.counts = np.zeros_like(self.counts)
        self._shift, self._pages = dropped, both
        self._places = self._table()
        self._insert(before, keys)

    def _insert(self, counts: Ints, keys: Ints) -> None:
        """Adds counts, one column for each key; the keys rise."""
        for row, added in zip(self.counts, counts, strict=True):
            occupied = np.flatnonzero(added)
            self._add(row, keys[occupied], added[occupied])

    def _add(self, row: Ints, keys: Ints, counts: npt.NDArray[np.integer]) -> None:
        """Adds counts to one row; the keys rise and their pages must be held."""
        if len(keys) and keys[0] == 0:
            row[0] += counts[0]
            keys, counts = keys[1:], counts[1:]
        if len(keys):
            columns = self._columns(keys)
            starts = np.flatnonzero(np.diff(columns, prepend=-1))
            row[columns[starts]] += np.add.reduceat(counts, starts, dtype=np.int64)


def _keys(columns: Ints, pages: Ints, shift: int) -> Ints:
    """Returns the lowest key of each given column of ``ordered``; ``pages`` rise."""
    bins = columns - 1
    page = np.append(pages, 0)[bins >> _PAGE_BITS]
    keys: Ints = ((page << _PAGE_BITS) + (bins & (PAGE - 1))) << shift
    keys[columns == 0] = 0
    return keys


def _distinct(rising: Ints) -> Ints:
    """Drops repeated numbers from a rising sequence."""
    distinct: Ints = rising[np.diff(rising, prepend=-1) != 0]
    return distinct


def _narrow(numbers: Ints) -> npt.NDArray[Any]:
    """Converts numbers of at least 0 to the narrowest type that holds them."""
    return numbers.astype(np.min_scalar_type(numbers.max(initial=0)))
