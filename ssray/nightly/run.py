"""The files of a run: what is kept of work on a night, so that a killed run goes on.

A run lists what a night has to score, scores it, and ends with one commit to the table of scores.
Its files are, below ``OUT``, which is also the table's place::

    _nights/DATE.lease                        who works on the night
    _nights/DATE/run.json                     the run that was begun last
    _nights/DATE/RUN/manifest/                the list of its images, in batches
    _nights/DATE/RUN/notes/000000/            notes that a batch was begun
    _nights/DATE/RUN/committed.json           how it went, written before the commit
    _nights/DATE/committed-000001.json        likewise, of a run whose commit is there
    date=DATE/category=C/RUN-000000-X.parquet rows of batch 0 of the run

C is the category's name as ``name_in_paths`` writes it. RUN and X are random, and no file of rows
is ever written twice. So a batch may have several: those that count build on each other, as where
some images could not be read for a while; others were written by processes that were taken for
dead. What the run's commit does not name is deleted after it.

None of these files decides what rows there are: the commit does (``ssray.nightly.table``). The
lease only saves work.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import date as Date
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs
from pydantic import BaseModel, ConfigDict

from ssray.config import Backend, Heatmaps, Precision
from ssray.errors import ConfigError, DataError
from ssray.nightly.batch import BatchResult
from ssray.nightly.plan import Manifest, read_manifest
from ssray.nightly.rows import IN_FILES
from ssray.nightly.seen import State
from ssray.nightly.sources import Source
from ssray.nightly.summary import BatchFacts, Summary
from ssray.nightly.table import REST, RowFile, ScoreTable, now
from ssray.storage.fetch import persistently
from ssray.storage.json_file import read_json
from ssray.storage.location import Location
from ssray.storage.parquet import as_parquet

Write = Callable[[Location, bytes], None]
"""Writes a file as the holder of the lease: ``Lease.write``."""

FORMAT = 1
"""Changes whenever rows of another version may differ."""
_FACTS = b"ssray"
"""The key of what is known of a file of rows, in its metadata."""
_LONGEST_NAME = 100
"""How many characters a category's name may have in a path."""
_READERS = 16
"""How many files are looked into at once."""
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_REMEDY = "Score the night anew with --again."


class Night(BaseModel):
    """The arguments of a night.

    Attributes:
        images: the places where the images are, sorted.
        category_pattern: how an image's category follows from its path.
        category: the category of all images, if it was given.
        allowed: where lists may name files, beside their own folder or bucket, sorted.
        models: the model store.
        heatmaps: which images' heatmaps are kept.
        versions: the version of each category's model that was in use when the run began.
        batch: how many images a batch has.
        precision: the type in which the models' inner layers compute.
        backend: what runs the models.
        format: ``FORMAT``.
        ssray_version: of who scores.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: tuple[str, ...]
    category_pattern: str
    category: str | None
    models: str
    heatmaps: Heatmaps
    versions: dict[str, str]
    batch: int
    precision: Precision
    backend: Backend
    ssray_version: str
    format: int = FORMAT
    allowed: tuple[str, ...] = ()


_MAY_DIFFER = {"versions", "ssray_version", "format"}
"""What may differ between starts of one night."""
_MAY_DIFFER_LATER = _MAY_DIFFER | {"images", "allowed", "batch"}
"""What may differ once there was a commit."""


class Run(BaseModel):
    """A run over a night's images that have no row yet.

    Attributes:
        name: part of the paths of all that it writes.
        number: the number of the commit that it ends with.
        redo: whether it puts its rows in place of all that are there.
        night: its arguments.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    number: int
    redo: bool
    night: Night


class Committed(BaseModel):
    """How a run went that was committed.

    Attributes:
        date: the night's date.
        run: what was done.
        summary: how it went.
        states: how many images were found in each state.
        missing: how many have no row, as storage did not give them, by reason.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    date: str
    run: Run
    summary: Summary
    states: dict[State, int]
    missing: dict[str, int]


class Part(BaseModel):
    """What came of a batch, or of the images of it that had no row yet.

    Attributes:
        batch: its number.
        category: of its images; None where storage did not even give their list.
        after: the files of rows that the batch had before.
        device: what scored it.
        postponed: images without a row, as storage failed, by reason.
        facts: counts of the rows; None where there are none.
        path: the file of the rows, below the table; None where there are none.
        size: of that file, in bytes.
        modified: when it was written, milliseconds since 1970.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch: int
    category: str | None
    after: tuple[str, ...]
    device: str
    postponed: dict[str, int] = {}
    facts: BatchFacts | None = None
    path: str | None = None
    size: int = 0
    modified: int = 0

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return self.facts.images if self.facts else 0

    def file(self) -> RowFile:
        """The file of rows, which must be there, as the table takes it."""
        assert self.facts and self.path and self.category is not None
        return RowFile(self.path, self.size, self.category, self.rows, self.modified)


