"""Renders the page of a search: what was tried, what was chosen, and which settings mattered."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssray.config import Basis
from ssray.report.charts import Axis, Tick
from ssray.report.page import template
from ssray.search.importance import MIN_TRIALS, importances
from ssray.search.trials import CategorySweep, TrialResult, best, ranked

_TOP, _BOTTOM = 40.0, 300.0
"""Where the axes of the parallel coordinates begin and end, in SVG units."""
_BETWEEN = 150.0
"""The distance between neighbouring axes, in SVG units."""
_MARGIN = 70.0
"""The space to either side of the axes, in SVG units."""

CRITERIA: dict[Basis, str] = {
    "synthetic": "synthetic defects in held-out defect-free images",
    "labelled": "labelled images of the validation set given",
    "reconstruction": "the mean squared reconstruction error of held-out defect-free images",
}


def render_sweep(sweeps: Sequence[CategorySweep], generated: str, ssray_version: str) -> str:
    """Renders the page as HTML.

    Args:
        sweeps: the result of the search for each category, in the order of the page.
        generated: when the page is made, in words.
        ssray_version: the version of ssray that makes it.
    """
    return template("sweep.html.j2").render(
        sections=[_Section.of(sweep) for sweep in sweeps],
        generated=generated,
        ssray_version=ssray_version,
        least_trials=MIN_TRIALS,
    )


@dataclass(frozen=True)
class _Line:
    """The line of a trial; ``points`` are those of an SVG polyline, ``text`` its tooltip."""

    kind: str
    points: str
    text: str


@dataclass(frozen=True)
class _Upright:
    """A vertical axis of the parallel coordinates, ``at`` units from the left."""

    name: str
    at: float
    ticks: list[Tick]


@dataclass(frozen=True)
class _Parallel:
    """A chart of parallel coordinates: an axis for each setting, a line for each finished trial.

    The last axis is that of the score.
    """

    axes: list[_Upright]
    lines: list[_Line]
    width: float
    height: float = _BOTTOM + 34

    @classmethod
    def of(cls, trials: Sequence[TrialResult], chosen: TrialResult | None) -> _Parallel | None:
        shown = [
            t
            for t in trials
            if t.state == "finished" and t.selection_score is not None and not t.partner
        ]
        if len(shown) < 2:
            return None
        columns = {key: [t.settings[key] for t in shown] for key in shown[0].settings}
        columns = {k: v for k, v in columns.items() if len({json.dumps(x) for x in v}) > 1}
        columns["selection score"] = [t.selection_score for t in shown]
        places = []
        axes = []
        for number, (name, values) in enumerate(columns.items()):
            shares, ticks = _upright(values)
            at = _MARGIN + number * _BETWEEN
            axes.append(_Upright(name, at, ticks))
            places.append([f"{at:.1f},{_height(share):.1f}" for share in shares])
        lines = [
            _Line(_kind(trial, chosen), " ".join(points), _tooltip(trial))
            for trial, points in zip(shown, zip(*places, strict=True), strict=True)
        ]
        lines.sort(key=lambda line: line.kind == "chosen")  # drawn last, on top
        return cls(axes, lines, 2 * _MARGIN + (len(axes) - 1) * _BETWEEN)


def _upright(values: Sequence[Any]) -> tuple[list[float], list[Tick]]:
    """Returns where each value lies on its axis, from 0 to 1, and the ticks of the axis."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        numbers = np.array(values, dtype=np.float64)
        logarithmic = bool(numbers.min() > 0 and numbers.max() > 8 * numbers.min())
        axis = Axis.of(numbers, logarithmic)
        ticks = [Tick(_height(axis.share(value)), f"{value:g}") for value in axis.ticks()]
        return [axis.share(value) for value in numbers], ticks
    texts = [short(value) for value in values]
    names = sorted(set(texts))
    shares = {name: (number + 0.5) / len(names) for number, name in enumerate(names)}
    return [shares[t] for t in texts], [Tick(_height(shares[name]), name) for name in names]


def _height(share: float) -> float:
    """Returns where a place on an axis is drawn; 0 is the lower end, 1 the upper one."""
    return _BOTTOM - share * (_BOTTOM - _TOP)


def _kind(trial: TrialResult, chosen: TrialResult | None) -> str:
    """Returns the word for a trial that the style sheet knows."""
    return "chosen" if trial is chosen else "default" if trial.is_default else "other"


