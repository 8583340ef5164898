"""Reads the lists of a night's images, and decides which files a list may name."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ssray.errors import DataError
from ssray.nightly.user_table import UNREADABLE, column_names, text_rows
from ssray.storage.archives import split_member
from ssray.storage.location import Location

SUFFIXES = (".parquet", ".csv")
"""The suffixes of lists of images, in lower case."""
_COLUMNS = ("uri", "category")
_S3 = "s3://"


def is_list(place: Location) -> bool:
    """Tells whether a place is a list of images."""
    return place.path.lower().endswith(SUFFIXES) and not place.is_dir()


def read_list(place: Location) -> Iterator[tuple[str, str | None]]:
    """Yields URI and category of each image that a list names; the category may be None.

    Only the columns ``uri`` and ``category`` are read.

    Raises:
        DataError: if the list is not there, is no table or has no column ``uri``.
    """
    try:
        for uri, *category in text_rows(place, _wanted(place, column_names(place))):
            if uri:
                yield uri, category[0] if category else None
    except FileNotFoundError:
        raise DataError(f"{place}: no such list. Check the path.") from None
    except UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{place}: not a table that can be read. Expected CSV or Parquet with one column uri "
            f"and perhaps one category, in UTF-8. ({reason})"
        ) from None


@dataclass(frozen=True)
class Roots:
    """Where the files that a list names may lie.

    Attributes:
        base: the folder of the list, below which relative names are.
        on_disk: real paths of files and folders.
        in_s3: URIs of buckets, prefixes and objects, without a slash at the end.
    """

    base: Location
    on_disk: tuple[str, ...]
    in_s3: tuple[str, ...]

    @classmethod
    def of(cls, place: Location, allowed: Sequence[Location]) -> Roots:
        """Returns the roots of a list: its own folder or bucket, and those that are allowed."""
        folder = Location(place.filesystem, posixpath.dirname(place.path), place.prefix)
        bucket = Location(place.filesystem, place.path.partition("/")[0], place.prefix)
        roots = [bucket if place.in_s3 else folder, *allowed]
        return cls(
            folder,
            tuple(os.path.realpath(root.path) for root in roots if not root.in_s3),
            tuple(root.uri for root in roots if root.in_s3),
        )

    def absolute(self, name: str) -> str:
        """Returns the URI of a name in the list; relative names are below the list's folder."""
        if "://" in name or name.startswith(("/", "~")):
            return name
        return (self.base / name).uri

    def error(self, uri: str) -> str | None:
        """Returns ``forbidden`` for what lies in no root or is no regular file, otherwise None.

        Links are followed first. A file that is not there is left to whoever reads it.
        """
        parts = split_member(uri)
        place = parts[0] if parts else uri
        if place.startswith(_S3):
            names = place.split("/")
            allowed = ".." not in names and "." not in names and _is_below(place, self.in_s3)
            return None if allowed else "forbidden"
        try:
            path = os.path.realpath(Location.parse(place).path)
            regular = _is_below(path, self.on_disk) and _is_regular(path)
        except (DataError, ValueError):  # an unknown scheme; a name with a zero byte
            regular = False
        return None if regular else "forbidden"


def _is_below(place: str, roots: Sequence[str]) -> bool:
    return any(place == root or place.startswith(f"{root.rstrip('/')}/") for root in roots)


def _is_regular(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return True


def _wanted(place: Location, names: Sequence[str]) -> list[str]:
    """Returns the columns to read of those that a list has.

    Raises:
        DataError: if there is no column ``uri``.
    """
    if "uri" not in names:
        raise DataError(f"{place}: no column 'uri'; found {', '.join(names)}.")
    return [name for name in _COLUMNS if name in names]
