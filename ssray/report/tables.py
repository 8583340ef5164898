"""Schemas of the Parquet tables that users read."""

from __future__ import annotations

import pyarrow as pa

SCORES = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("split_type", pa.string()),
        pa.field("label", pa.int8()),
        pa.field("model_version", pa.string(), nullable=False),
        pa.field("score", pa.float32()),
        pa.field("error", pa.string()),
    ]
)
"""A row an image. ``label``: 0 good, 1 defect, null unknown. ``score``: larger is more
anomalous, null where ``error`` names the reason why the image could not be scored."""

SCORED_PARTS = pa.schema(
    [*SCORES, pa.field("heatmap", pa.binary()), pa.field("pixel_counts", pa.binary())]
)
"""What scoring actors write. ``heatmap``: 8-bit PNG of levels, 128 at the pixel threshold.
``pixel_counts``: merged over the batch and kept in the first row of each category in it."""

METRICS = pa.schema(
    [
        pa.field("category", pa.string(), nullable=False),
        pa.field("model_version", pa.string(), nullable=False),
        pa.field("n_good", pa.int64(), nullable=False),
        pa.field("n_defect", pa.int64(), nullable=False),
        pa.field("n_error", pa.int64(), nullable=False),
        pa.field("image_auroc", pa.float64()),
        pa.field("pixel_auroc", pa.float64()),
    ]
)
"""A row a category. An AUROC is NaN where only one class is present."""
