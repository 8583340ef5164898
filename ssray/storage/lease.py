"""Lets one process at a time work on something, by a file that the holder keeps rewriting.

A lease whose file has not changed for ``SILENCE_SECONDS`` is free to take. The clocks of different
machines are never compared: a process that finds a lease watches whether its file changes.
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
"""How often the holder rewrites the file."""
SILENCE_SECONDS = 15.0
"""How long a file must stay unchanged before its holder counts as dead."""


class Lease:
    """A context manager that one process at a time can enter.

    There is one exception: a process that was suspended, or cut off from the storage, may wake up
    inside the block after another one has taken the lease over. What two processes must not both do
    therefore goes through ``write``, or is done right after ``confirm``.

    Attributes:
        name: a random name of this holder.
        taken_over: whether an earlier holder never gave the lease back.
        lost: whether another process has taken the lease over from this one.
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
        """Prepares a lease; entering the block takes it.

        Args:
            place: the lease's file.
            work: what the lease is for, in words for error messages.
            on_wait: called if another process seems to hold the lease, before this one waits.
            beat: seconds between two renewals.
            silence: seconds without a renewal after which a holder is taken to be dead. It is to
                be several beats long, and the same for all processes that want the lease.
        """
        self.taken_over = False
        self.lost = False
        self._place, self._work, self._on_wait = place, work, on_wait
        self._beat_seconds, self._silence_seconds = beat, silence
        self.name = secrets.token_hex(8)
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        """Takes the lease; if there is one already, waits ``silence`` seconds first.

        Raises:
            ConflictError: if another process renews the lease meanwhile, or takes it first.
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
        """Checks that this process still holds the lease.

        Raises:
            ConflictError: if another process has taken it over.
        """
        found = self._place.read_tagged()
        if found is None or not self._wrote(found):
            raise ConflictError(
                f"{self._work} was taken over: this process slept, or could not renew "
                f"{self._place}, for more than {self._silence_seconds:g} s. The work goes on in "
                "another process; nothing is to be done here."
            )

    def write(self, place: Location, content: bytes) -> None:
        """Writes a file, but never over what a later holder of the lease wrote.

        Raises:
            ConflictError: if another process has taken the lease over.
        """
        while True:
            found = place.read_tagged()
            self.confirm()
            with contextlib.suppress(ConflictError):  # changed since; ``confirm`` finds out who did
                place.write_if(content, found.tag if found else None)
                return

    def _beat(self) -> None:
        """Rewrites the file every ``beat`` seconds until the block is left."""
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
            f"{self._work} is under way elsewhere ({self._place} is being renewed). Wait until it "
            "ends, or end it there, then start again."
        )

    def _content(self, count: int) -> bytes:
        return f"{self.name} {count}".encode()
