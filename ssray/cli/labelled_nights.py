"""What people see of nights whose labels came later."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ssray.cli.terminal import console
from ssray.metrics.values import percent
from ssray.nightly.evaluation import LabelledNights
from ssray.storage.location import Location

_COLUMNS = ("category", "date", "version", "labelled", "image AUROC", "found", "false alarms")
_LEFT = 3
"""How many columns are names, which are aligned to the left."""


def show_labelled_nights(found: LabelledNights, out: Location) -> None:
    """Prints the figures of each night, what labels and rows have no partner, and where the rest
    is.
    """
    for line in _aligned([_COLUMNS, *_cells(found)]):
        console.print(line)
    for row in found.metrics.to_pylist():
        if row["date"] is None and row["n_labelled_error"]:
            console.print(
                f"{row['category']}: {row['n_labelled_error']:,} images with a label have no "
                "score; scores.parquet names the reasons."
            )
    if found.labels.repeated:
        console.print(f"{found.labels.repeated:,} labels were given again, and count once.")
    if found.absent:
        console.print(
            f"{len(found.absent):,} of {len(found.labels.of):,} labels are of no image in these "
            f"nights; the first: {found.absent[0]}"
        )
    if found.unlabelled:
        console.print(f"{found.unlabelled:,} images of these nights have no label.")
    if found.labels.masks:
        console.print("Masks are not read: nights keep no maps to measure pixels by.")
    console.print(f"Figures: {out / 'metrics.parquet'}")
    console.print(f"Labelled images: {out / 'scores.parquet'}")


def _cells(found: LabelledNights) -> Iterator[tuple[str, ...]]:
    """The groups that have a label; all nights of a version only where there are several."""
    rows = found.metrics.to_pylist()
    nights = Counter((row["category"], row["model_version"]) for row in rows if row["date"])
    for row in rows:
        alone = row["date"] is None and nights[row["category"], row["model_version"]] == 1
        if row["n_labelled"] and not alone:
            yield (
                row["category"],
                str(row["date"] or "all"),
                row["model_version"],
                f"{row['n_labelled']:,}",
                _auroc(row),
                _share(row, "defects_flagged", row["n_defect"]),
                _share(row, "false_alarms", row["n_good"]),
            )


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A line for each row; none is broken, however narrow the terminal, as scripts read it."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(
            cell.ljust(width) if number < _LEFT else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )


def _auroc(row: Mapping[str, Any]) -> str:
    auroc, low, high = (row[f"image_auroc{end}"] for end in ("", "_low", "_high"))
    if math.isnan(auroc):
        return "n/a"
    return f"{auroc:.4f} ({low:.4f} to {high:.4f})" if low < high else f"{auroc:.4f}"


def _share(row: Mapping[str, Any], name: str, of: int) -> str:
    """How many of how many, and the share."""
    return f"{round(row[name] * of):,} of {of:,}, {percent(row[name])}" if of else "n/a"
