"""Reads files inside tar and zip archives without unpacking these to disk.

The URI of such a file (a member) is ``ARCHIVE#MEMBER``.

Members of a plain tar are read by their byte range and those of a zip through its directory, so
that on S3 nothing else is fetched. A compressed tar can only be read from its beginning: each
process unpacks it once, in memory.
"""

from __future__ import annotations

import functools
import io
import lzma
import re
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa
from pyarrow import fs

from ssray.errors import DataError
from ssray.storage.location import Location

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
MAX_UNPACKED_BYTES = 4 * 1024**3
"""The most bytes that a compressed tar may unpack to; larger ones are refused."""
_CACHED = 8
_READ_AHEAD_BYTES = 1 << 16
_SPLIT = re.compile(rf"(.+?(?:{'|'.join(map(re.escape, SUFFIXES))}))#(.+)", re.DOTALL)
_DAMAGED = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError),
    pa.ArrowInvalid,
    NotImplementedError,
    RuntimeError,
)
"""The exceptions that reading a bad archive raises.

``ArrowInvalid`` comes from a byte range outside the file; ``NotImplementedError`` and
``RuntimeError`` come from zipfile, for an unknown compression and a member behind a password.
"""


class _Archive(Protocol):
    """An open archive, whatever its format."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """The size in bytes of each member, by name."""
        ...

    def read(self, member: str) -> bytes:
        """Returns the content of a member; raises ``KeyError`` if there is none of that name."""
        ...


def read_file(uri: str) -> bytes:
    """Returns the content of a file, or of an archive's member.

    Raises:
        OSError: if the file can't be read, or the archive has no such member.
        DataError: if the archive is damaged, behind a password or too large.
    """
    parts = split_member(uri)
    if parts is None:
        return Location.parse(uri).read()
    archive, member = parts
    try:
        return _opened(archive).read(member)
    except KeyError:
        raise FileNotFoundError(f"{archive} has no member {member}") from None
    except _DAMAGED as error:
        raise DataError(
            f"{archive}: damaged, cut short or behind a password at {member}. Expected an archive "
            f"that can be read whole; copy it again or repack it. ({error})"
        ) from None


@dataclass(frozen=True)
class Member:
    """A file in an archive.

    Attributes:
        name: the path of the file inside the archive.
        size: the size of the unpacked file in bytes.
        offset: the position of its first byte in a plain tar; None for other archives, whose
            members can't be read by byte range.
    """

    name: str
    size: int
    offset: int | None


def listed(archive: Location) -> Iterator[Member]:
    """Yields the files of an archive in the order in which they are stored.

    Of a tar one entry is held in memory at a time, of a zip the whole directory.

    Raises:
        OSError: if the archive can't be read.
        DataError: if it is damaged; the members before the damage have been yielded by then.
    """
    try:
        if archive.path.endswith(".zip"):
            yield from (Member(name, size, None) for name, size in _Zip(archive).sizes.items())
        elif archive.path.endswith(".tar"):
            for info in _tar_members(archive):
                yield Member(_name(info.name), info.size, info.offset_data)
        else:
            for info, _ in _streamed(archive):
                yield Member(_name(info.name), info.size, None)
    except _DAMAGED as error:
        raise DataError(
            f"{archive}: damaged. Expected an archive that can be read to its end; copy it again "
            f"or repack it. ({error})"
        ) from None


def streamed(archive: Location) -> Iterator[tuple[str, bytes]]:
    """Yields the name and content of each file of a compressed tar, one at a time.

    Raises:
        OSError: if the archive can't be read.
        DataError: if it is damaged; the files before the damage have been yielded by then.
    """
    try:
        for info, tar in _streamed(archive):
            file = tar.extractfile(info)
            assert file is not None
            yield _name(info.name), file.read()
    except _DAMAGED as error:
        raise DataError(
            f"{archive}: damaged. Expected an archive that can be read to its end; copy it again "
            f"or repack it. ({error})"
        ) from None


def is_compressed_tar(archive: str) -> bool:
    """Tells whether a name is that of a compressed tar, which must be read from its beginning."""
    return category_of(archive) is not None and not archive.endswith((".tar", ".zip"))


def split_member(uri: str) -> tuple[str, str] | None:
    """Splits ``ARCHIVE#MEMBER`` into its two parts; returns None if the URI names a plain file.

    >>> split_member("s3://bucket/a.tar#x/1.png")
    ('s3://bucket/a.tar', 'x/1.png')
    """
    parts = _SPLIT.fullmatch(uri)
    return (parts[1], parts[2]) if parts else None


def category_of(archive: str) -> str | None:
    """Returns the category that an archive is named after: its name without the suffix.

    The result is None if the name does not end like an archive's.

    >>> category_of("grid.tar.gz"), category_of("grid.txt")
    ('grid', None)
    """
    suffix = max((s for s in SUFFIXES if archive.endswith(s)), key=len, default=None)
    return archive.removesuffix(suffix) if suffix else None


def members(archive: Location) -> Mapping[str, int]:
    """Returns the size in bytes of every file in an archive, by name.

    Raises:
        DataError: if the archive can't be read, is damaged or too large.
    """
    try:
        return _opened(archive.uri).sizes
    except OSError as error:
        raise DataError(f"{archive}: can't be read. ({error})") from None


@functools.lru_cache(maxsize=_CACHED)
def _opened(uri: str) -> _Archive:
    place = Location.parse(uri)
    try:
        if uri.endswith(".zip"):
            return _Zip(place)
        return _Tar(place) if uri.endswith(".tar") else _unpacked(place)
    except _DAMAGED as error:
        raise DataError(
            f"{uri}: not an archive that can be read. Expected an undamaged "
            f"{', '.join(SUFFIXES)} without a password; copy it again or repack it. ({error})"
        ) from None


class _Tar:
    """A plain tar; its headers are read once, then each member by its byte range."""

    def __init__(self, place: Location) -> None:
        self._file: fs.NativeFile = place.open_file()
        self._places = {
            _name(info.name): (info.offset_data, info.size) for info in _tar_members(place)
        }

    @property
    def sizes(self) -> Mapping[str, int]:
        return {name: size for name, (_, size) in self._places.items()}

    def read(self, member: str) -> bytes:
        offset, size = self._places[member]
        content: bytes = self._file.read_at(size, offset)
        if len(content) < size:
            raise EOFError(f"{len(content)} of {size} bytes")
        return content


class _Zip:
    """A zip; one thread at a time uses its reader, which is not safe for several."""

    def __init__(self, place: Location) -> None:
        file = place.open_file()
        self._zip = zipfile.ZipFile(io.BufferedReader(file, _READ_AHEAD_BYTES))
        self._lock = threading.Lock()
        self._infos = {_name(i.filename): i for i in self._zip.infolist() if not i.is_dir()}

    @property
    def sizes(self) -> Mapping[str, int]:
        return {name: info.file_size for name, info in self._infos.items()}

    def read(self, member: str) -> bytes:
        info = self._infos[member]
        with self._lock:
            return self._zip.read(info)


@dataclass(frozen=True)
class _Unpacked:
    """A compressed tar whose files are all held in memory."""

    contents: Mapping[str, bytes]

    @property
    def sizes(self) -> Mapping[str, int]:
        return {name: len(content) for name, content in self.contents.items()}

    def read(self, member: str) -> bytes:
        return self.contents[member]


def _unpacked(place: Location) -> _Unpacked:
    contents, total = {}, 0
    for info, tar in _streamed(place):
        total += info.size
        if total > MAX_UNPACKED_BYTES:
            raise DataError(
                f"{place}: more than {MAX_UNPACKED_BYTES / 1024**3:g} GiB unpacked. Store it "
                "as a plain .tar, which is read in place."
            )
        member = tar.extractfile(info)
        assert member is not None
        contents[_name(info.name)] = member.read()
    return _Unpacked(contents)


def _streamed(place: Location) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """Yields the files of a compressed tar; each must be read before the next is asked for."""
    with place.filesystem.open_input_stream(place.path, compression=None) as stream:
        try:
            tar = tarfile.open(fileobj=stream, mode="r|*")  # noqa: SIM115
        except TypeError as error:  # tarfile's, for a few bytes only
            raise tarfile.ReadError(str(error)) from None
        with tar:
            for info in tar:
                if info.isreg():
                    yield info, tar
                tar.members.clear()  # type: ignore[attr-defined]  # it remembers every one


def _tar_members(place: Location) -> Iterator[tarfile.TarInfo]:
    """Yields the entries of a plain tar's files; only its headers are read."""
    with (
        place.open_file() as file,
        io.BufferedReader(file, _READ_AHEAD_BYTES) as buffered,
        tarfile.open(fileobj=buffered, mode="r:") as tar,
    ):
        while info := tar.next():
            tar.members.clear()  # type: ignore[attr-defined]
            if info.isreg():
                yield info


def _name(member: str) -> str:
    return member.removeprefix("./")
