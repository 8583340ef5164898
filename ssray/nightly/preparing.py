"""The first half of a batch of a night: images are fetched and made inputs of a network.

Some threads do that ahead of whoever takes the images. What can't be used becomes a reason code.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self

from ssray.data.pose import Framing
from ssray.errors import ImageError
from ssray.nightly.sources import REFUSED, Source
from ssray.scoring.judge import SCORE_BATCH, Prepared, prepare
from ssray.storage.archives import (
    Member,
    is_compressed_tar,
    listed,
    normalised,
    split_member,
    streamed,
)
from ssray.storage.fetch import Fetcher
from ssray.storage.location import Location

MOST_HELD_BYTES = 256 * 1024**2
"""The most bytes of files from a compressed tar waiting to be decoded; a larger one waits alone."""
MOST_FAILURES = 16
"""Of how many images in a row storage gives no answer before the rest of a batch is postponed."""
STAGES = ("fetch", "decode", "model", "pack", "write")
"""The stages of work whose times are measured."""
_KNOWN = {
    "forbidden": "may not be read, is no regular file, or lies, once links are followed, outside "
    "of where its list may name files (--allow)",
    "changed": "was replaced while it was listed",
    REFUSED: "the storage refused it when it was listed",
    "missing": "a link whose target is not there",
}
"""Why an image was given up when it was listed, by reason code."""


@dataclass
class Spent:
    """How long each stage of the work on a batch took.

    Attributes:
        seconds: the wall-clock seconds of each stage, added up over all threads.
        worker_seconds: the wall-clock seconds that the process worked on the batch.
    """

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    worker_seconds: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def added(cls, each: Iterable[Self]) -> Self:
        """Adds up the seconds of the stages."""
        total = cls()
        for spent in each:
            for stage, seconds in spent.seconds.items():
                total.seconds[stage] += seconds
        return total

    @contextmanager
    def on(self, stage: str) -> Iterator[None]:
        """Adds the time that the block takes to a stage."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.seconds[stage] += time.perf_counter() - begun


Pair = tuple[Source, Prepared]
"""An image of a batch, and what became of it."""


class Preparer:
    """Fetches and decodes the images of batches, some threads at a time."""

    def __init__(self, readers: int) -> None:
        """Starts no thread yet.

        Args:
            readers: how many threads there are.
        """
        self._readers = ThreadPoolExecutor(readers, "reader")
        self._ahead = 2 * SCORE_BATCH + readers

    def __call__(
        self, sources: Sequence[Source], framing: Framing, fetch: Fetcher, spent: Spent
    ) -> Iterator[Pair]:
        """Yields the images of a batch in order; threads prepare the next ones meanwhile.

        Args:
            sources: the images, all of one category.
            framing: the model's.
            fetch: reads files.
            spent: counts the time.
        """
        waiting: deque[tuple[Source, Future[Prepared], int]] = deque()
        held_bytes = 0
        breaker = _Breaker()
        for source, content, held in _contents(sources, fetch, spent):
            read = functools.partial(breaker, content)
            prepared = self._readers.submit(prepare, read, framing, spent.on)
            waiting.append((source, prepared, held))
            held_bytes += held
            while len(waiting) > self._ahead or (waiting and held_bytes > MOST_HELD_BYTES):
                first, future, freed = waiting.popleft()
                held_bytes -= freed
                yield first, future.result()
        for first, future, _ in waiting:
            yield first, future.result()


class _Breaker:
    """Asks a storage no more that has failed ``MOST_FAILURES`` times in a row.

    Each image is asked for several times with growing pauses; of a storage that is down a batch of
    them would take very long to find that out. Refusals come at once, and say nothing of others.
    """

    def __init__(self) -> None:
        self._failures = 0

    def __call__(self, read: Callable[[], bytes]) -> bytes:
        """Reads an image.

        Raises:
            ImageError: as ``read`` does, or without reading.
        """
        if self._failures >= MOST_FAILURES:
            raise ImageError(
                "unreadable",
                f"not asked for: storage failed {MOST_FAILURES} times in a row before",
                transient=True,
            )
        try:
            content = read()
        except ImageError as error:
            self._failures = self._failures + 1 if error.code == "unreadable" else 0
            raise
        self._failures = 0
        return content


def _contents(
    sources: Sequence[Source], fetch: Fetcher, spent: Spent
) -> Iterable[tuple[Source, Callable[[], bytes], int]]:
    """Yields each image with a function that returns its bytes, and how many are in memory already.

    The files of a compressed tar come in its own order and are in memory; all others are fetched
    when the function is called.
    """
    parts = split_member(sources[0].uri)
    if parts is None or not is_compressed_tar(parts[0]):
        for source in sources:
            yield source, _reading(source, fetch), 0
        return
    waiting = defaultdict[int, list[Source]](list)
    etag: str | None = None
    for source, place in _located(parts[0], sources, fetch):
        if isinstance(place, ImageError):
            yield source, _raising(place), 0
        else:
            offset, etag = place
            waiting[offset].append(source)
    offsets = frozenset(waiting)
    reason = ImageError("missing", f"{parts[0]}: no longer has it")
    try:
        files = fetch.each(parts[0], lambda: streamed(Location.parse(parts[0]), offsets, etag))
        while waiting:
            with spent.on("fetch"):
                offset, content = next(files)
            for source in waiting.pop(offset):
                yield source, functools.partial(bytes, content), len(content)
    except StopIteration:
        pass
    except ImageError as error:
        reason = error
    for same in waiting.values():
        for source in same:
            yield source, _raising(reason), 0


def _located(
    archive: str, sources: Sequence[Source], fetch: Fetcher
) -> Iterator[tuple[Source, tuple[int, str | None] | ImageError]]:
    """Yields each member of a compressed tar with its position and the ETag of the archive that has
    it there, or the reason why it has none.

    Where the listing of the night did not say the position, as of what a list names, the archive
    is listed for it.
    """
    known: dict[str, Member] = {}
    reason = ImageError("missing", f"{archive}: has no such file")
    if any(source.offset is None and not source.error for source in sources):
        try:
            for member in fetch.each(archive, lambda: listed(Location.parse(archive))):
                known[member.name] = member
        except ImageError as error:
            reason = error
    for source in sources:
        if source.error:
            yield source, _known_before(source)
        elif source.offset is not None:
            yield source, (source.offset, source.etag)
        else:
            found = known.get(normalised(source.uri.removeprefix(f"{archive}#")))
            if found is None or found.offset is None:
                yield source, (found and found.error) or reason
            else:
                yield source, (found.offset, found.etag)


def _reading(source: Source, fetch: Fetcher) -> Callable[[], bytes]:
    """Makes a function that fetches an image, or raises the error that is known already."""
    if source.error:
        return _raising(_known_before(source))
    return lambda: fetch(source.uri, source.size, source.offset, source.etag)


def _known_before(source: Source) -> ImageError:
    code = source.error or ""
    why = _KNOWN.get(code, "known before it was read")
    told = "forbidden" if code == REFUSED else code
    return ImageError(told, f"{source.uri}: {why}", transient=code in ("changed", REFUSED))


def _raising(error: ImageError) -> Callable[[], bytes]:
    """Makes a function that raises an error in place of returning bytes."""

    def read() -> bytes:
        raise error

    return read
