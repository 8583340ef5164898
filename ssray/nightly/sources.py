"""Where a night's images are: prefixes and folders, archives read in place, and lists."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from ssray.data.dataset import image_extensions
from ssray.errors import ConfigError, DataError, ImageError
from ssray.nightly import CATEGORY_PATTERN
from ssray.storage.archives import category_of, listed
from ssray.storage.fetch import Fetcher
from ssray.storage.listing import ListedFile, walk
from ssray.storage.location import Location

UNMATCHED = "unmatched"
"""Category of an image whose path the pattern does not fit."""
_LISTS = (".parquet", ".csv")
_AS_TEXT = pyarrow.csv.ConvertOptions(column_types={"uri": pa.string(), "category": pa.string()})
"""Or a category 007 would be a number."""
_MASKS = "ground_truth"


@dataclass(frozen=True)
class Source:
    """An image that is to be scored.

    Attributes:
        uri: of the file, or ``ARCHIVE#MEMBER``.
        category: whose model it needs.
        size: in bytes, if it is known.
        offset: in a plain tar.
        error: a reason code, if it is known already that it can't be scored.
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
            of the path below the place that was given; an archive counts as a folder of its
            name without the suffix.
        fixed: the category of all images, whatever their path.
    """

    pattern: str = CATEGORY_PATTERN
    fixed: str | None = None

    def __post_init__(self) -> None:
        """Finds mistakes before any data is read.

        Raises:
            ConfigError: if it is not such an expression.
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
        r"""The category that a path names; ``UNMATCHED`` if none.

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
    """The images of a place, one at a time.

    Args:
        place: a folder or prefix, an image, an archive, or a list: a Parquet or CSV table with a
            column ``uri`` and perhaps ``category``.
        rule: for images whose category no column names.
        passed_over: counts files that are neither images nor archives, by their suffix, and masks
            below ``ground_truth``.

    Raises:
        DataError: if there is no such place, it can't be listed now, or a list is none.
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
    """A row of its own for what has a name that no table can hold, too."""
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
    """Whether it is an image, and no mask; counts it otherwise."""
    parts = PurePosixPath(path)
    if _MASKS in parts.parent.parts:
        passed_over[f"{_MASKS}/"] += 1
    elif parts.suffix.lower() not in image_extensions():
        passed_over[parts.suffix.lower() or parts.name] += 1
    else:
        return True
    return False


def _members(file: ListedFile, rule: CategoryRule, passed_over: Counter[str]) -> Iterator[Source]:
    """Images in an archive; a row for the archive itself where it is no good from there on.

    Raises:
        DataError: if the store does not give it now.
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
    if place.path.endswith(".parquet"):
        with place.open_file() as file:
            yield from pq.ParquetFile(file).iter_batches()
    else:
        with place.filesystem.open_input_stream(place.path) as stream:
            yield from pyarrow.csv.open_csv(stream, convert_options=_AS_TEXT)
