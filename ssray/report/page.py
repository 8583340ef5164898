"""The report: one HTML file with charts and pictures inside it, and nothing fetched.

Python computes what is shown, ``page.html.j2`` how. Whatever comes from outside is
escaped by the template.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from ssray.data.decode import resize
from ssray.metrics.auroc import image_auroc, roc_points
from ssray.report import heatmap

Floats = npt.NDArray[np.floating]
Labels = npt.NDArray[np.integer]

GOOD, DEFECT, UNKNOWN = 0, 1, -1

MAX_ROC_POINTS = 400
PICTURE_SIDE = 448
"""Longer side of the pictures on the page, in pixels; larger images are shrunk to it."""

_NO_IMAGE_AUROC = "needs both good and defective images"
_NO_PIXEL_AUROC = "needs both good and defective images, with masks"


@dataclass(frozen=True, kw_only=True)
class GalleryImage:
    """One image to show.

    Attributes:
        name: what to call it.
        uri: where it is.
        split_type: its defect type, or ``good``.
        label: 1 = defect, 0 = good, None (or -1) = unknown.
        score: its image score.
        why: why it is shown; see ``choose_gallery``.
        image: (H, W, 3) uint8.
        levels: (h, w) uint8 of ``heatmap.encode_levels``, at any resolution.
        truth: (H, W) bool, True = defective; None where unknown.
    """

    name: str
    uri: str
    split_type: str
    label: int | None
    score: float
    why: str
    image: npt.NDArray[np.uint8]
    levels: npt.NDArray[np.uint8]
    truth: npt.NDArray[np.bool_] | None


@dataclass(frozen=True, kw_only=True)
class CategoryReport:
    """What the page says about one category.

    Attributes:
        category: its name.
        model_version: which model was evaluated.
        labels: (N,) 1 = defect, 0 = good, -1 = unknown.
        scores: (N,) image scores; NaN where there is none, which leaves the image out.
        split_types: N defect types, or ``good``.
        errors: (uri, error) of every image that could not be scored.
        image_auroc: NaN where undefined, as ``pixel_auroc``.
        facts: (label, value) pairs to list.
        notes: sentences on how the numbers came about.
        gallery: images to show, in this order.
    """

    category: str
    model_version: str
    labels: Labels
    scores: Floats
    split_types: list[str]
    errors: list[tuple[str, str]] = field(default_factory=list)
    image_auroc: float
    pixel_auroc: float
    facts: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    gallery: list[GalleryImage] = field(default_factory=list)


def render_page(
    title: str, reports: list[CategoryReport], generated: str, ssray_version: str
) -> str:
    """The page as HTML.

    Args:
        title: of the page.
        reports: one a category, in the order of the page.
        generated: when, for people.
        ssray_version: the version that made it.
    """
    environment = Environment(
        loader=PackageLoader("ssray.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        title=title,
        sections=[_Section.of(report) for report in reports],
        mean_image=_Mean.of([report.image_auroc for report in reports]),
        mean_pixel=_Mean.of([report.pixel_auroc for report in reports]),
        generated=generated,
        ssray_version=ssray_version,
        frame=_FRAME,
        colours={
            "contour": _css(heatmap.CONTOUR),
            "hit": _css(heatmap.TRUE_POSITIVE),
            "alarm": _css(heatmap.FALSE_POSITIVE),
            "miss": _css(heatmap.FALSE_NEGATIVE),
        },
        heat=[_css(tuple(colour)) for colour in heatmap.HEAT[::17]],
    )


def choose_gallery(
    labels: Labels, scores: Floats, *, worst: int = 6, borderline: int = 6
) -> list[tuple[int, str]]:
    """Which images to show, and why; each once, those without a score never.

    First up to ``worst`` of the least convincing: in turn the defects of lowest and the good
    images of highest score (and the unlabelled of highest), sorted by the share of the other
    class that scored on their wrong side. Then up to ``borderline`` of those closest to
    ``best_threshold``, by score.

    Args:
        labels: (N,) 1 = defect, 0 = good, -1 = unknown.
        scores: (N,) larger = more anomalous; NaN = no score.
        worst: at most so many of the first kind.
        borderline: at most so many of the second.

    Returns:
        Pairs of index and reason, in the order to show them.

    >>> [i for i, _ in choose_gallery(np.array([0, 0, 1, 1]), np.array([1., 3., 2., 9.]), worst=2)]
    [2, 1, 0, 3]
    """
    scored = np.flatnonzero(np.isfinite(scores))
    ascending = scored[np.argsort(scores[scored], kind="stable")]
    defects = ascending[labels[ascending] == DEFECT]
    good = ascending[labels[ascending] == GOOD]
    unknown = ascending[(labels[ascending] != DEFECT) & (labels[ascending] != GOOD)]

    in_turn = [
        int(index)
        for turn in zip_longest(defects, good[::-1], unknown[::-1])
        for index in turn
        if index is not None
    ]
    judged = []
    for index in in_turn[:worst]:
        label, score = labels[index], scores[index]
        if label == DEFECT:
            wrong, others = int((scores[good] >= score).sum()), len(good)
        elif label == GOOD:
            wrong, others = int((scores[defects] <= score).sum()), len(defects)
        else:
            wrong, others = 0, 0
        judged.append((wrong / max(others, 1), index, _why_worst(int(label), wrong, others)))
    judged.sort(key=lambda entry: -entry[0])
    chosen = [(index, why) for _, index, why in judged]

    threshold = best_threshold(labels, scores)
    if threshold is None:
        return chosen
    rest = np.setdiff1d(np.concatenate([good, defects]), [index for index, _ in chosen])
    closest = rest[np.argsort(np.abs(scores[rest] - threshold), kind="stable")]
    for index in closest[:borderline]:
        side = "above" if scores[index] > threshold else "below"
        chosen.append(
            (
                int(index),
                f"Borderline: among the scores nearest to {threshold:.4g}, which best separates "
                f"good from defective (highest balanced accuracy), and {side} it.",
            )
        )
    return chosen


def best_threshold(labels: Labels, scores: Floats) -> float | None:
    """The score above which calling an image defective gives the highest balanced accuracy.

    That is Youden's J at its largest; of equal ones the lowest threshold counts. It lies
    midway between two scores. It is found with the labels, so it illustrates how far the
    classes separate and predicts nothing for new images.

    Args:
        labels: (N,) 1 = defect, 0 = good; others are left out.
        scores: (N,) NaN = left out.

    Returns:
        None where a class is missing or no threshold beats chance.

    >>> best_threshold(np.array([0, 0, 1]), np.array([1.0, 2.0, 4.0]))
    3.0
    """
    finite = np.isfinite(scores)
    good = np.sort(scores[finite & (labels == GOOD)]).astype(np.float64)
    defects = np.sort(scores[finite & (labels == DEFECT)]).astype(np.float64)
    if not len(good) or not len(defects):
        return None
    values = np.unique(np.concatenate([good, defects]))
    candidates = (values[:-1] + values[1:]) / 2
    below_good = np.searchsorted(good, candidates, side="right") / len(good)
    below_defects = np.searchsorted(defects, candidates, side="right") / len(defects)
    youden = below_good - below_defects
    if youden.max(initial=0) <= 0:
        return None
    return float(candidates[youden.argmax()])


def thin_roc(false_positive_rate: Floats, true_positive_rate: Floats) -> tuple[Floats, Floats]:
    """At most ``MAX_ROC_POINTS`` of a curve's (P,) points, evenly along its length.

    Both ends are kept; a curve that is short enough is returned as it is.
    """
    if len(false_positive_rate) <= MAX_ROC_POINTS:
        return false_positive_rate, true_positive_rate
    length = false_positive_rate + true_positive_rate
    kept = np.unique(np.searchsorted(length, np.linspace(0, 2, MAX_ROC_POINTS - 1)))
    kept = np.unique([0, *kept[kept < len(length)], len(length) - 1])
    return false_positive_rate[kept], true_positive_rate[kept]


def _why_worst(label: int, wrong: int, others: int) -> str:
    if label == DEFECT:
        kind, missing = "lowest-scoring defects", "good image"
        mistake = f"Worst: a defect scored no higher than {wrong} of {others} good images."
        correct = f"yet above all {others} good images"
    elif label == GOOD:
        kind, missing = "highest-scoring good images", "defect"
        mistake = f"Worst: a good image scored no lower than {wrong} of {others} defects."
        correct = f"yet below all {others} defects"
    else:
        return "Most anomalous: among the highest scores without a label."
    if wrong:
        return mistake
    return f"Worst: among the {kind}, {correct if others else f'with no {missing} to compare'}."


@dataclass(frozen=True)
class _Frame:
    """Where a chart's axes lie inside its SVG, in SVG units."""

    width: float = 460
    height: float = 360
    left: float = 62
    right: float = 446
    top: float = 24
    bottom: float = 310

    def x(self, share: float) -> float:
        return self.left + share * (self.right - self.left)

    def y(self, share: float) -> float:
        return self.bottom - share * (self.bottom - self.top)


