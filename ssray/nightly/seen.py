"""Which of a night's images have their rows already, in a few bytes an image."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ssray.nightly.sources import Source

COLUMNS = ("uri", "category", "etag", "error")
"""What of the rows has to be known."""
State = Literal["new", "known", "changed", "again"]
"""Of an image: without a row; with one; with one of another content; with one that is to be made
again."""
_KEY_BYTES = 16


@dataclass(frozen=True)
class Seen:
    """The images of a night that have a row.

    Attributes:
        keys: (N,) digests of their categories and URIs, sorted.
        tags: (N,) digests of their ETags, 0 for none.
        again: (N,) bool, whether the row is to be made again.
    """

    keys: npt.NDArray[np.void]
    tags: npt.NDArray[np.uint64]
    again: npt.NDArray[np.bool_]

    @classmethod
    def of(
        cls, batches: Iterable[pa.RecordBatch], is_to_be_made_again: Callable[[str, str], bool]
    ) -> Seen:
        """Reads rows.

        Args:
            batches: the ``COLUMNS`` of all rows.
            is_to_be_made_again: tells it by the category and error of a row that has one.
        """
        keys, tags, again = bytearray(), list[int](), list[bool]()
        for batch in batches:
            columns = (batch.column(name).to_pylist() for name in COLUMNS)
            for uri, category, etag, error in zip(*columns, strict=True):
                keys += _key(category, uri)
                tags.append(_tag(etag))
                again.append(error is not None and is_to_be_made_again(category, error))
        found = np.frombuffer(bytes(keys), f"S{_KEY_BYTES}")
        order = np.argsort(found, kind="stable")
        return cls(found[order], np.array(tags, np.uint64)[order], np.array(again, np.bool_)[order])

    def state(self, source: Source) -> State:
        """What is known of an image."""
        key = np.frombuffer(_key(source.category, source.uri), self.keys.dtype)[0]
        place = int(np.searchsorted(self.keys, key))
        if place == len(self.keys) or self.keys[place] != key:
            return "new"
        if self.again[place]:
            return "again"
        tag, before = _tag(source.etag), int(self.tags[place])
        return "changed" if tag and before and tag != before else "known"


def _key(category: str, uri: str) -> bytes:
    """A digest without the byte that numpy takes for the end of a text."""
    digest = hashlib.blake2b(f"{category}\0{uri}".encode(), digest_size=_KEY_BYTES).digest()
    return digest.replace(b"\0", b"\1")


def _tag(etag: str | None) -> int:
    if etag is None:
        return 0
    return int.from_bytes(hashlib.blake2b(etag.encode(), digest_size=8).digest()) | 1
