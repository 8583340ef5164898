"""Reads files inside tar and zip archives without unpacking these to disk.

The URI of such a file (a member) is ``ARCHIVE#MEMBER``, where the member's path is normalised.

Members of a plain tar are read by their byte range and those of a zip through its directory, so
that on S3 nothing else is fetched. A compressed tar can only be read from its beginning: each
process unpacks it once, in memory. An archive may come from anyone: ``limits`` says how much of it
is believed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Iterator, Mapping
from typing import TypeVar

from ssray.errors import DataError, ImageError
from ssray.storage.archives import limits
from ssray.storage.archives.contents import Member
from ssray.storage.archives.names import (
    SUFFIXES,
    category_of,
    is_compressed_tar,
    normalised,
    split_member,
)
from ssray.storage.archives.opened import Archive, open_archive, unpacked
from ssray.storage.archives.stored import StoredFile, naming_damage
from ssray.storage.archives.tar import TarFile, entries
from ssray.storage.location import Location

__all__ = [
    "SUFFIXES",
    "Member",
    "category_of",
    "is_compressed_tar",
    "limits",
    "listed",
    "members",
    "normalised",
    "read_file",
    "split_member",
    "streamed",
]

_CACHED = 8

_Result = TypeVar("_Result")


def read_file(uri: str, etag: str | None = None) -> bytes:
    """Returns the content of a file, or of an archive's member.

    Args:
        uri: the file's path or URI, or ``ARCHIVE#MEMBER``.
        etag: that of the file, or of the archive, when it was listed; None reads what there is now.

    Raises:
        OSError: if the file or archive can't be read.
        DataError: if the archive is damaged, behind a password or too large; an ``ImageError`` if
            this can be said of the member alone, it is missing, or the file has another ETag.
    """
    parts = split_member(uri)
    if parts is None:
        return Location.parse(uri).read(etag=etag)
    archive, member = parts

    def read(found: Archive) -> bytes:
        with naming_damage(uri):
            return found.read(normalised(member))

    return _in_archive(archive, read, etag)


def listed(archive: Location) -> Iterator[Member]:
    """Yields the files of an archive in the order in which they are stored, each path once.

    All of them are of one version of the archive, whose ETag they have.

    Raises:
        OSError: if the archive can't be read.
        DataError: if it is damaged; the members before the damage have been yielded by then. An
            ``ImageError`` with code ``changed`` if it was replaced twice while its members were
            looked up, before any is yielded.
    """
    try:
        found = open_archive(archive, keep=False)
    except ImageError:
        found = open_archive(archive, keep=False)
    yield from found.members()
    if found.damage:
        raise found.damage


def streamed(
    archive: Location, offsets: Container[int], etag: str | None = None
) -> Iterator[tuple[int, bytes]]:
    """Yields files of a compressed tar with their positions, one at a time.

    Args:
        archive: the compressed tar.
        offsets: the positions of the files, as ``listed`` gives them.
        etag: that of the archive, as ``listed`` gives it.

    Raises:
        OSError: if the archive can't be read.
        DataError: if it is damaged; the files before the damage have been yielded by then. An
            ``ImageError`` with code ``changed`` if it was replaced since it was listed, or is while
            it is read.
    """
    with naming_damage(archive):
        for entry in entries(
            unpacked(StoredFile(archive, etag)), lambda file: file.offset in offsets
        ):
            if entry.content is not None and isinstance(entry.member, TarFile):
                yield entry.member.offset, entry.content


def members(archive: Location) -> Mapping[str, int]:
    """Returns the size in bytes of every file in an archive, by path.

    Of a link to nowhere the size is 0; reading it tells why.

    Raises:
        DataError: if the archive can't be read, is damaged or too large.
    """

    def sizes(found: Archive) -> dict[str, int]:
        found.check()
        if found.damage:
            raise found.damage
        return {member.name: member.size for member in found.members()}

    try:
        return _in_archive(archive.uri, sizes)
    except OSError as error:
        raise DataError(f"{archive}: can't be read. ({error})") from None


def _in_archive(uri: str, use: Callable[[Archive], _Result], etag: str | None = None) -> _Result:
    """Uses an archive that is opened once; if it was replaced since, it is opened anew.

    Raises:
        ImageError: with code ``changed`` if it has not the ETag, where one is expected.
    """
    try:
        return use(_opened(uri, etag))
    except ImageError as error:
        if error.code != "changed":
            raise
        _opened.cache_clear()
        if etag is not None:
            raise
    return use(_opened(uri, etag))


@functools.lru_cache(maxsize=_CACHED)
def _opened(uri: str, etag: str | None) -> Archive:
    return open_archive(Location.parse(uri), etag, keep=True)
