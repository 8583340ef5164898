"""Reads tars: their entries one after the other, with a bounded amount of work for each byte.

The formats are those of POSIX (ustar, pax) and GNU, with sparse files of GNU's versions 0.0, 0.1
and 1.0 and of its old format, as the manuals of GNU tar describe them ("Tar Internals"). Python's
``tarfile`` reads the same ones; it is not used, since crafted headers keep it busy without end
(sizes below zero or of 2^62) or make it hold what they claim.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ssray.storage.archives import limits
from ssray.storage.archives.stored import take
from ssray.storage.archives.tar_fields import (
    Extended,
    add_records,
    check_sum,
    decimal,
    decoded,
    entry_name,
    number,
    text,
)

BLOCK = 512
_PIECE_BYTES = 1024**2
_FILES = (b"0", b"\0", b"7", b"S")
_LINKS = (b"1", b"2")
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")


@dataclass(frozen=True, slots=True)
class TarFile:
    """A file in a tar.

    Attributes:
        size: the size in bytes, with the holes of a sparse file.
        offset: the position of its first stored byte.
        header: the position of its first header.
        sparse: whether holes are left out of what is stored.
    """

    size: int
    offset: int
    header: int
    sparse: bool


@dataclass(frozen=True, slots=True)
class TarLink:
    """A link in a tar.

    Attributes:
        target: the path as the archive states it.
        hard: whether it is a second name of another file, not a symbolic link.
    """

    target: str
    hard: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or link in a tar.

    Attributes:
        name: the path as the archive states it; bytes that are no UTF-8 are surrogates.
        member: what it is.
        content: the content, if it was asked for.
    """

    name: str
    member: TarFile | TarLink
    content: bytes | None


def none_wanted(file: TarFile) -> bool:
    """Asks for no file's content."""
    return False


class TarReader:
    """Reads the bytes of a tar from its beginning, or from the header of an entry."""

    def __init__(self, stream: io.BufferedIOBase, length: int | None, begin: int = 0) -> None:
        """Begins at a position.

        Args:
            stream: the tar, at this position.
            length: how many bytes it has; None if it is unpacked as it is read.
            begin: the position.
        """
        self.position = begin
        self._stream, self._length = stream, length

    def block(self) -> bytes:
        """Returns the next 512 bytes from a multiple of 512 on; nothing at the end.

        Raises:
            EOFError: if the tar ends within them.
        """
        gap = -self.position % BLOCK
        found = self._stream.read(gap + BLOCK)
        self.position += len(found)
        if 0 < len(found) - gap < BLOCK:
            raise EOFError("the tar ends within a header")
        return found[gap:]

    def take(self, size: int) -> bytes:
        """Returns the next ``size`` bytes.

        Raises:
            EOFError: if there are fewer; if the length is known, before any is read.
        """
        self._check(size)
        content = take(self._stream, size)
        self.position += size
        return content

    def skip(self, size: int) -> None:
        """Passes over ``size`` bytes; raises as ``take`` does."""
        self._check(size)
        if self._length is not None:
            self._stream.seek(self.position + size)
            self.position += size
            return
        while size:
            piece = min(size, _PIECE_BYTES)
            self.take(piece)
            size -= piece

    def finish(self) -> None:
        """Reads an unpacked stream to its end, where its checksum is."""
        while self._length is None and self._stream.read(_PIECE_BYTES):
            pass

    def _check(self, size: int) -> None:
        if self._length is not None and size > self._length - self.position:
            raise EOFError(f"{self._length - self.position:,} of {size:,} bytes are there")