def check_date(option: str, date: str) -> None:
    """Checks that a date is one, as nights are called by.

    Raises:
        ConfigError: if it is not written as YYYY-MM-DD.
    """
    try:
        day = Date.fromisoformat(date) if _DATE.fullmatch(date) else None
    except ValueError:
        day = None
    if day is None:
        raise ConfigError(f"{option} {date}: expected a day such as 2026-11-21.")


@dataclass(frozen=True)
class Places:
    """The places of the files of a night, and of one of its runs."""

    out: Location
    date: str
    run: str = "run"

    def __post_init__(self) -> None:
        """Checks the date.

        Raises:
            ConfigError: if it is not written as YYYY-MM-DD.
        """
        check_date("--date", self.date)

    @property
    def night(self) -> Location:
        """The folder of the night's runs."""
        return self.out / "_nights" / self.date

    @property
    def work(self) -> Location:
        """The folder of the run."""
        return self.night / self.run

    @property
    def begun(self) -> Location:
        """The run that was begun last."""
        return self.night / "run.json"

    @property
    def manifest(self) -> Location:
        """The folder of the list of the run's images."""
        return self.work / "manifest"

    @property
    def notes(self) -> Location:
        """The folder of the notes of ``ssray.nightly.quarantine`` on batches that were begun."""
        return self.work / "notes"

    @property
    def results(self) -> Location:
        """The folder of the night's rows."""
        return self.out / f"date={self.date}"

    @property
    def lease(self) -> Location:
        """The lease of the process that works on the night."""
        return self.out / "_nights" / f"{self.date}.lease"

    def of(self, run: str) -> Places:
        """The places of another run."""
        return replace(self, run=run)

    def committed(self) -> Committed | None:
        """How the last run went that was committed; None if none was.

        Raises:
            DataError: if what is kept of it is damaged, or of another version of ssray.
        """
        names = [info.base_name for info in self.night.children()]
        found = max((name for name in names if name.startswith("committed-")), default=None)
        return read_json(self.night / found, Committed, _REMEDY) if found else None

    def _committed(self, number: int) -> Location:
        return self.night / f"committed-{number:06}.json"


def begin(
    places: Places, name: str, night: Night, before: int, again: bool, write: Write
) -> tuple[Run, Manifest | None]:
    """Goes on with the run that was begun last, or begins one.

    Args:
        places: of the night.
        name: of a new run.
        night: the arguments of this start.
        before: the number of the night's last commit.
        again: begins a run that replaces all rows, or goes on with one of the same arguments.
        write: writes a file as the holder of the lease.

    Returns:
        The run, and the list of its images if it was made before.

    Raises:
        ConfigError: if the night was begun with other arguments.
        DataError: if what is kept of it is damaged, or another version of ssray wrote it.
    """
    begun, manifest = None, None
    try:
        begun = read_json(places.begun, Run, _REMEDY)
        if begun and begun.number == before + 1:
            manifest = read_manifest(places.of(begun.name).manifest)
    except DataError:
        if not again:
            raise
    if begun and begun.number == before + 1:
        goes_on = not again or (begun.redo and begun.night == night)
        again = again or begun.redo
        if manifest and goes_on:
            _check_same(begun.night, night, _MAY_DIFFER, f"{places.night}: begun")
            if _computes_alike(begun.night, night):
                return begun, manifest
    if not again and before and (committed := places.committed()):
        _check_same(committed.run.night, night, _MAY_DIFFER_LATER, f"{places.results}: scored")
    run = Run(name=name, number=before + 1, redo=again, night=night)
    write(places.begun, run.model_dump_json(indent=2).encode())
    return run, None


def _computes_alike(one: Night, other: Night) -> bool:
    return (one.format, one.ssray_version) == (other.format, other.ssray_version)


def _check_same(begun: Night, night: Night, except_for: set[str], told: str) -> None:
    """Checks that a night is started again with the same arguments.

    Raises:
        ConfigError: if an argument differs.
    """
    before, now = (each.model_dump(exclude=except_for) for each in (begun, night))
    for name, value in now.items():
        if before[name] != value:
            raise ConfigError(
                f"{told} with {name} {_words(before[name])}, now it is {_words(value)}. Use the "
                "same arguments, another --out, or --again to score the night anew."
            )


