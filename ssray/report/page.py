"""Renders the page of an evaluation: one HTML file that holds its charts and pictures.

This module computes what is shown; the template ``page.html.j2`` lays it out, and escapes all text.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from PIL import Image

from ssray.data.decode import resize
from ssray.metrics.labels import DEFECT, GOOD, UNKNOWN, Floats, Labels
from ssray.report.charts import FRAME, Histogram, Roc
from ssray.report.gallery import GalleryImage
from ssray.scoring import heatmap
from ssray.scoring.evaluation import reasons

PICTURE_SIDE = 448
"""The longer side of a picture on the page, in pixels; larger images are shrunk to it."""

_TITLES = {
    "image_auroc": ("Image AUROC", "over images"),
    "image_auroc_held_out": ("Image AUROC, held-out", "defects against good images of training"),
    "image_ap": ("Image AP", "mean precision over recall"),
    "image_f1max": ("Image F1-max", "at the best threshold"),
    "image_tpr_at_fpr_1": ("Defects found, 1 % false alarms", "share of defective images"),
    "image_tpr_at_fpr_01": ("Defects found, 0.1 % false alarms", "share of defective images"),
    "image_tnr_at_tpr_100": ("Passed with no defect missed", "share of good images"),
    "pixel_auroc": ("Pixel AUROC", "over pixels"),
    "pixel_ap": ("Pixel AP", "mean precision over recall"),
    "pixel_f1max": ("Pixel F1-max", "at the best threshold"),
    "aupro_30": ("AU-PRO 0.3", "overlap with each region, up to 30 % false positives"),
    "aupro_05": ("AU-PRO 0.05", "the same up to 5 %"),
    "aupimo": ("AUPIMO", "pixels found at 1e-5 to 1e-4 false positives in good images"),
}
_OF_TYPES = {"image_auroc": "Image AUROC", "pixel_auroc": "Pixel AUROC", "aupro_30": "AU-PRO 0.3"}

_NO_IMAGE_AUROC = "needs both good and defective images"
_NO_PIXEL_AUROC = "needs both good and defective images, with masks"


@dataclass(frozen=True, kw_only=True)
class CategoryReport:
    """What the page says about one category.

    Attributes:
        category: the category's name.
        model_version: the version of the model that was evaluated.
        labels: (N,) 1 = defect, 0 = good, -1 = unknown.
        scores: (N,) image scores; an image whose score is NaN is left out.
        split_types: the defect type of each of the N images, or ``good``.
        errors: the URI and error of every image that could not be scored.
        mask_errors: the URI of every image whose mask can't be used, and the reason in words.
        metrics: the metrics by their name in the ``METRICS`` table; an undefined one is NaN.
        metrics_by_type: the metrics of each defect type.
        facts: labels and values to list.
        notes: sentences on how the numbers came about.
        gallery: the images to show, in this order.
    """

    category: str
    model_version: str
    labels: Labels
    scores: Floats
    split_types: list[str]
    errors: list[tuple[str, str]] = field(default_factory=list)
    mask_errors: list[tuple[str, str]] = field(default_factory=list)
    metrics: Mapping[str, Any]
    metrics_by_type: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    facts: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    gallery: list[GalleryImage] = field(default_factory=list)


def render_page(
    title: str, reports: list[CategoryReport], generated: str, ssray_version: str
) -> str:
    """Renders the page as HTML.

    Args:
        title: the title of the page.
        reports: what to say about each category, in the order of the page.
        generated: when the page is made, in words.
        ssray_version: the version of ssray that makes it.
    """
    return template("page.html.j2").render(
        title=title,
        sections=[_Section.of(report) for report in reports],
        mean_image=_Mean.of([r.metrics["image_auroc"] for r in reports], _NO_IMAGE_AUROC),
        mean_pixel=_Mean.of([r.metrics["pixel_auroc"] for r in reports], _NO_PIXEL_AUROC),
        generated=generated,
        ssray_version=ssray_version,
        frame=FRAME,
        colours={
            "contour": _css(heatmap.CONTOUR),
            "hit": _css(heatmap.TRUE_POSITIVE),
            "alarm": _css(heatmap.FALSE_POSITIVE),
            "miss": _css(heatmap.FALSE_NEGATIVE),
        },
        of_types=list(_OF_TYPES.values()),
        heat=[_css(tuple(colour)) for colour in heatmap.HEAT[::17]],
    )


def template(name: str) -> Template:
    """Loads one of this package's templates, which escapes all text that it is given."""
    environment = Environment(
        loader=PackageLoader("ssray.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def data_uri(picture: npt.NDArray[np.uint8], kind: str) -> str:
    """Encodes a picture as a data URI; ``kind`` is ``PNG`` or ``JPEG``."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, quality=85, optimize=True)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


@dataclass(frozen=True)
class _FigureRow:
    """A metric of a category as text."""

    title: str
    meaning: str
    value: str
    interval: str


@dataclass(frozen=True)
class _TypeRow:
    """A defect type, the good images or the unlabelled ones, in the table of types."""

    name: str
    kind: str
    count: int
    median: str
    figures: list[str]


@dataclass(frozen=True)
class _Metric:
    """A metric as text; or a dash, and the reason why it is undefined."""

    text: str
    share: float
    reason: str

    @classmethod
    def of(cls, value: float, reason: str) -> _Metric:
        if math.isnan(value):
            return cls("\N{EM DASH}", 0.0, reason)
        text = f"{value:.3f}"
        return cls("> 0.999" if value < 1 and text == "1.000" else text, value, "")


@dataclass(frozen=True)
class _Mean:
    """The mean of a metric over the categories for which it is defined."""

    metric: _Metric
    count: int

    @classmethod
    def of(cls, values: list[float], reason: str) -> _Mean:
        defined = [value for value in values if not math.isnan(value)]
        mean = math.fsum(defined) / len(defined) if defined else math.nan
        return cls(_Metric.of(mean, reason), len(defined))


@dataclass(frozen=True)
class _Shown:
    """An image of the gallery with its pictures as data URIs."""

    item: GalleryImage
    kind: str
    photo: str
    heat: str
    mask: str
    outcome: str | None

    @classmethod
    def of(cls, item: GalleryImage) -> _Shown:
        rows, columns = item.image.shape[:2]
        scale = min(1.0, PICTURE_SIDE / max(rows, columns))
        shape = max(1, round(rows * scale)), max(1, round(columns * scale))
        photo = resize(item.image, shape)
        predicted = heatmap.predicted_mask(heatmap.resize_levels(item.levels, (rows, columns)))
        outcome = None
        if item.truth is not None:
            outcome = heatmap.outcome_picture(item.image, predicted, item.truth)
        return cls(
            item=item,
            kind=_kind(item.label),
            photo=data_uri(photo, "JPEG"),
            heat=data_uri(heatmap.overlay(photo, item.levels), "JPEG"),
            mask=data_uri(resize(heatmap.mask_picture(predicted, item.truth), shape), "PNG"),
            outcome=None if outcome is None else data_uri(resize(outcome, shape), "JPEG"),
        )


@dataclass(frozen=True)
class _Section:
    """A category's section of the page, ready to be laid out."""

    report: CategoryReport
    good: int
    defects: int
    unknown: int
    image_auroc: _Metric
    pixel_auroc: _Metric
    roc: Roc | None
    histogram: Histogram | None
    figures: list[_FigureRow]
    types: list[_TypeRow]
    gallery: list[_Shown]

    @classmethod
    def of(cls, report: CategoryReport) -> _Section:
        finite = np.isfinite(report.scores)
        labels, scores = report.labels[finite], report.scores[finite]
        types = np.array(report.split_types, dtype=object)[finite]
        labelled = (labels == GOOD) | (labels == DEFECT)
        labels = np.where(labelled, labels, UNKNOWN)
        return cls(
            report=report,
            good=int((labels == GOOD).sum()),
            defects=int((labels == DEFECT).sum()),
            unknown=int((~labelled).sum()),
            image_auroc=_Metric.of(report.metrics["image_auroc"], _NO_IMAGE_AUROC),
            pixel_auroc=_Metric.of(report.metrics["pixel_auroc"], _NO_PIXEL_AUROC),
            figures=list(_figure_rows(report.metrics)),
            roc=Roc.of(labels[labelled], scores[labelled]),
            histogram=Histogram.of(labels, scores),
            types=list(_type_rows(labels, scores, types, report.metrics_by_type)),
            gallery=[_Shown.of(item) for item in report.gallery],
        )


def _figure_rows(metrics: Mapping[str, Any]) -> Iterator[_FigureRow]:
    """Yields a row for each metric, unless all of them are undefined.

    It shows the interval, if there is one, or the reason why the metric is undefined.
    """
    known = {name: metrics[name] for name in _TITLES if name in metrics}
    if all(math.isnan(value) for value in known.values()):
        return
    why = {name: reason for reason, names in reasons(metrics).items() for name in names}
    for name, value in known.items():
        title, meaning = _TITLES[name]
        low, high = metrics.get(f"{name}_low", math.nan), metrics.get(f"{name}_high", math.nan)
        interval = ""
        if low < high:
            interval = f"{_Metric.of(low, '').text} to {_Metric.of(high, '').text}"
        yield _FigureRow(title, why.get(name, meaning), _Metric.of(value, "").text, interval)


def _type_rows(
    labels: Labels,
    scores: Floats,
    types: npt.NDArray[np.object_],
    metrics: Mapping[str, Mapping[str, Any]],
) -> Iterator[_TypeRow]:
    """Yields a row for each defect type, good images first and unlabelled ones last."""
    for label in (GOOD, DEFECT, UNKNOWN):
        for name in sorted(set(types[labels == label])):
            of_type = (labels == label) & (types == name)
            figures = metrics.get(name, {}) if label == DEFECT else {}
            yield _TypeRow(
                name=name,
                kind=_kind(label),
                count=int(of_type.sum()),
                median=f"{np.median(scores[of_type]):.4g}",
                figures=[_Metric.of(figures.get(each, math.nan), "").text for each in _OF_TYPES],
            )


def _kind(label: int | None) -> str:
    """Returns the word for a label that the style sheet knows."""
    return {GOOD: "good", DEFECT: "defect"}.get(UNKNOWN if label is None else label, "unknown")


def _css(colour: tuple[int, ...]) -> str:
    """Writes an RGB colour of 0 to 255 as CSS does."""
    return "#" + "".join(f"{int(channel):02x}" for channel in colour)
