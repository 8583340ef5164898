"""Estimates which of the settings that a search varied made a difference."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from ssray.search.trials import TrialResult

MIN_TRIALS = 6
"""With fewer judged trials than this nothing is estimated."""
GROUPS = 3
"""Into how many groups of equal size the values of a range are put."""


def importances(trials: Sequence[TrialResult]) -> dict[str, float]:
    """Computes how much of the variance of log(error) over the trials each setting explains.

    The error is that of the first rung, which good and bad trials reach alike. The trials are
    grouped by the setting's value, those of a range into three groups of equal size. The share is
    epsilon squared: it is adjusted for the number of groups, so that chance alone gives about 0.
    Settings that had the same value in all trials are left out.

    Returns:
        Shares in [0, 1] by setting, the largest first; empty with fewer than ``MIN_TRIALS`` judged.
    """
    judged = [t for t in trials if t.first_error and not t.partner]
    if len(judged) < MIN_TRIALS:
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
    """Returns the group of each value: the value itself as text, or a number for a range."""
    texts = [json.dumps(value) for value in values]
    if len(set(texts)) < len(texts) or not all(isinstance(value, float) for value in values):
        return texts
    ranks = np.argsort(np.argsort(values, kind="stable"))
    return [int(rank) * GROUPS // len(values) for rank in ranks]


def _explained(groups: Sequence[np.ndarray[Any, Any]]) -> float:
    """Computes epsilon squared, the share of the variance that the groups explain; at least 0."""
    together = np.concatenate(groups)
    total = float(((together - together.mean()) ** 2).sum())
    within = float(sum(((group - group.mean()) ** 2).sum() for group in groups))
    if total == 0:
        return 0.0
    noise = within / (len(together) - len(groups))
    return max(0.0, (total - within - (len(groups) - 1) * noise) / total)
