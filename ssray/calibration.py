"""What a trained network needs before it can judge, from defect-free images alone.

How a map is made from the difference needs no retraining, so it is chosen here, on synthetic
defects; the pixel threshold is what no reference image exceeds.

The reference images are the held-out ones. Where these are few, training images join them:
the choice among settings suffers less from images the network has seen than from two
images that happen to be alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ssray.config import AnomalyMap, Difference, ImageScore, Recipe
from ssray.method.anomaly_map import (
    AverageMap,
    MapMaker,
    combine,
    common_scale,
    image_scores,
    scaled,
    smooth,
    weighted,
)
from ssray.method.inference import differences, image_batches
from ssray.method.synthetic_defects import add_defects
from ssray.metrics.auroc import PixelCounts, image_auroc

DIFFERENCES: tuple[Difference, ...] = ("squared", "ssim", "both")
KERNELS = (3, 5, 7, 9, 11, 15, 21, 31)
REPEATS = (1, 2, 3)
POWERS = (0.0, 1.0, 2.0, 4.0)
REDUCTIONS: tuple[tuple[ImageScore, float], ...] = (
    ("max", 1.0),
    ("topk", 0.001),
    ("topk", 0.005),
    ("topk", 0.02),
    ("sum", 1.0),
)
"""Image scores to choose from, with ``top_fraction`` where it counts."""
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
        selection: where ``anomaly_map`` came from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    anomaly_map: AnomalyMap
    scale: tuple[float, ...]
    pixel_threshold: float = Field(gt=0, allow_inf_nan=False)
    reference_images: int
    held_out_references: int
    selection: Selection


def calibrate(
    networks: Sequence[nn.Module],
    held_out: Tensor,
    training: Tensor,
    recipe: Recipe,
    precision: torch.dtype,
    seed: int,
) -> tuple[Calibration, Tensor | None]:
    """Chooses the anomaly map's settings, if the recipe asks for it, and the pixel threshold.

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
    held_out = held_out[:MOST_REFERENCES]
    references = torch.cat([held_out, training[: max(0, LEAST_REFERENCES - len(held_out))]])
    device = next(networks[0].parameters()).device
    settings = recipe.anomaly_map
    selection = Selection(basis="recipe", defects=0, image_auroc=None, pixel_auroc=None)
    considered: Difference = "both" if recipe.select_map else settings.difference
    clean = torch.cat(
        [
            differences(networks, batch, considered, precision)
            for batch in image_batches(references, _BATCH, device)
        ]
    )
    if recipe.select_map:
        trial = _synthetic_trial(networks, references, clean, precision, seed)
        if len(trial.defects):
            settings, selection = select_anomaly_map(trial, len(networks))
        clean = clean[:, _channels(settings.difference, len(networks))]
    maker = MapMaker.fitted(settings, clean)
    calibration = Calibration(
        anomaly_map=settings,
        scale=tuple(maker.scale.tolist()),
        pixel_threshold=float(maker(clean).max().clamp_min(torch.finfo(torch.float32).tiny)),
        reference_images=len(references),
        held_out_references=len(held_out),
        selection=selection,
    )
    return calibration, None if maker.average is None else maker.average.cpu()


@dataclass(frozen=True)
class Trial:
    """Difference maps on which settings are compared: the squared channels, then the SSIM ones.

    Attributes:
        clean: (N, K, H, W) float32, of the reference images.
        defects: (D, K, H, W) float32, of references with a synthetic defect.
        truth: (D, 1, H, W) bool, where the defect is.
        source: (D,) int64, which reference each was made from.
    """

    clean: Tensor
    defects: Tensor
    truth: Tensor
    source: Tensor

    def smoothed(self, kernel: int, repeats: int, stride: int) -> Trial:
        """Maps under a mean filter, then every ``stride``-th pixel."""
        clean, defects = (smooth(m, kernel, repeats) for m in (self.clean, self.defects))
        return Trial(
            clean[..., ::stride, ::stride],
            defects[..., ::stride, ::stride],
            self.truth[..., ::stride, ::stride],
            self.source,
        )

    def on_scale(self, channels: slice) -> Trial:
        """Some of the channels, on the common scale."""
        scale = common_scale(self.clean[:, channels])
        clean, defects = (scaled(m[:, channels], scale) for m in (self.clean, self.defects))
        return Trial(clean, defects, self.truth, self.source)

    def weighted(self, power: float) -> Trial:
        """Under an average map to which each image's own map does not contribute."""
        averages = AverageMap.of(self.clean).means_without(self.clean)
        return Trial(
            weighted(self.clean, averages, power),
            weighted(self.defects, averages[self.source], power),
            self.truth,
            self.source,
        )


