"""Finds the images of a night in folders, S3 prefixes, archives and lists."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from ssray.data.image_files import image_extensions
from ssray.errors import ConfigError, DataError, ImageError
from ssray.nightly import CATEGORY_PATTERN
from ssray.storage.archives import category_of, listed
from ssray.storage.fetch import Fetcher
from ssray.storage.listing import ListedFile, walk
from ssray.storage.location import Location

UNMATCHED = "unmatched"
"""The category of an image whose path the pattern does not match."""
_LISTS = (".parquet", ".csv")
"""The suffixes of lists of images."""
_AS_TEXT = pyarrow.csv.ConvertOptions(column_types={"uri": pa.string(), "category": pa.string()})
"""Makes pyarrow read these columns as text; a category 007 would become the number 7."""
_MASKS = "ground_truth"
"""The folder of masks, which are no images to score."""


@dataclass(frozen=True)
class Source:
    """An image that is to be scored.

    Attributes:
        uri: the URI of the file, or ``ARCHIVE#MEMBER``.
        category: the category, whose model scores the image.
        size: the size of the file in bytes, if it is known.
        offset: the position of its first byte in a plain tar; None for all others.
        error: a reason code if it is known already that the image can't be scored.
    """

    uri: str
    category: str
    size: int | None = None
    offset: int | None = None
    error: str | None = None


@dataclass(frozen=True)
class CategoryRule:
    """How an image's category follows from its path.

    Attributes:
        pattern: a regular expression with a group named ``category``, matched from the beginning
            of the path below the place that was given; an archive counts as a folder with the
            archive's name, less its suffix.
        fixed: the category of all images, if their paths shall not matter.
    """

    pattern: str = CATEGORY_PATTERN
    fixed: str | None = None

    def __post_init__(self) -> None:
        """Checks the pattern, before any data is read.

        Raises:
            ConfigError: if it is not a regular expression, or has no group ``category``.
        """
        try:
            groups = re.compile(self.pattern).groupindex
        except re.error as error:
            raise ConfigError(
                f"--category-pattern {self.pattern!r}: not a regular expression ({error})."
            ) from None
        if "category" not in groups:
            raise ConfigError(
                f"--category-pattern {self.pattern!r}: expected a group (?P<category>...)."
            )

    def of(self, path: str) -> str:
        r"""Returns the category of a path; ``UNMATCHED`` if the pattern does not match it.

        >>> CategoryRule().of("grid/000.png")
        'grid'
        >>> CategoryRule(r"line\d/(?P<category>[a-z]+)_").of("line3/bolt_0815.png")
        'bolt'
        """
        if self.fixed:
            return self.fixed
        found = re.match(self.pattern, path)
        return (found and found["category"]) or UNMATCHED


def find(place: Location, rule: CategoryRule, passed_over: Counter[str]) -> Iterator[Source]:
    """Yields the images of a place, one at a time.

    Args:
        place: a folder or prefix, an image, an archive, or a list: a Parquet or CSV table with a
            column ``uri`` and perhaps a column ``category``.
        rule: decides the category of images for which no column names one.
        passed_over: counts the files that are not scored: those that are neither images nor
            archives, by their suffix, and masks below ``ground_truth``.

    Raises:
        DataError: if there is no such place, it can't be listed now, or a list can't be read.
    """
    if place.path.endswith(_LISTS) and not place.is_dir():
        yield from _from_list(place, rule)
        return
    for file in walk(place):
        if category_of(file.path) is not None:
            yield from _members(file, rule, passed_over)
        elif _is_wanted(file.path, passed_over):
            yield _source(file.place.uri, rule.of(file.path), file.size)


def _source(
    uri: str,
    category: str,
    size: int | None,
    offset: int | None = None,
    error: str | None = None,
) -> Source:
    """Makes a source; a name that no table can hold is written differently, with an error.

    Names of files may hold bytes that are no text; they are replaced by backslash escapes, and the
    error is ``bad_name``.
    """
    try:
        uri.encode()
    except UnicodeEncodeError:
        uri, category = (
            name.encode(errors="surrogateescape").decode(errors="backslashreplace")
            for name in (uri, category)
        )
        error = "bad_name"
    return Source(uri, category, size, offset, error)


def _is_wanted(path: str, passed_over: Counter[str]) -> bool:
    """Tells whether a path is that of an image and no mask; counts it if it is not."""
    parts = PurePosixPath(path)
    if _MASKS in parts.parent.parts:
        passed_over[f"{_MASKS}/"] += 1
    elif parts.suffix.lower() not in image_extensions():
        passed_over[parts.suffix.lower() or parts.name] += 1
    else:
        return True
    return False


def _members(file: ListedFile, rule: CategoryRule, passed_over: Counter[str]) -> Iterator[Source]:
    """Yields the images in an archive.

    If the archive is damaged, the images before the damage are followed by a source that stands for
    the archive itself, with the reason as its error.

    Raises:
        DataError: if the archive can't be fetched now.
    """
    folder, uri = category_of(file.path), file.place.uri
    try:
        for member in Fetcher().each(uri, lambda: listed(file.place)):
            if _is_wanted(member.name, passed_over):
                category = rule.of(f"{folder}/{member.name}")
                yield _source(f"{uri}#{member.name}", category, member.size, member.offset)
    except ImageError as error:
        if error.code == "unreadable":  # as it may be tomorrow, or in a minute
            raise DataError(f"{error}. Start again when it can be read.") from None
        yield _source(uri, rule.of(f"{folder}/"), file.size, error=error.code)


def _from_list(place: Location, rule: CategoryRule) -> Iterator[Source]:
    """Yields the images that a list names."""
    try:
        for batch in _batches(place):
            if "uri" not in batch.schema.names:
                raise DataError(f"{place}: no column 'uri'; found {', '.join(batch.schema.names)}.")
            uris = batch.column("uri").cast(pa.string()).to_pylist()
            named: list[str | None] = [None] * len(uris)
            if "category" in batch.schema.names:
                named = batch.column("category").cast(pa.string()).to_pylist()
            for uri, category in zip(uris, named, strict=True):
                if uri:
                    yield Source(uri, category or rule.of(uri))
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{place}: not a table that can be read. ({error})") from None


def _batches(place: Location) -> Iterator[pa.RecordBatch]:
    """Reads a list some rows at a time."""
    if place.path.endswith(".parquet"):
        with place.open_file() as file:
            yield from pq.ParquetFile(file).iter_batches()
    else:
        with place.filesystem.open_input_stream(place.path) as stream:
            yield from pyarrow.csv.open_csv(stream, convert_options=_AS_TEXT)
