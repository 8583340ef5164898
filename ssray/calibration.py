"""What a trained network needs before it can judge, from defect-free images alone.

The smoothing of the map and the reduction to an image score need no retraining, so they
are chosen here, on synthetic defects; the pixel threshold is what no reference image exceeds.

The reference images are the held-out ones. Where these are few, training images join them:
the choice among settings suffers less from images the network has seen than from two
images that happen to be alike.
"""

from __future__ import annotations

import itertools
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ssray.config import AnomalyMap, ImageScore, Recipe
from ssray.method.anomaly_map import difference_map, image_scores, smooth
from ssray.method.inference import image_batches, reconstruct
from ssray.method.synthetic_defects import add_defects
from ssray.metrics.auroc import PixelCounts, image_auroc

KERNELS = (3, 5, 7, 9, 11, 15, 21, 31)
REPEATS = (1, 2, 3)
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
        anomaly_map: smoothing and image score in force.
        pixel_threshold: the largest map value on any reference image; a pixel above it
            belongs to the predicted mask. Map units (squared difference).
        reference_images: how many there were.
        held_out_references: how many of them the network was not trained on.
        selection: where ``anomaly_map`` came from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    anomaly_map: AnomalyMap
    pixel_threshold: float = Field(gt=0, allow_inf_nan=False)
    reference_images: int
    held_out_references: int
    selection: Selection


def calibrate(
    model: nn.Module,
    held_out: Tensor,
    training: Tensor,
    recipe: Recipe,
    precision: torch.dtype,
    seed: int,
) -> Calibration:
    """Chooses the anomaly map's settings, if the recipe asks for it, and the pixel threshold.

    Args:
        model: in eval mode, on the device to use.
        held_out: (M, H, W, 3) uint8 defect-free images the model was not trained on.
        training: (N, H, W, 3) uint8 images it was trained on; the first ones fill up the
            references to 16.
        recipe: what the model was trained with.
        precision: of the forward pass.
        seed: fixes the synthetic defects.
    """
    held_out = held_out[:MOST_REFERENCES]
    references = torch.cat([held_out, training[: max(0, LEAST_REFERENCES - len(held_out))]])
    clean = _difference_maps(model, references, precision)
    chosen = recipe.anomaly_map
    selection = Selection(basis="recipe", defects=0, image_auroc=None, pixel_auroc=None)
    if recipe.select_map:
        defects, truth = _synthetic_maps(model, references, precision, seed)
        if len(defects):
            chosen, selection = select_anomaly_map(clean, defects, truth)
    highest = float(smooth(clean, chosen.kernel, chosen.repeats).max())
    return Calibration(
        anomaly_map=chosen,
        pixel_threshold=max(highest, torch.finfo(torch.float32).tiny),
        reference_images=len(references),
        held_out_references=len(held_out),
        selection=selection,
    )


def select_anomaly_map(
    clean: Tensor, defects: Tensor, truth: Tensor
) -> tuple[AnomalyMap, Selection]:
    """The smoothing and reduction that separate synthetic defects best.

    The criterion is the sum of image AUROC (defective against clean images) and pixel AUROC
    (within the defective images). Of equals the first wins, smaller kernels before larger.

    Args:
        clean: (M, 1, H, W) difference maps of clean images.
        defects: (D, 1, H, W) difference maps of images with a defect.
        truth: (D, 1, H, W) bool.
    """
    labels = np.repeat([0, 1], [len(clean), len(defects)])
    best: tuple[float, AnomalyMap, Selection] | None = None
    for kernel, repeats in itertools.product(KERNELS, REPEATS):
        if repeats == REPEATS[0]:
            smooth_clean, smooth_defects = clean, defects
        smooth_clean, smooth_defects = (
            smooth(m, kernel, 1) for m in (smooth_clean, smooth_defects)
        )
        counts = PixelCounts.of(
            smooth_defects.flatten(1).cpu().numpy(), truth.flatten(1).cpu().numpy()
        )
        pixel = counts.auroc()
        for reduction, top_fraction in REDUCTIONS:
            scores = torch.cat(
                [image_scores(m, reduction, top_fraction) for m in (smooth_clean, smooth_defects)]
            )
            image = image_auroc(labels, scores.cpu().numpy())
            if best is None or image + pixel > best[0]:
                settings = AnomalyMap(
                    kernel=kernel,
                    repeats=repeats,
                    image_score=reduction,
                    top_fraction=top_fraction,
                )
                selection = Selection(
                    basis="synthetic defects",
                    defects=len(defects),
                    image_auroc=image,
                    pixel_auroc=pixel,
                )
                best = (image + pixel, settings, selection)
    assert best is not None
    return best[1], best[2]


def _synthetic_maps(
    model: nn.Module, images: Tensor, precision: torch.dtype, seed: int
) -> tuple[Tensor, Tensor]:
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    rounds = -(-SYNTHETIC_DEFECTS // len(images))
    repeated = images.repeat(rounds, 1, 1, 1)[:SYNTHETIC_DEFECTS]
    # Kinds take turns along a batch, so a fixed order would give every image one kind only.
    order = torch.randperm(len(repeated), generator=torch.Generator().manual_seed(seed))
    repeated = repeated[order]
    maps, truths = [], []
    for batch in image_batches(repeated, _BATCH, device):
        defective, truth = add_defects(batch, generator)
        if len(defective):
            maps.append(difference_map(defective, reconstruct(model, defective, precision)))
            truths.append(truth)
    if not maps:
        empty = torch.empty(0, 1, *images.shape[1:3])
        return empty, empty.bool()
    return torch.cat(maps), torch.cat(truths)


def _difference_maps(model: nn.Module, images: Tensor, precision: torch.dtype) -> Tensor:
    device = next(model.parameters()).device
    return torch.cat(
        [
            difference_map(batch, reconstruct(model, batch, precision))
            for batch in image_batches(images, _BATCH, device)
        ]
    )
