"""The scores of all nights: one Delta Lake table, in which a commit makes rows visible at once.

Files of rows are written below the table by whoever scores, in any number and order, and nobody
sees them. The commit lists those that count. Each commit of a night carries the night's name and
the commit's number as an *application transaction*: of two processes that commit the same number of
the same night, one is refused, however long it slept. So a night is never half there and no row is
there twice, whoever else is at work. What a commit replaces stays readable as an older version of
the table.
"""

from __future__ import annotations

import contextlib
import functools
import json
import operator
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date as Date
from typing import Literal, TypeVar
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction
from pyarrow import fs

from ssray.errors import ConflictError, DataError, ScoringError
from ssray.nightly.rows import IN_FILES, NIGHT, PARTITIONS, SCORES_TABLE
from ssray.storage.fetch import persistently
from ssray.storage.location import Location
from ssray.storage.parquet import as_parquet

_Result = TypeVar("_Result")
How = Literal["append", "replace", "redo"]
"""What a commit does: adds rows, adds rows in place of those of the same images, or puts rows in
place of all of the night's."""

_KEPT_FOR_EVER = "interval 36500 days"
_SETTINGS = {
    "delta.logRetentionDuration": _KEPT_FOR_EVER,
    "delta.deletedFileRetentionDuration": _KEPT_FOR_EVER,
}
"""Older versions of the table are the record of what was once decided."""
_ATTEMPTS = 4
"""How often a commit is tried that another one of the table is in the way of."""
_LATEST = 10
"""How many commits are looked at first, when one is looked for."""
REST = "-rest-"
"""In the name of a file: what remains of another one of which rows were replaced."""
_FACTS = "ssray"
"""The key of ssray's own facts in the information of a commit."""


@dataclass(frozen=True)
class RowFile:
    """A file of a night's rows.

    Attributes:
        path: where it is below the table.
        size: in bytes.
        category: of all its rows.
        rows: how many it has.
        modified: when it was written, milliseconds since 1970.
    """

    path: str
    size: int
    category: str
    rows: int
    modified: int


