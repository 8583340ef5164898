"""Runs of a benchmark that takes hours: each is performed once, and kept as a line of JSON."""

from __future__ import annotations

import concurrent.futures
import json
import multiprocessing
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ssray.errors import SsrayError


class Keyed(Protocol):
    """A run; ``key`` is the same for equal ones, ``title`` names it for people."""

    @property
    def key(self) -> str: ...

    @property
    def title(self) -> str: ...


R = TypeVar("R", bound=Keyed)
Row = dict[str, Any]


@dataclass(frozen=True)
class Ledger:
    """A file with a row a finished run, each with its run's ``key``."""

    place: Path

    def rows(self) -> dict[str, Row]:
        """Finished runs by key."""
        if not self.place.exists():
            return {}
        rows = (json.loads(line) for line in self.place.read_text().splitlines())
        return {row["key"]: row for row in rows}

    def missing(self, runs: Sequence[R]) -> list[R]:
        """Each run that has no row yet, once: the first of equal ones."""
        done = self.rows()
        first: dict[str, R] = {}
        for run in runs:
            if run.key not in done:
                first.setdefault(run.key, run)
        return list(first.values())

    def complete(
        self, runs: Sequence[R], perform: Callable[[R], Row], jobs: int
    ) -> Iterator[tuple[R, Row | SsrayError | RuntimeError]]:
        """Performs what is missing, ``jobs`` at a time, and keeps every row as it comes.

        Yields each run that ends with its row or its error; the others go on.
        """
        waiting = self.missing(runs)
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context) as pool:
            futures = {pool.submit(perform, run): run for run in waiting}
            for number, future in enumerate(concurrent.futures.as_completed(futures), start=1):
                run = futures[future]
                try:
                    row = future.result()
                except (SsrayError, RuntimeError) as error:
                    print(f"{number}/{len(waiting)}  {run.title}: {error}", flush=True)
                    yield run, error
                    continue
                with self.place.open("a") as out:
                    out.write(json.dumps(row) + "\n")
                print(f"{number}/{len(waiting)}  {run.title}: done", flush=True)
                yield run, row


def commit() -> str:
    """The commit that runs, marked where the tree differs from it."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