_FRAME = _Frame()


@dataclass(frozen=True)
class _Tick:
    at: float
    text: str


@dataclass(frozen=True)
class _Roc:
    """Attributes: points: of an SVG polyline, from (0, 0) to (1, 1)."""

    points: str
    x_ticks: list[_Tick]
    y_ticks: list[_Tick]

    @classmethod
    def of(cls, labels: Labels, scores: Floats) -> _Roc | None:
        false_positives, true_positives = thin_roc(*roc_points(labels, scores))
        if not len(false_positives):
            return None
        shares = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
        return cls(
            points=" ".join(
                f"{_FRAME.x(x):.1f},{_FRAME.y(y):.1f}"
                for x, y in zip(false_positives, true_positives, strict=True)
            ),
            x_ticks=[_Tick(_FRAME.x(share), f"{share:g}") for share in shares],
            y_ticks=[_Tick(_FRAME.y(share), f"{share:g}") for share in shares],
        )


@dataclass(frozen=True)
class _Bar:
    kind: str
    x: float
    y: float
    width: float
    height: float
    text: str


@dataclass(frozen=True)
class _Series:
    kind: str
    name: str
    count: int


@dataclass(frozen=True)
class _Histogram:
    """Shares of each class by score: the first class above a base line, the second below."""

    bars: list[_Bar]
    series: list[_Series]
    base: float
    x_ticks: list[_Tick]
    y_ticks: list[_Tick]
    logarithmic: bool
    threshold: _Tick | None

    @classmethod
    def of(cls, labels: Labels, scores: Floats) -> _Histogram | None:
        groups = [
            (_Series(kind, name, int((labels == label).sum())), scores[labels == label])
            for label, kind, name in (
                (GOOD, "good", "good"),
                (DEFECT, "defect", "defective"),
                (UNKNOWN, "unknown", "unlabelled"),
            )
            if (labels == label).any()
        ][:2]
        if not groups:
            return None
        shown = np.concatenate([values for _, values in groups]).astype(np.float64)
        lowest_median = min(float(np.median(values)) for _, values in groups)
        logarithmic = bool(shown.min() > 0 and shown.max() > 10 * lowest_median)
        axis = _Axis.of(shown, logarithmic)
        edges = np.linspace(0, 1, int(np.clip(2 * math.sqrt(len(shown)), 12, 36)) + 1)
        shares = [
            np.histogram([axis.share(value) for value in values], edges)[0] / len(values)
            for _, values in groups
        ]
        step = _nice(max(share.max() for share in shares) / 4)
        peak = step * math.ceil(max(share.max() for share in shares) / step - 1e-9)
        base = 0.0 if len(groups) == 1 else 0.5

        bars = []
        for sign, (series, values), share in zip((1, -1), groups, shares, strict=False):
            for i in np.flatnonzero(share):
                reach = base + sign * (1 - base) * share[i] / peak
                low, high = axis.value(edges[i]), axis.value(edges[i + 1])
                bars.append(
                    _Bar(
                        kind=series.kind,
                        x=_FRAME.x(edges[i]) + 0.5,
                        y=_FRAME.y(max(base, reach)),
                        width=_FRAME.x(edges[i + 1]) - _FRAME.x(edges[i]) - 1,
                        height=abs(_FRAME.y(base) - _FRAME.y(reach)),
                        text=f"score {low:.4g} to {high:.4g}: {round(share[i] * len(values))} of "
                        f"{len(values)} {series.name}",
                    )
                )
        threshold = best_threshold(labels, scores)
        return cls(
            bars=bars,
            series=[series for series, _ in groups],
            base=_FRAME.y(base),
            x_ticks=[_Tick(_FRAME.x(axis.share(value)), f"{value:g}") for value in axis.ticks()],
            y_ticks=[
                _Tick(_FRAME.y(base + sign * (1 - base) * i * step / peak), f"{100 * i * step:.3g}")
                for sign in (1, -1)[: len(groups)]
                for i in range(round(peak / step) + 1)
                if i or sign == 1
            ],
            logarithmic=logarithmic,
            threshold=None
            if threshold is None
            else _Tick(_FRAME.x(axis.share(threshold)), f"{threshold:.4g}"),
        )


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    logarithmic: bool

    @classmethod
    def of(cls, values: Floats, logarithmic: bool) -> _Axis:
        low, high = float(values.min()), float(values.max())
        if low == high:
            reach = abs(low) / 2 or 1.0
            return cls(low - reach, high + reach, logarithmic)
        return cls(low, high, logarithmic)

    def share(self, value: float) -> float:
        """Where ``value`` lies on the axis; 0 and 1 are its ends."""
        if self.logarithmic:
            place = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            place = (value - self.low) / (self.high - self.low)
        return min(max(place, 0.0), 1.0)

    def value(self, share: float) -> float:
        if self.logarithmic:
            return float(self.low * (self.high / self.low) ** share)
        return self.low + share * (self.high - self.low)

    def ticks(self) -> list[float]:
        if self.logarithmic:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for digits in ((1, 2, 5), (1, 3), (1,)):
                ticks = [d * 10.0**decade for decade in decades for d in digits]
                inside = [tick for tick in ticks if self.low <= tick <= self.high]
                if len(inside) <= 7:
                    return inside
            return inside[:: math.ceil(len(inside) / 7)]
        step = _nice((self.high - self.low) / 7)
        return [i * step for i in range(math.ceil(self.low / step), int(self.high // step) + 1)]


@dataclass(frozen=True)
class _TypeRow:
    name: str
    kind: str
    count: int
    median: str
    auroc: _Metric | None


@dataclass(frozen=True)
class _Metric:
    """An AUROC as text, or the reason why there is none."""

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
    metric: _Metric
    count: int

    @classmethod
    def of(cls, values: list[float]) -> _Mean:
        defined = [value for value in values if not math.isnan(value)]
        mean = math.fsum(defined) / len(defined) if defined else math.nan
        return cls(_Metric.of(mean, _NO_IMAGE_AUROC), len(defined))


@dataclass(frozen=True)
class _Shown:
    """A gallery image with its pictures as data URIs."""

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
            photo=_data_uri(photo, "JPEG"),
            heat=_data_uri(heatmap.overlay(photo, item.levels), "JPEG"),
            mask=_data_uri(resize(heatmap.mask_picture(predicted, item.truth), shape), "PNG"),
            outcome=None if outcome is None else _data_uri(resize(outcome, shape), "JPEG"),
        )


@dataclass(frozen=True)
class _Section:
    report: CategoryReport
    good: int
    defects: int
    unknown: int
    image_auroc: _Metric
    pixel_auroc: _Metric
    roc: _Roc | None
    histogram: _Histogram | None
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
            image_auroc=_Metric.of(report.image_auroc, _NO_IMAGE_AUROC),
            pixel_auroc=_Metric.of(report.pixel_auroc, _NO_PIXEL_AUROC),
            roc=_Roc.of(labels[labelled], scores[labelled]),
            histogram=_Histogram.of(labels, scores),
            types=list(_type_rows(labels, scores, types)),
            gallery=[_Shown.of(item) for item in report.gallery],
        )


def _type_rows(
    labels: Labels, scores: Floats, types: npt.NDArray[np.object_]
) -> Iterator[_TypeRow]:
    good = labels == GOOD
    for label in (GOOD, DEFECT, UNKNOWN):
        for name in sorted(set(types[labels == label])):
            of_type = (labels == label) & (types == name)
            auroc = None
            if label == DEFECT:
                against = good | of_type
                value = image_auroc(labels[against], scores[against])
                auroc = _Metric.of(value, _NO_IMAGE_AUROC)
            yield _TypeRow(
                name=name,
                kind=_kind(label),
                count=int(of_type.sum()),
                median=f"{np.median(scores[of_type]):.4g}",
                auroc=auroc,
            )


def _kind(label: int | None) -> str:
    return {GOOD: "good", DEFECT: "defect"}.get(UNKNOWN if label is None else label, "unknown")


def _nice(step: float) -> float:
    """The next larger of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= step * (1 - 1e-9))


def _css(colour: tuple[int, ...]) -> str:
    return "#" + "".join(f"{int(channel):02x}" for channel in colour)


def _data_uri(picture: npt.NDArray[np.uint8], kind: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, quality=85, optimize=True)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
