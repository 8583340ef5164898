"""Figures of merit of a run: tables for programs, Markdown for people."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ssray.data.mvtec_ad import CATEGORIES
from ssray.metrics.images import decision_metrics, held_out_metrics, image_auroc, image_metrics
from ssray.metrics.labels import DEFECT, GOOD, UNKNOWN, Floats
from ssray.metrics.pixels import PixelCounts
from ssray.scoring.results import Results, flags, usable
from ssray.scoring.tables import METRICS, METRICS_BY_TYPE

Row = dict[str, Any]

EXPERTS = ("autoencoders", "neighbours")
_HEAD = """
# Metrics

In percent, with the 95 % bootstrap interval over the test images for the image AUROC, where it
has a width. "Paper" is what Bauer, Nakajima and Müller report for the category of MVTec AD of that
name; its averages are over the same categories as ours beside them. "Held-out good" is the image
AUROC of the same defects against good images of the training session: a category whose two figures
differ is one whose good test images differ from it, in their light for example. Maps are compared
at the resolution of the masks: the map is resampled to it bilinearly, the mask never.
`metrics.parquet` has every figure, `metrics_by_type.parquet` the same for each defect type against
all good images.
"""
_COLUMNS = {
    "image AUROC, held-out good": "image_auroc_held_out",
    "image AP": "image_ap",
    "image F1-max": "image_f1max",
    "TPR at FPR 1 %": "image_tpr_at_fpr_1",
    "false alarms": "false_alarms",
    "defects flagged": "defects_flagged",
    "pixel AP": "pixel_ap",
    "pixel F1-max": "pixel_f1max",
    "AU-PRO 0.3": "aupro_30",
    "AU-PRO 0.05": "aupro_05",
    "AUPIMO": "aupimo",
}
_LOST = {
    "n_error": "Images that could not be scored",
    "n_mask_error": "Masks that could not be used, whose images count for no figure of pixels",
}
_NO_LEVELS: Mapping[str, int] = {}
_TYPE_COLUMNS = {
    "image AUROC": "image_auroc",
    "held-out good": "image_auroc_held_out",
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
    def of(
        cls,
        results: Results,
        held_out: Mapping[str, Sequence[float]],
        mask_levels: Mapping[str, int] = _NO_LEVELS,
    ) -> Figures:
        """Works out the figures of every category, and of every defect type in it.

        Args:
            results: the scored images.
            held_out: the scores of the good images that each category's model was calibrated on.
            mask_levels: of each category that has one, as ``ssray.data.masks`` says.
        """
        categories, types = [], []
        for category in results.categories():
            table = results.of(category)
            unseen = np.asarray(held_out.get(category, ()), np.float64)
            facts = {
                "category": category,
                "model_version": table["model_version"][0].as_py(),
                "mask_level": mask_levels.get(category),
            }
            all_pixels, good_pixels = PixelCounts(), PixelCounts()
            good = table.filter(pc.equal(table["label"], GOOD))
            for name in _types(good):
                good_pixels.merge(results.pixel_counts(category, name))
            all_pixels.merge(good_pixels)
            defects = table.filter(pc.equal(table["label"], DEFECT))
            for name in _types(defects):
                of_type = defects.filter(pc.equal(defects["split_type"], name))
                pixels = results.pixel_counts(category, name)
                all_pixels.merge(pixels)
                pixels.merge(good_pixels)
                types.append(
                    facts
                    | {"defect_type": name}
                    | _figures(pa.concat_tables([good, of_type]), pixels, unseen)
                    | {
                        f"n_{name}": len(of_type) - of_type[name].null_count
                        for name in ("error", "mask_error")
                    }
                )
            categories.append(facts | _figures(table, all_pixels, unseen))
        return cls(
            pa.Table.from_pylist(categories, schema=METRICS),
            pa.Table.from_pylist(types, schema=METRICS_BY_TYPE),
        )

    def markdown(self) -> str:
        """Both tables beside the paper's numbers, with averages."""
        categories, types = self.categories.to_pylist(), self.types.to_pylist()
        lines = [_HEAD.strip(), "", *_category_lines(categories), *_reasons(categories)]
        for name, what in _LOST.items():
            lost = [f"{_name(row['category'])} {row[name]}" for row in categories if row[name]]
            if lost:
                lines += ["", f"{what}, named in `scores.parquet`: {', '.join(lost)}."]
        for row in categories:
            if row["mask_level"] is not None:
                lines += ["", f"{_name(row['category'])}: {in_words(row['mask_level'])}"]
        lines += _expert_lines(categories)
        if types:
            lines += ["", "## By defect type", "", "Each against all good images of its category."]
            lines += ["", _line(["category", "defect type", "images", *_TYPE_COLUMNS])]
            lines += ["|---|---|" + "---:|" * (1 + len(_TYPE_COLUMNS))]
            for row in types:
                figures = [cell(row[name]) for name in _TYPE_COLUMNS.values()]
                images = str(row["n_defect"])
                names = [_name(row["category"]), _name(row["defect_type"])]
                lines.append(_line([*names, images, *figures]))
            lines += _reasons(types)
        return "\n".join(lines) + "\n"