class ScoreTable:
    """The table of scores at a place, which need not be there yet.

    Every method raises a ``ScoringError`` if the table can't be read or written.
    """

    def __init__(self, root: Location) -> None:
        self.root = root

    def exists(self) -> bool:
        """Whether any night was ever committed here."""
        return self._table() is not None

    def dataset(self) -> ds.Dataset:
        """The table as it is now, ``SCORES_TABLE`` rows, to be scanned with pyarrow.

        Raises:
            DataError: if there is no table.
        """
        table = self.present()
        return self._read(lambda: self._of_files(table, None))

    def night(self, date: str, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows of a night, ``NIGHT`` or some of its columns, in no fixed order.

        Raises:
            ScoringError: if there are none.
        """
        if not self.number(date):
            raise ScoringError(f"{self.root}: no night of {date} there.")
        wanted = list(columns) if columns is not None else NIGHT.names
        table = self.present()
        return self._read(
            lambda: self._of_files(table, date).to_table(wanted, filter=_of_night(date))
        )

    def batches(
        self,
        columns: Sequence[str],
        date: str | None = None,
        where: pc.Expression | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Some columns of a night's rows, or of all, a part at a time; nothing without a table.

        Args:
            columns: their names.
            date: of the night.
            where: which rows are wanted; default: all.
        """
        table = self._table()
        if table is None:
            return
        conditions = [each for each in (date and _of_night(date), where) if each is not None]
        wanted = functools.reduce(operator.and_, conditions) if conditions else None
        dataset = self._read(lambda: self._of_files(table, date))

        def of_file(fragment: ds.Fragment) -> list[pa.RecordBatch]:
            found = fragment.to_batches(schema=dataset.schema, columns=list(columns), filter=wanted)
            return list(found)

        for fragment in dataset.get_fragments():
            for batch in self._read(functools.partial(of_file, fragment)):
                if len(batch):
                    yield batch

    def count(self, date: str) -> int:
        """How many rows a night has."""

        def counted(table: DeltaTable) -> int:
            return int(self._of_files(table, date).count_rows(filter=_of_night(date)))

        return self._of(counted, 0)

    def number(self, date: str) -> int:
        """The number of the last commit of a night, 0 if there is none."""
        return self._of(lambda table: _number(table, date), 0)

    def run_of(self, date: str, number: int) -> str | None:
        """The run whose rows a commit of a night added; None if there is no such commit."""
        return self._of(lambda table: _commit_of(table, date, number)[1], None)

    def paths(self, date: str, number: int | None = None) -> set[str]:
        """The files of a night's rows that count, by their path below the table.

        Args:
            date: of the night.
            number: of a commit; also takes the files that counted right after it.
        """
        counted = self._of(lambda table: _paths(table, date), set[str]())
        if number is None:
            return counted
        version = self._of(lambda table: _commit_of(table, date, number)[0], None)
        return counted if version is None else counted | self._paths_at(date, version)

    def _paths_at(self, date: str, version: int) -> set[str]:
        def paths(table: DeltaTable) -> set[str]:
            table.load_as_version(version)
            return _paths(table, date)

        return self._of(paths, set[str]())

    def commit(self, date: str, number: int, run: str, how: How, files: Sequence[RowFile]) -> None:
        """Makes files of rows count, all at once.

        Args:
            date: of the night.
            number: of the commit; one more than that of the night's last one.
            run: who wrote the files.
            how: what becomes of rows that are there.
            files: with rows of that night alone.

        Raises:
            ConflictError: if the night has such a commit already.
        """
        facts = {
            "date": date,
            "commit": number,
            "run": run,
            "rows": sum(file.rows for file in files),
        }
        properties = CommitProperties(
            custom_metadata={_FACTS: json.dumps(facts)},
            app_transactions=[Transaction(_transaction(date), number)],
        )
        expected = None
        for left in reversed(range(_ATTEMPTS)):
            table = self._table() or self._created()
            if _number(table, date) >= number:
                raise self.conflict(date)
            try:
                expected = self._committed(table, date, run, how, files, properties)
                break
            except (DeltaError, OSError) as error:
                if self.number(date) < number:
                    # Perhaps for another night's commit, or as the files were just compacted.
                    if not left:
                        raise self._failed(error) from error
                elif self.run_of(date, number) == run:
                    break  # it is there: the answer got lost, and it was repeated
                else:
                    raise self.conflict(date) from None
        if expected is not None and self.count(date) != expected:
            raise ScoringError(
                f"{self.root}: another program rewrote files of {date} at the same time, so that "
                "rows are there twice. Score the night anew with --again."
            )

    def _committed(
        self,
        table: DeltaTable,
        date: str,
        run: str,
        how: How,
        files: Sequence[RowFile],
        properties: CommitProperties,
    ) -> int | None:
        """Commits; returns how many rows the night must have then, if others may be in the way."""
        actions: list[AddAction | RemoveAction] = [_added(date, file) for file in files]
        rows = None if how == "append" else sum(file.rows for file in files)
        if how == "replace":
            more, kept = self._without_replaced(table, date, run, files)
            actions += more
            rows = kept + (rows or 0)
        table.create_write_transaction(
            actions,
            "overwrite" if how == "redo" else "append",
            SCORES_TABLE,
            list(PARTITIONS),
            partition_filters=[("date", "=", date)] if how == "redo" else None,
            commit_properties=properties,
        )
        return rows

    def _without_replaced(
        self, table: DeltaTable, date: str, run: str, files: Sequence[RowFile]
    ) -> tuple[list[AddAction | RemoveAction], int]:
        """Writes anew what remains of files with rows of images that new files have, too.

        Returns:
            What has to be committed for it, and how many rows of the night remain.
        """
        new = dict[str, list[str]]()
        for file in files:
            new.setdefault(file.category, []).extend(self._uris(file.path).to_pylist())
        folders = {file.category: file.path.rpartition("/")[0] for file in files}
        actions, remaining = list[AddAction | RemoveAction](), 0
        for there in _files(table, date):
            uris = self._uris(there.path)
            replaced = pc.is_in(uris, value_set=pa.array(new.get(there.category, []), pa.string()))
            count = pc.sum(replaced).as_py() or 0
            remaining += len(uris) - count
            if not count:
                continue
            actions.append(_removed(date, there))
            if count < len(uris):
                content = pa.BufferReader((self.root / there.path).read())
                rows = pq.read_table(content).select(IN_FILES.names).cast(IN_FILES)
                name = f"{run}{REST}{secrets.token_hex(4)}.parquet"
                kept = rows.filter(pc.invert(replaced))
                rest = self._written(f"{folders[there.category]}/{name}", there.category, kept)
                actions.append(_added(date, rest))
        return actions, remaining

    def _uris(self, path: str) -> pa.ChunkedArray:
        with (self.root / path).open_file() as file:
            return pq.read_table(file, columns=["uri"])["uri"].cast(pa.string())

    def _written(self, path: str, category: str, rows: pa.Table) -> RowFile:
        content = as_parquet(rows, "zstd")
        (self.root / path).write(content)
        return RowFile(path, len(content), category, len(rows), now())

    def compact(self, date: str) -> tuple[int, int]:
        """Joins a night's small files to larger ones; no row changes.

        Whoever calls it holds the night's lease.

        Returns:
            How many files there were, and how many they became.
        """
        table = self.present()
        if not _number(table, date):
            raise ScoringError(f"{self.root}: no night of {date} there.")
        with self._told():
            metrics = table.optimize.compact(partition_filters=[("date", "=", date)])
        return int(metrics["numFilesRemoved"]), int(metrics["numFilesAdded"])

    def count_before(self, date: str) -> int:
        """How many rows the nights before a date have."""
        dataset, before = self.dataset(), pc.field("date") < Date.fromisoformat(date)
        return self._read(lambda: int(dataset.count_rows(filter=before)))

    def delete_before(self, date: str) -> None:
        """Takes the nights before a date out of the table.

        Older versions of the table keep them until ``vacuum``.
        """
        with self._told():
            self.present().delete(f"date < '{date}'")

    def vacuum(self, keep_hours: int) -> int:
        """Deletes files that no row counts of any more; returns how many.

        Versions of the table that are older than ``keep_hours`` can't be read from then on. Files
        of nights that are under way are left alone.
        """
        with self._told():
            return len(
                self.present().vacuum(
                    retention_hours=keep_hours, dry_run=False, enforce_retention_duration=False
                )
            )

    def _of_files(self, table: DeltaTable, date: str | None) -> ds.Dataset:
        """The rows in the files of a night, or of all; other nights' files are not even counted.

        They are read by pyarrow's own filesystem. Threads that read by delta-rs's, which is written
        in Python, now and then abort the process when it ends.
        """
        of_night = None if date is None else [("date", "=", date)]
        here = fs.SubTreeFileSystem(self.root.path, self.root.filesystem)
        dataset: ds.Dataset = table.to_pyarrow_dataset(
            filesystem=here, file_pruning_predicate=of_night
        )
        return dataset

    def _table(self) -> DeltaTable | None:
        try:
            return self._read(lambda: DeltaTable(str(self.root), storage_options=self._options))
        except TableNotFoundError:
            return None

    def _of(self, work: Callable[[DeltaTable], _Result], without: _Result) -> _Result:
        """What is read of the table; ``without`` if there is none."""
        table = self._table()
        return without if table is None else self._read(lambda: work(table))

    def present(self) -> DeltaTable:
        """The table.

        Raises:
            DataError: if there is none.
        """
        table = self._table()
        if table is None:
            raise DataError(
                f"{self.root}: no table of scores there. Expected what ssray nightly wrote to."
            )
        return table

    def _created(self) -> DeltaTable:
        if not self.root.in_s3:
            self.root.make_folder()
        with contextlib.suppress(DeltaError):  # another process may create it at the same time
            DeltaTable.create(
                str(self.root),
                SCORES_TABLE,
                mode="ignore",
                partition_by=list(PARTITIONS),
                name="ssray scores",
                configuration=_SETTINGS,
                storage_options=self._options,
            )
        return self.present()

    @property
    def _options(self) -> dict[str, str] | None:
        return self.root.delta_options()

    def conflict(self, date: str) -> ConflictError:
        """The error of who comes too late with a commit."""
        return ConflictError(
            f"{self.root}: the night of {date} was committed by another process meanwhile. Start "
            "the same command again: what is new has its rows then."
        )

    def _failed(self, error: Exception) -> ScoringError:
        first = str(error).strip().partition("\n")[0]
        return ScoringError(f"{self.root}: the table of scores can't be read or written. ({first})")

    def _read(self, work: Callable[[], _Result]) -> _Result:
        """Does what only reads, again and again where the storage fails.

        Raises:
            TableNotFoundError: if there is no table.
            ScoringError: if it can't be read in so many attempts.
        """

        def once() -> _Result:
            try:
                return work()
            except TableNotFoundError:
                raise
            except (DeltaError, pa.ArrowException) as error:
                raise OSError(str(error)) from error

        try:
            return persistently(once)
        except OSError as error:
            raise self._failed(error) from error

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (DeltaError, OSError, pa.ArrowException) as error:
            raise self._failed(error) from error


def _transaction(date: str) -> str:
    return f"ssray-night-{date}"


def _number(table: DeltaTable, date: str) -> int:
    return int(table.transaction_version(_transaction(date)) or 0)


def _paths(table: DeltaTable, date: str) -> set[str]:
    return {file.path for file in _files(table, date)}


def _files(table: DeltaTable, date: str) -> list[RowFile]:
    """The files of a night's rows; how many they have is not told."""
    actions = pa.table(table.get_add_actions(flatten=True))
    own = actions.filter(pc.field("partition.date") == Date.fromisoformat(date))
    columns = (own[name].to_pylist() for name in ("path", "size_bytes", "partition.category"))
    return [
        RowFile(unquote(path), size, category, 0, 0)
        for path, size, category in zip(*columns, strict=True)
    ]


def _commit_of(table: DeltaTable, date: str, number: int) -> tuple[int | None, str | None]:
    """The version of the table that a commit of a night made, and the run; None if there is none.

    Every commit that is looked at is read as a whole, and the latest ones come first.
    """
    for most in (_LATEST, None):
        for commit in table.history(most):
            facts = json.loads(commit.get(_FACTS, "{}"))
            if (facts.get("date"), facts.get("commit")) == (date, number):
                return int(commit["version"]), str(facts["run"])
    return None, None


def _of_night(date: str) -> pc.Expression:
    return pc.field("date") == Date.fromisoformat(date)


def _removed(date: str, file: RowFile) -> RemoveAction:
    of: dict[str, str | None] = {"date": date, "category": file.category}
    return RemoveAction(file.path, True, now(), file.size, of)


def now() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)


def _added(date: str, file: RowFile) -> AddAction:
    return AddAction(
        file.path,
        file.size,
        {"date": date, "category": file.category},
        file.modified,
        True,
        json.dumps({"numRecords": file.rows}),
    )
