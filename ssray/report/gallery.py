"""Chooses the images that a report shows: the worst mistakes and the closest decisions."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import numpy.typing as npt

from ssray.metrics.images import best_threshold
from ssray.metrics.labels import DEFECT, GOOD, Floats, Labels

Indices = npt.NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class GalleryImage:
    """One image that a report shows.

    Attributes:
        name: the image's name for people.
        uri: where the image is.
        split_type: the type of its defect, or ``good``.
        label: 1 = defect, 0 = good, None (or -1) = unknown.
        score: its image score.
        why: a sentence that says why it is shown; see ``choose_gallery``.
        image: (H, W, 3) uint8.
        levels: (h, w) uint8, the heatmap as ``heatmap.encode_levels`` makes it; any resolution.
        truth: (H, W) bool, True = defective; None if that is unknown.
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
    """Chooses the images to show and says why; each is chosen once, one without a score never.

    The worst images come first: in turn the defective ones with the lowest score and the good (or
    unlabelled) ones with the highest, sorted by the share of the other class that scored on their
    wrong side. Then come images whose score is closest to ``best_threshold``.

    Args:
        labels: (N,) 1 = defect, 0 = good, -1 = unknown.
        scores: (N,) larger = more anomalous; NaN = no score.
        worst: how many of the worst images to choose at most.
        borderline: how many images close to the threshold to choose at most.

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
    chosen = _worst_first(in_turn[:worst], labels, scores, good, defects)
    rest = np.setdiff1d(np.concatenate([good, defects]), [index for index, _ in chosen])
    return [*chosen, *_borderline(rest, labels, scores)[:borderline]]


def _worst_first(
    indices: list[int], labels: Labels, scores: Floats, good: Indices, defects: Indices
) -> list[tuple[int, str]]:
    """Sorts images by the share of the other class on their wrong side, and says why each is bad.

    Args:
        indices: the images to sort.
        labels: (N,) the labels of all images.
        scores: (N,) the scores of all images.
        good: the indices of all good images.
        defects: the indices of all defective images.
    """
    judged = []
    for index in indices:
        label, score = labels[index], scores[index]
        if label == DEFECT:
            wrong, others = int((scores[good] >= score).sum()), len(good)
        elif label == GOOD:
            wrong, others = int((scores[defects] <= score).sum()), len(defects)
        else:
            wrong, others = 0, 0
        judged.append((wrong / max(others, 1), index, _why_worst(int(label), wrong, others)))
    judged.sort(key=lambda entry: -entry[0])
    return [(index, why) for _, index, why in judged]


def _borderline(indices: Indices, labels: Labels, scores: Floats) -> list[tuple[int, str]]:
    """Sorts images by how close their score is to the best threshold; none if there is none."""
    threshold = best_threshold(labels, scores)
    if threshold is None:
        return []
    found = []
    for index in indices[np.argsort(np.abs(scores[indices] - threshold), kind="stable")]:
        side = "above" if scores[index] > threshold else "below"
        why = (
            f"Borderline: among the scores nearest to {threshold:.4g}, which best separates "
            f"good from defective (highest balanced accuracy), and {side} it."
        )
        found.append((int(index), why))
    return found


def _why_worst(label: int, wrong: int, others: int) -> str:
    """Says in a sentence why an image is among the worst.

    Args:
        label: the image's label.
        wrong: how many images of the other class scored on its wrong side.
        others: how many images the other class has.
    """
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
