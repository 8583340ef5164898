"""Bytes of images from wherever they are; what fails on the way is tried again, and counted."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from pyarrow import fs

from ssray.errors import DataError, ImageError
from ssray.storage.archives import read_file, split_member
from ssray.storage.location import Location

ATTEMPTS = 8
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0
_FORBIDDEN = ("ACCESS_DENIED", "AccessDenied", "HTTP status 403")

_Result = TypeVar("_Result")


def persistently(
    work: Callable[[], _Result],
    attempts: int = ATTEMPTS,
    on_retry: Callable[[], None] = lambda: None,
) -> _Result:
    """Does what may fail on the way to a store, and may be done twice.

    Between attempts it waits for a random time of at most 0.1 s, 0.2 s and so on up to 5 s.

    Raises:
        OSError: the last attempt's; a missing file's and a refusal's at once.
    """
    pause = FIRST_PAUSE_SECONDS
    for left in reversed(range(attempts)):
        try:
            return work()
        except FileNotFoundError:
            raise
        except OSError as error:
            if not left or is_refusal(error):
                raise
        on_retry()
        time.sleep(random.uniform(0, pause))  # noqa: S311
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
    raise AssertionError("the loop returns or raises")


def is_refusal(error: OSError) -> bool:
    """Whether a store says that this may not be read, however often it is asked."""
    return isinstance(error, PermissionError) or any(s in str(error) for s in _FORBIDDEN)


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
        """The content of a file, or of an archive's member; tries as ``persistently``.

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

    def each(self, uri: str, begin: Callable[[], Iterator[_Result]]) -> Iterator[_Result]:
        """What an iterator over an archive gives; where it breaks off, it is begun again, and
        what was given before is passed over. Raises as a call.
        """
        given = 0
        running: Iterator[_Result] | None = None

        def following() -> _Result:
            nonlocal running
            running = running or itertools.islice(begin(), given, None)
            try:
                return next(running)
            except OSError:
                running = None
                raise

        while True:
            try:
                result = self._patiently(uri, following)
            except StopIteration:
                return
            given += 1
            yield result

    def _range(self, archive: str, offset: int, size: int) -> bytes:
        """Of an archive that stays open, so that a member costs one request."""
        file = self._archives.get(archive)
        if file is None:
            file = Location.parse(archive).without_retries().open_file()
            self._archives[archive] = file
        return _complete(archive, file.read_at(size, offset), size)

    def _patiently(self, uri: str, read: Callable[[], _Result]) -> _Result:
        try:
            return persistently(read, self._attempts, self._count)
        except FileNotFoundError:
            raise ImageError("missing", f"{uri}: there is no such file") from None
        except ImageError:
            raise
        except DataError as error:
            raise ImageError("bad_archive", str(error)) from None
        except OSError as error:
            if is_refusal(error):
                raise ImageError("forbidden", f"{uri}: may not be read ({error})") from None
            raise ImageError(
                "unreadable", f"{uri}: not read in {self._attempts} attempts ({error})"
            ) from None

    def _count(self) -> None:
        with self._lock:
            self.retries += 1


def _whole(uri: str, size: int | None) -> bytes:
    try:
        place = Location.parse(uri)
    except DataError as error:
        raise ImageError("unreadable", str(error)) from None
    return _complete(uri, place.without_retries().read(), size)


def _complete(uri: str, content: bytes, size: int | None) -> bytes:
    if size is not None and len(content) < size:
        raise OSError(f"{uri}: {len(content)} of {size} bytes")
    return content
