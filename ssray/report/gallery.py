"""Which images the report shows, and why: the worst mistakes and the closest calls."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import numpy.typing as npt

from ssray.metrics.images import best_threshold
from ssray.metrics.labels import DEFECT, GOOD, Floats, Labels


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
