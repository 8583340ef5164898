"""Reads an archive's bytes so that a failing store is never taken for a damaged archive."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from pyarrow import fs

from ssray.errors import DataError, ImageError
from ssray.storage.location import Location

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_PIECE_BYTES = 1024**2


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


class StoredFile(io.RawIOBase):
    """A stored file as Python's own libraries read it, inside of ``naming_damage``.

    Attributes:
        size: how many bytes it has.
    """

    def __init__(self, place: Location) -> None:
        try:
            self._file: fs.NativeFile = place.open_file()
            self.size = int(self._file.size())
        except OSError as error:
            raise _StorageError(error) from None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        try:
            return int(self._file.readinto(buffer))
        except OSError as error:
            raise _StorageError(error) from None

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        try:
            return int(self._file.seek(offset, whence))
        except OSError as error:
            raise _StorageError(error) from None

    def tell(self) -> int:
        return int(self._file.tell())

    def read_at(self, size: int, offset: int) -> bytes:
        """Reads a range of bytes, fewer at the end; many threads may do so at once."""
        try:
            return bytes(self._file.read_at(size, offset))
        except OSError as error:
            raise _StorageError(error) from None


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
