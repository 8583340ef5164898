"""Reads the lists of a night's images, and decides which files a list may name."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from ssray.errors import DataError
from ssray.storage.archives import split_member
from ssray.storage.location import Location

SUFFIXES = (".parquet", ".csv")
"""The suffixes of lists of images, in lower case."""
_COLUMNS = ("uri", "category")
_S3 = "s3://"
_ANY_LINES = pyarrow.csv.ParseOptions(newlines_in_values=True)
"""Makes pyarrow read texts of several lines, in columns that nobody asks for."""


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
        for batch in _batches(place):
            uris = batch.column("uri").cast(pa.string()).to_pylist()
            named: list[str | None] = [None] * len(uris)
            if "category" in batch.schema.names:
                named = batch.column("category").cast(pa.string()).to_pylist()
            yield from ((uri, name) for uri, name in zip(uris, named, strict=True) if uri)
    except FileNotFoundError:
        raise DataError(f"{place}: no such list. Check the path.") from None
    except (OSError, pa.ArrowException, ValueError, KeyError) as error:
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


def _batches(place: Location) -> Iterator[pa.RecordBatch]:
    """Reads the columns of a list some rows at a time."""
    if place.path.lower().endswith(".parquet"):
        with place.open_file() as file:
            table = pq.ParquetFile(file)
            yield from table.iter_batches(columns=_wanted(place, table.schema_arrow.names))
        return
    with place.filesystem.open_input_stream(place.path, compression=None) as stream:
        names = pyarrow.csv.open_csv(stream, parse_options=_ANY_LINES).schema.names
    options = pyarrow.csv.ConvertOptions(
        include_columns=_wanted(place, names),
        column_types=dict.fromkeys(_COLUMNS, pa.string()),  # a category 007 is no number 7
    )
    with place.filesystem.open_input_stream(place.path, compression=None) as stream:
        yield from pyarrow.csv.open_csv(stream, parse_options=_ANY_LINES, convert_options=options)


def _wanted(place: Location, names: Sequence[str]) -> list[str]:
    """Returns the columns to read of those that a list has.

    Raises:
        DataError: if there is no column ``uri``.
    """
    if "uri" not in names:
        raise DataError(f"{place}: no column 'uri'; found {', '.join(names)}.")
    return [name for name in _COLUMNS if name in names]