def _tooltip(trial: TrialResult) -> str:
    """Describes a trial in a line: its settings and its score."""
    settings = ", ".join(f"{key} {short(value)}" for key, value in trial.settings.items())
    return f"trial {trial.trial}: {settings}; selection score {trial.selection_score:.4f}"


def short(value: Any) -> str:
    """Writes a setting's value in few characters; of a mix only the kinds that are used.

    >>> short({"elastic": 1.0, "cut_out": 0.0, "pattern": 2.0})
    'elastic 1, pattern 2'
    >>> short({"frame": [-0.5, -0.2, 0.5, 0.2], "turned": True}), short(None)
    ('frame -0.5 to -0.2 to 0.5 to 0.2, turned True', 'none')
    """
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {short(each)}" for key, each in value.items() if each)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " to ".join(short(part) for part in value)
    return str(value)


@dataclass(frozen=True)
class _Row:
    """A trial in the table of trials, as text."""

    trial: TrialResult
    kind: str
    score: str
    synthetic: str
    settings: list[str]
    map: str


@dataclass(frozen=True)
class _Section:
    """A category's section of the page, ready to be laid out."""

    sweep: CategorySweep
    trials: int
    says: str
    counts: str
    columns: list[str]
    rows: list[_Row]
    chart: _Parallel | None
    importances: list[tuple[str, float]]

    @classmethod
    def of(cls, sweep: CategorySweep) -> _Section:
        chosen = best(sweep.trials)
        ordered = ranked(sweep.trials)
        counts = defaultdict[str, int](int)
        single = [trial for trial in sweep.trials if trial.partner is None]
        for trial in single:
            counts[trial.state] += 1
        return cls(
            sweep=sweep,
            trials=len(single),
            says=_verdict(sweep, chosen),
            counts=", ".join(f"{count} {state}" for state, count in counts.items()),
            columns=list(ordered[0].settings) if ordered else [],
            rows=[_row(trial, chosen) for trial in ordered],
            chart=_Parallel.of(sweep.trials, chosen),
            importances=list(importances(sweep.trials).items()),
        )


def _verdict(sweep: CategorySweep, chosen: TrialResult | None) -> str:
    """Says in a sentence or two which trial was chosen, and what it is worth."""
    if chosen is None or chosen.selection_score is None:
        return "No trial ended with a model that could be judged."
    basis = f"Chosen by {CRITERIA[sweep.by]}."
    default = next((t for t in sweep.trials if t.is_default), None)
    if chosen.is_default:
        return (
            f"{basis} No trial did better than the recipe {sweep.recipe} as it is by more than the "
            "standard error of its selection score."
        )
    if chosen.partner:
        return (
            f"{basis} The ensemble of trials {chosen.trial} has a selection score of "
            f"{chosen.selection_score:.4f}; the best model alone reached "
            f"{_best_alone(sweep.trials):.4f}. It takes twice as long to score."
        )
    if default is None or default.selection_score is None:
        return f"{basis} The recipe {sweep.recipe} as it is gave no model to compare with."
    return (
        f"{basis} The best trial's selection score is {chosen.selection_score:.4f}; the recipe "
        f"{sweep.recipe} as it is reached {default.selection_score:.4f} with the same budget. Of "
        "so many trials the best one looks better than it is."
    )


def _best_alone(trials: Sequence[TrialResult]) -> float:
    """Returns the highest selection score of a finished trial that is no ensemble."""
    return max(
        trial.selection_score
        for trial in trials
        if trial.state == "finished" and trial.partner is None and trial.selection_score is not None
    )


def _row(trial: TrialResult, chosen: TrialResult | None) -> _Row:
    """Writes a trial as a row of the table."""
    found = trial.anomaly_map
    score, known = trial.selection_score, (trial.image_auroc, trial.pixel_auroc)
    return _Row(
        trial=trial,
        kind=_kind(trial, chosen),
        score="" if score is None else f"{score:.4f}",
        synthetic=" / ".join("n/a" if v is None else f"{v:.4f}" for v in known) if found else "",
        settings=[short(value) for value in trial.settings.values()],
        map=f"{found.difference}, k {found.kernel}, n {found.repeats}, t {found.average_power:g}, "
        f"{found.image_score}"
        if found
        else "",
    )
