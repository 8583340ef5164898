"""Mutated archives, and what lists and reads them."""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import lzma
import random
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from ssray.errors import DataError, ImageError
from ssray.nightly.preparing import Spent, _contents
from ssray.nightly.sources import CategoryRule, find
from ssray.storage import archives
from ssray.storage.archives import limits, members, read_file
from ssray.storage.fetch import Fetcher
from ssray.storage.location import Location
from tests.fuzz.harness import Input
from tests.fuzz.mutations import (
    EXTREMES,
    cut,
    flip_bits,
    mutated,
    repeat,
    set_number,
    splice,
    take_out,
)

SECONDS = 20.0
"""How long an archive may take."""
MEMORY_BYTES = 1024**3
"""How much address space an archive may take above what the imports took."""
_MEMBER_BYTES = 64 * 1024**2
_UNPACKED_BYTES = 256 * 1024**2
_CODES = frozenset({"bad_archive", "missing", "too_large", "bad_name"})
"""The reason codes that an archive on a disk that does not fail can have."""
_PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".tar": bytes,
    ".tar.gz": lambda content: gzip.compress(content, 1),
    ".tar.bz2": bz2.compress,
    ".TAR.XZ": lambda content: lzma.compress(content, preset=0),
}
_BLOCK = 512
_TAR_FIELDS = (
    *((0, 100), (100, 8), (124, 12), (124, 12), (124, 12), (148, 8), (156, 1), (156, 1)),
    *((157, 100), (257, 8), (345, 155), (386, 12), (398, 12), (482, 1), (483, 12)),
)
"""Where the fields of a tar's header begin, and how long they are; the old sparse ones as well."""
_RECORDS = (
    *("size", "path", "linkpath", "GNU.sparse.map", "GNU.sparse.size", "GNU.sparse.name"),
    *("GNU.sparse.major", "GNU.sparse.realsize", "GNU.sparse.offset", "GNU.sparse.numbytes"),
    *("hdrcharset", "mtime", ""),
)
_VALUES = (
    *("", "0", "1", "-1", "512", "9" * 23, "9" * 5000, str(2**62), str(2**63), str(2**40)),
    *("a/b.png", "../../x.png", "/etc/passwd", "x" * 5000, "\0", "é", "0,7", "0,7,5,7", "5,2,0,7"),
    *("1e9", "1_000", " 7", "0x10", "BINARY", "a.png", "0.png"),
)


def inputs(seed: int, count: int) -> Iterator[Input]:
    """Yields mutated archives; the same for the same seed."""
    tars, zips = tar_seeds(), zip_seeds()
    general = [flip_bits, set_number, cut, take_out, repeat, splice([*tars, *zips])]
    for number in range(count):
        draw = random.Random(f"{seed} {number}")
        if draw.random() < 0.3:
            own = [set_zip_field] * 6
            yield Input("x.ZIP", mutated(draw.choice(zips), [*general, *own], draw))
            continue
        own = [set_header, set_header, set_header, set_header, add_pax, add_pax, set_map]
        suffix = draw.choice(list(_PACKERS))
        content = draw.choice(tars)
        if draw.random() < 0.8:
            content = _PACKERS[suffix](mutated(content, [*general[:3], *own], draw))
        else:
            content = mutated(_PACKERS[suffix](content), general, draw)
        yield Input(f"x{suffix}", content)


def read(place: Path) -> str:
    """Lists and reads an archive as a night and as a training do, and compares.

    Returns:
        The reason codes that came up, or ``read``.
    """
    limits.MAX_MEMBER_BYTES, limits.MAX_UNPACKED_BYTES = _MEMBER_BYTES, _UNPACKED_BYTES
    archives._opened.cache_clear()
    sources = list(find(Location.parse(place), CategoryRule(), Counter()))
    codes = {source.error for source in sources if source.error}
    contents = {}
    read_sources = _contents(sources, Fetcher(attempts=1), Spent()) if sources else ()
    for source, get, _ in read_sources:
        if source.error is None:
            assert source.uri not in contents, "listed twice"
            contents[source.uri] = got = outcome(get)
            assert isinstance(got, str) or len(got) == source.size, "of another size than listed"
            codes |= {got} if isinstance(got, str) else set()
    for uri, content in contents.items():
        assert outcome(functools.partial(read_file, uri)) == content, "training and night differ"
    try:
        sizes = members(Location.parse(place))
        assert {f"{place}#{name}" for name in sizes} >= set(contents)
    except DataError:
        codes.add("bad_archive")
    assert codes <= _CODES, f"codes {codes}"
    return " ".join(sorted(codes)) or "read"