def write_part(
    places: Places,
    batch: int,
    category: str,
    after: Sequence[str],
    result: BatchResult,
    device: str,
) -> Part:
    """Writes the rows of a batch.

    Args:
        places: of the run.
        batch: the batch's number.
        category: of its images.
        after: the files of rows that it has already.
        result: the rows.
        device: what computed them.
    """
    part = Part(
        batch=batch,
        category=category,
        after=tuple(after),
        device=device,
        postponed=dict(result.postponed),
    )
    if not len(result.rows):
        return part
    facts = BatchFacts.of(result)
    folder = f"date={places.date}/category={name_in_paths(category)}"
    path = f"{folder}/{places.run}-{batch:06}-{secrets.token_hex(4)}.parquet"
    part = part.model_copy(update={"facts": facts, "path": path, "modified": now()})
    table = result.rows.select(IN_FILES.names).cast(IN_FILES)
    facts_kept = {_FACTS: part.model_dump_json().encode()}
    content = as_parquet(table.replace_schema_metadata(facts_kept), "zstd")
    (places.out / path).write(content)
    return part.model_copy(update={"size": len(content)})


def list_parts(places: Places) -> list[Part]:
    """Reads what became of batches of a run, from the metadata of their files.

    What builds on other files comes after them. A file that is cut short, as machines without power
    may leave it, counts for nothing.
    """
    mine = [
        info
        for info in places.results.files()
        if info.base_name.startswith(f"{places.run}-") and REST not in info.base_name
    ]

    def part(info: fs.FileInfo) -> Part | None:
        with places.out.at(info).open_file() as file:
            try:
                metadata = pq.read_metadata(file).metadata
            except pa.ArrowInvalid:
                return None
        return Part.model_validate_json(metadata[_FACTS]).model_copy(update={"size": info.size})

    with ThreadPoolExecutor(_READERS) as pool:
        parts = list(pool.map(lambda info: persistently(lambda: part(info)), mine))
    return sorted(filter(None, parts), key=lambda each: (each.batch, len(each.after)))


def without_rows(places: Places, sources: Sequence[Source], parts: Sequence[str]) -> list[Source]:
    """The images of a batch that have no row in any of the batch's files."""
    there = list[str]()
    for path in parts:
        content = persistently((places.out / path).read)
        there += pq.read_table(io.BytesIO(content), columns=["uri"])["uri"].to_pylist()
    left = []
    for source in sources:
        if source.uri in there:
            there.remove(source.uri)
        else:
            left.append(source)
    return left


def before_commit(places: Places, committed: Committed) -> list[str]:
    """Keeps how a run went, until its commit is there; returns the runs that are known now."""
    content = committed.model_dump_json(indent=2).encode()
    (places.work / "committed.json").write(content)
    return _runs(places)


def after_commit(places: Places, table: ScoreTable, run: Run, others: Sequence[str]) -> None:
    """Keeps how a run went that was committed, and deletes what it and dead runs left behind.

    Args:
        places: of the night.
        table: the table of scores.
        run: the run.
        others: runs that were known before the commit; none of them can be committed any more.
    """
    own = places.of(run.name)
    with contextlib.suppress(FileNotFoundError):
        content = (own.work / "committed.json").read()
        places._committed(run.number).write(content)
    counted, gone = table.paths(places.date, run.number), {*others, run.name}
    root = f"{places.out.path}/"
    for info in places.results.files():
        path = info.path.removeprefix(root)
        if info.base_name.partition("-")[0] in gone and path not in counted:
            places.out.at(info).delete()
    for name in gone:
        places.of(name).work.delete()


def clear_up(places: Places, table: ScoreTable, before: int) -> None:
    """Ends what a process began that was killed between its commit and ``after_commit``."""
    try:
        run = read_json(places.begun, Run, _REMEDY)
    except DataError:  # ``begin`` tells it, unless the night is scored anew
        return
    if run and before and run.number == before and places.of(run.name).work.exists():
        if table.run_of(places.date, before) == run.name:
            after_commit(places, table, run, [])
        else:  # another process committed in its place
            places.of(run.name).work.delete()


def _runs(places: Places) -> list[str]:
    return [info.base_name for info in places.night.children() if not info.is_file]


def name_in_paths(category: str) -> str:
    """Returns a name for files and folders that no other category has, of plain letters.

    >>> name_in_paths("grid")
    'grid'
    >>> name_in_paths("a/b")
    'a_b-c14cddc033f64b9d'
    >>> len(name_in_paths("é" * 1000))
    57
    """
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", category)
    if plain == category and len(category) <= _LONGEST_NAME and category.strip("."):
        return category
    return f"{plain[:40]}-{hashlib.sha256(category.encode()).hexdigest()[:16]}"


def _words(value: Any) -> str:
    return json.dumps(value) if not isinstance(value, str) else value
