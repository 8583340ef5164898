"""What people see while long work runs: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from ssray.cli.printable import printable
from ssray.cli.watch import Pace, told_of_silence
from ssray.cluster.progress import Lines, clock
from ssray.metrics.values import percent
from ssray.models.store import StoredVersion
from ssray.nightly.export import StoredNight
from ssray.nightly.protocol import NightOutcome
from ssray.nightly.run import Committed
from ssray.nightly.seen import State
from ssray.nightly.summary import Summary
from ssray.scoring.evaluation import in_words
from ssray.storage.location import Location
from ssray.training.progress import ProgressRow

LINE_SECONDS = 10.0
"""Where there is no terminal, long loops print a line this often."""

_STATE_WIDTH = 60
_UNSCORED_SHOWN = 5
_FLAGGED_SHOWN = 10
_SHOWN = {
    "image AUROC": "image_auroc",
    "held-out": "image_auroc_held_out",
    "pixel AUROC": "pixel_auroc",
    "AU-PRO 0.3": "aupro_30",
}


class PrintableConsole(Console):
    """Draws text as ``printable`` gives it, in lines and in the cells of tables."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Turns a string into what is drawn."""
        return super().render_str(printable(text), **options)


console = PrintableConsole(highlight=False, markup=False, soft_wrap=True)


@dataclass
class _Row:
    """How one category stands."""

    state: str = "waiting"
    epoch: ProgressRow | None = None


class TrainingBoard:
    """Shows how the trainings of several categories stand; a context manager, safe for threads.

    On a terminal it is one live table; elsewhere each change is a line.
    """

    def __init__(self) -> None:
        self._rows: dict[str, _Row] = {}
        self._lock = threading.Lock()
        self._live = Live(
            get_renderable=self._table,
            console=console,
            refresh_per_second=2,
            auto_refresh=console.is_terminal,
        )

    def __enter__(self) -> Self:
        if console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if console.is_terminal:
            self._live.stop()

    def begin(self, categories: Sequence[str]) -> None:
        """Names all categories."""
        with self._lock:
            self._rows = {category: _Row() for category in categories}

    def state(self, category: str, words: str) -> None:
        """A category has reached a new state, which a few words describe."""
        with self._lock:
            self._rows[category].state = words
        if not console.is_terminal:
            Lines(console.print).state(category, words)

    def update(self, category: str, row: ProgressRow) -> None:
        """A category's training has got further."""
        with self._lock:
            self._rows[category] = _Row("training", row)
        if not console.is_terminal:
            Lines(console.print).update(category, row)

    def note(self, category: str, words: str) -> None:
        """Prints a line that stays, above the live table where there is one."""
        console.print(f"{category}  {words}")

    def show_totals(self, failed: Mapping[str, Exception]) -> None:
        """Prints how work on several categories ended, and reasons that were not printed whole.

        Args:
            failed: the error of each category that failed.
        """
        count = len(self._rows)
        if count > 1:
            ended = f"{count - len(failed)} of {count} categories have a model"
            console.print(f"{ended}, {len(failed)} failed." if failed else f"{ended}.")
        if count == 1 or console.is_terminal:
            for category, error in failed.items():
                console.print(f"Failed {category}: {error}")

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        table.add_column("category")
        table.add_column("state", max_width=_STATE_WIDTH, no_wrap=True, overflow="ellipsis")
        for column in ("done", "epoch", "loss", "validation", "images/s", "left"):
            table.add_column(column, justify="right")
        with self._lock:
            rows = [(category, row.state, row.epoch) for category, row in self._rows.items()]
        for category, state, epoch in rows:
            figures = (
                (
                    f"{100 * epoch.budget_spent:.0f} %",
                    f"{epoch.epoch:.1f}",
                    f"{epoch.train_loss:.5f}",
                    f"{epoch.validation_loss:.5f}",
                    f"{epoch.images_per_second:.1f}",
                    clock(epoch.seconds_left),
                )
                if epoch
                else ()
            )
            table.add_row(category, state, *figures)
        return table


