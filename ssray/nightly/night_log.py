"""What is kept of a night, so that it goes on wherever it was killed and is seen only when whole.

Below ``OUT``::

    .nights/DATE/night.json                     what was asked for, the models' versions, and RUN
    .nights/DATE/RUN/manifest/                  every image, in batches
    .nights/DATE/RUN/batches/000000=C.parquet   a batch's rows: there whole, or not at all
    .nights/DATE/RUN/notes/000000/              that it was begun
    date=DATE/category=C/part-000000-HOLDER.parquet
    date=DATE/_COMPLETE.json                    counts and checksums; without it, not finished

A batch that is done again gives the same file of the same name. Once all are there they are
joined into few larger ones, then the marker is written, and ``.nights/DATE`` goes.

Who works on a night holds its lease, but a process that slept may wake up and believe that it still
does. So whatever two might write differently has a place of its own for each of them (RUN is who
listed the images, HOLDER who joined the batches), and what makes it count, ``night.json``, the
manifest's summary and the marker, is written through the lease.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from ssray.config import Backend, Heatmaps, Precision
from ssray.errors import ConfigError, ScoringError
from ssray.nightly.batch import BatchResult
from ssray.nightly.plan import read_manifest
from ssray.nightly.rows import NIGHT
from ssray.nightly.summary import BatchFacts, Summary
from ssray.storage.json_file import read_json
from ssray.storage.location import Location

Write = Callable[[Location, bytes], None]
"""Writes a file as its holder: ``Lease.write``."""

MARKER = "_COMPLETE.json"
PART_BYTES = 64 * 1024**2
"""Batches are joined into files of about this size."""
_FACTS = b"ssray"
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_REMEDY = "Score the night anew with --again."


class Night(BaseModel):
    """What was asked for; the same for every start of a night.

    Attributes:
        images: where they are, sorted.
        category_pattern: how the category follows from the path.
        category: of all images, if it was given.
        models: the store.
        heatmaps: of which images they are kept.
        versions: of each category's model, as they were in use when the night began.
        batch: images a batch.
        precision: of the models' inner layers.
        backend: what runs the models.
        run: which manifest and batches count.
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
    run: str


class Part(BaseModel):
    """A file of a complete night."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    rows: int
    bytes: int
    sha256: str


class Completed(BaseModel):
    """The marker of a complete night."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    date: str
    night: Night
    parts: list[Part]
    summary: Summary
    ssray_version: str


def read_marker(results: Location) -> Completed | None:
    """What the marker in a night's results says; None if there is none.

    Raises:
        DataError: if it is damaged, or another version of ssray wrote it.
    """
    return read_json(results / MARKER, Completed, _REMEDY)


@dataclass(frozen=True)
class Places:
    """Where everything of a night, or of one of its runs, is."""

    out: Location
    date: str
    run: str = "run"

    def __post_init__(self) -> None:
        """Refuses what is no date.

        Raises:
            ConfigError: if it is none.
        """
        if not _DATE.fullmatch(self.date):
            raise ConfigError(f"--date {self.date}: expected a day such as 2026-11-21.")

    @property
    def work(self) -> Location:
        """What a restart needs."""
        return self.out / ".nights" / self.date

    @property
    def manifest(self) -> Location:
        return self.work / self.run / "manifest"

    @property
    def batches(self) -> Location:
        return self.work / self.run / "batches"

    @property
    def notes(self) -> Location:
        """Of batches under way, for ``ssray.nightly.quarantine``."""
        return self.work / self.run / "notes"

    @property
    def results(self) -> Location:
        return self.out / f"date={self.date}"

    @property
    def lease(self) -> Location:
        """Held by who works on the night."""
        return self.out / ".nights" / f"{self.date}.lease"

    def completed(self) -> Completed | None:
        """The marker; None while the night is not complete, raises as ``read_marker``."""
        return read_marker(self.results)


def begin(places: Places, night: Night, write: Write) -> Night:
    """Writes down what was asked for, or reads what was when the night began.

    A night whose images were not listed to the end is listed again, by the run that asks now.

    Raises:
        ConfigError: if the night was begun with other arguments.
        DataError: as ``read_marker``, of what was written down.
    """
    place = places.work / "night.json"
    begun = read_json(place, Night, _REMEDY)
    if begun:
        check_same(begun, night, f"{places.work}: this night was begun")
        if read_manifest(replace(places, run=begun.run).manifest):
            return begun
        night = begun.model_copy(update={"run": night.run})
    write(place, night.model_dump_json(indent=2).encode())
    return night


