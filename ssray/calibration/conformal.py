"""Turns scores into p-values and thresholds with a stated false-alarm rate.

Only the scores of defect-free images are needed.

Split conformal prediction (Vovk, Gammerman and Shafer, *Algorithmic Learning in a Random World*):
if a new defect-free image is exchangeable with the calibration images, its p-value is at most
``rate`` with a probability of at most ``rate``, whatever the distribution of the scores. No rate
below ``lowest_rate`` can be promised.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ssray.metrics.labels import Floats


def p_values(scores: Floats, calibration: Floats) -> npt.NDArray[np.float64]:
    """Computes the p-value of each score: the smaller, the rarer among defect-free images.

    P-values lie between ``lowest_rate`` and 1.

    Args:
        scores: (B,) image scores; larger is more anomalous.
        calibration: (N,) scores of defect-free images that the model was not trained on, in any
            order.

    >>> p_values(np.array([0.5, 2.0, 9.0]), np.array([1.0, 2.0, 3.0])).tolist()
    [1.0, 0.75, 0.25]
    """
    ordered = np.sort(calibration)
    at_least = len(ordered) - np.searchsorted(ordered, scores, side="left")
    return (1 + at_least) / (len(ordered) + 1)


def lowest_rate(images: int) -> float:
    """Returns the lowest false-alarm rate that so many calibration images support."""
    return 1 / (images + 1)


def threshold(calibration: Floats, rate: float) -> float:
    """Returns the score above which the p-value is at most ``rate``.

    If the images are too few for that rate, the threshold is their highest score, and the rate that
    holds is ``lowest_rate``.

    Args:
        calibration: (N,) scores of defect-free images, N at least 1, in any order.
        rate: the false-alarm rate, in (0, 1).

    >>> threshold(np.arange(1.0, 20.0), 0.05), threshold(np.arange(1.0, 20.0), 0.1)
    (19.0, 18.0)
    """
    count = len(calibration)
    # The tolerance keeps a rate such as 0.05 of 20 from missing by a rounding error.
    place = math.ceil((count + 1) * (1 - rate) - 1e-9)
    return float(np.sort(calibration)[min(max(place, 1), count) - 1])