@contextmanager
def counting(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows how far a loop of ``total`` steps is; yields what to call with each step's number."""
    printed = time.monotonic()
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=total)

        def update(done: int) -> None:
            nonlocal printed
            progress.update(task, completed=done)
            if not console.is_terminal and time.monotonic() - printed >= LINE_SECONDS:
                printed = time.monotonic()
                console.print(f"{description}: {done} of {total}")

        yield update


def versions_table(rows: Sequence[tuple[str, StoredVersion]]) -> Table:
    """Versions of models with their categories, for a terminal."""
    table = Table(box=None, pad_edge=False)
    for column in ("category", "version", "state", "images", "minutes", "validation loss"):
        table.add_column(column)
    for category, stored in rows:
        state = stored.problem or ("in use" if stored.published else "complete")
        facts = stored.facts
        known = (
            (
                str(facts.training_images),
                f"{facts.seconds / 60:.1f}",
                f"{facts.validation_loss:.5f}",
            )
            if facts
            else ()
        )
        table.add_row(category, stored.version, state, *known)
    return table


@contextmanager
def scoring_progress() -> Iterator[tuple[Callable[[str], None], Callable[[int, int], None]]]:
    """Shows how far the scoring of images is, and says when nothing has been heard for long.

    Yields what to call with a state in words, and what with how many images are done of how many.
    """
    printed = time.monotonic()
    pace = Pace()
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[figures]}", markup=False),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("listing images", total=None, figures="")
        with told_of_silence(progress.console.print) as heard:

            def state(words: str) -> None:
                heard(words)
                progress.update(task, description=printable(words))
                if not console.is_terminal:
                    console.print(words)

            def scored(done: int, count: int) -> None:
                nonlocal printed
                now = time.monotonic()
                speed = pace.add(now, done)
                words = f"{done:,} of {count:,} images"
                heard(words)
                if speed:
                    words += f", {speed:.1f} images/s, {clock((count - done) / speed)} left"
                progress.update(
                    task, description="scoring", completed=done, total=count, figures=words
                )
                if not console.is_terminal and now - printed >= LINE_SECONDS:
                    printed = now
                    console.print(words)

            yield state, scored


_STATES: dict[State, str] = {
    "known": "had a row already",
    "changed": "were replaced since they were scored, and scored again",
    "again": "had an error before, and were scored again",
}


def show_night(outcome: NightOutcome, place: Location) -> None:
    """Prints how a night went, or that it was complete before."""
    if not outcome.new and outcome.missing:
        console.print(f"{place}: no further image of {outcome.date} could be read.")
    elif not outcome.new:
        console.print(
            f"{place}: the night of {outcome.date} is complete already, {outcome.images:,} images; "
            "nothing was done."
        )
    if outcome.committed is not None and outcome.new:
        _show_committed(outcome.committed)
    for reason, count in outcome.errors.items():
        console.print(f"Errors of the night, {reason}: {count:,} images")
    for reason, count in outcome.missing.items():
        console.print(f"Missing, {reason}: {count:,} images have no row")
    console.print(f"Table: {place}, {outcome.images:,} images of {outcome.date}")


def _show_committed(committed: Committed) -> None:
    """Prints what the last run that was committed did."""
    summary = committed.summary
    table = Table(box=None, pad_edge=False)
    table.add_column("category")
    for column in ("images", "flagged", "errors"):
        table.add_column(column, justify="right")
    for category, counts in summary.categories.items():
        figures = (f"{counts[name]:,}" for name in ("images", "flagged", "errors"))
        table.add_row(category, *figures)
    console.print(table)
    for suffix, count in summary.passed_over.items():
        console.print(f"  passed over, no image: {count:,} x {suffix}")
    for line in night_in_words(summary):
        console.print(line)
    for state, words in _STATES.items():
        if found := committed.states.get(state):
            console.print(f"{found:,} {words}")


def show_nights(nights: Sequence[StoredNight]) -> None:
    """Prints the nights of a table of scores."""
    table = Table(box=None, pad_edge=False)
    table.add_column("date")
    for column in ("images", "flagged", "errors"):
        table.add_column(column, justify="right")
    for night in nights:
        figures = (f"{count:,}" for count in (night.images, night.flagged, night.errors))
        table.add_row(f"{night.date}", *figures)
    console.print(table)


