"""What a table of scores holds: its nights, and the rows of one of them as a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date as Date
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from ssray.errors import ConfigError, ScoringError
from ssray.nightly.rows import NIGHT
from ssray.nightly.run import check_date
from ssray.nightly.table import ScoreTable
from ssray.storage.location import Location

_NOT_IN_CSV = ("heatmap",)
_SUFFIXES = (".parquet", ".csv")


@dataclass(frozen=True)
class StoredNight:
    """A night of the table.

    Attributes:
        date: of the night.
        images: how many rows it has.
        flagged: how many of them are flagged.
        errors: how many have an error.
    """

    date: Date
    images: int
    flagged: int
    errors: int


def nights(table: ScoreTable) -> list[StoredNight]:
    """The nights of a table, by date.

    Raises:
        DataError: if there is none.
        ScoringError: if it can't be read.
    """
    table.present()
    counted = dict[Date, list[int]]()
    for batch in table.batches(["date", "flagged", "error"]):
        rows = pa.Table.from_batches([batch])
        for one in (
            rows.group_by("date")
            .aggregate([("date", "count"), ("flagged", "sum"), ("error", "count")])
            .to_pylist()
        ):
            night = counted.setdefault(one["date"], [0, 0, 0])
            for place, name in enumerate(("date_count", "flagged_sum", "error_count")):
                night[place] += one[name] or 0
    return [StoredNight(date, *counts) for date, counts in sorted(counted.items())]


def export_night(table: ScoreTable, date: str, out: Location) -> int:
    """Writes the rows of a night to one file, ``NIGHT`` columns.

    In CSV there are no heatmaps, and boxes are JSON.

    Args:
        table: the table of scores.
        date: of the night, YYYY-MM-DD.
        out: a ``.parquet`` or ``.csv`` file.

    Returns:
        How many rows there are.

    Raises:
        ConfigError: if the file is called otherwise, or the date is none.
        ScoringError: if there is no such night.
    """
    check_date("--date", date)
    suffix = next((each for each in _SUFFIXES if out.path.lower().endswith(each)), None)
    if suffix is None:
        raise ConfigError(f"--to {out}: expected a name that ends in {' or '.join(_SUFFIXES)}.")
    if not table.count(date):
        raise ScoringError(f"{table.root}: no night of {date} there.")
    try:
        sink = out.open_output()
    except OSError as error:
        raise ConfigError(
            f"--to {out}: can't be written. Give a folder or bucket where you may. ({error})"
        ) from None
    count = 0
    with sink:
        if suffix == ".parquet":
            with pq.ParquetWriter(sink, NIGHT, compression="zstd") as writer:
                for batch in table.batches(NIGHT.names, date):
                    writer.write_batch(batch.cast(NIGHT))
                    count += len(batch)
        else:
            schema = pa.schema(list(_for_csv_fields()))
            with pyarrow.csv.CSVWriter(sink, schema) as csv:
                for batch in table.batches(schema.names, date):
                    csv.write_batch(_for_csv(batch, schema))
                    count += len(batch)
    return count


def _for_csv_fields() -> Iterator[pa.Field[Any]]:
    for field in NIGHT:
        if field.name not in _NOT_IN_CSV:
            yield pa.field("boxes", pa.string()) if field.name == "boxes" else field


def _for_csv(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    boxes = [None if each is None else json.dumps(each) for each in batch["boxes"].to_pylist()]
    columns = [
        pa.array(boxes, pa.string()) if name == "boxes" else batch[name] for name in schema.names
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
