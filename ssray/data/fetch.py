"""Bytes of images from wherever they are; what fails on the way is tried again, and counted."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

from pyarrow import fs

from ssray.data.archives import read_file, split_member
from ssray.data.storage import Location
from ssray.errors import DataError, ImageError

ATTEMPTS = 8
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0
_FORBIDDEN = ("ACCESS_DENIED", "HTTP status 403")


class Fetcher:
    """Reads files and members of archives; for many threads at once.

    Attributes:
        retries: how many requests were made again.
    """

    def __init__(self, attempts: int = ATTEMPTS) -> None:
        self.retries = 0
        self._attempts = attempts
        self._lock = threading.Lock()
        self._archives: dict[str, fs.NativeFile] = {}

    def __call__(self, uri: str, size: int | None = None, offset: int | None = None) -> bytes:
        """The content of a file, or of an archive's member.

        Between attempts it waits for a random time of at most 0.1 s, 0.2 s and so on up to 5 s.

        Args:
            uri: of the file, or ``ARCHIVE#MEMBER``.
            size: in bytes, where that is known: fewer count as a broken connection.
            offset: of a member in a plain tar, which is then read by its range.

        Raises:
            ImageError: with code ``missing``, ``forbidden``, ``bad_archive`` or, after all
                attempts, ``unreadable``.
        """
        parts = split_member(uri)
        if parts is None:
            return self._patiently(uri, lambda: _whole(uri, size))
        if offset is None or size is None:
            return self._patiently(uri, lambda: read_file(uri))
        archive = parts[0]
        return self._patiently(uri, lambda: self._range(archive, offset, size))

    def _range(self, archive: str, offset: int, size: int) -> bytes:
        """Of an archive that stays open, so that a member costs one request."""
        file = self._archives.get(archive)
        if file is None:
            file = Location.parse(archive).without_retries().open_file()
            self._archives[archive] = file
        return _complete(archive, file.read_at(size, offset), size)

    def _patiently(self, uri: str, read: Callable[[], bytes]) -> bytes:
        pause = FIRST_PAUSE_SECONDS
        for attempt in range(1, self._attempts + 1):
            try:
                return read()
            except FileNotFoundError:
                raise ImageError("missing", f"{uri}: there is no such file") from None
            except DataError as error:
                raise ImageError("bad_archive", str(error)) from None
            except OSError as error:
                if isinstance(error, PermissionError) or any(s in str(error) for s in _FORBIDDEN):
                    raise ImageError("forbidden", f"{uri}: may not be read ({error})") from None
                if attempt == self._attempts:
                    raise ImageError(
                        "unreadable", f"{uri}: not read in {attempt} attempts ({error})"
                    ) from None
            with self._lock:
                self.retries += 1
            time.sleep(random.uniform(0, pause))  # noqa: S311
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        raise AssertionError("the loop returns or raises")


def _whole(uri: str, size: int | None) -> bytes:
    content = Location.parse(uri).without_retries().read()
    return _complete(uri, content, size)


def _complete(uri: str, content: bytes, size: int | None) -> bytes:
    if size is not None and len(content) < size:
        raise OSError(f"{uri}: {len(content)} of {size} bytes")
    return content
