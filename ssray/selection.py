"""Which settings of the anomaly map are best: judged without training and without test labels.

A trained network gives difference maps once: of defect-free images, and of the same with a
synthetic defect of a kind that the network was not trained on. Smoothing, difference, average map
and image score follow from these maps alone, so that thousands of settings cost about what a
few would. Every smoothing is computed once, a further repetition from the one before, and shared by
all settings that differ in the rest.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ssray.config import AnomalyMap, Difference, ImageScore
from ssray.method.anomaly_map import MapMaker, difference_maps, image_scores, smooth
from ssray.method.inference import image_batches, reconstruct
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
SYNTHETIC_DEFECTS = 96
SIDE = 128
"""Maps are sampled down to about this many pixels a side before settings are compared."""
_BATCH = 8


class Selection(BaseModel):
    """How the anomaly map's settings were chosen, for the artifact and the report."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    basis: Literal["synthetic defects", "recipe"]
    defects: int
    image_auroc: float | None
    pixel_auroc: float | None


@dataclass(frozen=True)
class Evidence:
    """What settings are judged on, for one kind of difference.

    Attributes:
        clean: (M, K, H, W) float32 difference maps of defect-free images.
        defects: (D, K, H, W) of images with a defect; D may be 0.
        truth: (D, 1, H, W) bool, where it is.
    """

    clean: Tensor
    defects: Tensor
    truth: Tensor


@dataclass(frozen=True)
class Judged:
    """What settings are worth on the evidence; NaN where it has no defects.

    Attributes:
        settings: of the anomaly map.
        image_auroc: of images with and without a defect.
        pixel_auroc: over all pixels of both.
    """

    settings: AnomalyMap
    image_auroc: float
    pixel_auroc: float


def gather_evidence(
    networks: Sequence[nn.Module],
    references: Tensor,
    kinds: Sequence[Difference],
    precision: torch.dtype,
    seed: int,
    radius: tuple[float, float] | None,
) -> dict[Difference, Evidence]:
    """Runs defect-free images through networks, as they are and with synthetic defects.

    Args:
        networks: in eval mode, on the device to use; several for an ensemble.
        references: (M, H, W, 3) uint8 defect-free images.
        kinds: of difference, each with evidence of its own from the same images.
        precision: of the forward pass.
        seed: fixes the defects.
        radius: of the defects, shares of the image's shorter side, best those that the networks
            were taught to repair; None goes without defects.
    """
    device = next(networks[0].parameters()).device
    clean, defects = (defaultdict[Difference, list[Tensor]](list) for _ in range(2))
    truths = []

    def compare(images: Tensor, into: dict[Difference, list[Tensor]]) -> None:
        reconstructions = [reconstruct(network, images, precision) for network in networks]
        for kind in kinds:
            into[kind].append(difference_maps(images, reconstructions, kind))

    for batch in image_batches(references, _BATCH, device):
        compare(batch, clean)
    generator = torch.Generator().manual_seed(seed)
    source = torch.arange(SYNTHETIC_DEFECTS) % len(references)
    # Kinds take turns along a batch, so a fixed order would give every image one kind only.
    source = source[torch.randperm(SYNTHETIC_DEFECTS, generator=generator)]
    if radius:
        for batch in image_batches(references[source], _BATCH, device):
            defective, truth = add_defects(batch, generator, radius)
            if len(defective):
                compare(defective, defects)
                truths.append(truth)
    evidence = {}
    for kind in kinds:
        maps = torch.cat(clean[kind])
        none = maps[:0], maps[:0, :1].bool()
        found = (torch.cat(defects[kind]), torch.cat(truths)) if truths else none
        evidence[kind] = Evidence(maps, *found)
    return evidence


