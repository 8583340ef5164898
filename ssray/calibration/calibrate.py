"""Calibrates a trained network from defect-free images: map settings, scales and thresholds.

The model is judged on synthetic defects, and a search may choose settings of the anomaly map by
them, which needs no retraining. Scale, average map, pixel threshold and the image scores that new
scores are compared with come from held-out images alone, which the network was not trained on.

The reference images, in which the defects are made, are the held-out images. If these are few,
training images join them: a handful of images that happen to be alike would say less than images
that the network has seen.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ssray.calibration import conformal
from ssray.calibration.criterion import Criterion
from ssray.calibration.evidence import Evidence, mean_differences
from ssray.calibration.map_settings import Choice
from ssray.config import Experts, MapSettings, Recipe
from ssray.data.pose import Framing
from ssray.method.anomaly_map import Joining, MapMaker
from ssray.method.inference import Reconstructor

MIN_REFERENCES = 16
"""With fewer held-out images than this, training images fill up the references."""
MAX_REFERENCES = 32
"""How many held-out images serve as references at most."""


MAX_TRAINING = 128
"""How many training images show what difference is usual at a place, at most."""


@dataclass(frozen=True)
class PlaceMaps:
    """What belongs to a calibration and has a value at every place, for K networks, on the CPU.

    Attributes:
        average: (K, H, W) float32, the average map of equation (14); None if its power is 0.
        usual: (K, H, W) float32, what smoothed maps are divided by; None if they are not.
    """

    average: Tensor | None = None
    usual: Tensor | None = None

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        moved = (None if each is None else each.to(device) for each in (self.average, self.usual))
        return type(self)(*moved)


NOWHERE = PlaceMaps()
"""Of a calibration without any."""


class Calibration(BaseModel):
    """The settings and thresholds that turn a trained network into a model.

    Attributes:
        anomaly_map: the settings of anomaly maps and image scores.
        scale: for each network, the level that its difference maps typically reach on the held-out
            references; maps are divided by it, so that 1 is the worst place of a typical good
            image.
        pixel_threshold: the largest anomaly map value of any held-out reference; a pixel above it
            belongs to the predicted mask.
        reference_images: how many images the model was judged on.
        held_out_references: how many of these the network was not trained on.
        image_scores: the scores of all defect-free images that the network was not trained on,
            rising.
        false_alarm_rate: the share of false alarms that the recipe asked for.
        selection: how ``anomaly_map`` was chosen, and how well it finds the defects it was judged
            on.
        joining: how the maps of two experts become one; None for one expert.
        expert_limits: the score of each expert above which it finds an image unusual by itself.
        defect_scores: the scores of the images with a synthetic defect that the model was judged
            on, by the kind of defect; none where some were made in images that the networks were
            trained on, which have other scores.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    anomaly_map: MapSettings
    scale: tuple[float, ...]
    pixel_threshold: float = Field(gt=0, allow_inf_nan=False)
    reference_images: int
    held_out_references: int
    image_scores: tuple[float, ...] = ()
    false_alarm_rate: float = 0.05
    selection: Choice
    joining: Joining | None = None
    expert_limits: tuple[float, ...] = ()
    defect_scores: dict[str, tuple[float, ...]] = {}

    def map_maker(self, places: PlaceMaps, device: torch.device) -> MapMaker:
        """Makes what turns difference maps into anomaly maps and image scores, on ``device``."""
        scale = torch.tensor(self.scale, device=device)
        there = places.to(device)
        return MapMaker(self.anomaly_map, scale, there.average, there.usual, self.joining)

    @property
    def image_threshold(self) -> float:
        """The score above which an image is flagged; NaN for a model without ``image_scores``."""
        if not self.image_scores:
            return math.nan
        return conformal.threshold(np.array(self.image_scores), self.false_alarm_rate)

    @property
    def flagged(self) -> dict[str, tuple[int, int]]:
        """How many of the synthetic defects of each kind are flagged, and of how many."""
        limit = self.image_threshold
        return {
            kind: (sum(score > limit for score in scores), len(scores))
            for kind, scores in self.defect_scores.items()
        }

    @property
    def supported_rate(self) -> float:
        """The false-alarm rate that holds: the one asked for, or higher if there are few images."""
        return max(self.false_alarm_rate, conformal.lowest_rate(len(self.image_scores)))

    @property
    def experts(self) -> tuple[Experts, ...]:
        """Whose maps count, in the order of ``expert_limits``."""
        whose = self.anomaly_map.experts
        return ("autoencoders", "neighbours") if whose == "joined" else (whose or "autoencoders",)

    def seen_by(self, scores: Sequence[float]) -> Experts:
        """Says which experts find an image unusual that is flagged.

        Args:
            scores: that of each expert.

        Returns:
            The expert whose limit is exceeded; ``joined`` if both are, or none alone.
        """
        above = [
            expert
            for expert, score, limit in zip(self.experts, scores, self.expert_limits, strict=False)
            if score > limit
        ]
        if len(self.experts) == 1:
            return self.experts[0]
        return above[0] if len(above) == 1 else "joined"

    def p_values(self, scores: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """Computes the p-value of each score; NaN for a model without ``image_scores``.

        Args:
            scores: (B,) image scores.

        Returns:
            (B,) float64, as ``ssray.calibration.conformal.p_values`` defines them.
        """
        if not self.image_scores:
            return np.full(len(scores), np.nan)
        return conformal.p_values(scores, np.array(self.image_scores))


def calibrate(
    reconstructor: Reconstructor,
    held_out: Tensor,
    training: Tensor,
    recipe: Recipe,
    seed: int,
    criterion: Criterion | None = None,
    judged: Reconstructor | None = None,
) -> tuple[Calibration, PlaceMaps]:
    """Chooses the map settings that the recipe leaves open, and computes scale and thresholds.

    Args:
        reconstructor: the trained networks, in eval mode; several for an ensemble.
        held_out: (M, H, W, 3) uint8 defect-free images that the networks were not trained on.
        training: (N, H, W, 3) uint8 images that they were trained on: the first ``MAX_TRAINING``
            show what difference is usual. Without a criterion some fill up the references to
            ``MIN_REFERENCES``.
        recipe: the recipe that the networks were trained with.
        seed: the seed of the synthetic defects, if no criterion is given.
        criterion: what several models are compared by; the settings are chosen by it, too, on
            held-out images alone, since training images would favour the model that knows them
            best. Default: ``Criterion.alone``, which chooses none but the experts.
        judged: the same with neighbours that do not know the training images which fill up the
            references (``filling_up``), as they would recognise them; default: ``reconstructor``.

    Returns:
        The calibration, and what belongs to it at every place.
    """
    references = held_out[:MAX_REFERENCES]
    if criterion is None:
        further = filling_up(len(held_out), training, reconstructor.neighbours is not None)
        references = torch.cat([references, training[:further]])
    wanted = recipe.anomaly_map
    seen = training[:MAX_TRAINING] if wanted.relative else None
    criterion = criterion or Criterion.alone(seed)
    framing = Framing.of(recipe, (references.shape[1], references.shape[2]))
    found = criterion.examine(
        judged or reconstructor, references, wanted, training=seen, framing=framing
    )
    settings, selection = found.settings, found.selection
    chosen = found.evidence[settings.difference].of(settings.experts)
    in_use = reconstructor.only(settings.experts)
    unseen = chosen.clean[: min(len(held_out), MAX_REFERENCES)]
    if judged:
        unseen = in_use.stacked(held_out[:MAX_REFERENCES], settings.difference)
    maker = MapMaker.fitted(settings, unseen, chosen.mean)
    scores = _held_out_scores(in_use, maker, unseen, held_out, chosen.mean)
    rate = recipe.decision.false_alarm_rate
    by_expert = maker.scores_by_expert(maker.by_expert(unseen)).cpu().double().numpy()
    calibration = Calibration(
        anomaly_map=settings,
        scale=tuple(maker.scale.tolist()),
        pixel_threshold=float(maker(unseen).max().clamp_min(torch.finfo(torch.float32).tiny)),
        reference_images=len(references),
        held_out_references=len(unseen),
        image_scores=tuple(sorted(scores)),
        false_alarm_rate=rate,
        selection=selection,
        joining=maker.joining,
        expert_limits=tuple(conformal.threshold(own, rate) for own in by_expert.T),
        defect_scores=_by_kind(maker, chosen) if len(unseen) == len(references) else {},
    )
    places = PlaceMaps(maker.average, maker.usual).to(torch.device("cpu"))
    return calibration, places


def cross_fitted(
    calibration: Calibration, folds: Sequence[tuple[Reconstructor, Tensor, Tensor]]
) -> Calibration:
    """Replaces the image scores by those of models that were each trained without one fold.

    Every image is scored by the model that has not seen it, with the scale and average map of the
    other images of its fold. Scores of several models are not strictly exchangeable with those of
    the model in use, so the false-alarm rate holds approximately.

    Args:
        calibration: the calibration of the model in use.
        folds: for each fold its networks, the (M, H, W, 3) uint8 images that they were not trained
            on, and the (N, H, W, 3) uint8 images that they were.
    """
    settings, found = calibration.anomaly_map, list[float]()
    for reconstructor, images, training in folds:
        in_use = reconstructor.only(settings.experts)
        seen = training[:MAX_TRAINING] if settings.relative and in_use.networks else None
        mean = mean_differences(in_use, [settings.difference], seen)
        clean = in_use.stacked(images, settings.difference)
        usual = mean.get(settings.difference)
        found += MapMaker.left_out_scores(settings, clean, usual).tolist()
    return calibration.model_copy(update={"image_scores": tuple(sorted(found))})


def filling_up(held_out: int, training: Tensor, neighbours: bool) -> int:
    """How many training images fill up the references.

    Args:
        held_out: the number of held-out images.
        training: (N, H, W, 3), the training images.
        neighbours: whether there is a memory bank, which half of them then remain for.
    """
    most = len(training) // 2 if neighbours else len(training)
    return min(most, max(0, MIN_REFERENCES - held_out))


def _by_kind(maker: MapMaker, evidence: Evidence) -> dict[str, tuple[float, ...]]:
    """The scores of the images with a defect, by its kind; none if kinds are not known."""
    found = defaultdict[str, list[float]](list)
    if evidence.defect_kinds:
        scores = maker.scores(maker(evidence.defects)).tolist()
        for kind, score in zip(evidence.defect_kinds, scores, strict=True):
            found[kind].append(score)
    return {kind: tuple(scores) for kind, scores in found.items()}


def _held_out_scores(
    reconstructor: Reconstructor,
    maker: MapMaker,
    unseen: Tensor,
    held_out: Tensor,
    mean: Tensor | None,
) -> list[float]:
    """Scores the held-out images as if they were new.

    The scale comes from the held-out images themselves. With one channel and no average map it
    changes no rank, so they may be scored with it. Otherwise each image of ``unseen`` is scored
    with what the others say of channels and places, at the level of all.

    Args:
        reconstructor: the trained networks.
        maker: the map maker that was fitted to ``unseen``.
        unseen: the difference maps of the first held-out images.
        held_out: (M, H, W, 3) uint8, all held-out images.
        mean: the mean difference map of training images, if there is one.
    """
    settings = maker.settings
    fitted_to_them = settings.average_power or (maker.usual is not None and mean is None)
    if unseen.shape[1] == 1 and not fitted_to_them:
        return _scores(reconstructor, maker, held_out)
    scores: list[float] = MapMaker.left_out_scores(settings, unseen, mean, maker.level).tolist()
    further = held_out[len(unseen) :]
    if len(further):
        scores += _scores(reconstructor, maker, further)
    return scores


def _scores(reconstructor: Reconstructor, maker: MapMaker, images: Tensor) -> list[float]:
    """Scores (N, H, W, 3) uint8 images."""
    kind = maker.settings.difference
    scores = [
        maker.scores(maker(reconstructor.differences(batch, kind)))
        for batch in reconstructor.batches(images)
    ]
    found: list[float] = torch.cat(scores).tolist()
    return found
