"""Decisions with a stated false-alarm rate, from the scores of defect-free images alone.

Split conformal prediction (Vovk, Gammerman and Shafer, *Algorithmic Learning in a Random World*):
if a new defect-free image is exchangeable with the calibration images, its p-value is at most
``rate`` with a probability of at most ``rate``, whatever the distribution of the scores. No rate
below ``least_rate`` can be promised.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ssray.metrics.labels import Floats


def p_values(scores: Floats, calibration: Floats) -> npt.NDArray[np.float64]:
    """How usual each score is among defect-free images: from ``least_rate`` to 1.

    Args:
        scores: (B,) image scores; larger is more anomalous.
        calibration: (N,) scores of defect-free images the model was not trained on, any order.

    >>> p_values(np.array([0.5, 2.0, 9.0]), np.array([1.0, 2.0, 3.0])).tolist()
    [1.0, 0.75, 0.25]
    """
    ordered = np.sort(calibration)
    at_least = len(ordered) - np.searchsorted(ordered, scores, side="left")
    return (1 + at_least) / (len(ordered) + 1)


def least_rate(images: int) -> float:
    """The lowest false-alarm rate that so many calibration images support."""
    return 1 / (images + 1)


def threshold(calibration: Floats, rate: float) -> float:
    """The score above which the p-value is at most ``rate``.

    Where so few images do not support the rate, it is their highest score, and the rate that of
    ``least_rate``.

    Args:
        calibration: (N,) scores of defect-free images, N at least 1, any order.
        rate: of false alarms, in (0, 1).

    >>> threshold(np.arange(1.0, 20.0), 0.05), threshold(np.arange(1.0, 20.0), 0.1)
    (19.0, 18.0)
    """
    count = len(calibration)
    # The tolerance keeps a rate such as 0.05 of 20 from missing by a rounding error.
    place = math.ceil((count + 1) * (1 - rate) - 1e-9)
    return float(np.sort(calibration)[min(max(place, 1), count) - 1])
