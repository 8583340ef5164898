"""Reads zips: the directory by Python's ``zipfile``, the files by their byte ranges.

``zipfile`` unpacks bzip2 and LZMA without a limit, and its reader serves one thread at a time; so
only the directory is left to it.
"""

from __future__ import annotations

import bz2
import io
import lzma
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from ssray.storage.archives import limits
from ssray.storage.archives.contents import Contents, Link, Refused
from ssray.storage.archives.names import link_target, normalised
from ssray.storage.archives.stored import StoredFile
from ssray.storage.archives.unpacking import Decoder, Inflater

_READ_AHEAD_BYTES = 1 << 16
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_SLACK_BYTES = 256
"""How much more than the directory knows of is read before a file, in the same request."""
_ENCRYPTED = 0x1
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_LZMA_HEADER = struct.Struct("<2xHBI")
_LZMA_PROPERTIES = 5


@dataclass(frozen=True, slots=True)
class ZipFile:
    """A file in a zip.

    Attributes:
        size: the size of the unpacked file in bytes, as the directory states it.
        offset: the position of its header.
        packed_size: how many bytes are stored.
        checksum: the CRC-32 of the content.
        method: how it is packed: ``zipfile.ZIP_STORED`` and so on.
    """

    size: int
    offset: int
    packed_size: int
    checksum: int
    method: int


class _Directory(io.BufferedReader):
    """The end of a zip, of which no more is read than a directory may have."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > limits.MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(
                f"a directory of {size:,} bytes; at most {limits.MAX_DIRECTORY_BYTES:,} are read"
            )
        return super().read(size)


def read_directory(file: StoredFile, contents: Contents[ZipFile]) -> None:
    """Adds what a zip holds to ``contents``; files that share bytes with others are refused.

    Raises:
        Exception: whatever ``zipfile`` raises if the directory is not valid.
    """
    directory = zipfile.ZipFile(_Directory(file.stream(), _READ_AHEAD_BYTES))
    infos = {normalised(i.filename): i for i in directory.infolist() if not i.is_dir()}
    limits.check_members(len(infos))
    overlapping = _overlapping(infos.values(), directory.start_dir)
    for info in infos.values():
        contents.add(info.filename, _member(file, info, info.header_offset in overlapping))


def read_zipped(file: StoredFile, member: ZipFile) -> bytes:
    """Reads and unpacks a file; many threads may do so at once.

    Raises:
        Exception: if the file is damaged or larger than the directory states; of that no more
            than the stated size is unpacked.
    """
    guess = _LOCAL_HEADER.size + member.packed_size + _SLACK_BYTES
    found = file.read_at(min(guess, file.size - member.offset), member.offset)
    signature, name, extra = _LOCAL_HEADER.unpack_from(found)
    if signature != b"PK\x03\x04":
        raise ValueError("no file where the directory has one")
    begin = _LOCAL_HEADER.size + name + extra
    packed = found[begin : begin + member.packed_size]
    if left := member.packed_size - len(packed):
        packed += file.read_at(left, member.offset + begin + len(packed))
    content = _unpacked(packed, member)
    if len(content) != member.size or zlib.crc32(content) != member.checksum:
        raise ValueError("the content differs from the directory in size or checksum")
    return content


def _overlapping(infos: Iterable[zipfile.ZipInfo], end: int) -> set[int]:
    """Returns the positions of files that reach into another one, or out of the files' part."""
    found = set[int]()
    reached, furthest = 0, -1
    for info in sorted(infos, key=lambda info: info.header_offset):
        begin = info.header_offset
        if begin < reached:
            found |= {begin, furthest}
        own_end = begin + _LOCAL_HEADER.size + info.compress_size
        if begin < 0 or own_end > end:
            found.add(begin)
        if own_end > reached:
            reached, furthest = own_end, begin
    return found


def _member(file: StoredFile, info: zipfile.ZipInfo, overlaps: bool) -> ZipFile | Link | Refused:
    if overlaps:
        return Refused("bad_archive", "shares its bytes with another file, or lies outside")
    if info.flag_bits & _ENCRYPTED:
        return Refused("bad_archive", "encrypted, password required; store it without one")
    if info.compress_type not in _METHODS:
        methods = "stored, deflate, bzip2 or LZMA"
        return Refused("bad_archive", f"packed by method {info.compress_type}; expected {methods}")
    if info.compress_size > limits.MAX_MEMBER_BYTES:
        return Refused("too_large", f"{info.compress_size:,} bytes when packed")
    member = ZipFile(
        info.file_size, info.header_offset, info.compress_size, info.CRC, info.compress_type
    )
    if stat.S_ISLNK(info.external_attr >> 16) and info.file_size <= limits.MAX_NAME_BYTES:
        folder = normalised(info.filename).rpartition("/")[0]
        return Link(link_target(read_zipped(file, member).decode(errors="replace"), folder))
    return member


def _unpacked(packed: bytes, member: ZipFile) -> bytes:
    """Unpacks a file up to one byte more than it should have."""
    decoder: Decoder
    if member.method == zipfile.ZIP_STORED:
        return packed
    if member.method == zipfile.ZIP_DEFLATED:
        decoder = Inflater(-zlib.MAX_WBITS)
    elif member.method == zipfile.ZIP_BZIP2:
        decoder = bz2.BZ2Decompressor()
    else:
        decoder, packed = _lzma_decoder(packed), packed[_LZMA_HEADER.size :]
    return decoder.decompress(packed, member.size + 1)


def _lzma_decoder(packed: bytes) -> lzma.LZMADecompressor:
    """Returns the decoder for the properties before a file (section 5.8.8 of APPNOTE.TXT).

    Raises:
        ValueError: if they are not valid, or ask for more memory than ``MAX_DICTIONARY_BYTES``.
    """
    size, code, dictionary = _LZMA_HEADER.unpack_from(packed)
    bits, literal_context = divmod(code, 9)
    position, literal_position = divmod(bits, 5)
    if size != _LZMA_PROPERTIES or dictionary > limits.MAX_DICTIONARY_BYTES:
        raise ValueError(f"LZMA with a dictionary of {dictionary:,} bytes")
    properties = {"lc": literal_context, "lp": literal_position, "pb": position}
    filters = [{"id": lzma.FILTER_LZMA1, "dict_size": dictionary} | properties]
    return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters)
