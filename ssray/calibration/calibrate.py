"""What a trained network needs before it can judge, from defect-free images alone.

The smoothing of the map and the reduction to an image score need no retraining, so they
are chosen here, on synthetic defects. Scale, average map, pixel threshold and the scores that tell
how unusual a score is come from the held-out images alone.

The reference images, on which settings are chosen, are the held-out ones. Where these are few,
training images join them: the choice suffers less from images the network has seen than from two
images that happen to be alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ssray.calibration import conformal
from ssray.calibration.criterion import Criterion
from ssray.calibration.evidence import gather_evidence
from ssray.calibration.map_settings import Choice, is_open, open_differences, select
from ssray.config import MapSettings, Recipe
from ssray.method.anomaly_map import MapMaker
from ssray.method.inference import differences, image_batches

LEAST_REFERENCES = 16
MOST_REFERENCES = 32
_BATCH = 8


class Calibration(BaseModel):
    """Settings and thresholds that complete a model.

    Attributes:
        anomaly_map: how maps and image scores are made.
        scale: the level each channel of the difference maps reaches on the held-out references.
        pixel_threshold: the largest map value on any of these; a pixel above it belongs to the
            predicted mask. On the common scale, where 1 is what such an image typically reaches at
            its worst place.
        reference_images: on how many the settings were chosen.
        held_out_references: how many of them the network was not trained on.
        image_scores: of all images the network was not trained on, rising.
        false_alarm_rate: that the recipe asked for.
        selection: where ``anomaly_map`` came from.
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

    @property
    def image_threshold(self) -> float:
        """An image with a score above this is flagged; NaN for models that have no scores."""
        if not self.image_scores:
            return math.nan
        return conformal.threshold(np.array(self.image_scores), self.false_alarm_rate)

    @property
    def supported_rate(self) -> float:
        """The false-alarm rate that holds: the one asked for, unless images are too few for it."""
        return max(self.false_alarm_rate, conformal.least_rate(len(self.image_scores)))

    def p_values(self, scores: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """As ``ssray.calibration.conformal``; NaN for models that have no scores."""
        if not self.image_scores:
            return np.full(len(scores), np.nan)
        return conformal.p_values(scores, np.array(self.image_scores))


def calibrate(
    networks: Sequence[nn.Module],
    held_out: Tensor,
    training: Tensor,
    recipe: Recipe,
    precision: torch.dtype,
    seed: int,
    criterion: Criterion | None = None,
) -> tuple[Calibration, Tensor | None]:
    """Chooses what the recipe leaves open of the anomaly map, and the pixel threshold.

    Args:
        networks: in eval mode, on the device to use; several for an ensemble.
        held_out: (M, H, W, 3) uint8 defect-free images the model was not trained on.
        training: (N, H, W, 3) uint8 images it was trained on; the first ones fill up the
            references to 16, unless models are compared: those it knows best would win.
        recipe: what the model was trained with.
        precision: of the forward pass.
        seed: fixes the synthetic defects.
        criterion: what the settings, and models, are chosen by, on held-out images alone; default:
            synthetic defects, for the settings alone.

    Returns:
        The calibration, and the average map, (K, H, W) float32, where its power is above 0.
    """
    references = held_out[:MOST_REFERENCES]
    if criterion is None:
        missing = max(0, LEAST_REFERENCES - len(held_out))
        references = torch.cat([references, training[:missing]])
    wanted = recipe.anomaly_map
    if criterion is None and not is_open(wanted):
        evidence = gather_evidence(networks, references, open_differences(wanted), precision, None)
        settings, selection = select(evidence, wanted)
    else:
        criterion = criterion or Criterion.of(recipe, seed)
        found = criterion.examine(networks, references, wanted, precision)
        settings, selection, evidence = found.settings, found.selection, found.evidence
    unseen = evidence[settings.difference].clean[: min(len(held_out), MOST_REFERENCES)]
    maker = MapMaker.fitted(settings, unseen)
    calibration = Calibration(
        anomaly_map=settings,
        scale=tuple(maker.scale.tolist()),
        pixel_threshold=float(maker(unseen).max().clamp_min(torch.finfo(torch.float32).tiny)),
        reference_images=len(references),
        held_out_references=len(unseen),
        image_scores=tuple(sorted(_held_out_scores(networks, maker, unseen, held_out, precision))),
        false_alarm_rate=recipe.decision.false_alarm_rate,
        selection=selection,
    )
    return calibration, None if maker.average is None else maker.average.cpu()


def cross_fitted(
    calibration: Calibration,
    folds: Sequence[tuple[Sequence[nn.Module], Tensor]],
    precision: torch.dtype,
) -> Calibration:
    """Takes the image scores from models that were each trained without the images they score.

    The maps of each fold's networks are brought to the common scale by its images, each by those of
    the others. Scores of several models are no longer exchangeable with those of the one in use in
    the strict sense, so the false-alarm rate holds approximately.

    Args:
        calibration: of the model in use.
        folds: networks, and the (M, H, W, 3) uint8 images they were not trained on.
        precision: of the forward pass.
    """
    settings, found = calibration.anomaly_map, list[float]()
    for networks, images in folds:
        device = next(networks[0].parameters()).device
        clean = [
            differences(networks, batch, settings.difference, precision)
            for batch in image_batches(images, _BATCH, device)
        ]
        found += MapMaker.left_out_scores(settings, torch.cat(clean)).tolist()
    return calibration.model_copy(update={"image_scores": tuple(sorted(found))})


def _held_out_scores(
    networks: Sequence[nn.Module],
    maker: MapMaker,
    unseen: Tensor,
    held_out: Tensor,
    precision: torch.dtype,
) -> list[float]:
    """Image scores of the (M, H, W, 3) uint8 held-out images, such as new images would get.

    One scale for one network changes no rank, so images may be scored by the scale they made
    themselves. An average map, and the scales that several networks are compared on, may not:
    there each of ``unseen``, their first difference maps, is scored by those of the others.
    """
    if len(networks) == 1 and not maker.settings.average_power:
        return _scores(networks, maker, held_out, precision)
    scores: list[float] = MapMaker.left_out_scores(maker.settings, unseen).tolist()
    further = held_out[len(unseen) :]
    if len(further):
        scores += _scores(networks, maker, further, precision)
    return scores


def _scores(
    networks: Sequence[nn.Module], maker: MapMaker, images: Tensor, precision: torch.dtype
) -> list[float]:
    """Image scores of (N, H, W, 3) uint8 images."""
    device = next(networks[0].parameters()).device
    scores = [
        maker.scores(maker(differences(networks, batch, maker.settings.difference, precision)))
        for batch in image_batches(images, _BATCH, device)
    ]
    found: list[float] = torch.cat(scores).tolist()
    return found