def outcome(get: Callable[[], bytes]) -> bytes | str:
    """The content, or the code of the reason why there is none."""
    try:
        return get()
    except ImageError as error:
        return error.code
    except DataError:
        return "bad_archive"


def tar_seeds() -> list[bytes]:
    """Small tars of every format, with links, long names and holes."""
    found = []
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
            for number, name in enumerate(("0.png", "./a/1.png", f"{'long/' * 30}2.png", "x.txt")):
                info = tarfile.TarInfo(name)
                info.size = 700 * number
                tar.addfile(info, io.BytesIO(random.Random(number).randbytes(info.size)))
            for name, kind, target in (
                ("hard.png", tarfile.LNKTYPE, "./a/1.png"),
                ("soft.png", tarfile.SYMTYPE, "a/1.png"),
                ("a/folder", tarfile.SYMTYPE, ".."),
                ("b.png", tarfile.SYMTYPE, "a/folder/0.png"),
                ("folder", tarfile.DIRTYPE, ""),
            ):
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, target
                tar.addfile(info)
        found.append(buffer.getvalue())
    return [*found, old_sparse() + found[0], new_sparse() + found[1]]


def old_sparse() -> bytes:
    """A file of 5,000 bytes with two holes in GNU's old format, and its extension block."""
    info = tarfile.TarInfo("sparse.png")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 1024 + 8
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    pairs = [(512, 512), (2048, 256), (2400, 128), (3000, 128)]
    block[386:482] = b"".join(b"%011o\0%011o\0" % pair for pair in pairs)
    block[482:495] = b"\1" + b"%011o\0" % 5000
    extension = (b"%011o\0%011o\0" % (4992, 8)).ljust(_BLOCK, b"\0")
    return with_checksum(block) + extension + bytes(range(256)) * 4 + b"12345678".ljust(_BLOCK)


def new_sparse() -> bytes:
    """A file of 5,000 bytes with two holes as GNU tar writes it into pax headers."""
    lines = b"2\n1024\n512\n4488\n512\n".ljust(_BLOCK, b"\0")
    records = {"major": "1", "minor": "0", "name": "holes.png", "realsize": "5000"}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("GNUSparseFile.1/holes.png")
        info.pax_headers = {f"GNU.sparse.{key}": value for key, value in records.items()}
        info.size = len(lines) + 1024
        tar.addfile(info, io.BytesIO(lines + bytes(range(256)) * 4))
    return buffer.getvalue()[: 3 * _BLOCK + info.size]


def zip_seeds() -> list[bytes]:
    """Small zips of every method, one with a comment and one with something before it."""
    found = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as archive:
            archive.comment = b"comment" * method
            for number, name in enumerate(("0.png", "a\\1.png", "a/é.png", "a/", "x.txt")):
                archive.writestr(name, random.Random(number).randbytes(300 * number) + bytes(500))
            link = zipfile.ZipInfo("link.png")
            link.create_system, link.external_attr = 3, 0o120777 << 16
            archive.writestr(link, "0.png")
            with archive.open("large.png", "w", force_zip64=True) as large:
                large.write(bytes(1000))
        found.append(buffer.getvalue())
    return [*found, b"before" + found[1]]


def headers_of(content: bytearray) -> list[int]:
    """The positions of the headers of a tar whose checksums are right."""
    return [
        at
        for at in range(0, len(content) - _BLOCK + 1, _BLOCK)
        if content[at]
        and with_checksum(content[at : at + _BLOCK])[148:154] == content[at + 148 : at + 154]
    ]


