"""Writes the page of a diagnosis: Figs. 8 and 9 of the paper and Theorem 2, for one category."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from torch import Tensor

import ssray
from ssray.diagnosis.findings import (
    MIN_ACCURACY,
    REPAIRED,
    WINDOW_SHARE,
    Diagnosis,
    paragraph,
)
from ssray.diagnosis.tables import moments_table, projection_table, theorem_table
from ssray.diagnosis.theorem import RADII, Theorem
from ssray.method.projection import TEXTURE_SHARE, PositionMoments
from ssray.metrics.labels import Floats
from ssray.metrics.values import percent
from ssray.report.charts import FRAME, Line, LineChart
from ssray.report.page import data_uri, template
from ssray.report.reconstructions import to_picture
from ssray.storage.location import Location
from ssray.storage.parquet import write_table

HALF_THE_AREA = "half the area"


def write_diagnosis(diagnosis: Diagnosis, out: Location) -> None:
    """Writes the page ``diagnosis.html`` to ``out``, and each table as a Parquet file beside it."""
    write_table(moments_table(diagnosis), out / "moments.parquet")
    write_table(projection_table(diagnosis), out / "projection.parquet")
    write_table(theorem_table(diagnosis), out / "theorem.parquet")
    generated = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    page = render_diagnosis(diagnosis, generated, ssray.__version__)
    (out / "diagnosis.html").write(page.encode())


def render_diagnosis(diagnosis: Diagnosis, generated: str, ssray_version: str) -> str:
    """Renders the page as HTML.

    Args:
        diagnosis: the measurements to show.
        generated: when the page is made, in words.
        ssray_version: the version of ssray that makes it.
    """
    rows = projection_table(diagnosis).to_pylist()
    return template("diagnosis.html.j2").render(
        diagnosis=diagnosis,
        paragraph=paragraph(diagnosis),
        rows=rows,
        charts=_charts(diagnosis),
        theorem_rows=theorem_table(diagnosis).to_pylist(),
        theorem_chart=_theorem_chart(diagnosis.theorem),
        mean_picture=data_uri(to_picture(diagnosis.pixels.mean), "PNG"),
        std_picture=data_uri(to_picture(2 * diagnosis.pixels.std), "PNG"),
        percent=percent,
        texture_share=TEXTURE_SHARE,
        window_share=WINDOW_SHARE,
        min_accuracy=MIN_ACCURACY,
        repaired=REPAIRED,
        generated=generated,
        ssray_version=ssray_version,
        frame=FRAME,
    )


@dataclass(frozen=True)
class _Chart:
    """A chart with its title, the names of its axes and a hint on how to read it."""

    title: str
    x_name: str
    y_name: str
    hint: str
    lines: LineChart


def _charts(diagnosis: Diagnosis) -> list[_Chart]:
    """Makes all charts: two of the moments (Fig. 8), three of the patch test (Fig. 9)."""
    return [
        _row_chart(
            "Every pixel over the images",
            "Mean and standard deviation over the training images, along the middle row.",
            diagnosis.pixels,
        ),
        _row_chart(
            "Every pixel of a window over its places",
            "The same over all windows of half the side, along the window's middle row. Flat "
            "lines mean identically distributed pixels.",
            diagnosis.windows,
        ),
        *_patch_charts(diagnosis),
    ]


def _patch_charts(diagnosis: Diagnosis) -> list[_Chart]:
    """Makes the charts of what a foreign patch changes, over the width of the patch."""
    columns = projection_table(diagnosis).to_pydict()
    values = {name: np.array(columns[name]) for name in columns if name.endswith(("mean", "std"))}
    width = np.array(columns["width_share"])
    accuracy = {name: np.array(columns[f"{name}_accuracy"]) for name in ("input", "output")}
    rows, sides = diagnosis.shape, min(diagnosis.shape)
    half = {HALF_THE_AREA: math.sqrt(math.prod(rows) / 2) / sides}
    half = {text: at for text, at in half.items() if at <= 1}

    def against_width(title: str, y_name: str, hint: str, lines: list[Line]) -> _Chart:
        top = max(
            float((line.y + (0 if line.spread is None else line.spread)).max()) for line in lines
        )
        chart = LineChart.of(lines, 1.0, top or 1.0, half)
        return _Chart(title, "Width of the patch / shorter side", y_name, hint, chart)

    return [
        against_width(
            "Nearest training image",
            "Share of trials with the clean image nearest",
            f"How often the clean image is the nearest of {diagnosis.neighbours} training images.",
            [
                Line("input", "image with the patch", width, accuracy["input"]),
                Line("output", "the model's output", width, accuracy["output"]),
            ],
        ),
        against_width(
            "Distance to the clean image",
            "rms over the image (full scale = 1)",
            "Mean over the trials, and one standard deviation to either side.",
            [
                Line(
                    name,
                    text,
                    width,
                    values[f"{name}_rms_mean"],
                    values[f"{name}_rms_std"],
                )
                for name, text in (
                    ("input", "image with the patch"),
                    ("output", "the model's output"),
                )
            ],
        ),
        against_width(
            "Distance inside the patch",
            "rms over the patch (full scale = 1)",
            "How much of a foreign patch is left in the output: the part of a defect that the "
            "anomaly map misses.",
            [
                Line(
                    "input", "image with the patch", width[1:], values["input_patch_rms_mean"][1:]
                ),
                Line(
                    "output", "the model's output", width[1:], values["output_patch_rms_mean"][1:]
                ),
            ],
        ),
    ]


def _theorem_chart(theorem: Theorem) -> _Chart:
    """Makes the chart of what violates Theorem 2 and its premise, over the patches' radius."""
    radius = np.array([at.radius[1] for at in theorem.radii])
    lines = [
        Line(
            "input",
            "pairs of images that violate the premise",
            radius,
            np.array([at.violated for at in theorem.radii]),
        ),
        Line(
            "output",
            "regions too large for the theorem",
            radius,
            np.array([at.too_large for at in theorem.radii]),
        ),
    ]
    low, high = theorem.recipe.radius
    return _Chart(
        "Corrupted regions and the theory",
        "Radius of the patches / shorter side",
        "Share",
        f"The recipe draws radii from {low:g} to {high:g}. Here all patches of a region have the "
        "same; their number and shape are the recipe's.",
        LineChart.of(lines, max(RADII), 1.0, {"the recipe's largest radius": high}),
    )


def _row_chart(title: str, hint: str, moments: PositionMoments) -> _Chart:
    """Makes the chart of mean and standard deviation along the middle row."""
    middle = moments.mean.shape[1] // 2
    mean = _array(moments.mean[:, middle].mean(dim=0))
    std = _array(moments.std[:, middle].square().mean(dim=0).sqrt())
    line = Line(
        "output", "mean, one standard deviation to either side", _positions(mean), mean, std
    )
    chart = LineChart.of([line], float(max(1, len(mean) - 1)), 1.0, {})
    return _Chart(title, "Column, pixels", "Grey value (black = 0, white = 1)", hint, chart)


def _positions(values: Floats) -> Floats:
    return np.arange(len(values), dtype=np.float64)


def _array(values: Tensor) -> Floats:
    array: Floats = values.cpu().numpy()
    return array
