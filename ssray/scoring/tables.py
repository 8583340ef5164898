"""Schemas of the Parquet tables that users read."""

from __future__ import annotations

import pyarrow as pa

from ssray.metrics.images import DECISIONS, HELD_OUT, MEASURES
from ssray.metrics.pixels import PIXEL_METRICS

SCORES = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("split_type", pa.string()),
        pa.field("label", pa.int8()),
        pa.field("model_version", pa.string(), nullable=False),
        pa.field("score", pa.float32()),
        pa.field("p_value", pa.float64()),
        pa.field("flagged", pa.bool_()),
        pa.field("seen_by", pa.string()),
        pa.field("autoencoders_score", pa.float32()),
        pa.field("neighbours_score", pa.float32()),
        pa.field("error", pa.string()),
        pa.field("mask_error", pa.string()),
        pa.field("mask_detail", pa.string()),
    ]
)
"""A row an image. ``label``: 0 good, 1 defect, null unknown. ``score``: larger is more
anomalous, null where ``error`` names the reason why the image could not be scored. ``p_value``: how
usual such a score is among defect-free images; ``flagged``: whether that is too unusual for the
model's false-alarm rate. ``seen_by``: which expert finds a flagged image unusual, ``autoencoders``,
``neighbours``, or ``joined`` where both do, or neither by itself; null for an image that passed.
``autoencoders_score`` and ``neighbours_score``: those of each expert, on scales that are alike;
null where a model has one expert. ``mask_error``: the code of the reason why the image's mask
can't be used, so that the image counts for no figure of pixels; ``mask_detail``: that in words."""

SCORED_PARTS = pa.schema(
    [*SCORES, pa.field("heatmap", pa.binary()), pa.field("pixel_counts", pa.binary())]
)
"""What scoring actors write. ``heatmap``: 8-bit PNG of levels, 128 at the pixel threshold.
``pixel_counts``: merged over the batch and kept in the first row of each category and type in
it."""


MEASURE_FIELDS = tuple(
    pa.field(f"{name}{end}", pa.float64(), nullable=False)
    for name in MEASURES
    for end in ("", "_low", "_high")
)
"""Each measure with the ends of its 95 % interval."""
METRICS = pa.schema(
    [
        pa.field("category", pa.string(), nullable=False),
        pa.field("model_version", pa.string(), nullable=False),
        pa.field("n_good", pa.int64(), nullable=False),
        pa.field("n_defect", pa.int64(), nullable=False),
        pa.field("n_error", pa.int64(), nullable=False),
        pa.field("n_mask_error", pa.int64(), nullable=False),
        pa.field("mask_level", pa.int32()),
        pa.field("n_regions", pa.int64(), nullable=False),
        pa.field("n_pixels_good", pa.int64(), nullable=False),
        pa.field("n_pixels_defect", pa.int64(), nullable=False),
        *MEASURE_FIELDS,
        pa.field("image_f1max_threshold", pa.float64(), nullable=False),
        pa.field(HELD_OUT, pa.float64(), nullable=False),
        pa.field("image_auroc_autoencoders", pa.float64()),
        pa.field("image_auroc_neighbours", pa.float64()),
        *(pa.field(name, pa.float64(), nullable=False) for name in DECISIONS),
        *(pa.field(name, pa.float64(), nullable=False) for name in PIXEL_METRICS),
        pa.field("undefined", pa.string(), nullable=False),
    ]
)
"""A row a category. Figures are as ``ssray.metrics`` defines them, shares of 1 or, for thresholds,
in units of the score or the map; NaN where ``undefined`` gives the reason. Pixels are counted at
the mask's resolution: of images with a mask, and of good ones; ``n_mask_error`` images have a mask
that can't be used. ``mask_level``: the value of defective pixels, where all masks have only 0 and
this one, below half of the range; null where values above that half are defective.
``image_auroc_autoencoders`` and ``image_auroc_neighbours`` are those of each expert by itself, null
where a model has one."""

METRICS_BY_TYPE = METRICS.insert(1, pa.field("defect_type", pa.string(), nullable=False))
"""A row a category and defect type: its images against all good ones of the category."""