def with_checksum(block: bytearray) -> bytes:
    """A tar's header with its checksum made right."""
    block = bytearray(block)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def field_value(width: int, draw: random.Random) -> bytes:
    """An extreme value for a field of a tar's header."""
    number = draw.choice(EXTREMES) * draw.choice((1, 1, -1)) - draw.choice((0, 1, 512))
    values = [
        b"%0*o" % (width - 1, abs(number)),
        number.to_bytes(16, "big", signed=True)[-width:],
        b"\x80" + abs(number).to_bytes(16, "big")[-width + 1 :],
        b"\xff" * width,
        b"",
        b"-1",
        b"0o17",
        b"12 34",
        draw.randbytes(width),
        draw.choice((b"0", b"1", b"2", b"5", b"7", b"S", b"x", b"g", b"L", b"K", b"X", b"D")),
    ]
    return draw.choice(values)[:width].ljust(width, b"\0")


def set_header(content: bytearray, draw: random.Random) -> None:
    """Changes a field of a tar's header and makes the checksum right."""
    if places := headers_of(content):
        at = draw.choice(places)
        begin, width = draw.choice(_TAR_FIELDS)
        content[at + begin : at + begin + width] = field_value(width, draw)
        if begin != 148:
            content[at : at + _BLOCK] = with_checksum(content[at : at + _BLOCK])


def add_pax(content: bytearray, draw: random.Random) -> None:
    """Puts extended headers or long names before an entry of a tar, perhaps very many."""
    if not (places := headers_of(content)):
        return
    kind = draw.choice((b"x", b"x", b"x", b"g", b"L", b"K", b"X"))
    if kind in (b"L", b"K"):
        body = draw.choice(_VALUES).encode() + b"\0"
    else:
        pairs = [(draw.choice(_RECORDS), draw.choice(_VALUES)) for _ in range(draw.randint(1, 5))]
        body = b"".join(record(key, value, draw) for key, value in pairs)
    block = bytearray(tarfile.TarInfo("pax").tobuf(tarfile.GNU_FORMAT)[:_BLOCK])
    block[124:136], block[156:157] = b"%011o\0" % len(body), kind
    header = with_checksum(block) + body + bytes(-len(body) % _BLOCK)
    at = draw.choice(places)
    content[at:at] = header * draw.choice((1, 1, 1, 2, 300))


def record(key: str, value: str, draw: random.Random) -> bytes:
    """A record of a pax header; the length that it states is now and then another."""
    text = f" {key}={value}\n".encode()
    size = len(text) + len(str(len(text) + 3))
    return str(draw.choice((size, size, size, size, 0, -1, 10**9))).encode() + text


def set_map(content: bytearray, draw: random.Random) -> None:
    """Changes the map of a sparse file of version 1.0."""
    at = content.find(b"2\n1024\n512\n")
    if at >= 0:
        values = [draw.choice((*map(str, EXTREMES), "-1", "x", "9" * 30)) for _ in range(5)]
        text = ["2", "1024", "512", "4488", "512", ""]
        where = draw.randrange(5)
        text[where] = values[where]
        content[at : at + _BLOCK] = "\n".join(text).encode().ljust(_BLOCK, b"\0")


def set_zip_field(content: bytearray, draw: random.Random) -> None:
    """Writes an extreme number into a header, the directory or the end of a zip."""
    signature, size = draw.choice(
        [(b"PK\1\2", 46), (b"PK\1\2", 46), (b"PK\3\4", 30), (b"PK\5\6", 22), (b"PK\6\6", 56)]
    )
    places = [at for at in range(len(content)) if content.startswith(signature, at)]
    if places:
        at, width = draw.choice(places), draw.choice((2, 4))
        begin = at + draw.randrange(4, size - width + 1, 2)
        value = (draw.choice(EXTREMES) - draw.choice((0, 1))) % 256**width
        if draw.random() < 0.3:
            value = draw.randrange(len(content)) % 256**width
        content[begin : begin + width] = value.to_bytes(width, "little")
