"""Writes Arrow tables as Parquet files."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq

from ssray.storage.location import Location


def write_table(table: pa.Table, place: Location) -> None:
    """Writes a table as one Parquet file."""
    place.write(as_parquet(table))


def as_parquet(table: pa.Table, compression: str = "snappy") -> bytes:
    """A table as the content of a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression=compression)
    return buffer.getvalue()
