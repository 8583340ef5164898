"""What a trained network needs before it can judge, from defect-free images alone.

The smoothing of the map and the reduction to an image score need no retraining, so they
are chosen here, on synthetic defects; the pixel threshold is what no reference image exceeds, and
the scores of the held-out images tell how unusual a score is.

The reference images are the held-out ones. Where these are few, training images join them:
the choice among settings suffers less from images the network has seen than from two
images that happen to be alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ssray import conformal
from ssray.config import AnomalyMap, ImageScore, Recipe
from ssray.method.anomaly_map import MapMaker, image_scores
from ssray.method.inference import differences, image_batches
from ssray.method.synthetic_defects import add_defects
from ssray.metrics.images import image_auroc
from ssray.metrics.pixels import pixel_auroc

KERNEL_SHARES = (0.015, 0.025, 0.04, 0.06, 0.09, 0.13, 0.18, 0.25)
"""Sides of the mean filter to choose from, as shares of the image's shorter side."""
REDUCTIONS: tuple[tuple[ImageScore, float], ...] = (
    ("max", 1.0),
    ("topk", 0.001),
    ("topk", 0.005),
    ("topk", 0.02),
    ("sum", 1.0),
)
"""Image scores to choose from, with ``top_fraction`` where it counts."""
FALLBACK = (0.06,)
FALLBACK_SCORE: tuple[tuple[ImageScore, float], ...] = (("topk", 0.001),)
"""Where no synthetic defect is perceptible, as on images that are all white."""
LEAST_REFERENCES = 16
MOST_REFERENCES = 32
SYNTHETIC_DEFECTS = 96
SELECTION_SIDE = 128
"""Maps are sampled down to about this many pixels a side while settings are compared."""
_BATCH = 8


