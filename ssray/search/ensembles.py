"""Finds two trained models that make a good ensemble: both maps joined, pixel by pixel.

Section 4.3 of the paper describes such ensembles. Finding one needs no training: each model's
difference maps are computed once, and for every pair of models all settings of the anomaly map are
tried on the maps of both, as for a single model.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssray.calibration.calibrate import MAX_REFERENCES, calibrate
from ssray.calibration.criterion import Criterion
from ssray.calibration.evidence import Evidence
from ssray.config import Difference
from ssray.method.inference import Reconstructor
from ssray.models.artifact import ModelArtifact, new_version
from ssray.models.device import PRECISION_NAMES

MIN_GAIN = 0.1
"""By what share an ensemble's error must be below the best model's: it takes twice as long."""


@dataclass(frozen=True)
class Ensemble:
    """An ensemble of two models.

    Attributes:
        first: the number of the first model, counted from 0.
        second: the number of the second model.
        model: the ensemble as a model of two networks.
    """

    first: int
    second: int
    model: ModelArtifact


def best_ensemble(
    models: Sequence[ModelArtifact],
    held_out: Tensor,
    training: Tensor,
    criterion: Criterion,
    device: torch.device,
) -> Ensemble | None:
    """Finds the two models whose ensemble has the lowest error, and calibrates the ensemble.

    Args:
        models: the models, the best one first; each has one network, and all one input shape and
            the same linear autoencoder, or none.
        held_out: (M, H, W, 3) uint8 defect-free images that none of them was trained on.
        training: (N, H, W, 3) uint8 images that they were trained on.
        criterion: what they were judged by; not the reconstruction error, which says nothing about
            an ensemble.
        device: where to run the networks.

    Returns:
        The ensemble; None if no pair is better than the best model by ``MIN_GAIN``, or nothing
        could be judged.
    """
    first = models[0]
    lowest = first.calibration.selection.error
    if lowest is None or len(models) < 2:
        return None
    precision, wanted = first.precision("auto", device), first.recipe.anomaly_map
    references = held_out[:MAX_REFERENCES]
    seen_before = training if wanted.relative else None

    comparers = first.build_comparers(device)

    def seen_by(network: nn.Module) -> dict[Difference, Evidence]:
        alone = Reconstructor([network], precision, comparers=comparers)
        return criterion.gather(alone, references, wanted, seen_before, first.framing)

    seen = [seen_by(model.build(device)) for model in models]
    linear, neighbours = first.build_linear(device), first.build_neighbours(device)
    shared = [seen_by(linear)] if linear else []
    if neighbours:
        alone = Reconstructor([], precision, neighbours)
        shared.append(criterion.gather(alone, references, wanted, seen_before, first.framing))
    errors: dict[tuple[int, int], float] = {}
    for pair in itertools.combinations(range(len(models)), 2):
        joined = functools.reduce(_joined, [*(seen[number] for number in pair), *shared])
        error = criterion.judge(joined, wanted).selection.error
        if error is not None:
            errors[pair] = error
    found = min(errors, key=lambda pair: errors[pair], default=None)
    if found is None or errors[found] > (1 - MIN_GAIN) * lowest:
        return None
    one, other = (models[number] for number in found)
    return Ensemble(*found, _ensemble(one, other, held_out, training, criterion, device, precision))


def _ensemble(
    one: ModelArtifact,
    other: ModelArtifact,
    held_out: Tensor,
    training: Tensor,
    criterion: Criterion,
    device: torch.device,
    precision: torch.dtype,
) -> ModelArtifact:
    """Calibrates two models together and makes one model of both."""
    networks, linear = [one.build(device), other.build(device)], one.build_linear(device)
    calibration, places = calibrate(
        Reconstructor(
            [*networks, linear] if linear else networks,
            precision,
            one.build_neighbours(device),
            one.build_comparers(device),
        ),
        held_out,
        training,
        one.recipe,
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
        linear=one.linear,
        neighbours=one.neighbours,
        by_features=one.by_features,
        places=places,
        history=one.history,
    )


def _joined(
    one: Mapping[Difference, Evidence], other: Mapping[Difference, Evidence]
) -> dict[Difference, Evidence]:
    """Joins the evidence of two models on the same images, for each kind of difference."""
    return {kind: one[kind].joined_with(other[kind]) for kind in one}
