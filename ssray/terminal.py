"""What people see while long work runs: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from ssray.data.storage import Location
from ssray.model_store import StoredVersion
from ssray.training import Epoch

LINE_SECONDS = 10.0
"""Where there is no terminal, long loops print a line this often."""

_UNSCORED_SHOWN = 5
_SHOWN = {"image AUROC": "image_auroc", "pixel AUROC": "pixel_auroc", "AU-PRO 0.3": "aupro_30"}

console = Console(highlight=False, markup=False, soft_wrap=True)


class TrainingDisplay:
    """Shows the epochs of one training; a context manager."""

    def __init__(self, category: str) -> None:
        self._category = category
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:3.0f} %"),
            TextColumn("{task.fields[state]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        self._task = self._progress.add_task(self._category, total=1.0, state="starting workers")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def update(self, epoch: Epoch) -> None:
        state = (
            f"loss {epoch.train_loss:.5f}  validation {epoch.validation_loss:.5f}  "
            f"{epoch.images_per_second:.1f} images/s  crop "
            f"{epoch.crop_columns} x {epoch.crop_rows} px  "
            f"{_clock(epoch.seconds_left)} left"
        )
        assert self._task is not None
        self._progress.update(self._task, completed=epoch.budget_spent, state=state)
        if not console.is_terminal:
            console.print(f"{self._category}  {100 * epoch.budget_spent:3.0f} %  {state}")


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


def show_evaluation(metrics: pa.Table, scores: pa.Table, out: Location) -> None:
    """Prints the most important figures, what could not be scored, and where the rest is."""
    console.print(_summary(metrics))
    show_unscored(scores)
    console.print(f"Figures: {out / 'metrics.md'}")
    console.print(f"Report: {out / 'report.html'}")


def show_unscored(scores: pa.Table) -> None:
    """Prints which images of a ``SCORES`` table have no score, and why; nothing if all have."""
    failed = scores.filter(pc.is_valid(scores["error"])).to_pylist()
    if failed:
        console.print(f"{len(failed)} of {len(scores)} images could not be scored:")
    for row in failed[:_UNSCORED_SHOWN]:
        console.print(f"  {row['uri']}: {row['error']}")
    if len(failed) > _UNSCORED_SHOWN:
        console.print(f"  and {len(failed) - _UNSCORED_SHOWN} more, in scores.parquet")


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


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