class Selection(BaseModel):
    """How the anomaly map's settings were chosen, for the artifact and the report."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    basis: Literal["synthetic defects", "recipe"]
    defects: int
    image_auroc: float | None
    pixel_auroc: float | None


class Calibration(BaseModel):
    """Settings and thresholds that complete a model.

    Attributes:
        anomaly_map: how maps and image scores are made.
        scale: the level each channel of the difference maps reaches on the references.
        pixel_threshold: the largest map value on any reference image; a pixel above it
            belongs to the predicted mask. On the common scale, where 1 is what a reference
            image typically reaches at its worst place.
        reference_images: how many there were.
        held_out_references: how many of them the network was not trained on.
        image_scores: of all images the network was not trained on, rising.
        false_alarm_rate: that the recipe asked for.
        selection: where ``anomaly_map`` came from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    anomaly_map: AnomalyMap
    scale: tuple[float, ...]
    pixel_threshold: float = Field(gt=0, allow_inf_nan=False)
    reference_images: int
    held_out_references: int
    image_scores: tuple[float, ...] = ()
    false_alarm_rate: float = 0.05
    selection: Selection

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
        """As ``ssray.conformal``; NaN for models that have no scores."""
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
) -> tuple[Calibration, Tensor | None]:
    """Chooses what the recipe leaves open of the anomaly map, and the pixel threshold.

    Args:
        networks: in eval mode, on the device to use; several for an ensemble.
        held_out: (M, H, W, 3) uint8 defect-free images the model was not trained on.
        training: (N, H, W, 3) uint8 images it was trained on; the first ones fill up the
            references to 16.
        recipe: what the model was trained with.
        precision: of the forward pass.
        seed: fixes the synthetic defects.

    Returns:
        The calibration, and the average map, (K, H, W) float32, where its power is above 0.
    """
    references = torch.cat(
        [held_out[:MOST_REFERENCES], training[: max(0, LEAST_REFERENCES - len(held_out))]]
    )
    device = next(networks[0].parameters()).device
    settings = recipe.anomaly_map
    clean = torch.cat(
        [
            differences(networks, batch, settings.difference, precision)
            for batch in image_batches(references, _BATCH, device)
        ]
    )
    selection = Selection(basis="recipe", defects=0, image_auroc=None, pixel_auroc=None)
    if settings.kernel is None or settings.image_score is None:
        found = _synthetic_defects(networks, references, recipe, precision, seed)
        defects, truth = found or (clean[:0], clean[:0, :1].bool())
        settings, selection = select_anomaly_map(clean, defects, truth, settings)
    maker = MapMaker.fitted(settings, clean)
    calibration = Calibration(
        anomaly_map=settings,
        scale=tuple(maker.scale.tolist()),
        pixel_threshold=float(maker(clean).max().clamp_min(torch.finfo(torch.float32).tiny)),
        reference_images=len(references),
        held_out_references=min(len(held_out), MOST_REFERENCES),
        image_scores=tuple(sorted(_scores(networks, maker, held_out, precision))),
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

    The maps of each fold's networks are brought to the common scale by its own images. Scores of
    several models are no longer exchangeable with those of the one in use in the strict sense, so
    the false-alarm rate holds approximately.

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
        maker = MapMaker.fitted(settings, torch.cat(clean))
        found += _scores(networks, maker, images, precision)
    return calibration.model_copy(update={"image_scores": tuple(sorted(found))})


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


def select_anomaly_map(
    clean: Tensor, defects: Tensor, truth: Tensor, settings: AnomalyMap
) -> tuple[AnomalyMap, Selection]:
    """Fills in the kernel and the image score where ``settings`` leave them open.

    The kernel is the one with the best pixel AUROC over clean images and images with a synthetic
    defect, the image score the one that then tells these best from those. Of equals the first
    wins, smaller kernels before larger. Difference, repeats and the average map's power are not
    chosen here: synthetic defects are too unlike real ones to decide between those.

    Args:
        clean: (M, K, H, W) difference maps of clean images.
        defects: (D, K, H, W) difference maps of images with a defect; D may be 0.
        truth: (D, 1, H, W) bool, where it is.
        settings: kernel and image score may be None.
    """
    side = min(clean.shape[2:])
    stride = max(1, side // SELECTION_SIDE)
    labels = np.repeat([0, 1], [len(clean), len(defects)])
    shares, reductions = (KERNEL_SHARES, REDUCTIONS) if len(defects) else (FALLBACK, FALLBACK_SCORE)
    kernels = [settings.kernel] if settings.kernel else [_odd(share * side) for share in shares]
    if settings.image_score:
        reductions = ((settings.image_score, settings.top_fraction),)
    references = torch.cat([clean, defects])
    truth = torch.cat([truth.new_zeros((len(clean), 1, *truth.shape[2:])), truth])
    truths = truth[..., ::stride, ::stride].flatten(1).cpu().numpy()
    best: tuple[float, MapMaker] | None = None
    for kernel in kernels:
        maker = MapMaker.fitted(settings.model_copy(update={"kernel": kernel}), clean)
        maps = maker(references)[..., ::stride, ::stride]
        pixel = pixel_auroc(maps.flatten(1).cpu().numpy(), truths)
        if best is None or pixel > best[0]:
            best = pixel, maker
    assert best is not None
    pixel, maker = best
    maps = maker(references)
    image, reduction, top_fraction = -math.inf, *reductions[0]
    for candidate in reductions:
        found = image_auroc(labels, image_scores(maps, *candidate).cpu().numpy())
        if found > image:
            image, (reduction, top_fraction) = found, candidate
    chosen = {"image_score": reduction, "top_fraction": top_fraction}
    return maker.settings.model_copy(update=chosen), Selection(
        basis="synthetic defects" if len(defects) else "recipe",
        defects=len(defects),
        image_auroc=image if len(defects) else None,
        pixel_auroc=pixel if len(defects) else None,
    )


def _synthetic_defects(
    networks: Sequence[nn.Module],
    references: Tensor,
    recipe: Recipe,
    precision: torch.dtype,
    seed: int,
) -> tuple[Tensor, Tensor] | None:
    """Difference maps and ground truth; None if no defect is perceptible.

    The defects are of the sizes that the network was taught to repair.
    """
    device = next(networks[0].parameters()).device
    generator = torch.Generator().manual_seed(seed)
    source = torch.arange(SYNTHETIC_DEFECTS) % len(references)
    # Kinds take turns along a batch, so a fixed order would give every image one kind only.
    source = source[torch.randperm(SYNTHETIC_DEFECTS, generator=generator)]
    maps, truths = [], []
    for batch in image_batches(references[source], _BATCH, device):
        defective, truth = add_defects(batch, generator, recipe.corruption.patches.radius)
        if len(defective):
            maps.append(differences(networks, defective, recipe.anomaly_map.difference, precision))
            truths.append(truth)
    return (torch.cat(maps), torch.cat(truths)) if maps else None


def _odd(pixels: float) -> int:
    return round(pixels) // 2 * 2 + 1