def night_in_words(summary: Summary) -> Iterator[str]:
    """Yields lines on how long a night took and where the time went."""
    speed = summary.images_per_second
    line = f"{summary.images:,} images in {clock(summary.wall_seconds)}"
    line += (
        f", {speed:.{1 if speed >= 1 else 2}f} images/s"
        if speed
        else ", all scored by an earlier start"
    )
    listing = summary.seconds.get("list", 0.0)
    yield f"{line}; listing them took {clock(listing)}." if listing >= 1 else f"{line}."
    if summary.stage_shares:
        shares = (f"{stage} {percent(share)}" for stage, share in summary.stage_shares.items())
        yield f"Of the workers' time: {', '.join(shares)}."
    if summary.retries:
        yield f"{summary.retries:,} requests to the storage failed and were made again."
    if summary.worker_hours_per_million is not None:
        cost = summary.cost_per_million
        hours = f"{summary.worker_hours_per_million:,.1f} worker hours"
        yield f"A million such images: {hours}{'' if cost is None else f', costs {cost:,.2f}'}."


def show_evaluation(metrics: pa.Table, scores: pa.Table, out: Location) -> None:
    """Prints the most important figures, what could not be scored, and where the rest is."""
    console.print(_summary(metrics))
    for row in metrics.to_pylist():
        if row["mask_level"] is not None:
            console.print(f"{row['category']}: {in_words(row['mask_level'])}")
    show_unscored(scores)
    _show_unusable_masks(scores)
    console.print(f"Figures: {out / 'metrics.md'}")
    console.print(f"Report: {out / 'report.html'}")


def show_flagged(scores: pa.Table) -> None:
    """Prints how many images of a ``SCORES`` table are flagged, and the most anomalous of them."""
    flagged = scores.filter(pc.fill_null(scores["flagged"], False))
    scored = len(scores) - len(scores.filter(pc.is_valid(scores["error"])))
    console.print(f"{len(flagged)} of {scored} images flagged{':' if len(flagged) else '.'}")
    ordered = flagged.sort_by([("score", "descending")]).to_pylist()
    for row in ordered[:_FLAGGED_SHOWN]:
        console.print(f"  {row['uri']}  score {row['score']:.4g}, p-value {row['p_value']:.3g}")
    if len(ordered) > _FLAGGED_SHOWN:
        console.print(f"  and {len(ordered) - _FLAGGED_SHOWN} more, in scores.parquet")


def show_unscored(scores: pa.Table) -> None:
    """Prints which images of a ``SCORES`` table have no score, and why; nothing if all have."""
    failed = scores.filter(pc.is_valid(scores["error"])).to_pylist()
    if failed:
        console.print(f"{len(failed)} of {len(scores)} images could not be scored:")
    _show_some([f"{row['uri']}: {row['error']}" for row in failed])


def _show_unusable_masks(scores: pa.Table) -> None:
    """Prints which masks can't be used, and why; nothing if all can."""
    failed = scores.filter(pc.is_valid(scores["mask_error"])).to_pylist()
    if failed:
        console.print(
            f"{len(failed)} images count for no figure of pixels, as their masks can't be used:"
        )
    _show_some([f"{row['mask_detail']} ({row['mask_error']})" for row in failed])


def _show_some(lines: Sequence[str]) -> None:
    for line in lines[:_UNSCORED_SHOWN]:
        console.print(f"  {line}")
    if len(lines) > _UNSCORED_SHOWN:
        console.print(f"  and {len(lines) - _UNSCORED_SHOWN} more, in scores.parquet")


def _summary(metrics: pa.Table) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("category")
    for column in ("good", "defect", "errors", *_SHOWN):
        table.add_column(column, justify="right")
    for row in metrics.to_pylist():
        table.add_row(
            row["category"],
            str(row["n_good"]),
            str(row["n_defect"]),
            str(row["n_error"]),
            *("n/a" if math.isnan(row[name]) else f"{row[name]:.4f}" for name in _SHOWN.values()),
        )
    return table
