"""Pairs of trained models as ensembles: the pixel-wise maximum of both maps (section 4.3).

Which two go well together needs no training. Each model's difference maps are computed once; those
of a pair are both, and every setting of the anomaly map is tried on them as for a single model.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssray.calibration.calibrate import MOST_REFERENCES, calibrate
from ssray.calibration.criterion import Criterion
from ssray.calibration.evidence import Evidence
from ssray.config import Difference
from ssray.models.artifact import ModelArtifact, new_version
from ssray.models.device import PRECISION_NAMES

LEAST_GAIN = 0.1
"""A pair's error is to be lower by this share than the best model's: it takes twice as long."""


@dataclass(frozen=True)
class Ensemble:
    """Two of several models, by their numbers, and the ensemble of both."""

    first: int
    second: int
    model: ModelArtifact


def best_ensemble(
    models: Sequence[ModelArtifact],
    held_out: Tensor,
    criterion: Criterion,
    device: torch.device,
) -> Ensemble | None:
    """The ensemble of two of the models with the least error, calibrated.

    Args:
        models: the best first; of one network each, and of one input shape.
        held_out: (M, H, W, 3) uint8 defect-free images that none of them was trained on.
        criterion: that they were judged by; not the reconstruction error, which tells
            nothing about an ensemble.
        device: where they run.

    Returns:
        None if no pair is clearly better than the best model, or nothing could be judged.
    """
    first = models[0]
    least = first.calibration.selection.error
    if least is None or len(models) < 2:
        return None
    precision, wanted = first.precision("auto", device), first.recipe.anomaly_map
    references = held_out[:MOST_REFERENCES]
    seen = [
        criterion.gather([model.build(device)], references, wanted, precision) for model in models
    ]
    errors: dict[tuple[int, int], float] = {}
    for pair in itertools.combinations(range(len(models)), 2):
        joined = _joined(*(seen[number] for number in pair))
        error = criterion.judge(joined, wanted).selection.error
        if error is not None:
            errors[pair] = error
    found = min(errors, key=lambda pair: errors[pair], default=None)
    if found is None or errors[found] > (1 - LEAST_GAIN) * least:
        return None
    one, other = (models[number] for number in found)
    return Ensemble(*found, _ensemble(one, other, held_out, criterion, device, precision))


def _ensemble(
    one: ModelArtifact,
    other: ModelArtifact,
    held_out: Tensor,
    criterion: Criterion,
    device: torch.device,
    precision: torch.dtype,
) -> ModelArtifact:
    calibration, average_map = calibrate(
        [one.build(device), other.build(device)],
        held_out,
        held_out[:0],
        one.recipe,
        precision,
        one.facts.seed,
        criterion,
    )
    facts = one.facts.model_copy(
        update={
            "training_key": f"{one.facts.training_key}+{other.facts.training_key}",
            "precision": PRECISION_NAMES[precision],
            "images_seen": one.facts.images_seen + other.facts.images_seen,
            "seconds": one.facts.seconds + other.facts.seconds,
        }
    )
    return ModelArtifact(
        category=one.category,
        version=new_version(),
        recipe=one.recipe,
        partner=other.recipe,
        calibration=calibration,
        facts=facts,
        weights=(one.weights[0], other.weights[0]),
        average_map=average_map,
        history=one.history,
    )


def _joined(
    one: Mapping[Difference, Evidence], other: Mapping[Difference, Evidence]
) -> dict[Difference, Evidence]:
    """The evidence of both models on the same images, as of an ensemble."""
    return {kind: one[kind].joined_with(other[kind]) for kind in one}
