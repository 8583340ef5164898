"""A file that says that something is being worked on; who works renews it, a silent one is free.

No clocks are compared: who finds a lease watches whether it changes.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from ssray.errors import ConflictError
from ssray.storage.location import Location, Tagged

BEAT_SECONDS = 5.0
SILENCE_SECONDS = 15.0
"""After so long without a beat the holder is taken to be dead."""


class Lease:
    """A context manager; one process at a time is inside, if none sleeps for long.

    One that was suspended, or cut off from the storage, may wake up inside while another is: what
    must not come from two of them goes through ``write`` or after ``confirm``.

    Attributes:
        name: of this holder, like no other.
        taken_over: whether someone held it before and did not give it back.
        lost: whether someone else took it over, as happens to a process that was suspended.
    """

    def __init__(
        self,
        place: Location,
        work: str,
        on_wait: Callable[[], None] = lambda: None,
        *,
        beat: float = BEAT_SECONDS,
        silence: float = SILENCE_SECONDS,
    ) -> None:
        """Takes nothing yet.

        Args:
            place: the lease's file.
            work: what it is for, in words.
            on_wait: called if someone else holds it, before it is watched.
            beat: seconds between two renewals.
            silence: seconds without a renewal after which a holder is taken to be dead; the same
                for all who want the lease, and several beats long.
        """
        self.taken_over = False
        self.lost = False
        self._place, self._work, self._on_wait = place, work, on_wait
        self._beat_seconds, self._silence_seconds = beat, silence
        self.name = secrets.token_hex(8)
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        """Takes the lease, after ``silence`` seconds if someone else holds it.

        Raises:
            ConflictError: if someone else renews it meanwhile, or takes it first.
        """
        found = self._place.read_tagged()
        if found:
            self._on_wait()
            deadline = time.monotonic() + self._silence_seconds
            while found and time.monotonic() < deadline:
                time.sleep(self._beat_seconds / 5)
                now = self._place.read_tagged()
                if now and now.content != found.content:
                    raise self._held_elsewhere()
                found = now
        self.taken_over = found is not None
        try:
            self._place.write_if(self._content(0), found.tag if found else None)
        except ConflictError:
            raise self._held_elsewhere() from None
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._left.set()
        self._thread.join()
        if self._mine():
            self._place.delete()

    def confirm(self) -> None:
        """Makes sure that nobody else has taken over until now.

        Raises:
            ConflictError: if someone has.
        """
        found = self._place.read_tagged()
        if found is None or not self._wrote(found):
            raise ConflictError(
                f"{self._work} was taken over: this process slept, or could not renew "
                f"{self._place}, for more than {self._silence_seconds:g} s. It goes on elsewhere."
            )

    def write(self, place: Location, content: bytes) -> None:
        """Writes a file as the holder: never over what a later holder wrote.

        Raises:
            ConflictError: if someone else has taken over.
        """
        while True:
            found = place.read_tagged()
            self.confirm()
            with contextlib.suppress(ConflictError):  # written since; by whom, ``confirm`` tells
                place.write_if(content, found.tag if found else None)
                return

    def _beat(self) -> None:
        count = 0
        while not self._left.wait(self._beat_seconds):
            count += 1
            with contextlib.suppress(OSError, ConflictError):  # the next beat may get through
                found = self._place.read_tagged()
                self.lost = not (found and self._wrote(found))
                if found and not self.lost:
                    self._place.write_if(self._content(count), found.tag)

    def _mine(self) -> bool:
        with contextlib.suppress(OSError):
            found = self._place.read_tagged()
            return found is not None and self._wrote(found)
        return False

    def _wrote(self, found: Tagged) -> bool:
        return found.content.startswith(self.name.encode())

    def _held_elsewhere(self) -> ConflictError:
        return ConflictError(
            f"{self._work} is under way elsewhere ({self._place} is being renewed)."
        )

    def _content(self, count: int) -> bytes:
        return f"{self.name} {count}".encode()
