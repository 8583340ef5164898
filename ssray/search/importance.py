"""Which of the settings that a search varied mattered."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from ssray.search.trials import TrialResult

LEAST_TRIALS = 6
"""Trials judged from which on the settings' shares of the variance are shown."""


PARTS = 3
"""In how many equal groups a range is cut to see whether it matters."""


def importances(trials: Sequence[TrialResult]) -> dict[str, float]:
    """How much of the variance of log(error) over the trials each setting explains alone.

    The error is the one at the first rung, which all trials reach, good and bad. Adjusted for the
    number of groups (epsilon squared), so that 0 is what chance would explain; ranges are cut into
    three groups of equal size. Settings that took one value only are left out.

    Returns:
        Shares in [0, 1] by setting, the largest first; empty with fewer than 6 trials judged.
    """
    judged = [t for t in trials if t.first_error and not t.partner]
    if len(judged) < LEAST_TRIALS:
        return {}
    errors = np.log([t.first_error for t in judged if t.first_error])
    shares = {}
    for key in judged[0].settings:
        groups = defaultdict(list)
        for group, error in zip(_groups([t.settings[key] for t in judged]), errors, strict=True):
            groups[group].append(error)
        if 1 < len(groups) < len(errors):
            shares[key] = _explained([np.array(values) for values in groups.values()])
    return dict(sorted(shares.items(), key=lambda pair: -pair[1]))


def _groups(values: Sequence[Any]) -> list[Any]:
    texts = [json.dumps(value) for value in values]
    if len(set(texts)) < len(texts) or not all(isinstance(value, float) for value in values):
        return texts
    ranks = np.argsort(np.argsort(values, kind="stable"))
    return [int(rank) * PARTS // len(values) for rank in ranks]


def _explained(groups: Sequence[np.ndarray[Any, Any]]) -> float:
    together = np.concatenate(groups)
    total = float(((together - together.mean()) ** 2).sum())
    within = float(sum(((group - group.mean()) ** 2).sum() for group in groups))
    if total == 0:
        return 0.0
    noise = within / (len(together) - len(groups))
    return max(0.0, (total - within - (len(groups) - 1) * noise) / total)
