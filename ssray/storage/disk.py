"""Files of a disk: reads, of regular ones only, and writes if nothing changed."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from ssray.errors import ConflictError, changed, too_large


def etag_of(found: os.stat_result) -> str:
    """Returns what stands for an ETag on a disk: size and time of the last change, in ns."""
    return f"{found.st_size}-{found.st_mtime_ns}"


def head(path: str) -> tuple[int, str]:
    """Returns a file's size in bytes and its ETag.

    Raises:
        OSError: as ``read`` does.
    """
    found = os.stat(path)
    _refuse_devices(path, found)
    return found.st_size, etag_of(found)


def check_regular(path: str) -> None:
    """Refuses what reading might never end of.

    Raises:
        OSError: a ``PermissionError`` if it is a folder, a device or a pipe; another if there is no
            such file, or it can't be asked for.
    """
    _refuse_devices(path, os.stat(path))


def read(
    path: str,
    span: tuple[int, int] | None = None,
    most: int | None = None,
    etag: str | None = None,
) -> bytes:
    """Returns the content of a file, or a part of it.

    Args:
        path: the file's path.
        span: the position of the part's first byte and the part's length; of a part that goes
            beyond the file's end, what there is.
        most: the largest file to read whole, in bytes; default: any.
        etag: what the file's ETag must be before and after it is read; default: any.

    Raises:
        ImageError: with code ``too_large``, before any of the content is read; ``changed`` if the
            file has another ETag.
        OSError: as ``check_regular`` does, or if it can't be read.
    """
    check_regular(path)
    with io.FileIO(path) as file, _unchanged(path, file, etag):
        if span:
            return os.pread(file.fileno(), span[1], span[0])
        if most is not None and (size := os.fstat(file.fileno()).st_size) > most:
            raise too_large(path, size, most)
        return file.readall()


def read_tagged(path: str, most: int | None = None) -> tuple[bytes, str] | None:
    """Returns the content of a file and its SHA-256; None if there is no such file.

    Raises:
        ImageError: with code ``too_large`` if it has more than ``most`` bytes.
        OSError: as ``read`` does.
    """
    try:
        content = read(path, most=most)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return content, hashlib.sha256(content).hexdigest()


def write(path: str, content: bytes) -> None:
    """Writes a file; a reader sees the old content or the new one, never a part of it."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    partial = Path(f"{path}.{secrets.token_hex(4)}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # else a machine without power may leave the name and no content
    partial.replace(path)


def write_if(path: str, content: bytes, tag: str | None) -> None:
    """Writes a file if its SHA-256 is still ``tag``; for a tag of None, if it does not exist.

    Raises:
        ConflictError: if another process wrote it first.
        OSError: if it can't be written.
    """
    folder, name = os.path.split(path)
    Path(folder).mkdir(parents=True, exist_ok=True)
    with Path(folder, f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        there = read_tagged(path)
        if (there[1] if there else None) != tag:
            raise ConflictError(
                f"{path}: someone else wrote it first. Read it again before writing."
            )
        write(path, content)


@contextlib.contextmanager
def _unchanged(path: str, file: io.FileIO, etag: str | None) -> Iterator[None]:
    """Compares an open file's ETag before and after the block."""
    _check_etag(path, file, etag)
    yield
    _check_etag(path, file, etag)


def _check_etag(path: str, file: io.FileIO, etag: str | None) -> None:
    if etag is not None and etag_of(os.fstat(file.fileno())) != etag:
        raise changed(path)


def _refuse_devices(path: str, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise PermissionError(f"{path}: not a regular file")