def in_words(mask_level: int) -> str:
    """How the masks of a category are read that have low values alone, in a sentence."""
    return f"Masks have low values alone; those from {mask_level} on are read as defective."


def stated(undefined: Mapping[str, str]) -> str:
    """Why figures are not defined, as the column ``undefined`` says it and ``reasons`` reads it.

    >>> stated({"image_ap": "no good image", "image_auroc": "no good image"})
    'image_ap, image_auroc: no good image'
    """
    names: dict[str, list[str]] = {}
    for name, reason in undefined.items():
        names.setdefault(reason, []).append(name)
    return "; ".join(f"{', '.join(names[why])}: {why}" for why in names)


def reasons(row: Mapping[str, Any]) -> dict[str, list[str]]:
    """Why figures of a ``METRICS`` row are not defined, and which; intervals go without saying."""
    found: dict[str, list[str]] = {}
    for part in filter(None, row.get("undefined", "").split("; ")):
        names, why = part.split(": ", maxsplit=1)
        found[why] = [n for n in names.split(", ") if not n.endswith(("_low", "_high"))]
    return found


def cell(share: float) -> str:
    """Two decimals at most, never rounded up to 100; empty for NaN."""
    if math.isnan(share):
        return ""
    text = f"{100 * share:.2f}"
    return "> 99.99" if share < 1 and text == "100.00" else text.rstrip("0").rstrip(".")


def _types(table: pa.Table) -> list[str]:
    return sorted({name or "" for name in table["split_type"].to_pylist()})


def _figures(table: pa.Table, pixels: PixelCounts, held_out: Floats) -> Row:
    labels, scores = usable(table)
    of_images, of_pixels = image_metrics(labels, scores), pixels.metrics()
    decisions = decision_metrics(labels, flags(table))
    unseen = held_out_metrics(labels, scores, held_out)
    undefined = of_images.undefined | unseen.undefined | decisions.undefined | of_pixels.undefined
    return {
        "n_good": int((labels == GOOD).sum()),
        "n_defect": int((labels == DEFECT).sum()),
        "n_error": len(table) - len(labels),
        "n_mask_error": len(table) - table["mask_error"].null_count,
        "n_regions": pixels.regions,
        "n_pixels_good": pixels.good_pixels,
        "n_pixels_defect": pixels.defective_pixels,
        **of_images.values,
        **unseen.values,
        **_by_expert(table),
        **decisions.values,
        **of_pixels.values,
        "undefined": stated(undefined),
    }


def _by_expert(table: pa.Table) -> Row:
    """The image AUROC of each expert; nothing where a model has one."""
    found: Row = {}
    for name in EXPERTS:
        known = table.filter(pc.is_valid(table[f"{name}_score"]))
        if len(known):
            labels, scores = usable(known, f"{name}_score")
            auroc = image_auroc(labels[labels != UNKNOWN], scores[labels != UNKNOWN])
            found[f"image_auroc_{name}"] = None if math.isnan(auroc) else auroc
    return found


