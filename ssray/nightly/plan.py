"""Lists the images of a night and divides them into batches; the list is the night's manifest.

Each batch is a Parquet table by itself. Many of them, one after the other, are a file,
``batches-00000`` and so on, from which a batch is read with one request, and the list is never held
in memory as a whole. ``manifest.json``, written last, says where each batch lies.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from ssray.nightly.seen import Seen, State
from ssray.nightly.sources import CategoryRule, Source, find
from ssray.storage.archives import is_compressed_tar, split_member
from ssray.storage.json_file import read_json
from ssray.storage.location import Location
from ssray.storage.parquet import as_parquet

BATCHES_A_PART = 64
"""How many batches a file of the manifest has."""
LARGEST_COMPRESSED_BATCH = 4096
"""How many images a batch from a compressed tar has; each batch reads the tar from its start."""
_SUMMARY = "manifest.json"

ROWS = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64()),
        pa.field("offset", pa.int64(), metadata={"of": "the member in a tar"}),
        pa.field("error", pa.string()),
        pa.field("etag", pa.string()),
    ]
)


class Planned(NamedTuple):
    """A batch of the manifest: how many images it has, and where in its file it lies, in bytes."""

    images: int
    offset: int
    size: int


class Manifest(BaseModel):
    """A summary of the manifest.

    Attributes:
        images: how many images are to be scored.
        batches: the batches, which are numbered from 0.
        categories: how many images each category has.
        states: how many images were found in each state (``ssray.nightly.seen.State``).
        passed_over: how many other files were found, by their suffix.
        seconds: how long the listing took.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int
    batches: list[Planned]
    categories: dict[str, int]
    states: dict[State, int]
    passed_over: dict[str, int]
    seconds: float


def read_manifest(folder: Location) -> Manifest | None:
    """Reads the summary of a manifest; returns None if the manifest is not complete.

    Raises:
        DataError: if its summary is damaged, or another version of ssray wrote it.
    """
    return read_json(folder / _SUMMARY, Manifest, "Score the night anew with --again.")


def write_manifest(
    folder: Location,
    places: Sequence[Location],
    rule: CategoryRule,
    batch: int,
    on_listed: Callable[[int], None] = lambda images: None,
    write_summary: Callable[[Location, bytes], None] = Location.write,
    allowed: Sequence[Location] = (),
    seen: Seen | None = None,
) -> Manifest:
    """Lists the images and writes the manifest, its summary last.

    Args:
        folder: the folder of the manifest.
        places: where the images are, as ``find`` takes them.
        rule: how a category follows from a path.
        batch: how many images a batch has.
        on_listed: called now and then with the number of images found so far.
        write_summary: writes the summary's content to a place.
        allowed: where lists may name files, as ``find`` takes it.
        seen: the images that have a row already; what is neither new nor changed is left out.

    Raises:
        DataError: as ``find`` does.
    """
    begun = time.monotonic()
    passed_over, categories = Counter[str](), Counter[str]()
    batches = list[Planned]()
    states = Counter[State]()
    sources: Iterator[Source] = (
        source for place in places for source in find(place, rule, passed_over, allowed)
    )
    if seen:
        sources = _without(seen, sources, states)
    for number, part in enumerate(_parts(_in_batches(sources, batch))):
        content = bytearray()
        for members in part:
            table = _parquet(members)
            batches.append(Planned(len(members), len(content), len(table)))
            content += table
            categories[members[0].category] += len(members)
        (folder / _part(number)).write(bytes(content))
        on_listed(categories.total())
    manifest = Manifest(
        images=categories.total(),
        batches=batches,
        categories=dict(sorted(categories.items())),
        states=dict(states) if seen else {"new": categories.total()},
        passed_over=dict(passed_over),
        seconds=time.monotonic() - begun,
    )
    write_summary(folder / _SUMMARY, manifest.model_dump_json(indent=2).encode())
    return manifest


def read_batch(folder: Location, number: int, planned: Planned) -> list[Source]:
    """Reads the images of a batch.

    Args:
        folder: the folder of the manifest.
        number: the batch's number.
        planned: what the manifest says of it.
    """
    place = folder / _part(number // BATCHES_A_PART)
    table = pq.read_table(pa.BufferReader(place.read_range(planned.offset, planned.size)))
    return [
        Source(
            row["uri"],
            row["category"],
            row["size_bytes"],
            row["offset"],
            row["error"],
            row["etag"],
        )
        for row in table.to_pylist()
    ]


def _without(seen: Seen, sources: Iterable[Source], states: Counter[State]) -> Iterator[Source]:
    """Yields each image once that has no row, or one that is to be replaced; counts all states."""
    replaced = set[tuple[str, str]]()
    for source in sources:
        state = seen.state(source)
        if state in ("changed", "again"):
            if (source.category, source.uri) in replaced:
                continue
            replaced.add((source.category, source.uri))
        states[state] += 1
        if state != "known":
            yield source


def _in_batches(sources: Iterable[Source], batch: int) -> Iterator[list[Source]]:
    """Divides images into batches of one category; a compressed tar has batches of its own."""
    waiting: dict[str, list[Source]] = {}
    unpacked: str | None = None
    for source in sources:
        parts = split_member(source.uri)
        archive = parts[0] if parts and is_compressed_tar(parts[0]) else None
        if archive != unpacked:
            yield from waiting.values()
            waiting, unpacked = {}, archive
        members = waiting.setdefault(source.category, [])
        members.append(source)
        if len(members) == (LARGEST_COMPRESSED_BATCH if archive else batch):
            yield waiting.pop(source.category)
    yield from waiting.values()


def _parts(batches: Iterable[list[Source]]) -> Iterator[list[list[Source]]]:
    """Groups batches into files of the manifest."""
    iterator = iter(batches)
    while part := list(itertools.islice(iterator, BATCHES_A_PART)):
        yield part


def _parquet(members: Sequence[Source]) -> bytes:
    """Makes the table of a batch in the manifest."""
    rows = [
        {
            "uri": source.uri,
            "category": source.category,
            "size_bytes": source.size,
            "offset": source.offset,
            "error": source.error,
            "etag": source.etag,
        }
        for source in members
    ]
    return as_parquet(pa.Table.from_pylist(rows, schema=ROWS), "zstd")


def _part(number: int) -> str:
    return f"batches-{number:05}"
