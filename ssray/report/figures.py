"""Figures of merit of a run: tables for programs, Markdown for people."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ssray.metrics.images import image_metrics
from ssray.metrics.pixels import PixelCounts
from ssray.report.gallery import DEFECT, GOOD
from ssray.report.results import Results, usable
from ssray.report.tables import METRICS, METRICS_BY_TYPE

Row = dict[str, Any]

PAPER = {
    "carpet": (100.0, 99.7),
    "grid": (100.0, 99.7),
    "leather": (100.0, 99.7),
    "tile": (100.0, 99.2),
    "wood": (100.0, 98.1),
    "bottle": (100.0, 98.6),
    "cable": (98.0, 98.2),
    "capsule": (98.2, 99.1),
    "hazelnut": (100.0, 98.9),
    "metal_nut": (100.0, 98.5),
    "pill": (99.5, 99.3),
    "screw": (98.9, 99.7),
    "toothbrush": (100.0, 99.1),
    "transistor": (98.8, 98.6),
    "zipper": (100.0, 99.5),
}
"""Image and pixel AUROC in percent that the paper reports for MVTec AD."""
TEXTURES = ("carpet", "grid", "leather", "tile", "wood")

_HEAD = """
# Metrics

In percent, with the 95 % bootstrap interval over the test images for the image AUROC. "Paper" is
what Bauer, Nakajima and Müller report for the category of MVTec AD of that name, an average over
the same categories in the rows of averages. Maps are compared at the resolution of the masks: the
map is resampled to it bilinearly, the mask never. `metrics.parquet` has every figure,
`metrics_by_type.parquet` the same for each defect type against all good images.
"""
_COLUMNS = {
    "image AP": "image_ap",
    "image F1-max": "image_f1max",
    "TPR at FPR 1 %": "image_tpr_at_fpr_1",
    "pixel AP": "pixel_ap",
    "pixel F1-max": "pixel_f1max",
    "AU-PRO 0.3": "aupro_30",
    "AU-PRO 0.05": "aupro_05",
    "AUPIMO": "aupimo",
}
_TYPE_COLUMNS = {
    "image AUROC": "image_auroc",
    "pixel AUROC": "pixel_auroc",
    "pixel AP": "pixel_ap",
    "AU-PRO 0.3": "aupro_30",
    "AUPIMO": "aupimo",
}


@dataclass(frozen=True)
class Figures:
    """Of a run.

    Attributes:
        categories: the ``METRICS`` table.
        types: the ``METRICS_BY_TYPE`` table.
    """

    categories: pa.Table
    types: pa.Table

    @classmethod
    def of(cls, results: Results) -> Figures:
        """Works out the figures of every category, and of every defect type in it."""
        categories, types = [], []
        for category in results.categories():
            table = results.of(category)
            counts = results.pixel_counts(category)
            labels, scores = usable(table)
            split_types = np.array(
                [row["split_type"] or "" for row in table.to_pylist() if row["error"] is None]
            )
            facts = {"category": category, "model_version": table["model_version"][0].as_py()}
            pixels = PixelCounts()
            for part in counts.values():
                pixels.merge(part)
            errors = len(table) - len(labels)
            categories.append(facts | {"n_error": errors} | _figures(labels, scores, pixels))
            good = labels == GOOD
            good_pixels = PixelCounts()
            for name in set(split_types[good]) & set(counts):
                good_pixels.merge(counts[name])
            for name in sorted(set(split_types[labels == DEFECT])):
                chosen = good | ((labels == DEFECT) & (split_types == name))
                pixels = good_pixels + counts.get(name, PixelCounts())
                errors = sum(
                    row["error"] is not None and row["split_type"] == name
                    for row in table.to_pylist()
                )
                types.append(
                    facts
                    | {"defect_type": name, "n_error": errors}
                    | _figures(labels[chosen], scores[chosen], pixels)
                )
        return cls(
            pa.Table.from_pylist(categories, schema=METRICS),
            pa.Table.from_pylist(types, schema=METRICS_BY_TYPE),
        )

    def markdown(self) -> str:
        """Both tables beside the paper's numbers, with averages."""
        rows = self.categories.to_pylist()
        lines = [_HEAD.strip(), "", *_category_lines(rows), ""]
        reasons = [f"- {row['category']}: {row['undefined']}" for row in rows if row["undefined"]]
        if reasons:
            lines += ["Not defined, and left out of averages:", "", *reasons, ""]
        lines += ["## By defect type", "", "Each against all good images of its category.", ""]
        lines += [_line(["category", "defect type", "images", *_TYPE_COLUMNS])]
        lines += ["|---|---|" + "---:|" * (1 + len(_TYPE_COLUMNS))]
        for row in self.types.to_pylist():
            figures = [_percent(row[name]) for name in _TYPE_COLUMNS.values()]
            lines.append(
                _line([row["category"], row["defect_type"], str(row["n_defect"]), *figures])
            )
        return "\n".join(lines) + "\n"


