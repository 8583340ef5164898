"""Computes the geometry of the report's charts, which the templates draw as SVG."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ssray.metrics.images import best_threshold, roc_points
from ssray.metrics.labels import DEFECT, GOOD, UNKNOWN, Floats, Labels

MAX_ROC_POINTS = 400
"""How many points of an ROC curve are drawn at most."""


def thin_roc(false_positive_rate: Floats, true_positive_rate: Floats) -> tuple[Floats, Floats]:
    """Keeps at most ``MAX_ROC_POINTS`` of a curve's (P,) points, evenly spread along its length.

    Both ends are kept; a curve that has no more points is returned as it is.
    """
    if len(false_positive_rate) <= MAX_ROC_POINTS:
        return false_positive_rate, true_positive_rate
    length = false_positive_rate + true_positive_rate
    kept = np.unique(np.searchsorted(length, np.linspace(0, 2, MAX_ROC_POINTS - 1)))
    kept = np.unique([0, *kept[kept < len(length)], len(length) - 1])
    return false_positive_rate[kept], true_positive_rate[kept]


@dataclass(frozen=True)
class Frame:
    """The size of a chart, and where its axes lie in it, in SVG units."""

    width: float = 460
    height: float = 360
    left: float = 62
    right: float = 446
    top: float = 24
    bottom: float = 310

    def x(self, share: float) -> float:
        """Returns where a place on the x axis is drawn; 0 and 1 are the axis's ends."""
        return self.left + share * (self.right - self.left)

    def y(self, share: float) -> float:
        """Returns where a place on the y axis is drawn; 0 and 1 are the axis's ends."""
        return self.bottom - share * (self.bottom - self.top)


