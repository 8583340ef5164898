"""Finds the images of a night in folders, S3 prefixes, archives and lists."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ssray.data.image_files import passed_over_as
from ssray.errors import ConfigError, DataError, ImageError
from ssray.nightly import CATEGORY_PATTERN
from ssray.nightly.lists import Roots, is_list, read_list
from ssray.storage.archives import category_of, listed
from ssray.storage.fetch import Fetcher
from ssray.storage.listing import ListedFile, is_hidden, walk
from ssray.storage.location import Location

UNMATCHED = "unmatched"
"""The category of an image whose path the pattern does not match."""


REFUSED = "refused"
"""The error of an archive that the storage refused to give when it was listed: it may later."""


@dataclass(frozen=True)
class Source:
    """An image that is to be scored.

    Attributes:
        uri: the URI of the file, or ``ARCHIVE#MEMBER``.
        category: the category, whose model scores the image.
        size: the size of the file in bytes, if it is known.
        offset: the position of its first byte in a plain tar, or in what a compressed tar unpacks
            to; None for all others.
        error: a reason code if it is known already that the image can't be scored.
        etag: what changes when the file, or the archive, does: its ETag in S3, on a disk its size
            and the time of its last change; None where nothing was listed.
    """

    uri: str
    category: str
    size: int | None = None
    offset: int | None = None
    error: str | None = None
    etag: str | None = None


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


def find(
    place: Location,
    rule: CategoryRule,
    passed_over: Counter[str],
    allowed: Sequence[Location] = (),
) -> Iterator[Source]:
    """Yields the images of a place, one at a time.

    Args:
        place: a folder or prefix, an image, an archive, or a list: a Parquet or CSV table with a
            column ``uri`` and perhaps a column ``category``.
        rule: decides the category of images for which no column names one.
        passed_over: counts the files that are not scored: those that are neither images nor
            archives, by their suffix, and masks below ``ground_truth``.
        allowed: where a list may name files, beside its own folder, or in S3 its own bucket; what
            it names elsewhere has the error ``forbidden``.

    Raises:
        DataError: if there is no such place, it can't be listed now, or a list can't be read.
    """
    if is_list(place):
        yield from _from_list(place, rule, Roots.of(place, allowed))
        return
    for file in walk(place):
        if file.is_lost_folder:
            yield _source(file.place.uri, rule.of(f"{file.path}/"), file.size, error=file.error)
        elif category_of(file.path) is not None:
            yield from _members(file, rule, passed_over)
        elif _is_wanted(file.path, passed_over):
            yield _source(
                file.place.uri, rule.of(file.path), file.size, error=file.error, etag=file.etag
            )


def _source(
    uri: str,
    category: str,
    size: int | None,
    offset: int | None = None,
    error: str | None = None,
    etag: str | None = None,
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
    return Source(uri, category, size, offset, error, etag)


def _is_wanted(path: str, passed_over: Counter[str]) -> bool:
    """Tells whether a path is that of an image and no mask; counts it if it is not."""
    reason = passed_over_as(path)
    if reason:
        passed_over[reason] += 1
    return reason is None


def _members(file: ListedFile, rule: CategoryRule, passed_over: Counter[str]) -> Iterator[Source]:
    """Yields the images in an archive.

    If the archive is damaged, the images before the damage are followed by a source that stands for
    the archive itself, with the reason as its error.

    Raises:
        DataError: if the archive can't be fetched now.
    """
    folder, uri = category_of(file.path), file.place.uri
    if file.error:
        yield _source(uri, rule.of(f"{folder}/"), file.size, error=file.error)
        return
    try:
        for member in Fetcher().each(uri, lambda: listed(file.place)):
            if not is_hidden(member.name) and _is_wanted(member.name, passed_over):
                category = rule.of(f"{folder}/{member.name}")
                yield _source(
                    f"{uri}#{member.name}", category, member.size, member.offset, etag=member.etag
                )
    except ImageError as error:
        if error.code == "unreadable":  # as it may be tomorrow, or in a minute
            raise DataError(f"{error}. Start again when it can be read.") from None
        refused = error.code == "forbidden" and error.transient
        code = REFUSED if refused else error.code
        yield _source(uri, rule.of(f"{folder}/"), file.size, error=code, etag=file.etag)


def _from_list(place: Location, rule: CategoryRule, roots: Roots) -> Iterator[Source]:
    """Yields the images that a list names."""
    for name, category in read_list(place):
        uri = roots.absolute(name)
        yield Source(uri, category or rule.of(name), error=roots.error(uri))
