"""The columns of a night's results, and of the table that they go to."""

from __future__ import annotations

import pyarrow as pa

NIGHT = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("model_version", pa.string()),
        pa.field("score", pa.float32()),
        pa.field("p_value", pa.float64()),
        pa.field("flagged", pa.bool_()),
        pa.field("seen_by", pa.string()),
        pa.field("defect_share", pa.float32()),
        pa.field("boxes", pa.list_(pa.list_(pa.int32()))),
        pa.field("error", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("note", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("size_bytes", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("heatmap", pa.binary()),
        pa.field("pixel_threshold", pa.float32()),
    ]
)
"""The results of a night have a row for each image.

``score``, ``p_value``, ``flagged``, ``seen_by`` and ``error`` are as in ``SCORES``; ``detail`` is
the error in words. ``note`` names what of the image was ignored or is remarkable, though it was
scored (``ssray.data.large.Decoded``). ``defect_share`` is the share of the image above the pixel
threshold, and ``boxes`` are the boxes around its connected regions, largest first: left, top, width
and height in pixels of the image. ``heatmap`` is an 8-bit PNG of levels (``ssray.scoring.heatmap``)
in units of ``pixel_threshold``, at the network's resolution. ``width`` and ``height`` are those of
the upright image in its file, in pixels, ``size_bytes`` is the size of the file, and ``etag``
changes when the file, or the archive that it lies in, does."""

PARTITIONS = ("date", "category")
"""The columns by which the table is divided into folders; no file repeats them."""
IN_FILES = pa.schema([field for field in NIGHT if field.name not in PARTITIONS])
"""The columns of the table's files."""
SCORES_TABLE = pa.schema(
    [*IN_FILES, pa.field("date", pa.date32(), nullable=False), NIGHT.field("category")]
)
"""The columns of the table: those of its files, and by what they are divided."""
