"""Reads and writes the files of a night, from which an interrupted night goes on.

The files are, below ``OUT``::

    .nights/DATE/night.json                     the arguments, the models' versions, and RUN
    .nights/DATE/RUN/manifest/                  the list of all images, in batches
    .nights/DATE/RUN/batches/000000=C.parquet   the rows of a batch that is done, of category C
    .nights/DATE/RUN/notes/000000/              notes that a batch was begun
    date=DATE/category=C/part-000000-HOLDER.parquet   the results
    date=DATE/_COMPLETE.json                    the marker of a complete night: counts, checksums

C is the category's name, percent-encoded; where that is longer than 144 characters, the beginning
of the name, ``+`` and a digest of all of it.

A batch that is scored again writes the same file again. When all batches are done they are joined
into a few larger files, then the marker is written and ``.nights/DATE`` is deleted. A night without
the marker is not complete and must not be read.

The process that works on a night holds its lease. But a process that was suspended may wake up and
believe that it still does. So files that two processes might write differently have names of their
own for each process: RUN is the one that listed the images, HOLDER the one that joined the batches.
The files that decide which of these count (``night.json``, the manifest's summary and the marker)
are written through the lease.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

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
"""Writes a file as the holder of the lease: ``Lease.write``."""

MARKER = "_COMPLETE.json"
PART_BYTES = 64 * 1024**2
"""About how large the files are that batches are joined into."""
_FACTS = b"ssray"
"""The key of ``BatchFacts`` in the metadata of a batch's file."""
_LONGEST_NAME = 144
"""How many characters a category's name may have in a path; longer ones are shortened."""
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_REMEDY = "Score the night anew with --again."


class Night(BaseModel):
    """The arguments of a night, which must be the same each time that it is started.

    Attributes:
        images: the places where the images are, sorted.
        category_pattern: how an image's category follows from its path.
        category: the category of all images, if it was given.
        allowed: where lists may name files, beside their own folder or bucket, sorted.
        models: the model store.
        heatmaps: which images' heatmaps are kept.
        versions: the version of each category's model that was in use when the night began.
        batch: how many images a batch has.
        precision: the type in which the models' inner layers compute.
        backend: what runs the models.
        run: the name of the run whose manifest and batches count.
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
    allowed: tuple[str, ...] = ()


class Part(BaseModel):
    """A file of a complete night's results.

    Attributes:
        path: where it is, below the night's results.
        rows: how many rows it has.
        bytes: its size.
        sha256: its checksum, in hexadecimal.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    rows: int
    bytes: int
    sha256: str


class Completed(BaseModel):
    """The content of the marker of a complete night.

    Attributes:
        date: the night's date.
        night: the arguments of the night.
        parts: the files of the results.
        summary: how the night went.
        ssray_version: the version of ssray that scored it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    date: str
    night: Night
    parts: list[Part]
    summary: Summary
    ssray_version: str


def read_marker(results: Location) -> Completed | None:
    """Reads the marker of a night's results; returns None if there is none.

    Raises:
        DataError: if it is damaged, or another version of ssray wrote it.
    """
    return read_json(results / MARKER, Completed, _REMEDY)


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
        if not _DATE.fullmatch(self.date):
            raise ConfigError(f"--date {self.date}: expected a day such as 2026-11-21.")

    @property
    def work(self) -> Location:
        """The folder of all that is needed to go on after an interruption."""
        return self.out / ".nights" / self.date

    @property
    def manifest(self) -> Location:
        """The folder of the list of all images."""
        return self.work / self.run / "manifest"

    @property
    def batches(self) -> Location:
        """The folder of the batches that are done."""
        return self.work / self.run / "batches"

    @property
    def notes(self) -> Location:
        """The folder of the notes of ``ssray.nightly.quarantine`` on batches that were begun."""
        return self.work / self.run / "notes"

    @property
    def results(self) -> Location:
        """The folder of the results."""
        return self.out / f"date={self.date}"

    @property
    def lease(self) -> Location:
        """The lease of the process that works on the night."""
        return self.out / ".nights" / f"{self.date}.lease"

    def completed(self) -> Completed | None:
        """Reads the marker; returns None if the night is not complete.

        Raises:
            DataError: as ``read_marker`` does.
        """
        return read_marker(self.results)


def begin(places: Places, night: Night, write: Write) -> Night:
    """Stores the arguments of a new night, or reads those of one that was begun before.

    If a night was interrupted while its images were being listed, they are listed anew, and the
    present run counts from then on.

    Args:
        places: the night's files.
        night: the arguments of this start.
        write: writes a file as the holder of the lease.

    Returns:
        The arguments to go on with.

    Raises:
        ConfigError: if the night was begun with other arguments.
        DataError: if the stored arguments are damaged, or another version of ssray wrote them.
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
    """Checks that a night is started again with the same arguments; versions may differ.

    Args:
        begun: the arguments with which the night was begun.
        night: the arguments of this start.
        told: the beginning of the error message.

    Raises:
        ConfigError: if an argument differs.
    """
    before, now = (each.model_dump(exclude={"versions", "run"}) for each in (begun, night))
    for name, value in now.items():
        if before[name] != value:
            raise ConfigError(
                f"{told} with {name} {_words(before[name])}, now it is {_words(value)}. Use the "
                "same arguments, another --out, or --again to score the night anew."
            )


