"""Draws the heatmap that a night kept of an image, over the image if that is still there."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from ssray.data.large import decode_resized
from ssray.errors import DataError, ImageError, ScoringError
from ssray.nightly.night_log import Completed, read_marker
from ssray.scoring.heatmap import overlay, pictured_shape, png_to_levels
from ssray.storage.fetch import Fetcher
from ssray.storage.location import Location

_WITHOUT_IMAGE = 40
"""The grey level, of 255, that is drawn instead of an image that is no longer there."""


def draw_heatmap(scores: Location, uri: str, out: Location) -> str:
    """Draws an image's heatmap from the last complete night that scored the image.

    Args:
        scores: the folder of all nights, or of one.
        uri: the image's URI as it stands in the rows.
        out: where to write the picture, a PNG of the image's size up to 4,096 pixels a side.

    Returns:
        A line that says what the picture shows.

    Raises:
        DataError: if no complete night has the image.
        ScoringError: if no heatmap of it was kept.
    """
    row = _find(scores, uri)
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


def _find(scores: Location, uri: str) -> dict[str, Any]:
    """Finds the row of an image in the last complete night that scored it."""
    nights = _complete_nights(scores)
    for folder, completed in nights:
        for part in completed.parts:
            place = folder / part.path
            with place.open_file() as file:
                found = pq.read_table(file, filters=pc.field("uri") == uri)
            if len(found):
                [row] = found.to_pylist()[:1]
                return dict(row)
    raise DataError(
        f"{scores}: {uri} is in none of {len(nights)} complete nights. Expected a uri as it stands "
        "in the rows."
    )


def _complete_nights(scores: Location) -> list[tuple[Location, Completed]]:
    """Lists the complete nights, the last one first."""
    folders = [scores, *(scores.at(info) for info in reversed(scores.children()))]
    return [(folder, completed) for folder in folders if (completed := read_marker(folder))]