def entries(reader: TarReader, wanted: Callable[[TarFile], bool] = none_wanted) -> Iterator[Entry]:
    """Yields the files and links of a tar; folders and devices are passed over.

    An entry is yielded once all its bytes were there.

    Args:
        reader: where the entries begin.
        wanted: tells of a file whether its content is needed. Of one of more than
            ``MAX_MEMBER_BYTES`` it is never read.

    Raises:
        EOFError: if the tar is cut short.
        ValueError: if a header is not valid.
    """
    begin, extended = reader.position, Extended()
    block = reader.block()
    if not block:
        raise EOFError("the file is empty")
    while block and any(block):
        check_sum(block)
        kind, size = block[156:157], number(block[124:136])
        if kind in (b"x", b"X"):
            add_records(extended, reader.take(_header_size(size)))
        elif kind in (b"L", b"K"):
            stated = text(reader.take(_header_size(size)))
            extended[b"path" if kind == b"L" else b"linkpath"] = stated
        elif kind == b"g":
            reader.skip(size)
        else:
            if b"size" in extended:
                size = decimal(extended[b"size"])
            name = entry_name(block, extended)
            if kind in _FILES:
                file, segments, stored = _file(block, extended, reader, size, begin)
                content = None
                if file.size <= limits.MAX_MEMBER_BYTES and wanted(file):
                    content = _expanded(reader, segments, file.size)
                else:
                    reader.skip(stored)
                if not name.endswith("/"):
                    yield Entry(name, file, content)
            elif kind in _LINKS:
                target = extended.get(b"linkpath", text(block[157:257]))
                yield Entry(name, TarLink(decoded(target), kind == b"1"), None)
            elif kind not in _WITHOUT_DATA:
                reader.skip(size)
            begin, extended = reader.position + -reader.position % BLOCK, Extended()
        block = reader.block()
    if extended:
        raise EOFError("an extended header without an entry")
    reader.finish()


Segments = list[tuple[int, int]]
"""Of a file's content the parts that are stored, as pairs of position and length in bytes."""


def _file(
    block: bytes, extended: Extended, reader: TarReader, size: int, begin: int
) -> tuple[TarFile, Segments, int]:
    """Reads what describes a file, up to its first stored byte.

    Returns:
        The file, where its stored bytes belong, and how many these are.
    """
    real, numbers = size, None
    if block[156:157] == b"S":
        real, numbers = number(block[483:495]), _old_map(block, reader)
    elif extended.get(b"GNU.sparse.major") == b"1":
        real = decimal(extended[b"GNU.sparse.realsize"])
        before = reader.position
        numbers = _map_in_data(reader)
        size -= reader.position - before
    elif b"GNU.sparse.map" in extended:
        real = decimal(extended[b"GNU.sparse.size"])
        numbers = [decimal(each) for each in extended[b"GNU.sparse.map"].split(b",") if each]
    file = TarFile(real, reader.position, begin, numbers is not None)
    if numbers is None:
        return file, [(0, size)], size
    segments = list(zip(numbers[::2], numbers[1::2], strict=True))
    end = 0
    for offset, length in segments:
        if offset < end:
            raise ValueError("a sparse file's map is not in order")
        end = offset + length
    if end > real or sum(numbers[1::2]) != size:
        raise ValueError("a sparse file's map does not fit its size")
    return file, segments, size


def _expanded(reader: TarReader, segments: Segments, size: int) -> bytes:
    """Reads the stored bytes of a file and puts zeros where it has holes."""
    if segments == [(0, size)]:
        return reader.take(size)
    pieces, end = [], 0
    for offset, length in segments:
        pieces += [*_zeros(offset - end), reader.take(length)]
        end = offset + length
    return b"".join([*pieces, *_zeros(size - end)])


def _zeros(size: int) -> list[bytes]:
    """Returns ``size`` zeros as pieces that are mostly the same one."""
    piece = bytes(min(size, _PIECE_BYTES))
    return [piece] * (size // _PIECE_BYTES) + [piece[: size % _PIECE_BYTES]]


def _old_map(block: bytes, reader: TarReader) -> list[int]:
    """Returns the map of a sparse file in GNU's old format: positions and lengths in turn."""
    fields, more = bytearray(block[386:482]), block[482]
    while more:
        block = reader.block()
        if not block or len(fields) > limits.MAX_HEADER_BYTES:
            raise ValueError("a sparse file's map does not end")
        fields += block[:504]
        more = block[504]
    return [number(field) for (field,) in struct.iter_unpack("12s", fields) if any(field)]


def _map_in_data(reader: TarReader) -> list[int]:
    """Returns the map of a sparse file of version 1.0, which stands before its content."""
    lines = bytearray(reader.block())
    count = 2 * decimal(bytes(lines.partition(b"\n")[0]))
    missing = count + 1 - lines.count(b"\n")
    while missing > 0:
        block = reader.block()
        if not block or len(lines) > limits.MAX_HEADER_BYTES:
            raise ValueError("a sparse file's map does not end")
        lines += block
        missing -= block.count(b"\n")
    return [decimal(line) for line in bytes(lines).split(b"\n")[1 : count + 1]]


def _header_size(size: int) -> int:
    if size > limits.MAX_HEADER_BYTES:
        raise ValueError(f"a header of {size:,} bytes; at most {limits.MAX_HEADER_BYTES:,}")
    return size
