"""The fields of a tar's headers: numbers, names, checksums and the records of pax headers."""

from __future__ import annotations

import re

_OCTAL = re.compile(rb"[ \0]*([0-7]*)[ \0]*")
_DECIMAL = re.compile(rb"[0-9]{1,20}")
_KEYS = (
    *(b"path", b"linkpath", b"size", b"GNU.sparse.name", b"GNU.sparse.major"),
    *(b"GNU.sparse.size", b"GNU.sparse.realsize", b"GNU.sparse.map"),
)
"""The records that say where or what an entry is; all others are passed over."""

Extended = dict[bytes, bytes]
"""What extended headers say about the entry that follows."""


def add_records(extended: Extended, records: bytes) -> None:
    """Adds the records of a pax header: ``LENGTH KEY=VALUE`` and a line feed each.

    The map of sparse files of version 0.0, of which each number has a record, becomes that of 0.1.

    Raises:
        ValueError: if a record is not of this form.
    """
    position = 0
    numbers = []
    while position < len(records) and records[position]:
        digits = records[position : position + 20].partition(b" ")[0]
        end = position + decimal(digits)
        record = records[position + len(digits) + 1 : end]
        key, equals, value = record[:-1].partition(b"=")
        if end > len(records) or not equals or record[-1:] != b"\n":
            raise ValueError("a pax header's record is not valid")
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            numbers.append(value)
        elif key in _KEYS:
            extended[key] = value
        position = end
    if numbers:
        extended[b"GNU.sparse.map"] = b",".join(numbers)


def entry_name(block: bytes, extended: Extended) -> str:
    """Returns an entry's path as the tar states it; bytes that are no UTF-8 are surrogates."""
    name = extended.get(b"GNU.sparse.name") or extended.get(b"path")
    if name is None:
        name = text(block[:100])
        prefix = text(block[345:500])
        if prefix and block[257:263] == b"ustar\0":
            name = prefix + b"/" + name
    return decoded(name)


def check_sum(block: bytes) -> None:
    """Compares a header's checksum; old programs added signed bytes.

    Raises:
        ValueError: if it differs.
    """
    unsigned = sum(block[:148]) + sum(block[156:]) + 8 * ord(" ")
    stated = number(block[148:156])
    if stated != unsigned:
        signed = unsigned - 256 * sum(byte > 127 for byte in block[:148] + block[156:])
        if stated != signed:
            raise ValueError("a header's checksum differs")


def number(field: bytes) -> int:
    """Reads a number in octal digits, or in GNU's way for large ones: binary after a 128.

    Raises:
        ValueError: if it is neither; negative ones are not.
    """
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = _OCTAL.match(field)
    if digits is None or not (digits.end() == len(field) or field[digits.end()] == 0):
        raise ValueError(f"expected an octal number, found {field!r}")
    return int(digits[1] or b"0", 8)


def decimal(digits: bytes) -> int:
    """Reads a number in decimal digits.

    Raises:
        ValueError: if it is none of at most 20 digits.
    """
    if not _DECIMAL.fullmatch(digits):
        raise ValueError(f"expected a number of at most 20 digits, found {digits[:40]!r}")
    return int(digits)


def text(field: bytes) -> bytes:
    """Returns a field up to its first NUL."""
    return field.partition(b"\0")[0]


def decoded(name: bytes) -> str:
    """Returns a name as text; bytes that are no UTF-8 become surrogates, as of files on disks."""
    return name.decode(errors="surrogateescape")
