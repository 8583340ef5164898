"""Reads an archive's bytes so that a failing store is never taken for a damaged archive."""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from ssray.errors import DataError, ImageError, changed
from ssray.storage.location import Location

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_PIECE_BYTES = 1024**2
_READ_AHEAD_BYTES, _MOST_READ_AHEAD_BYTES = 1 << 16, 1 << 23
_NEAR_BYTES = 1 << 20
"""What is left out between two reads and takes about as long to bring as a request of its own."""


class Readable(Protocol):
    """Anything that bytes can be read from, from its beginning on."""

    def read(self, size: int, /) -> bytes:
        """Returns the next bytes; fewer only at the end."""
        ...


class _StorageError(Exception):
    """Carries an ``OSError`` of the store through code that takes those for its own."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


class StoredFile:
    """A stored file whose bytes are read here and there, inside of ``naming_damage``.

    All that is read of it is of the same version: what was replaced since it was opened is an
    ``ImageError`` with code ``changed``.

    Attributes:
        size: how many bytes it has.
        etag: what changes when the file does.
    """

    def __init__(self, place: Location, etag: str | None = None) -> None:
        """Asks for the size and the ETag, which must be ``etag`` if that is known."""
        self._place = place
        self.size, self.etag = self._size_and_etag()
        if etag is not None and etag != self.etag:
            raise changed(place.uri)

    @property
    def in_s3(self) -> bool:
        """Whether each read is a request."""
        return self._place.in_s3

    def check(self) -> None:
        """Makes sure that the file was not replaced since it was opened."""
        if self._size_and_etag() != (self.size, self.etag):
            raise changed(self._place.uri)

    def read_at(self, size: int, offset: int) -> bytes:
        """Reads a range of bytes, fewer at the end; many threads may do so at once."""
        size = max(min(size, self.size - offset), 0)
        try:
            content = self._place.read_range(offset, size, etag=self.etag)
        except OSError as error:
            raise _StorageError(error) from None
        if len(content) < size:
            raise _StorageError(OSError(f"{self._place}: {len(content)} of {size} bytes"))
        return content

    def read_ahead(self) -> ReadAhead:
        """Returns the file for reads that go forwards."""
        return ReadAhead(self)

    def stream(self) -> Stream:
        """Returns the file as Python's own libraries read it, from its beginning."""
        return Stream(self)

    def _size_and_etag(self) -> tuple[int, str]:
        try:
            return self._place.size_and_etag()
        except OSError as error:
            raise _StorageError(error) from None


class Stream(io.RawIOBase):
    """A ``StoredFile`` with a position."""

    def __init__(self, file: StoredFile) -> None:
        self._file, self._position = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        content = self._file.read_at(len(view), self._position)
        view[: len(content)] = content
        self._position += len(content)
        return len(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        position = (0, self._position, self._file.size)[whence] + offset
        if position < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._position = position
        return position

    def tell(self) -> int:
        return self._position


class ReadAhead(Stream):
    """A ``StoredFile`` that is read mostly forwards, here and there.

    In S3 a request takes as long as some megabytes that it may bring. So where little is left out
    between two reads, the next request brings twice as much as the last one, up to
    ``_MOST_READ_AHEAD_BYTES``: small members of a tar are then found hundreds at a time. Where much
    is left out, and on disks, it brings ``_READ_AHEAD_BYTES``.
    """

    def __init__(self, file: StoredFile) -> None:
        super().__init__(file)
        self._window, self._begin, self._ahead = b"", 0, _READ_AHEAD_BYTES

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        if not self._begin <= self._position < self._begin + len(self._window):
            left_out = self._position - self._begin - len(self._window)
            near = self._file.in_s3 and self._window and 0 <= left_out <= _NEAR_BYTES
            self._ahead = (
                min(2 * self._ahead, _MOST_READ_AHEAD_BYTES) if near else _READ_AHEAD_BYTES
            )
            self._begin = self._position
            self._window = self._file.read_at(max(self._ahead, len(view)), self._begin)
        first = self._position - self._begin
        content = self._window[first : first + len(view)]
        view[: len(content)] = content
        self._position += len(content)
        return len(content)


@contextlib.contextmanager
def raising_storage_errors() -> Iterator[None]:
    """Raises the errors of a ``StoredFile`` inside as the store raised them.

    Raises:
        OSError: if the store failed.
    """
    try:
        yield
    except _StorageError as failure:
        raise failure.error from None


@contextlib.contextmanager
def naming_damage(archive: Location | str) -> Iterator[None]:
    """Turns whatever is raised inside, while an archive is parsed, into a ``DataError``.

    What parsers raise on damaged or crafted archives is open-ended. Errors of a ``StoredFile`` are
    raised as the store raised them.

    Raises:
        OSError: if the store failed.
        DataError: if the archive is damaged.
        ImageError: if one was raised, about a single member.
    """
    with raising_storage_errors():
        try:
            yield
        except (_StorageError, ImageError, MemoryError):
            raise
        except Exception as error:
            what = str(error) or type(error).__name__
            raise DataError(
                f"{archive}: damaged, cut short or too large. Expected an archive that can be "
                f"read to its end; copy it again or repack it. ({what})"
            ) from None


def take(stream: Readable, size: int) -> bytes:
    """Reads exactly so many bytes; memory is taken for those that are there.

    Raises:
        EOFError: if there are fewer.
    """
    pieces = []
    left = size
    while left:
        piece = stream.read(min(left, _PIECE_BYTES))
        if not piece:
            raise EOFError(f"{size - left:,} of {size:,} bytes are there")
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)
