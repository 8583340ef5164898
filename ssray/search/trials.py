"""How the trials of a search ended, and the leaderboard: a table of them with the best first."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from ssray.calibration.candidates import is_clearly_lower
from ssray.config import Basis, MapSettings

LEADERBOARD = pa.schema(
    [
        pa.field("category", pa.string(), nullable=False),
        pa.field("trial", pa.string(), nullable=False),
        pa.field("state", pa.string(), nullable=False),
        pa.field("is_default", pa.bool_(), nullable=False),
        pa.field("partner", pa.string()),
        pa.field("chosen", pa.bool_(), nullable=False),
        pa.field("selection_score", pa.float64()),
        pa.field("image_auroc", pa.float64()),
        pa.field("pixel_auroc", pa.float64()),
        pa.field("seconds", pa.float64(), nullable=False),
        pa.field("version", pa.string()),
        pa.field("reason", pa.string()),
    ]
)
"""The leaderboard has a row for each trial, and a further column for each setting that was varied
or chosen.

``state`` is finished, stopped (early, as others were better) or failed; ``reason`` says why it
failed. ``partner`` is set for an ensemble of two trials, whose settings are those of the first.
``selection_score`` is 1 - sqrt(error) of the criterion at the trial's end; larger is better, and it
is null if the trial was not judged. The AUROCs are those on the criterion's images, never on the
test set. ``version`` is that of the trial's model in the store of the search."""


class TrialResult(BaseModel):
    """How one trial of a search, or an ensemble of two trials, ended.

    Attributes:
        trial: the trial's name in the search; for an ensemble it names both.
        settings: the settings that were varied, by their ``--set`` keys; for an ensemble those of
            the first trial.
        is_default: whether these settings are the recipe's own.
        state: ``finished``, ``stopped`` early because others were better, or ``failed``.
        error: the criterion's error at the trial's end, lower is better; None if it was not judged.
        first_error: the error after the first rung, a share of the budget that is the same for all
            trials; None if it was not judged then.
        seconds: how long it was trained.
        version: the version of its model; None unless finished.
        anomaly_map: the settings chosen for its anomaly maps; None unless finished.
        image_auroc: the image AUROC on the criterion's images; None without defects.
        pixel_auroc: the pixel AUROC on the criterion's images; None without masks.
        uncertainty: the standard error of the error's logarithm; None unless finished.
        reason: why it failed.
        partner: the other trial if this is an ensemble, else None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    trial: str
    settings: dict[str, Any]
    is_default: bool
    state: Literal["finished", "stopped", "failed"]
    error: float | None
    first_error: float | None = None
    seconds: float
    version: str | None = None
    anomaly_map: MapSettings | None = None
    image_auroc: float | None = None
    pixel_auroc: float | None = None
    uncertainty: float | None = None
    reason: str | None = None
    partner: str | None = None

    @property
    def selection_score(self) -> float | None:
        """1 - sqrt(error): like an AUROC, 1 is the best; None if the trial was not judged."""
        return None if self.error is None else 1 - math.sqrt(self.error)


def best(trials: Sequence[TrialResult]) -> TrialResult | None:
    """Returns the finished trial with the lowest error, if it is clearly better than the default.

    The default is the trial with the recipe's own settings. Of many trials one has a low error by
    luck, so it has to be lower than the default's by more than the standard error of that one, or
    the default is best.
    """
    finished = [(t.error, t) for t in trials if t.state == "finished" and t.error is not None]
    if not finished:
        return None
    error, least = min(finished, key=lambda pair: pair[0])
    for default_error, default in finished:
        if default.is_default and not is_clearly_lower(error, default_error, default.uncertainty):
            return default
    return least


def ranked(trials: Sequence[TrialResult]) -> list[TrialResult]:
    """Sorts trials: finished ones before the others, and both groups by their error."""
    return sorted(trials, key=_rank)


def leaderboard(trials: Mapping[str, Sequence[TrialResult]]) -> pa.Table:
    """Makes the ``LEADERBOARD`` of the trials of each category, in the order of ``ranked``."""
    rows = []
    for category, found in trials.items():
        chosen = best(found)
        for trial in ranked(found):
            fixed = {name: getattr(trial, name, None) for name in LEADERBOARD.names}
            varied = {key: _cell(value) for key, value in _settings(trial).items()}
            rows.append(fixed | varied | {"category": category, "chosen": trial is chosen})
    extra = {key: None for row in rows for key in row if key not in LEADERBOARD.names}
    schema = LEADERBOARD
    for key in extra:
        values = [row.get(key) for row in rows]
        schema = schema.append(pa.field(key, pa.infer_type(values)))
    return pa.Table.from_pylist(rows, schema=schema)


def _rank(trial: TrialResult) -> tuple[bool, float, str]:
    error = math.inf if trial.error is None else trial.error
    return trial.state != "finished", error, trial.trial


def _settings(trial: TrialResult) -> dict[str, Any]:
    """Returns the settings that were varied and those chosen for the anomaly map."""
    chosen = trial.anomaly_map.model_dump() if trial.anomaly_map else {}
    return {**trial.settings, **{f"anomaly_map.{key}": value for key, value in chosen.items()}}


def _cell(value: Any) -> Any:
    """Converts a setting to what a column can hold: a truth value, a float, or text."""
    if isinstance(value, bool | str) or value is None:
        return value
    return float(value) if isinstance(value, int | float) else json.dumps(value)


class CategorySweep(BaseModel):
    """The result of the search for one category.

    Attributes:
        category: the category's name.
        recipe: the name of the recipe whose settings were varied.
        by: what the models were compared by.
        trials: how the trials ended.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    category: str
    recipe: str
    by: Basis
    trials: list[TrialResult]
