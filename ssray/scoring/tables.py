"""Schemas of the Parquet tables that users read."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq

from ssray.metrics.images import DECISIONS, MEASURES
from ssray.metrics.pixels import PIXEL_METRICS
from ssray.storage.location import Location

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
        pa.field("error", pa.string()),
    ]
)
"""A row an image. ``label``: 0 good, 1 defect, null unknown. ``score``: larger is more
anomalous, null where ``error`` names the reason why the image could not be scored. ``p_value``: how
usual such a score is among defect-free images; ``flagged``: whether that is too unusual for the
model's false-alarm rate."""

SCORED_PARTS = pa.schema(
    [*SCORES, pa.field("heatmap", pa.binary()), pa.field("pixel_counts", pa.binary())]
)
"""What scoring actors write. ``heatmap``: 8-bit PNG of levels, 128 at the pixel threshold.
``pixel_counts``: merged over the batch and kept in the first row of each category and type in
it."""

NIGHT = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("category", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("model_version", pa.string()),
        pa.field("score", pa.float32()),
        pa.field("p_value", pa.float64()),
        pa.field("flagged", pa.bool_()),
        pa.field("defect_share", pa.float32()),
        pa.field("boxes", pa.list_(pa.list_(pa.int32(), 4))),
        pa.field("error", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("note", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("size_bytes", pa.int64()),
        pa.field("heatmap", pa.binary()),
        pa.field("pixel_threshold", pa.float32()),
    ]
)
"""A row an image of a night. ``category`` has the type that pyarrow gives to the ``category=C`` of
a path, so that whole folders can be read. ``score``, ``p_value``, ``flagged`` and ``error`` are as
in ``SCORES``; ``detail`` is the error in words; ``note`` names what of an image was not taken into
account though it was scored (``ssray.data.decode.decode_noted``). ``defect_share``: of the image
above the pixel threshold; ``boxes``: left, top, width and height, in pixels of the image, around
each connected region of it, the largest first. ``heatmap``: 8-bit PNG of levels
(``ssray.scoring.heatmap``) in units of ``pixel_threshold``, at the network's resolution. ``width``,
``height``: of the image as it is stored."""

METRICS = pa.schema(
    [
        pa.field("category", pa.string(), nullable=False),
        pa.field("model_version", pa.string(), nullable=False),
        pa.field("n_good", pa.int64(), nullable=False),
        pa.field("n_defect", pa.int64(), nullable=False),
        pa.field("n_error", pa.int64(), nullable=False),
        pa.field("n_regions", pa.int64(), nullable=False),
        pa.field("n_pixels_good", pa.int64(), nullable=False),
        pa.field("n_pixels_defect", pa.int64(), nullable=False),
        *(
            pa.field(f"{name}{end}", pa.float64(), nullable=False)
            for name in MEASURES
            for end in ("", "_low", "_high")
        ),
        pa.field("image_f1max_threshold", pa.float64(), nullable=False),
        *(pa.field(name, pa.float64(), nullable=False) for name in DECISIONS),
        *(pa.field(name, pa.float64(), nullable=False) for name in PIXEL_METRICS),
        pa.field("undefined", pa.string(), nullable=False),
    ]
)
"""A row a category. Figures are as ``ssray.metrics`` defines them, shares of 1 or, for thresholds,
in units of the score or the map; NaN where ``undefined`` gives the reason. Pixels are counted at
the mask's resolution: of images with a mask, and of good ones."""

METRICS_BY_TYPE = METRICS.insert(1, pa.field("defect_type", pa.string(), nullable=False))
"""A row a category and defect type: its images against all good ones of the category."""

MOMENTS = pa.schema(
    [
        pa.field("view", pa.string(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("column", pa.int32(), nullable=False),
        pa.field("mean_red", pa.float32(), nullable=False),
        pa.field("mean_green", pa.float32(), nullable=False),
        pa.field("mean_blue", pa.float32(), nullable=False),
        pa.field("std_red", pa.float32(), nullable=False),
        pa.field("std_green", pa.float32(), nullable=False),
        pa.field("std_blue", pa.float32(), nullable=False),
    ]
)
"""A row a position. ``view``: image (every pixel over the training images) or window (every
pixel of a window half as high and wide, over the images and the window's places). Black is 0,
white 1."""

PROJECTION = pa.schema(
    [
        pa.field("category", pa.string(), nullable=False),
        pa.field("model_version", pa.string(), nullable=False),
        pa.field("width_px", pa.int32(), nullable=False),
        pa.field("width_share", pa.float64(), nullable=False),
        pa.field("area_share", pa.float64(), nullable=False),
        pa.field("trials", pa.int64(), nullable=False),
        pa.field("images", pa.int64(), nullable=False),
        pa.field("input_accuracy", pa.float64(), nullable=False),
        pa.field("output_accuracy", pa.float64(), nullable=False),
        pa.field("input_rms_mean", pa.float64(), nullable=False),
        pa.field("input_rms_std", pa.float64(), nullable=False),
        pa.field("output_rms_mean", pa.float64(), nullable=False),
        pa.field("output_rms_std", pa.float64(), nullable=False),
        pa.field("input_patch_rms_mean", pa.float64(), nullable=False),
        pa.field("output_patch_rms_mean", pa.float64(), nullable=False),
    ]
)
"""A row a patch width, in pixels of the model's input; ``width_share`` is of the shorter side,
``area_share`` of the image. ``input`` is the image with the patch, ``output`` the model's.
Accuracies: how often the clean image is the nearest of ``images`` training images. Distances
to the clean image: root mean square over all values, or over the patch alone; black is 0,
white 1. Width 0 is the clean image itself."""


def write_table(table: pa.Table, place: Location) -> None:
    """Writes one Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    place.write(buffer.getvalue())
