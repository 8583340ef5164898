"""Writes the measurements of a diagnosis into tables."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from ssray.diagnosis.findings import Diagnosis
from ssray.method.projection import mean

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
"""The table of means and standard deviations has a row for each position.

``view`` is ``image`` for a pixel of the image, over the training images; or ``window`` for a pixel
of a window half as high and wide, over the images and the window's places. Black is 0, white 1."""

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
"""The table of the patch test has a row for each width of patch; width 0 is the clean image itself.

``width_px`` is in pixels of the model's input, ``width_share`` is the share of its shorter side,
and ``area_share`` that of its area. ``input`` is the image with the patch, ``output`` what the
model makes of it. An accuracy says how often the clean image is the nearest of ``images`` training
images. A distance to the clean image (``rms``) is the root mean square over all values, or over
those of the patch; black is 0, white 1."""


def moments_table(diagnosis: Diagnosis) -> pa.Table:
    """Makes the ``MOMENTS`` table of a diagnosis."""
    tables = []
    for view, moments in (("image", diagnosis.pixels), ("window", diagnosis.windows)):
        rows, columns = moments.mean.shape[1:]
        row, column = np.indices((rows, columns), np.int32).reshape(2, -1)
        values = [part.float().flatten(1).cpu().numpy() for part in (moments.mean, moments.std)]
        arrays = [np.full(rows * columns, view), row, column, *values[0], *values[1]]
        tables.append(pa.table([pa.array(array) for array in arrays], schema=MOMENTS))
    return pa.concat_tables(tables)


def projection_table(diagnosis: Diagnosis) -> pa.Table:
    """Makes the ``PROJECTION`` table of a diagnosis."""
    rows = [
        {
            "category": diagnosis.category,
            "model_version": diagnosis.model_version,
            "width_px": at.width,
            "width_share": at.width / min(diagnosis.shape),
            "area_share": diagnosis.area_share(at.width),
            "trials": len(at.input_rms),
            "images": diagnosis.neighbours,
            "input_accuracy": mean(at.input_hits),
            "output_accuracy": mean(at.output_hits),
            "input_rms_mean": mean(at.input_rms),
            "input_rms_std": float(at.input_rms.std(correction=0)),
            "output_rms_mean": mean(at.output_rms),
            "output_rms_std": float(at.output_rms.std(correction=0)),
            "input_patch_rms_mean": mean(at.input_patch_rms),
            "output_patch_rms_mean": mean(at.output_patch_rms),
        }
        for at in diagnosis.projections
    ]
    return pa.Table.from_pylist(rows, schema=PROJECTION)
