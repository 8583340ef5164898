"""A checksum over a set of image files, which tells whether any of them has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

from ssray.errors import DataError
from ssray.storage.archives import read_file

THREADS = 16
"""How many files are read at once; most of the time goes into waiting for the network."""


def fingerprint(uris: Sequence[str]) -> str:
    """Returns one SHA-256, in hexadecimal, over the names and contents of files.

    Neither the order of the files nor their folders count: the same images have the same
    fingerprint wherever they lie. A file that is not there, such as the target of a link, counts
    as missing.

    Raises:
        DataError: if a file can't be read.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        lines = sorted(pool.map(_line, uris))
    return hashlib.sha256(b"".join(lines)).hexdigest()


def _line(uri: str) -> bytes:
    try:
        digest = hashlib.sha256(read_file(uri)).hexdigest()
    except FileNotFoundError:
        digest = "missing"
    except OSError as error:
        raise DataError(
            f"{uri}: can't be read. Expected a file of the data set. ({error})"
        ) from None
    return f"{PurePosixPath(uri).name} {digest}\n".encode()