def check_same(begun: Night, night: Night, told: str) -> None:
    """Refuses another start with other arguments; versions may have moved on meanwhile.

    Raises:
        ConfigError: naming what differs.
    """
    before, now = (each.model_dump(exclude={"versions", "run"}) for each in (begun, night))
    for name, value in now.items():
        if before[name] != value:
            raise ConfigError(
                f"{told} with {name} {_words(before[name])}, now it is {_words(value)}. Use the "
                "same arguments, another --out, or --again to score the night anew."
            )


def write_batch(places: Places, number: int, result: BatchResult) -> BatchFacts:
    """Writes a batch's rows, and returns what was counted in them."""
    facts = BatchFacts.of(result)
    table = result.rows.replace_schema_metadata({_FACTS: facts.model_dump_json().encode()})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    name = f"{number:06}={quote(facts.category, safe='')}.parquet"
    (places.batches / name).write(buffer.getvalue())
    return facts


@dataclass(frozen=True)
class StoredBatch:
    """A batch whose rows are there."""

    number: int
    category: str
    place: Location
    size: int


def list_batches(places: Places) -> list[StoredBatch]:
    """The batches that are done, by number."""
    found = []
    for info in places.batches.children():
        number, _, category = info.base_name.removesuffix(".parquet").partition("=")
        if number.isdecimal() and info.base_name.endswith(".parquet"):
            place = places.batches.at(info)
            found.append(StoredBatch(int(number), unquote(category), place, info.size))
    return found


def shares(batches: Sequence[StoredBatch]) -> list[list[StoredBatch]]:
    """Which batches are joined into which file: of one category each, and not too large."""
    found: list[list[StoredBatch]] = []
    size = 0
    for batch in sorted(batches, key=lambda each: (each.category, each.number)):
        if not found or found[-1][0].category != batch.category or size >= PART_BYTES:
            found.append([])
            size = 0
        found[-1].append(batch)
        size += batch.size
    return found


def join(
    places: Places, batches: Sequence[StoredBatch], holder: str
) -> tuple[Part, list[BatchFacts]]:
    """Joins batches of one category into a file of the results, named by the first of them and by
    who holds the lease.
    """
    buffer, facts, rows = io.BytesIO(), [], 0
    with pq.ParquetWriter(buffer, NIGHT, compression="zstd") as writer:
        for batch in batches:
            table = pq.read_table(io.BytesIO(batch.place.read()))
            facts.append(BatchFacts.model_validate_json(table.schema.metadata[_FACTS]))
            writer.write_table(table.cast(NIGHT))
            rows += len(table)
    content = buffer.getvalue()
    folder = f"category={quote(batches[0].category, safe='')}"
    path = f"{folder}/part-{batches[0].number:06}-{holder}.parquet"
    (places.results / path).write(content)
    sha256 = hashlib.sha256(content).hexdigest()
    return Part(path=path, rows=rows, bytes=len(content), sha256=sha256), facts


def publish(places: Places, completed: Completed, write: Write) -> None:
    """Makes the night visible."""
    write(places.results / MARKER, completed.model_dump_json(indent=2).encode())


def _words(value: Any) -> str:
    return json.dumps(value) if not isinstance(value, str) else value


def read_night(out: Location, date: str) -> pa.Table:
    """All rows of a complete night.

    Raises:
        ScoringError: if it is not complete, or a file is not the one that was written.
    """
    places = Places(out, date)
    completed = places.completed()
    if completed is None:
        raise ScoringError(f"{places.results}: not complete; no {MARKER} there.")
    tables = []
    for part in completed.parts:
        content = (places.results / part.path).read()
        if hashlib.sha256(content).hexdigest() != part.sha256:
            raise ScoringError(
                f"{places.results / part.path}: checksum differs from {MARKER}; the file was "
                "changed or cut short."
            )
        tables.append(pq.read_table(io.BytesIO(content)))
    return pa.concat_tables(tables) if tables else NIGHT.empty_table()