def expert_figures(row: Mapping[str, Any]) -> dict[str, float]:
    """The image AUROC of each expert in a ``METRICS`` row; none where a model has one expert."""
    named = {name: row.get(f"image_auroc_{name}") for name in EXPERTS}
    return {name: auroc for name, auroc in named.items() if auroc is not None}


def _expert_lines(rows: Sequence[Row]) -> list[str]:
    """The table of each expert's own figures, for the categories whose models have two."""
    both = [row for row in rows if expert_figures(row)]
    if not both:
        return []
    lines = ["", "## By expert", "", "Image AUROC of each expert by itself, and of both joined."]
    lines += ["", _line(["category", *EXPERTS, "joined"]), "|---|" + "---:|" * (1 + len(EXPERTS))]
    for row in both:
        own = [cell(value) for value in expert_figures(row).values()]
        lines.append(_line([_name(row["category"]), *own, cell(row["image_auroc"])]))
    return lines


def _category_lines(rows: Sequence[Row]) -> list[str]:
    head = ["category", "image AUROC", "paper", "pixel AUROC", "paper", *_COLUMNS]
    lines = [_line(head), "|---|" + "---:|" * (len(head) - 1)]
    for row in rows:
        low, high = row["image_auroc_low"], row["image_auroc_high"]
        interval = f" ({cell(low)} to {cell(high)})" if low < high else ""
        category = CATEGORIES.get(row["category"])
        image, pixel = category.published if category else (math.nan, math.nan)
        figures = [cell(row[name]) for name in _COLUMNS.values()]
        lines.append(
            _line(
                [
                    _name(row["category"]),
                    cell(row["image_auroc"]) + interval,
                    cell(image / 100),
                    cell(row["pixel_auroc"]),
                    cell(pixel / 100),
                    *figures,
                ]
            )
        )
    known = [row for row in rows if row["category"] in CATEGORIES]
    textures = [row for row in known if CATEGORIES[row["category"]].texture]
    objects = [row for row in known if row not in textures]
    for title, members in (
        ("textures of MVTec AD", textures),
        ("objects of MVTec AD", objects),
        ("all of MVTec AD", [*textures, *objects] if textures and objects else []),
        ("all", rows if len(rows) > len(textures) + len(objects) else []),
    ):
        if members:
            lines.append(_average_line(f"**{title} ({len(members)})**", members))
    return lines


def _average_line(title: str, rows: Sequence[Row]) -> str:
    cells = []
    for number, name in enumerate(("image_auroc", "pixel_auroc")):
        defined = [row for row in rows if not math.isnan(row[name])]
        cells.append(_mean([row[name] for row in defined]))
        known = [CATEGORIES[c] for row in defined if (c := row["category"]) in CATEGORIES]
        complete = len(known) == len(defined)
        cells.append(_mean([each.published[number] / 100 for each in known]) if complete else "")
    cells += [_mean([row[name] for row in rows]) for name in _COLUMNS.values()]
    return _line([title, *cells])


def _mean(values: Sequence[float]) -> str:
    defined = [value for value in values if not math.isnan(value)]
    return cell(statistics.fmean(defined)) if defined else ""


def _reasons(rows: Sequence[Row]) -> list[str]:
    lines = [
        f"- {' '.join(map(_name, filter(None, (row['category'], row.get('defect_type')))))}: "
        f"{', '.join(names)}: {why}"
        for row in rows
        for why, names in reasons(row).items()
    ]
    return ["", "Not defined, and left out of averages:", "", *lines] if lines else []


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _name(text: str) -> str:
    """A name that comes from data, with all that Markdown or HTML could take for its own as
    entities.
    """
    return re.sub(r"[^\w ./:-]", lambda found: f"&#{ord(found[0])};", text)
