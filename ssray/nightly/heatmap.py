"""Draws the heatmap that a night kept of an image, over the image if that is still there."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
from PIL import Image

from ssray.data.large import decode_resized
from ssray.errors import DataError, ImageError, ScoringError
from ssray.nightly.rows import NIGHT
from ssray.nightly.run import check_date
from ssray.nightly.table import ScoreTable
from ssray.scoring.heatmap import overlay, pictured_shape, png_to_levels
from ssray.storage.fetch import Fetcher
from ssray.storage.location import Location

_WITHOUT_IMAGE = 40
"""The grey level, of 255, that is drawn instead of an image that is no longer there."""


def draw_heatmap(scores: Location, uri: str, out: Location, date: str | None = None) -> str:
    """Draws an image's heatmap from the last night that scored the image.

    Args:
        scores: the table of scores.
        uri: the image's URI as it stands in the rows.
        out: where to write the picture, a PNG of the image's size up to 4,096 pixels a side.
        date: of the night to take it from, YYYY-MM-DD.

    Returns:
        A line that says what the picture shows.

    Raises:
        DataError: if no night has the image.
        ScoringError: if no heatmap of it was kept, or there is no table.
    """
    row = _find(scores, uri, date)
    place = f"{row['category']}, score {row['score']}" if row["error"] is None else row["error"]
    if row["heatmap"] is None:
        raise ScoringError(
            f"{uri}: no heatmap was kept ({place}, flagged: {row['flagged']}). Score the night "
            "with --heatmaps all to keep those of images that are not flagged."
        )
    levels = png_to_levels(row["heatmap"])
    shape = pictured_shape((row["height"], row["width"]))
    try:
        image = decode_resized(Fetcher()(uri), shape).image
        over = "over the image"
    except ImageError as error:
        image = np.full((*shape, 3), _WITHOUT_IMAGE, np.uint8)
        over = f"without the image ({error.code})"
    buffer = io.BytesIO()
    Image.fromarray(overlay(image, levels)).save(buffer, "PNG")
    out.write(buffer.getvalue())
    return f"{out}: {place}, {over}"


def _find(scores: Location, uri: str, date: str | None) -> dict[str, Any]:
    """Finds the row of an image, the latest one where no night is named."""
    if date:
        check_date("--date", date)
    table = ScoreTable(scores)
    table.present()

    def found(columns: Sequence[str], date: str | None) -> list[dict[str, Any]]:
        batches = table.batches(columns, date, pc.field("uri") == uri)
        return [row for batch in batches for row in batch.to_pylist()]

    days = [row["date"] for row in found(["uri", "date"], date)]
    if not days:
        where = f"the night of {date}" if date else "any night"
        raise DataError(
            f"{scores}: {uri} is not in {where}. Expected a uri as it stands in the rows."
        )
    return found(NIGHT.names, f"{max(days)}")[0]


def as_listed(image: str) -> str:
    """An image's path or URI as it stands in the rows: paths are absolute there."""
    return image if "://" in image else str(Location.parse(image))
