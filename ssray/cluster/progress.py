"""What long work tells whoever started it, and how it comes from the workers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from ray.util.queue import Empty, Queue

from ssray.training.progress import ProgressRow

_POLL_SECONDS = 0.2


class Progress(Protocol):
    """Is told how work on several categories goes. Called from several threads."""

    def begin(self, categories: Sequence[str]) -> None:
        """Names all categories before work on the first one begins."""

    def state(self, category: str, words: str) -> None:
        """A category has reached a new state, which a few words describe."""

    def update(self, category: str, row: ProgressRow) -> None:
        """A category's training has got further."""

    def note(self, category: str, words: str) -> None:
        """Something of a category that is worth keeping in view, in a line of words."""


class Lines:
    """A ``Progress`` that says each change in a line of text."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """``say`` gets each line."""
        self._say = say

    def begin(self, categories: Sequence[str]) -> None:
        """Says nothing yet."""

    def state(self, category: str, words: str) -> None:
        """Says the category and the words."""
        self._say(f"{category}  {words}")

    def note(self, category: str, words: str) -> None:
        """Says the category and the words."""
        self._say(f"{category}  {words}")

    def update(self, category: str, row: ProgressRow) -> None:
        """Says the most important figures of the row."""
        self._say(
            f"{category}  {100 * row.budget_spent:3.0f} %  epoch {row.epoch:.1f}  "
            f"loss {row.train_loss:.5f}  validation {row.validation_loss:.5f}  "
            f"{row.images_per_second:.1f} images/s  "
            f"crop {row.crop_columns} x {row.crop_rows} px  "
            f"{clock(row.seconds_left)} left"
        )


def clock(seconds: float) -> str:
    """A duration for people.

    >>> clock(75), clock(3675)
    ('1:15', '1:01:15')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Silent:
    """A ``Progress`` that nobody looks at."""

    def begin(self, categories: Sequence[str]) -> None:
        """Does nothing."""

    def state(self, category: str, words: str) -> None:
        """Does nothing."""

    def update(self, category: str, row: ProgressRow) -> None:
        """Does nothing."""

    def note(self, category: str, words: str) -> None:
        """Does nothing."""


@contextlib.contextmanager
def forwarded(reports: Queue, receivers: Mapping[str, Callable[[Any], None]]) -> Iterator[None]:
    """Hands on what workers report while the block runs, and what is left at its end.

    Args:
        reports: what they put it into, as pairs of a name and a value.
        receivers: who gets the values of each name.
    """
    finished = threading.Event()

    def forward() -> None:
        while True:
            last_round = finished.is_set()
            with contextlib.suppress(Empty):
                while True:
                    name, value = reports.get(timeout=_POLL_SECONDS)
                    receivers[name](value)
            if last_round:
                return

    thread = threading.Thread(target=forward, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
