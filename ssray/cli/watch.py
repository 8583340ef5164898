"""How fast long work goes, and whether it has fallen silent."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ssray.cluster.progress import clock

SILENCE_SECONDS = 180.0
"""How long nothing may be heard before that is said."""
PACE_SECONDS = 600.0
"""Over how long the speed is averaged: batches end seldom, and many at once."""


class Pace:
    """How many images are done in a second, of late."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, int]] = deque()

    def add(self, now: float, done: int) -> float:
        """Notes how many are done, and returns how many were in a second of the last
        ``PACE_SECONDS``, or a little longer where news are rare; 0 if that is not known yet.

        Args:
            now: the time in seconds, by any clock.
            done: how many images are done in all.
        """
        self._points.append((now, done))
        while len(self._points) > 2 and self._points[1][0] <= now - PACE_SECONDS:
            self._points.popleft()
        begun, before = self._points[0]
        return (done - before) / (now - begun) if now > begun else 0.0


@contextmanager
def told_of_silence(say: Callable[[str], None]) -> Iterator[Callable[[str], None]]:
    """Says in words when nothing was heard for ``SILENCE_SECONDS``, and each time that this has
    doubled.

    Args:
        say: gets each line; called from a thread.

    Yields:
        What to call with the words that were heard.
    """
    news = queue.SimpleQueue[str | None]()

    def watch() -> None:
        words, since, patience = "", time.monotonic(), SILENCE_SECONDS
        at = _time_of_day()
        while True:
            try:
                told = news.get(timeout=max(0.0, since + patience - time.monotonic()))
            except queue.Empty:
                what = f"the last was, at {at}: {words}" if words else f"nor before, since {at}"
                say(f"Nothing new for {clock(patience)}; {what}")
                patience *= 2
                continue
            if told is None:
                return
            words, since, patience, at = told, time.monotonic(), SILENCE_SECONDS, _time_of_day()

    thread = threading.Thread(target=watch, name="silence", daemon=True)
    thread.start()
    try:
        yield news.put
    finally:
        news.put(None)
        thread.join()


def _time_of_day() -> str:
    return time.strftime("%H:%M:%S")
