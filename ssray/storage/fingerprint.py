"""What a set of images is, as one short name that any changed image changes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

from ssray.errors import DataError
from ssray.storage.archives import read_file

THREADS = 16
"""Files read at once: the wait for a network is longer than the work on a file."""


def fingerprint(uris: Sequence[str]) -> str:
    """SHA-256, in hexadecimal, over the names and the contents of files, in any order.

    Folders do not count: the same images give the same fingerprint wherever they lie.

    Raises:
        DataError: if a file can't be read.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        lines = sorted(pool.map(_line, uris))
    return hashlib.sha256(b"".join(lines)).hexdigest()


def _line(uri: str) -> bytes:
    try:
        content = read_file(uri)
    except OSError as error:
        raise DataError(f"{uri}: can't be read. ({error})") from None
    return f"{PurePosixPath(uri).name} {hashlib.sha256(content).hexdigest()}\n".encode()