FRAME = Frame()


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis, in SVG units."""

    at: float
    text: str


@dataclass(frozen=True)
class Roc:
    """A chart of the ROC curve; ``points`` are those of an SVG polyline."""

    points: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]

    @classmethod
    def of(cls, labels: Labels, scores: Floats) -> Roc | None:
        """Makes the chart; returns None if only one class is present."""
        false_positives, true_positives = thin_roc(*roc_points(labels, scores))
        if not len(false_positives):
            return None
        shares = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
        return cls(
            points=" ".join(
                f"{FRAME.x(x):.1f},{FRAME.y(y):.1f}"
                for x, y in zip(false_positives, true_positives, strict=True)
            ),
            x_ticks=[Tick(FRAME.x(share), f"{share:g}") for share in shares],
            y_ticks=[Tick(FRAME.y(share), f"{share:g}") for share in shares],
        )


@dataclass(frozen=True)
class Bar:
    """One bar of the histogram, in SVG units, with the text of its tooltip."""

    kind: str
    x: float
    y: float
    width: float
    height: float
    text: str


@dataclass(frozen=True)
class Series:
    """One class of images in the histogram and its legend."""

    kind: str
    name: str
    count: int


@dataclass(frozen=True)
class Histogram:
    """A histogram of the scores of each class, the first above a base line, the second below."""

    bars: list[Bar]
    series: list[Series]
    base: float
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    logarithmic: bool
    threshold: Tick | None

    @classmethod
    def of(cls, labels: Labels, scores: Floats) -> Histogram | None:
        """Makes the chart of the first two classes that are present; None if there are no images.

        Args:
            labels: (N,) 0 = good, 1 = defect, -1 = unknown.
            scores: (N,) finite image scores.
        """
        groups = _groups(labels, scores)[:2]
        if not groups:
            return None
        shown = np.concatenate([values for _, values in groups]).astype(np.float64)
        lowest_median = min(float(np.median(values)) for _, values in groups)
        logarithmic = bool(shown.min() > 0 and shown.max() > 10 * lowest_median)
        axis = Axis.of(shown, logarithmic)
        edges = np.linspace(0, 1, int(np.clip(2 * math.sqrt(len(shown)), 12, 36)) + 1)
        shares = [
            np.histogram([axis.share(value) for value in values], edges)[0] / len(values)
            for _, values in groups
        ]
        step = _nice(max(share.max() for share in shares) / 4)
        peak = step * math.ceil(max(share.max() for share in shares) / step - 1e-9)
        base = 0.0 if len(groups) == 1 else 0.5
        sides = [
            _Side(series, share, base, extent, peak)
            for extent, (series, _), share in zip(
                (1 - base, base - 1), groups, shares, strict=False
            )
        ]
        threshold = best_threshold(labels, scores)
        return cls(
            bars=[bar for side in sides for bar in side.bars(edges, axis)],
            series=[side.series for side in sides],
            base=FRAME.y(base),
            x_ticks=[Tick(FRAME.x(axis.share(value)), f"{value:g}") for value in axis.ticks()],
            y_ticks=[
                Tick(FRAME.y(side.reach(i * step)), f"{100 * i * step:.3g}")
                for number, side in enumerate(sides)
                for i in range(round(peak / step) + 1)
                if i or number == 0
            ],
            logarithmic=logarithmic,
            threshold=None
            if threshold is None
            else Tick(FRAME.x(axis.share(threshold)), f"{threshold:.4g}"),
        )


def _groups(labels: Labels, scores: Floats) -> list[tuple[Series, Floats]]:
    """Returns the classes that are present, each with the scores of its images."""
    return [
        (Series(kind, name, int((labels == label).sum())), scores[labels == label])
        for label, kind, name in (
            (GOOD, "good", "good"),
            (DEFECT, "defect", "defective"),
            (UNKNOWN, "unknown", "unlabelled"),
        )
        if (labels == label).any()
    ]


@dataclass(frozen=True)
class _Side:
    """The bars of one class, above or below the base line.

    Attributes:
        series: the class.
        shares: the share of its images in each bin.
        base: where the base line lies on the y axis, 0 to 1.
        extent: how far the bars may reach from there; negative if they point downwards.
        peak: the share at which a bar reaches that far.
    """

    series: Series
    shares: Floats
    base: float
    extent: float
    peak: float

    def reach(self, share: float) -> float:
        """Returns where on the y axis a bar for this share of the images ends."""
        return self.base + self.extent * share / self.peak

    def bars(self, edges: Floats, axis: Axis) -> list[Bar]:
        """Makes the bars of all bins that are not empty, given the edges of the bins."""
        bars = []
        count = self.series.count
        for i in np.flatnonzero(self.shares):
            reach = self.reach(self.shares[i])
            low, high = axis.value(edges[i]), axis.value(edges[i + 1])
            bars.append(
                Bar(
                    kind=self.series.kind,
                    x=FRAME.x(edges[i]) + 0.5,
                    y=FRAME.y(max(self.base, reach)),
                    width=FRAME.x(edges[i + 1]) - FRAME.x(edges[i]) - 1,
                    height=abs(FRAME.y(self.base) - FRAME.y(reach)),
                    text=f"score {low:.4g} to {high:.4g}: {round(self.shares[i] * count)} of "
                    f"{count} {self.series.name}",
                )
            )
        return bars


@dataclass(frozen=True)
class Line:
    """A line to draw: y over x, with a band from y - spread to y + spread unless that is None."""

    kind: str
    name: str
    x: Floats
    y: Floats
    spread: Floats | None = None


@dataclass(frozen=True)
class Curve:
    """A line in SVG units: the points of a polyline, and those of the polygon of its band."""

    kind: str
    name: str
    points: str
    band: str


@dataclass(frozen=True)
class LineChart:
    """A chart of several lines on common linear axes that start at zero."""

    curves: list[Curve]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    marks: list[Tick]

    @classmethod
    def of(
        cls, lines: list[Line], x_high: float, y_high: float, marks: dict[str, float]
    ) -> LineChart:
        """Makes the chart of one line or more.

        Args:
            lines: what to draw; values outside the axes are drawn at their ends.
            x_high: right end of the x axis, positive.
            y_high: upper end of the y axis, positive.
            marks: the x of each vertical line, by its text.
        """
        x_axis, y_axis = Axis(0.0, x_high, False), Axis(0.0, y_high, False)

        def points(xs: Floats, ys: Floats) -> str:
            return " ".join(
                f"{FRAME.x(x_axis.share(x)):.1f},{FRAME.y(y_axis.share(y)):.1f}"
                for x, y in zip(xs, ys, strict=True)
            )

        def band(line: Line) -> str:
            if line.spread is None:
                return ""
            upper, lower = line.y + line.spread, line.y - line.spread
            return f"{points(line.x, upper)} {points(line.x[::-1], lower[::-1])}"

        return cls(
            curves=[
                Curve(line.kind, line.name, points(line.x, line.y), band(line)) for line in lines
            ],
            x_ticks=[Tick(FRAME.x(x_axis.share(value)), f"{value:g}") for value in x_axis.ticks()],
            y_ticks=[Tick(FRAME.y(y_axis.share(value)), f"{value:g}") for value in y_axis.ticks()],
            marks=[Tick(FRAME.x(x_axis.share(x)), text) for text, x in marks.items()],
        )


@dataclass(frozen=True)
class Axis:
    """An axis from ``low`` to ``high``, linear or logarithmic."""

    low: float
    high: float
    logarithmic: bool

    @classmethod
    def of(cls, values: Floats, logarithmic: bool) -> Axis:
        """Makes an axis that holds all values."""
        low, high = float(values.min()), float(values.max())
        if low == high:
            reach = abs(low) / 2 or 1.0
            return cls(low - reach, high + reach, logarithmic)
        return cls(low, high, logarithmic)

    def share(self, value: float) -> float:
        """Returns where a value lies on the axis, from 0 to 1, its ends."""
        if self.logarithmic:
            place = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            place = (value - self.low) / (self.high - self.low)
        return min(max(place, 0.0), 1.0)

    def value(self, share: float) -> float:
        """Returns the value at a place on the axis, from 0 to 1."""
        if self.logarithmic:
            return float(self.low * (self.high / self.low) ** share)
        return self.low + share * (self.high - self.low)

    def ticks(self) -> list[float]:
        """Returns about seven round values on the axis."""
        if self.logarithmic:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for digits in ((1, 2, 5), (1, 3), (1,)):
                ticks = [d * 10.0**decade for decade in decades for d in digits]
                inside = [tick for tick in ticks if self.low <= tick <= self.high]
                if len(inside) <= 7:
                    return inside
            return inside[:: math.ceil(len(inside) / 7)]
        step = _nice((self.high - self.low) / 7)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _nice(step: float) -> float:
    """Rounds up to 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= step * (1 - 1e-9))
