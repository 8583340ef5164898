"""Unpacks gzip, bzip2 and xz a bounded piece at a time.

A few kilobytes of bzip2 hold gigabytes; so a decoder is always told how much it may give.
"""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from typing import TYPE_CHECKING, Protocol

from ssray.storage.archives import limits
from ssray.storage.archives.stored import Readable

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_PIECE_BYTES = 1 << 18
_MAGIC_BYTES = 6
_GZIP = 16 + zlib.MAX_WBITS


class Decoder(Protocol):
    """What unpacks a stream, as ``bz2.BZ2Decompressor`` and ``lzma.LZMADecompressor`` do."""

    @property
    def eof(self) -> bool:
        """Whether the end of the stream was reached; its checksum is right then."""
        ...

    @property
    def needs_input(self) -> bool:
        """Whether nothing more comes without further bytes."""
        ...

    @property
    def unused_data(self) -> bytes:
        """What follows on the stream's end."""
        ...

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Takes some bytes and returns at most ``max_length`` unpacked ones."""
        ...


class Inflater:
    """Unpacks deflate as the other decoders do."""

    def __init__(self, wbits: int) -> None:
        """``wbits`` tells what surrounds the data, as for ``zlib.decompressobj``."""
        self._decoder = zlib.decompressobj(wbits)

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def needs_input(self) -> bool:
        return not self._decoder.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._decoder.decompress(self._decoder.unconsumed_tail + data, max_length)


class Unpacked(io.RawIOBase):
    """What a compressed stream unpacks to, or a stream that is not compressed, as it is.

    Several streams in a row count as one; what follows and is none is ignored, as by gzip.
    """

    def __init__(self, stream: Readable, limit: int) -> None:
        """Begins at the start of a stream that may unpack to ``limit`` bytes."""
        self._stream, self._left = stream, limit
        self._packed = stream.read(_PIECE_BYTES)
        self._decoder = _decoder(self._packed)
        self._plain = self._decoder is None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fills a buffer, at least in part; returns 0 at the end.

        Raises:
            EOFError: if the stream is cut short.
            ValueError: if it unpacks to more than the limit.
        """
        view = memoryview(buffer).cast("B")
        content = self._next(len(view))
        self._left -= len(content)
        if self._left < 0:
            raise ValueError(
                f"unpacks to more than {limits.MAX_RATIO} times its size, and more than "
                f"{limits.MAX_UNPACKED_BYTES:,} bytes"
            )
        view[: len(content)] = content
        return len(content)

    def _next(self, size: int) -> bytes:
        while self._decoder:
            fresh = self._packed
            if not fresh and self._decoder.needs_input:
                fresh = self._stream.read(_PIECE_BYTES)
            self._packed = b""
            content = self._decoder.decompress(fresh, size)
            if self._decoder.eof:
                self._packed = self._decoder.unused_data
                if len(self._packed) < _MAGIC_BYTES:
                    self._packed += self._stream.read(_PIECE_BYTES)
                self._decoder = _decoder(self._packed)
            elif not content and not fresh and self._decoder.needs_input:
                raise EOFError("the compressed data end too early")
            if content:
                return content
        if not self._plain:
            return b""
        self._packed = self._packed or self._stream.read(_PIECE_BYTES)
        content, self._packed = self._packed[:size], self._packed[size:]
        return content


def _decoder(packed: bytes) -> Decoder | None:
    """Returns what unpacks a stream that begins so; None if it is not compressed."""
    if packed.startswith(b"\x1f\x8b"):
        return Inflater(_GZIP)
    if packed.startswith(b"BZh"):
        return bz2.BZ2Decompressor()
    if packed.startswith((b"\xfd7zXZ\x00", b"\x5d\x00\x00\x80")):
        return lzma.LZMADecompressor(memlimit=limits.MAX_DICTIONARY_BYTES)
    return None
