"""Reads files and archive members with retries, for storage that fails now and then."""

from __future__ import annotations

import functools
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from ssray.errors import DataError, ImageError, too_large
from ssray.storage.archives import is_compressed_tar, read_file, split_member
from ssray.storage.location import Location, is_in_s3
from ssray.storage.s3 import is_refusal

ATTEMPTS = 8
"""How often a read is tried before its error counts."""
MAX_FILE_BYTES = 1024**3
"""The largest file that is read whole; one in an archive has a limit of its own."""
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0
_ABSENT = (FileNotFoundError, NotADirectoryError)

_Result = TypeVar("_Result")


def persistently(
    work: Callable[[], _Result],
    attempts: int = ATTEMPTS,
    on_retry: Callable[[], None] = lambda: None,
) -> _Result:
    """Calls a function again until it raises no ``OSError``.

    Between attempts it waits for a random time of at most 0.1 s, 0.2 s and so on up to 5 s. A
    missing file and a refused access are not tried again.

    Args:
        work: what to do; doing it twice must do no harm.
        attempts: how often it is called at most.
        on_retry: called before each further attempt.

    Raises:
        OSError: the error of the last attempt, or at once if a file is missing or access to it is
            refused.
    """
    pause = FIRST_PAUSE_SECONDS
    for left in reversed(range(attempts)):
        try:
            return work()
        except _ABSENT:
            raise
        except OSError as error:
            if not left or is_refusal(error):
                raise
        on_retry()
        time.sleep(random.uniform(0, pause))  # noqa: S311
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
    raise AssertionError("the loop returns or raises")


class Fetcher:
    """Reads files and archive members with retries; many threads may use one at once.

    Attributes:
        retries: how many requests failed and were made again so far.
    """

    def __init__(self, attempts: int = ATTEMPTS) -> None:
        self.retries = 0
        self._attempts = attempts
        self._lock = threading.Lock()

    def __call__(
        self,
        uri: str,
        size: int | None = None,
        offset: int | None = None,
        etag: str | None = None,
    ) -> bytes:
        """Returns the content of a file or archive member; retries as ``persistently`` does.

        Args:
            uri: the file's path or URI, or ``ARCHIVE#MEMBER``.
            size: the expected size in bytes, if it is known; an answer of fewer bytes counts as a
                broken connection.
            offset: the position of the member's first byte in a plain tar, if it is known; with
                ``size`` the member is read by its byte range.
            etag: that of the file, or of the archive, when it was listed, if it is known; of one
                that was replaced since nothing is returned.

        Raises:
            ImageError: with code ``missing``, ``too_large`` or ``bad_archive``; or, where the
                storage is the reason and it is ``transient``, with code ``forbidden``, ``changed``
                or, after all attempts, ``unreadable``.
        """
        parts = split_member(uri)
        file = parts[0] if parts else uri
        try:
            place = Location.parse(file)
        except DataError as error:
            transient = uri.startswith("s3://")  # others are no places at all
            raise ImageError("unreadable", str(error), transient) from None
        if parts is None:
            read = functools.partial(_whole, place, size, etag)
        elif offset is None or size is None or is_compressed_tar(file):
            read = functools.partial(read_file, uri, etag)
        else:
            read = functools.partial(_range, place, offset, size, etag)
        return self._patiently(uri, read)

    def each(self, uri: str, begin: Callable[[], Iterator[_Result]]) -> Iterator[_Result]:
        """Yields what an iterator over an archive yields, with retries.

        If the iterator breaks off with an ``OSError``, a new one is begun and its first items,
        which were yielded already, are skipped.

        Args:
            uri: the archive, for the error message.
            begin: starts the iterator; it must yield the same items each time.

        Raises:
            ImageError: as a call of the fetcher does.
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

    def _patiently(self, uri: str, read: Callable[[], _Result]) -> _Result:
        try:
            return persistently(read, self._attempts, self._count)
        except _ABSENT:
            raise ImageError("missing", f"{uri}: there is no such file") from None
        except ImageError:
            raise
        except DataError as error:
            raise ImageError("bad_archive", str(error)) from None
        except OSError as error:
            if is_refusal(error):
                told = f"{uri}: may not be read ({error})"  # a disk doesn't change its mind
                raise ImageError("forbidden", told, transient=is_in_s3(uri)) from None
            raise ImageError(
                "unreadable",
                f"{uri}: not read in {self._attempts} attempts ({error})",
                transient=True,
            ) from None

    def _count(self) -> None:
        with self._lock:
            self.retries += 1


def _whole(place: Location, size: int | None, etag: str | None) -> bytes:
    if size is not None and size > MAX_FILE_BYTES:
        raise too_large(place.uri, size, MAX_FILE_BYTES)
    return _complete(place, place.read(attempts=1, most=MAX_FILE_BYTES, etag=etag), size)


def _range(archive: Location, offset: int, size: int, etag: str | None) -> bytes:
    """Reads a byte range of an archive: one request for each member."""
    return _complete(archive, archive.read_range(offset, size, attempts=1, etag=etag), size)


def _complete(place: Location, content: bytes, size: int | None) -> bytes:
    if size is not None and len(content) < size:
        raise OSError(f"{place}: {len(content)} of {size} bytes")
    return content
