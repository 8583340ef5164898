"""Prepared images on their way through Ray's object store, from who decodes to who judges."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from ssray.data.pose import Placement
from ssray.scoring.judge import Prepared

PREPARED = pa.schema(
    [
        pa.field("image", pa.binary(), metadata={"layout": "(H, W, 3) uint8, network size"}),
        pa.field("shape", pa.list_(pa.int32(), 2), metadata={"of": "the image"}),
        pa.field("placement", pa.list_(pa.float64(), 3), metadata={"of": "the part: x, y, angle"}),
        pa.field("error", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("note", pa.string()),
        pa.field("read_bytes", pa.int64()),
        pa.field("transient", pa.bool_()),
    ]
)
"""The columns of a prepared image."""


def packed(prepared: Prepared) -> dict[str, Any]:
    """Makes a row of a prepared image."""
    return {
        "image": None if prepared.image is None else prepared.image.tobytes(),
        "shape": prepared.shape,
        "placement": prepared.placement and dataclasses.astuple(prepared.placement),
        "error": prepared.error,
        "detail": prepared.detail,
        "note": prepared.note,
        "read_bytes": prepared.size_bytes,
        "transient": prepared.transient,
    }


def unpacked(row: Mapping[str, Any], shape: tuple[int, int]) -> Prepared:
    """Makes a prepared image of a row, for a model with inputs of so many rows and columns.

    (0, 0) stands for a model that can't be used, and leaves the pixels out.
    """
    pixels = row["image"] if all(shape) else None
    return Prepared(
        None if pixels is None else np.frombuffer(pixels, np.uint8).reshape(*shape, 3),
        row["shape"] and tuple(row["shape"]),
        row["placement"] and Placement(*row["placement"]),
        row["error"],
        row["detail"],
        row["note"],
        row["read_bytes"],
        bool(row["transient"]),
    )
