"""The report's charts: geometry that the template draws as SVG."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ssray.metrics.images import best_threshold, roc_points
from ssray.metrics.labels import DEFECT, GOOD, UNKNOWN, Floats, Labels

MAX_ROC_POINTS = 400


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


@dataclass(frozen=True)
class Frame:
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


FRAME = Frame()


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis, in the drawing's units."""

    at: float
    text: str


@dataclass(frozen=True)
class Roc:
    """The ROC curve; ``points`` are those of an SVG polyline."""

    points: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]

    @classmethod
    def of(cls, labels: Labels, scores: Floats) -> Roc | None:
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
    """One bar of the histogram, in the drawing's units, with the text of its tooltip."""

    kind: str
    x: float
    y: float
    width: float
    height: float
    text: str


@dataclass(frozen=True)
class Series:
    """One class of images in the legend."""

    kind: str
    name: str
    count: int


@dataclass(frozen=True)
class Histogram:
    """Shares of each class by score: the first class above a base line, the second below."""

    bars: list[Bar]
    series: list[Series]
    base: float
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    logarithmic: bool
    threshold: Tick | None

    @classmethod
    def of(cls, labels: Labels, scores: Floats) -> Histogram | None:
        groups = [
            (Series(kind, name, int((labels == label).sum())), scores[labels == label])
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
        axis = Axis.of(shown, logarithmic)
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
                    Bar(
                        kind=series.kind,
                        x=FRAME.x(edges[i]) + 0.5,
                        y=FRAME.y(max(base, reach)),
                        width=FRAME.x(edges[i + 1]) - FRAME.x(edges[i]) - 1,
                        height=abs(FRAME.y(base) - FRAME.y(reach)),
                        text=f"score {low:.4g} to {high:.4g}: {round(share[i] * len(values))} of "
                        f"{len(values)} {series.name}",
                    )
                )
        threshold = best_threshold(labels, scores)
        return cls(
            bars=bars,
            series=[series for series, _ in groups],
            base=FRAME.y(base),
            x_ticks=[Tick(FRAME.x(axis.share(value)), f"{value:g}") for value in axis.ticks()],
            y_ticks=[
                Tick(FRAME.y(base + sign * (1 - base) * i * step / peak), f"{100 * i * step:.3g}")
                for sign in (1, -1)[: len(groups)]
                for i in range(round(peak / step) + 1)
                if i or sign == 1
            ],
            logarithmic=logarithmic,
            threshold=None
            if threshold is None
            else Tick(FRAME.x(axis.share(threshold)), f"{threshold:.4g}"),
        )


@dataclass(frozen=True)
class Line:
    """What a line chart is given: y over x, with an optional band of y - spread to y + spread."""

    kind: str
    name: str
    x: Floats
    y: Floats
    spread: Floats | None = None


@dataclass(frozen=True)
class Curve:
    """A line as drawn; ``points`` and ``band`` are those of SVG polylines and polygons."""

    kind: str
    name: str
    points: str
    band: str


@dataclass(frozen=True)
class LineChart:
    """Lines on common linear axes that start at zero."""

    curves: list[Curve]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    marks: list[Tick]

    @classmethod
    def of(
        cls, lines: list[Line], x_high: float, y_high: float, marks: dict[str, float]
    ) -> LineChart:
        """The chart of at least one line.

        Args:
            lines: what to draw; values outside the axes are drawn at their ends.
            x_high: right end of the x axis, positive.
            y_high: upper end of the y axis, positive.
            marks: vertical lines, x by text.
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
    """The scale of the scores, linear or logarithmic."""

    low: float
    high: float
    logarithmic: bool

    @classmethod
    def of(cls, values: Floats, logarithmic: bool) -> Axis:
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
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _nice(step: float) -> float:
    """The next larger of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= step * (1 - 1e-9))
