"""Reads tables that users write, CSV or Parquet: some of their columns, as text.

What is no such table raises ``OSError``, ``ValueError`` or one of pyarrow's errors; whoever reads
it says what was expected (``UNREADABLE``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from ssray.storage.location import Location

UNREADABLE = (OSError, pa.ArrowException, ValueError, KeyError)
"""What is raised of a table that can't be read."""


def column_names(place: Location) -> list[str]:
    """The names of a table's columns, as often as they stand there."""
    with place.open_file() as file:
        schema = pq.read_schema(file) if _is_parquet(place) else _open_csv(file).schema
        names: list[str] = schema.names
        return names


def text_rows(place: Location, columns: Sequence[str]) -> Iterator[tuple[str | None, ...]]:
    """Yields what each row has in some columns, in the table's order; some rows are in memory."""
    with place.open_file() as file:
        if _is_parquet(place):
            batches = pq.ParquetFile(file).iter_batches(columns=list(columns))
        else:
            batches = _open_csv(file, columns)
        for batch in batches:
            texts = (batch.column(name).cast(pa.string()).to_pylist() for name in columns)
            yield from zip(*texts, strict=True)


def _open_csv(file: pa.NativeFile, columns: Sequence[str] = ()) -> pyarrow.csv.CSVStreamingReader:
    """Reads a CSV some rows at a time: the columns named, as text; all of them by default."""
    return pyarrow.csv.open_csv(
        file,
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=columns,
            column_types=dict.fromkeys(columns, pa.string()),  # an image 007 is no number 7
        ),
    )


def _is_parquet(place: Location) -> bool:
    return place.path.lower().endswith(".parquet")