def write_batch(places: Places, number: int, result: BatchResult) -> BatchFacts:
    """Writes the rows of a batch, and returns counts of them."""
    facts = BatchFacts.of(result)
    table = result.rows.replace_schema_metadata({_FACTS: facts.model_dump_json().encode()})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    name = f"{number:06}={name_in_paths(facts.category)}.parquet"
    (places.batches / name).write(buffer.getvalue())
    return facts


def name_in_paths(category: str) -> str:
    """Returns a name for files and folders that no other category has.

    >>> name_in_paths("grid"), name_in_paths("a/b")
    ('grid', 'a%2Fb')
    >>> len(name_in_paths("é" * 1000))
    105
    """
    whole = quote(category, safe="")
    if len(whole) <= _LONGEST_NAME:
        return whole
    digest = hashlib.sha256(category.encode()).hexdigest()[:32]
    return f"{quote(category[:12], safe='')}+{digest}"


@dataclass(frozen=True)
class StoredBatch:
    """A batch that is done.

    Attributes:
        number: its number.
        category: the category of its images, as ``name_in_paths`` gives it.
        place: the file of its rows.
        size: the size of that file in bytes.
    """

    number: int
    category: str
    place: Location
    size: int


def list_batches(places: Places) -> list[StoredBatch]:
    """Lists the batches that are done, ordered by their numbers."""
    found = []
    for info in places.batches.children():
        number, _, category = info.base_name.removesuffix(".parquet").partition("=")
        if number.isdecimal() and info.base_name.endswith(".parquet"):
            place = places.batches.at(info)
            found.append(StoredBatch(int(number), category, place, info.size))
    return found


def shares(batches: Sequence[StoredBatch]) -> list[list[StoredBatch]]:
    """Groups batches into files: each of one category, and of about ``PART_BYTES``."""
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
    """Joins batches of one category into one file of the results.

    Args:
        places: the night's files.
        batches: the batches to join.
        holder: the name of the lease's holder, which becomes part of the file's name.

    Returns:
        The file, and the counts of each batch.
    """
    buffer, facts, rows = io.BytesIO(), [], 0
    with pq.ParquetWriter(buffer, NIGHT, compression="zstd") as writer:
        for batch in batches:
            table = pq.read_table(io.BytesIO(batch.place.read()))
            facts.append(BatchFacts.model_validate_json(table.schema.metadata[_FACTS]))
            writer.write_table(table.cast(NIGHT))
            rows += len(table)
    content = buffer.getvalue()
    path = f"category={batches[0].category}/part-{batches[0].number:06}-{holder}.parquet"
    (places.results / path).write(content)
    sha256 = hashlib.sha256(content).hexdigest()
    return Part(path=path, rows=rows, bytes=len(content), sha256=sha256), facts


def publish(places: Places, completed: Completed, write: Write) -> None:
    """Writes the marker, which makes the night complete."""
    write(places.results / MARKER, completed.model_dump_json(indent=2).encode())


def _words(value: Any) -> str:
    return json.dumps(value) if not isinstance(value, str) else value


def read_night(out: Location, date: str) -> pa.Table:
    """Reads all rows of a complete night.

    Raises:
        ScoringError: if the night is not complete, or a file does not match its checksum.
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