def select_anomaly_map(trial: Trial, networks: int) -> tuple[AnomalyMap, Selection]:
    """The settings that separate synthetic defects best.

    The criterion is the sum of image AUROC (defective against clean images) and pixel AUROC
    (within the defective images). Difference, smoothing and image score are tried in all
    combinations, the average map's power afterwards. Of equals the first wins.

    Args:
        trial: with the channels of both differences.
        networks: how many there are, each with a channel a difference.
    """
    stride = max(1, min(trial.clean.shape[2:]) // SELECTION_SIDE)
    best: _Candidate | None = None
    for kernel, repeats in itertools.product(KERNELS, REPEATS):
        smoothed = trial.smoothed(kernel, repeats, stride)
        for difference in DIFFERENCES:
            settings = AnomalyMap(difference=difference, kernel=kernel, repeats=repeats)
            on_scale = smoothed.on_scale(_channels(difference, networks))
            best = _better(best, _judged(settings, on_scale))
    assert best is not None
    chosen = best.settings
    on_scale = trial.smoothed(chosen.kernel, chosen.repeats, stride).on_scale(
        _channels(chosen.difference, networks)
    )
    for power in POWERS:
        settings = chosen.model_copy(update={"average_power": power})
        best = _better(best, _judged(settings, on_scale.weighted(power)))
    return best.settings, Selection(
        basis="synthetic defects",
        defects=len(trial.defects),
        image_auroc=best.image_auroc,
        pixel_auroc=best.pixel_auroc,
    )


@dataclass(frozen=True)
class _Candidate:
    settings: AnomalyMap
    image_auroc: float
    pixel_auroc: float


def _better(first: _Candidate | None, second: _Candidate) -> _Candidate:
    if first is None or (
        second.image_auroc + second.pixel_auroc > first.image_auroc + first.pixel_auroc
    ):
        return second
    return first


def _judged(settings: AnomalyMap, trial: Trial) -> _Candidate:
    """The settings with the image score that separates best."""
    clean, defects = combine(trial.clean), combine(trial.defects)
    counts = PixelCounts.of(defects.flatten(1).cpu().numpy(), trial.truth.flatten(1).cpu().numpy())
    pixel = counts.auroc()
    labels = np.repeat([0, 1], [len(clean), len(defects)])
    best: _Candidate | None = None
    for reduction, top_fraction in REDUCTIONS:
        scores = image_scores(torch.cat([clean, defects]), reduction, top_fraction)
        with_score = settings.model_copy(
            update={"image_score": reduction, "top_fraction": top_fraction}
        )
        image = image_auroc(labels, scores.cpu().numpy())
        best = _better(best, _Candidate(with_score, image, pixel))
    assert best is not None
    return best


def _channels(difference: Difference, networks: int) -> slice:
    """Where a difference's channels lie among those of both."""
    return {
        "squared": slice(0, networks),
        "ssim": slice(networks, 2 * networks),
        "both": slice(0, 2 * networks),
    }[difference]


def _synthetic_trial(
    networks: Sequence[nn.Module],
    references: Tensor,
    clean: Tensor,
    precision: torch.dtype,
    seed: int,
) -> Trial:
    device = clean.device
    generator = torch.Generator().manual_seed(seed)
    source = torch.arange(SYNTHETIC_DEFECTS) % len(references)
    # Kinds take turns along a batch, so a fixed order would give every image one kind only.
    source = source[torch.randperm(SYNTHETIC_DEFECTS, generator=generator)]
    maps, truths, sources = [], [], []
    for part in source.split(_BATCH):
        [batch] = image_batches(references[part], _BATCH, device)
        defective, truth, visible = add_defects(batch, generator)
        if len(defective):
            maps.append(differences(networks, defective, "both", precision))
            truths.append(truth)
            sources.append(part[visible.cpu()])
    if not maps:
        nothing = clean[:0]
        return Trial(clean, nothing, nothing[:, :1].bool(), source[:0])
    return Trial(clean, torch.cat(maps), torch.cat(truths), torch.cat(sources))
