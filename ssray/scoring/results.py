"""The rows of a run, read back from what the scoring actors wrote."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from ssray.errors import ScoringError
from ssray.metrics.labels import UNKNOWN
from ssray.metrics.pixels import PixelCounts
from ssray.scoring.tables import SCORED_PARTS, SCORES
from ssray.storage.location import Location


@dataclass(frozen=True)
class Results:
    """All rows of a run.

    Attributes:
        scores: the ``SCORES`` table, by category and uri.
        parts: what the scoring actors wrote.
    """

    scores: pa.Table
    parts: Location

    def check(self, images: pa.Table) -> None:
        """Checks that there is one row for each row of a table of images, and no other.

        Raises:
            ScoringError: if there is not.
        """
        wanted, found = (
            Counter(zip(table["category"].to_pylist(), table["uri"].to_pylist(), strict=True))
            for table in (images, self.scores)
        )
        wrong = [f"no row for {uri}" for _, uri in (wanted - found)]
        wrong += [f"a row too many for {uri}" for _, uri in (found - wanted)]
        if wrong:
            raise ScoringError(
                f"{self.parts}: {found.total()} rows, expected {wanted.total()}, one for each "
                f"image. First of {len(wrong)} that are wrong: {wrong[0]}. Start again."
            )

    def categories(self) -> list[str]:
        return sorted(set(self.scores["category"].to_pylist()))

    def of(self, category: str) -> pa.Table:
        return self.scores.filter(pc.equal(self.scores["category"], category))

    def pixel_counts(self, category: str, split_type: str) -> PixelCounts:
        """The pixel counts of one type of images, merged from all parts."""
        chosen = (
            (pc.field("category") == category)
            & (pc.field("split_type") == split_type)
            & pc.field("pixel_counts").is_valid()
        )
        counts = PixelCounts()
        for batch in _dataset(self.parts).to_batches(
            columns=["pixel_counts"], filter=chosen, batch_size=16
        ):
            for part in batch["pixel_counts"].to_pylist():
                counts.merge_bytes(part)
        return counts

    def heatmaps(self, uris: list[str]) -> dict[str, bytes]:
        """The stored heatmaps of some images."""
        wanted = (
            _dataset(self.parts)
            .to_table(
                columns=["uri", "heatmap"], filter=pc.field("uri").isin(pa.array(uris, pa.string()))
            )
            .to_pylist()
        )
        return {row["uri"]: row["heatmap"] for row in wanted}


def collect(parts: Location) -> Results:
    """Reads the scores of a run; counts and heatmaps stay where they are."""
    scores = _dataset(parts).to_table(columns=SCORES.names).cast(SCORES)
    return Results(scores.sort_by([("category", "ascending"), ("uri", "ascending")]), parts)


def usable(table: pa.Table, score: str = "score") -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Labels (unknown is -1) and scores of the rows without an error, from a column of scores."""
    rows = table.filter(pc.is_null(table["error"]))
    labels = pc.fill_null(rows["label"], UNKNOWN).to_numpy().astype(np.int64)
    return labels, rows[score].to_numpy().astype(np.float64)


def flags(table: pa.Table) -> npt.NDArray[np.bool_]:
    """Whether each row without an error is flagged."""
    rows = table.filter(pc.is_null(table["error"]))
    flagged: npt.NDArray[np.bool_] = pc.fill_null(rows["flagged"], False).to_numpy()
    return flagged


def _dataset(parts: Location) -> pads.Dataset:
    return pads.dataset(parts.path, filesystem=parts.filesystem, schema=SCORED_PARTS)