def _figures(labels: Any, scores: Any, pixels: PixelCounts) -> Row:
    of_images, of_pixels = image_metrics(labels, scores), pixels.metrics()
    reasons: dict[str, list[str]] = {}
    for name, reason in (of_images.undefined | of_pixels.undefined).items():
        reasons.setdefault(reason, []).append(name)
    return {
        "n_good": int((labels == GOOD).sum()),
        "n_defect": int((labels == DEFECT).sum()),
        "n_regions": pixels.regions,
        "n_pixels_good": int(pixels.good.sum()),
        "n_pixels_defect": int(pixels.defect.sum()),
        **of_images.values,
        **of_pixels.values,
        "undefined": "; ".join(f"{', '.join(names)}: {why}" for why, names in reasons.items()),
    }


def _category_lines(rows: Sequence[Row]) -> list[str]:
    head = ["category", "image AUROC", "paper", "pixel AUROC", "paper", *_COLUMNS]
    lines = [_line(head), "|---|" + "---:|" * (len(head) - 1)]
    for row in rows:
        ends = (row["image_auroc_low"], row["image_auroc_high"])
        interval = "" if math.isnan(ends[0]) else f" ({_percent(ends[0])} to {_percent(ends[1])})"
        image, pixel = PAPER.get(row["category"], (math.nan, math.nan))
        lines.append(
            _line(
                [
                    row["category"],
                    _percent(row["image_auroc"]) + interval,
                    _percent(image / 100),
                    _percent(row["pixel_auroc"]),
                    _percent(pixel / 100),
                    *(_percent(row[name]) for name in _COLUMNS.values()),
                ]
            )
        )
    groups: dict[str, Callable[[str], bool]] = {
        "textures of MVTec AD": lambda name: name in TEXTURES,
        "objects of MVTec AD": lambda name: name in PAPER and name not in TEXTURES,
        "all": lambda name: True,
    }
    for title, belongs in groups.items():
        members = [row for row in rows if belongs(row["category"])]
        if members:
            lines.append(_average_line(title, members))
    return lines


def _average_line(title: str, rows: Sequence[Row]) -> str:
    def mean(values: Sequence[float]) -> str:
        defined = [value for value in values if not math.isnan(value)]
        return _percent(statistics.fmean(defined)) if defined else _percent(math.nan)

    known = [PAPER[row["category"]] for row in rows if row["category"] in PAPER]
    cells = [mean([row[name] for row in rows]) for name in ("image_auroc", "pixel_auroc")]
    paper = [mean([numbers[i] / 100 for numbers in known]) for i in (0, 1)]
    rest = [mean([row[name] for row in rows]) for name in _COLUMNS.values()]
    return _line([f"**{title} ({len(rows)})**", cells[0], paper[0], cells[1], paper[1], *rest])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _percent(share: float) -> str:
    return "" if math.isnan(share) else f"{100 * share:.2f}".rstrip("0").rstrip(".")
