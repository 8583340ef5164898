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


THEOREM = pa.schema(
    [
        pa.field("category", pa.string(), nullable=False),
        pa.field("model_version", pa.string(), nullable=False),
        pa.field("regions_of", pa.string(), nullable=False),
        pa.field("radius_min", pa.float64(), nullable=False),
        pa.field("radius_max", pa.float64(), nullable=False),
        pa.field("regions", pa.int64(), nullable=False),
        pa.field("pairs", pa.int64(), nullable=False),
        pa.field("variance", pa.float64(), nullable=False),
        pa.field("small_area", pa.float64(), nullable=False),
        pa.field("area_mean", pa.float64(), nullable=False),
        pa.field("area_max", pa.float64(), nullable=False),
        pa.field("too_large", pa.float64(), nullable=False),
        pa.field("violated", pa.float64(), nullable=False),
        pa.field("violated_though_small", pa.float64()),
    ]
)
"""The table of Theorem 2 has a row for the recipe's regions, and one for each radius of patches.

``regions_of`` is ``recipe`` or ``radius``. Radii are shares of the shorter side, areas shares of
the image. ``variance`` is sigma^2, and ``small_area`` what a region must stay below to meet (11);
``too_large`` is the share of the regions that do not. ``violated`` is the share of all pairs of
images and regions that violate (7), and ``violated_though_small`` that of the regions that meet
(11), null where none does."""


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


def theorem_table(diagnosis: Diagnosis) -> pa.Table:
    """Makes the ``THEOREM`` table of a diagnosis."""
    theorem = diagnosis.theorem
    rows = [
        {
            "category": diagnosis.category,
            "model_version": diagnosis.model_version,
            "regions_of": regions_of,
            "radius_min": at.radius[0],
            "radius_max": at.radius[1],
            "regions": len(at.areas),
            "pairs": theorem.pairs,
            "variance": theorem.variance,
            "small_area": theorem.small_area,
            "area_mean": mean(at.areas),
            "area_max": float(at.areas.max()),
            "too_large": at.too_large,
            "violated": at.violated,
            "violated_though_small": at.violated_though_small,
        }
        for regions_of, at in [
            ("recipe", theorem.recipe),
            *(("radius", at) for at in theorem.radii),
        ]
    ]
    return pa.Table.from_pylist(rows, schema=THEOREM)
