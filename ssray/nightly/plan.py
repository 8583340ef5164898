"""Lists the images of a night and divides them into batches; the list is the night's manifest.

``part-00000.parquet`` and so on have a row group for each batch, so that a batch can be read by
itself and the list is never held in memory as a whole. ``manifest.json``, written last, says how
many batches there are.
"""

from __future__ import annotations

import io
import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from ssray.nightly.seen import Seen, State
from ssray.nightly.sources import CategoryRule, Source, find
from ssray.storage.archives import is_compressed_tar, split_member
from ssray.storage.json_file import read_json
from ssray.storage.location import Location

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


class Manifest(BaseModel):
    """A summary of the manifest.

    Attributes:
        images: how many images are to be scored.
        batches: how many batches there are; they are numbered from 0.
        categories: how many images each category has.
        states: how many images were found in each state (``ssray.nightly.seen.State``).
        passed_over: how many other files were found, by their suffix.
        seconds: how long the listing took.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int
    batches: int
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
    batches = 0
    states = Counter[State]()
    sources: Iterator[Source] = (
        source for place in places for source in find(place, rule, passed_over, allowed)
    )
    if seen:
        sources = _without(seen, sources, states)
    for number, part in enumerate(_parts(_in_batches(sources, batch))):
        buffer = io.BytesIO()
        with pq.ParquetWriter(buffer, ROWS, compression="zstd") as writer:
            for members in part:
                writer.write_table(_table(members), row_group_size=len(members))
                categories[members[0].category] += len(members)
        (folder / _part(number)).write(buffer.getvalue())
        batches += len(part)
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


def read_batch(folder: Location, number: int) -> list[Source]:
    """Reads the images of a batch."""
    part, group = divmod(number, BATCHES_A_PART)
    place = folder / _part(part)
    with place.open_file() as file:
        table = pq.ParquetFile(file).read_row_group(group)
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


def batch_sizes(folder: Location, manifest: Manifest) -> list[int]:
    """Reads how many images each batch has."""
    sizes = []
    for part in range(math.ceil(manifest.batches / BATCHES_A_PART)):
        place = folder / _part(part)
        with place.open_file() as file:
            found = pq.read_metadata(file)
        sizes += [found.row_group(group).num_rows for group in range(found.num_row_groups)]
    return sizes


def _without(seen: Seen, sources: Iterable[Source], states: Counter[State]) -> Iterator[Source]:
    """Yields each image once that has no row, or one that is to be replaced; counts all states."""
    replaced = set[str]()
    for source in sources:
        state = seen.state(source)
        if state in ("changed", "again"):
            if source.uri in replaced:
                continue
            replaced.add(source.uri)
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


def _table(members: Sequence[Source]) -> pa.Table:
    """Makes the rows of a batch in the manifest."""
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
    return pa.Table.from_pylist(rows, schema=ROWS)


def _part(number: int) -> str:
    return f"part-{number:05}.parquet"
