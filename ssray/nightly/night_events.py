"""The events of a night as lines of JSON, for whoever watches many nights by a program.

They go to the logger ``ssray.nightly`` of the standard library's ``logging``, and nowhere else
until a handler is attached there, as ``log_to`` does. The text of each record is the line itself,
in ASCII, whatever names are in it: ``{"time": ..., "level": "info", "event": "batch_done", "night":
"2026-11-21", "run": ..., ...}``. ``time`` is UTC, ISO 8601, with milliseconds; ``night`` is the
date and ``run`` the run whose batches count, as in ``ssray.nightly.run``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from ssray.errors import ConfigError
from ssray.nightly.summary import BatchFacts, Summary

STDERR = "-"
"""The name of the standard error stream, in place of a file's."""
_LOG = logging.getLogger("ssray.nightly")
_LOG.addHandler(logging.NullHandler())  # else warnings would go to the terminal

Event = Literal[
    "begun",
    "listed",
    "scoring",
    "batch_done",
    "batch_postponed",
    "paused",
    "went_on",
    "committed",
    "ended",
    "failed",
]


class NightEvents:
    """Writes a line for each event of a run of a night.

    As a context manager it writes ``failed`` if the block ends with an error, which goes on.
    """

    def __init__(self, night: str, run: str) -> None:
        """Sets what all lines have.

        Args:
            night: its date.
            run: the name of the run.
        """
        self._night, self._run = night, run

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._write("failed", logging.ERROR, error=type(error).__name__, detail=str(error))

    def begun(self, images: Sequence[str], models: Mapping[str, str]) -> None:
        """The night's lease is held, and its arguments are stored.

        Args:
            images: the places where the images are.
            models: the version in use for each category.
        """
        self._write("begun", images=list(images), models=dict(models))

    def listed(
        self, images: int, batches: int, categories: int, passed_over: int, seconds: float
    ) -> None:
        """The images are listed, by this start or by one before it.

        Args:
            images: how many there are.
            batches: into how many batches they are divided.
            categories: of how many categories they are.
            passed_over: how many other files were found.
            seconds: how long the listing took.
        """
        self._write(
            "listed",
            images=images,
            batches=batches,
            categories=categories,
            passed_over=passed_over,
            seconds=round(seconds, 3),
        )

    def scoring(self, batches: int, metrics: str | None) -> None:
        """The scoring begins.

        Args:
            batches: how many are left to score.
            metrics: the address of the endpoint that Prometheus can read, if there is one.
        """
        self._write("scoring", batches=batches, metrics=metrics)

    def batch_done(self, batch: int, facts: BatchFacts) -> None:
        """The rows of a batch are kept."""
        self._write(
            "batch_done",
            batch=batch,
            category=facts.category,
            images=facts.images,
            flagged=facts.flagged,
            errors=facts.errors,
            retries=facts.retries,
            seconds={stage: round(spent, 3) for stage, spent in facts.seconds.items()},
            worker_seconds=round(facts.worker_seconds, 3),
        )

    def batch_postponed(self, batch: int, category: str | None, images: int, reason: str) -> None:
        """A batch is put off, and tried again later."""
        self._write(
            "batch_postponed",
            logging.WARNING,
            batch=batch,
            category=category,
            images=images,
            reason=reason,
        )

    def paused(self, reason: str) -> None:
        """The night waits, as its storage does not answer."""
        self._write("paused", logging.WARNING, reason=reason)

    def went_on(self, seconds: float) -> None:
        """The night goes on after a pause of so many seconds."""
        self._write("went_on", seconds=round(seconds, 3))

    def committed(self, rows: int, files: int) -> None:
        """The rows are visible to all, in so many files."""
        self._write("committed", rows=rows, files=files)

    def ended(self, summary: Summary) -> None:
        """The night is complete."""
        self._write(
            "ended",
            images=summary.images,
            flagged=summary.flagged,
            errors=summary.errors,
            retries=summary.retries,
            seconds=round(summary.wall_seconds, 3),
            images_per_second=round(summary.images_per_second, 3),
        )

    def _write(self, event: Event, level: int = logging.INFO, **facts: object) -> None:
        if not _LOG.isEnabledFor(level):
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        name = logging.getLevelName(level).lower()
        of_all = {"time": now, "level": name, "event": event}
        line = json.dumps(of_all | {"night": self._night, "run": self._run} | facts)
        _LOG.log(level, "%s", line)


@contextlib.contextmanager
def log_to(target: str | None) -> Iterator[None]:
    """Appends the lines to a file, or writes them to the standard error stream, during the block.

    Once a line can't be written, as the disk is full, this is said on the standard error stream;
    the night goes on, and so does the attempt to write.

    Args:
        target: the path of a local file, or ``STDERR``; None writes nothing.

    Raises:
        ConfigError: if the file can't be opened.
    """
    if target is None:
        yield
        return
    handler = _handler(target)
    handler.setFormatter(logging.Formatter("%(message)s"))
    before = _LOG.level
    _LOG.addHandler(handler)
    _LOG.setLevel(logging.INFO)
    try:
        yield
    finally:
        _LOG.setLevel(before)
        _LOG.removeHandler(handler)
        with contextlib.suppress(OSError):  # what is left in the buffer of a full disk
            handler.close()


class _Complaining:
    """Says once, in a line, why lines of the log are lost; ``logging`` prints a traceback each."""

    complained = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        if self.complained:
            return
        self.complained = True
        with contextlib.suppress(OSError, ValueError):
            print(f"The log of the night can't be written: {sys.exc_info()[1]}", file=sys.stderr)


class _LogFile(_Complaining, logging.FileHandler):
    pass


class _LogStream(_Complaining, logging.StreamHandler):  # type: ignore[type-arg]
    pass


def _handler(target: str) -> logging.Handler:
    if target == STDERR:
        return _LogStream(sys.stderr)
    if "://" in target:
        raise ConfigError(
            f"--log {target}: expected a file on this machine, or {STDERR} for the standard error "
            "stream. Copy the file when the night has ended."
        )
    try:
        return _LogFile(Path(target), encoding="ascii")
    except OSError as error:
        raise ConfigError(
            f"--log {target}: can't be written ({error.strerror}). Expected a file in a folder "
            "that is there and may be written to."
        ) from error
