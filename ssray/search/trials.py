"""The trials of a search as a table, the best first."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

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
"""A row a trial, and a column more for each setting that was varied or chosen. ``state``:
finished, stopped (early, as others were better) or failed, with the ``reason``. ``partner``: set
for an ensemble of two trials, whose settings are the first one's.
``selection_score``: larger is better; 1 - sqrt(error) of the criterion, at the trial's end; null if
it was not judged. AUROCs are those on the criterion's images, never on the test set. ``version``:
in the store of the trials' models."""


class TrialResult(BaseModel):
    """How a trial ended.

    Attributes:
        trial: its name in the search.
        settings: of the training, as they were varied, by their ``--set`` keys.
        is_default: whether they are the recipe's own.
        state: ``finished``, ``stopped`` early because others were better, or ``failed``.
        error: by the criterion, at its end; None if it was not judged.
        first_error: after the same share of the budget as all others; None if it was not judged
            then.
        seconds: of training.
        version: of its model; None unless finished.
        anomaly_map: that was chosen; None unless finished.
        image_auroc: on the criterion's images, if there were any with a defect.
        pixel_auroc: likewise.
        reason: why it failed.
        partner: the other trial, if this is an ensemble with it; the settings are those of the
            first, ``trial`` names both.
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
    reason: str | None = None
    partner: str | None = None

    @property
    def selection_score(self) -> float | None:
        """1 - sqrt(error): as the AUROCs are, 1 at best."""
        return None if self.error is None else 1 - math.sqrt(self.error)


def best(trials: Sequence[TrialResult]) -> TrialResult | None:
    """The finished one with the least error; the default where others are no better."""
    finished = [t for t in trials if t.state == "finished" and t.error is not None]
    return min(finished, key=lambda t: (t.error, not t.is_default), default=None)


def ranked(trials: Sequence[TrialResult]) -> list[TrialResult]:
    """Finished trials first, each group by score."""
    return sorted(trials, key=_rank)


def leaderboard(trials: Mapping[str, Sequence[TrialResult]]) -> pa.Table:
    """A ``LEADERBOARD`` with a column for each setting: finished trials first, then by score."""
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
    chosen = trial.anomaly_map.model_dump() if trial.anomaly_map else {}
    return {**trial.settings, **{f"anomaly_map.{key}": value for key, value in chosen.items()}}


def _cell(value: Any) -> Any:
    """Numbers as floats, as a column may hold whole ones and others; the rest as text."""
    if isinstance(value, bool | str) or value is None:
        return value
    return float(value) if isinstance(value, int | float) else json.dumps(value)


class CategorySweep(BaseModel):
    """What the page says about one category.

    Attributes:
        category: its name.
        recipe: name of the one whose settings were varied.
        by: what chose.
        trials: how they ended.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    category: str
    recipe: str
    by: Basis
    trials: list[TrialResult]
