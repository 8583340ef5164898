"""Lets one process at a time work on something, by a file that the holder keeps rewriting.

A lease whose file has not changed for ``SILENCE_SECONDS`` is free to take. The clocks of different
machines are never compared: a process that finds a lease watches whether its file changes, and its
holder counts by its own clock how long ago it wrote the file.
"""

from __future__ import annotations

import contextlib
import math
import secrets
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from ssray.errors import ConflictError, SsrayError
from ssray.storage.fetch import persistently
from ssray.storage.location import Location, Tagged

BEAT_SECONDS = 5.0
"""How often the holder rewrites the file."""
SILENCE_SECONDS = 15.0
"""How long a file must stay unchanged before its holder counts as dead."""
REQUEST_SECONDS = 3.0
"""How long S3 is waited for, to connect and to answer, in each of two attempts.

A read or a write of the file takes 13 s at most, with the pause between them: less than the
silence.
"""


class Lease:
    """A context manager that one process at a time can enter.

    There is one exception: a process that was suspended may wake up inside the block after another
    one has taken the lease over. What two processes must not both do therefore goes through
    ``write``, or is done right after ``confirm``.

    Attributes:
        name: a random name of this holder.
        taken_over: whether an earlier holder never gave the lease back.
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
        self._others = False
        self._renewed = math.inf
        self._count = 0
        self._lock = threading.Lock()
        self._place, self._work, self._on_wait = place, work, on_wait
        self._beat_seconds, self._silence_seconds = beat, silence
        self.name = secrets.token_hex(8)
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    @property
    def lost(self) -> bool:
        """Whether another process has taken the lease over, or may have by now.

        It may if the file could not be renewed for longer than the silence: by this process's own
        clock, and from before the last renewal was sent.
        """
        return self._others or time.monotonic() - self._renewed > self._silence_seconds

    def __enter__(self) -> Self:
        """Takes the lease; if there is one already, waits ``silence`` seconds first.

        Raises:
            ConflictError: if another process renews the lease meanwhile, or takes it first.
            OSError: if the storage does not answer, or refuses.
        """
        found = persistently(self._read)
        if found:
            self._on_wait()
            deadline = time.monotonic() + self._silence_seconds
            while found and time.monotonic() < deadline:
                time.sleep(self._beat_seconds / 5)
                now = persistently(self._read)
                if now and now.content != found.content:
                    raise self._held_elsewhere()
                found = now
        self.taken_over = found is not None
        try:
            persistently(lambda: self._renew(found.tag if found else None))
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
        self._thread.join(self._silence_seconds)
        if self._thread.is_alive():  # the storage hangs; another process waits the silence out
            return
        with contextlib.suppress(OSError, SsrayError):
            if self._is_mine(renew=self.lost):
                self._place.delete()

    def confirm(self) -> None:
        """Checks that this process still holds the lease; one that seems lost is renewed first.

        Raises:
            ConflictError: if another process has taken it over.
            OSError: if the storage does not answer, or refuses.
        """
        if not persistently(lambda: self._is_mine(renew=self.lost)):
            raise ConflictError(
                f"{self._work} was taken over: this process slept, or could not renew "
                f"{self._place}, for more than {self._silence_seconds:g} s. The work goes on in "
                "another process; nothing is to be done here."
            )

    def write(self, place: Location, content: bytes) -> None:
        """Writes a file, but never over what a later holder of the lease wrote.

        Raises:
            ConflictError: if another process has taken the lease over.
            OSError: if the storage does not answer, or refuses.
        """
        while True:
            found = place.read_tagged()
            self.confirm()
            with contextlib.suppress(ConflictError):  # changed since; ``confirm`` finds out who did
                place.write_if(content, found.tag if found else None)
                return

    def _beat(self) -> None:
        """Rewrites the file every ``beat`` seconds until the block is left."""
        while not self._left.wait(self._beat_seconds):
            with contextlib.suppress(OSError, SsrayError):  # the next beat may get through
                self._is_mine(renew=True)

    def _is_mine(self, *, renew: bool) -> bool:
        """Tells whether the file is what this process wrote last, and perhaps writes it anew."""
        with self._lock:
            found = self._read()
            self._others = found is None or not found.content.startswith(self.name.encode())
            if found and renew and not self._others:
                try:
                    self._renew(found.tag)
                except ConflictError:
                    self._others = True
            return not self._others

    def _renew(self, tag: str | None) -> None:
        """Writes the file; others may count the silence from when the request was sent."""
        sent, count = time.monotonic(), self._count + 1
        self._place.write_if(f"{self.name} {count}".encode(), tag, REQUEST_SECONDS)
        self._renewed, self._count = sent, count

    def _read(self) -> Tagged | None:
        return self._place.read_tagged(seconds=REQUEST_SECONDS)

    def _held_elsewhere(self) -> ConflictError:
        return ConflictError(
            f"{self._work} is under way elsewhere ({self._place} is being renewed). Wait until it "
            "ends, or end it there, then start again."
        )