def select(evidence: Evidence, settings: AnomalyMap) -> tuple[AnomalyMap, Selection]:
    """Fills in the kernel and the image score where ``settings`` leave them open.

    The kernel is the one with the best pixel AUROC over clean images and images with a synthetic
    defect, the image score the one that then tells these best from those. Of equals the first
    wins, smaller kernels before larger. Difference, repeats and the average map's power are not
    chosen here: synthetic defects are too unlike real ones to decide between those.

    Args:
        evidence: for the difference of ``settings``.
        settings: kernel and image score may be None.
    """
    count = len(evidence.defects)
    shares, reductions = (KERNEL_SHARES, REDUCTIONS) if count else (FALLBACK, FALLBACK_SCORE)
    kernels = [settings.kernel] if settings.kernel else kernels_of(shares, evidence)
    if settings.image_score:
        reductions = ((settings.image_score, settings.top_fraction),)
    candidates = [
        settings.model_copy(
            update={"kernel": kernel, "image_score": reduction, "top_fraction": fraction}
        )
        for kernel in kernels
        for reduction, fraction in reductions
    ]
    if not count:
        return candidates[0], Selection(
            basis="recipe", defects=0, image_auroc=None, pixel_auroc=None
        )
    judged = judge({settings.difference: evidence}, candidates)
    best_pixel = max(each.pixel_auroc for each in judged)
    kernel = next(each.settings.kernel for each in judged if each.pixel_auroc == best_pixel)
    best = max(
        (each for each in judged if each.settings.kernel == kernel),
        key=lambda each: each.image_auroc,
    )
    return best.settings, Selection(
        basis="synthetic defects",
        defects=count,
        image_auroc=best.image_auroc,
        pixel_auroc=best.pixel_auroc,
    )


def judge(
    evidence: Mapping[Difference, Evidence], candidates: Sequence[AnomalyMap], threads: int = 1
) -> list[Judged]:
    """Judges settings of the anomaly map, each as if it were alone.

    Args:
        evidence: for every kind of difference among the candidates.
        candidates: kernel and image score are set in each.
        threads: how many smoothings to work on at once.

    Returns:
        One for each candidate, in their order.
    """
    groups = defaultdict[tuple[Difference, int], list[int]](list)
    for number, settings in enumerate(candidates):
        assert settings.kernel is not None
        groups[settings.difference, settings.kernel].append(number)

    def judge_group(key: tuple[Difference, int]) -> list[tuple[int, Judged]]:
        members = {number: candidates[number] for number in groups[key]}
        return list(_judge_one_kernel(evidence[key[0]], members))

    with ThreadPoolExecutor(threads) as pool:
        judged = dict(pair for pairs in pool.map(judge_group, groups) for pair in pairs)
    return [judged[number] for number in range(len(candidates))]


def _judge_one_kernel(
    evidence: Evidence, candidates: Mapping[int, AnomalyMap]
) -> Iterator[tuple[int, Judged]]:
    """Judges settings that share their kernel; yields each with its number."""
    clean = len(evidence.clean)
    stride = max(1, min(evidence.clean.shape[2:]) // SIDE)
    labels = np.repeat([0, 1], [clean, len(evidence.defects)])
    none = evidence.truth.new_zeros((clean, *evidence.truth.shape[1:]))
    truth = torch.cat([none, evidence.truth])[..., ::stride, ::stride].cpu().numpy()
    smoothed = torch.cat([evidence.clean, evidence.defects])
    done = 0

    def costly(number: int) -> tuple[int, float]:
        return candidates[number].repeats, candidates[number].average_power

    for (repeats, _), members in itertools.groupby(sorted(candidates, key=costly), costly):
        numbers = list(members)
        settings = candidates[numbers[0]]
        assert settings.kernel is not None
        smoothed = smooth(smoothed, settings.kernel, repeats - done)
        done = repeats
        maps = MapMaker.fitted_to_smoothed(settings, smoothed[:clean]).joined(smoothed, stride)
        pixel = pixel_auroc(maps.cpu().numpy(), truth)
        for number in numbers:
            settings = candidates[number]
            assert settings.image_score is not None
            scores = image_scores(maps, settings.image_score, settings.top_fraction)
            yield number, Judged(settings, image_auroc(labels, scores.cpu().numpy()), pixel)


def kernels_of(shares: Sequence[float], evidence: Evidence) -> list[int]:
    """Odd sides in pixels, from shares of the maps' shorter side."""
    side = min(evidence.clean.shape[2:])
    return [round(share * side) // 2 * 2 + 1 for share in shares]
