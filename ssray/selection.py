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

from ssray.config import AnomalyMap, Difference, MapSettings
from ssray.method.anomaly_map import MapMaker, difference_maps, image_scores, smooth
from ssray.method.inference import image_batches, reconstruct
from ssray.method.synthetic_defects import add_defects
from ssray.metrics.images import image_auroc
from ssray.metrics.pixels import pixel_auroc

KERNEL_SHARES = (0.015, 0.025, 0.04, 0.06, 0.09, 0.13, 0.18, 0.25)
"""Sides of the mean filter to choose from, as shares of the image's shorter side."""
DIFFERENCES: tuple[Difference, ...] = ("squared", "ssim", "both")
"""Kinds of difference to choose from."""
ABOUT_EQUAL = 0.1
"""Of settings whose errors are at most this share above the least, the widest filter is taken."""
FALLBACK_KERNEL_SHARE = 0.06
"""Where no synthetic defect is perceptible, as on images that are all white."""
SYNTHETIC_DEFECTS = 96
SIDE = 128
"""Maps are sampled down to about this many pixels a side before settings are compared."""
LEAST = 1e-4
"""Of what an AUROC lacks of 1; less is beyond what so few images can tell."""
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

    settings: MapSettings
    image_auroc: float
    pixel_auroc: float

    @property
    def error(self) -> float:
        """To be minimised: the product of what the two AUROC lack of 1."""
        return max(1 - self.image_auroc, LEAST) * max(1 - self.pixel_auroc, LEAST)


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


def open_differences(settings: AnomalyMap) -> tuple[Difference, ...]:
    """The kinds of difference that ``select`` chooses from."""
    return (settings.difference,) if settings.difference else DIFFERENCES


def is_open(settings: AnomalyMap) -> bool:
    """Whether there is anything to choose."""
    return settings.difference is None or settings.kernel is None


def select(
    evidence: Mapping[Difference, Evidence], settings: AnomalyMap
) -> tuple[MapSettings, Selection]:
    """Fills in the difference and the kernel where ``settings`` leave them open.

    The difference is the one with which some kernel best tells images with a synthetic defect from
    defect-free ones, and the pixels of the defects from all others (``Judged.error``). The kernel
    is the largest that does about as well: people outline real defects more generously than
    synthetic ones are made, and a wider filter leaves less noise. The rest is not chosen, as
    synthetic defects say little about it.

    Args:
        evidence: for each of ``open_differences``.
        settings: what is None is open.
    """
    kinds = open_differences(settings)
    count = len(evidence[kinds[0]].defects)
    if not count or not is_open(settings):
        [kernel] = kernels_of((FALLBACK_KERNEL_SHARE,), evidence[kinds[0]])
        chosen = _filled_in(settings, kinds[0], settings.kernel or kernel)
        return chosen, Selection(basis="recipe", defects=0, image_auroc=None, pixel_auroc=None)
    kernels = kernels_of(KERNEL_SHARES, evidence[kinds[0]])
    candidates = [
        _filled_in(settings, kind, kernel)
        for kind in kinds
        for kernel in ([settings.kernel] if settings.kernel else kernels)
    ]
    judged = judge(evidence, candidates)
    least = min(judged, key=lambda each: each.error)
    best = max(
        (
            each
            for each in judged
            if each.settings.difference == least.settings.difference
            and each.error <= (1 + ABOUT_EQUAL) * least.error
        ),
        key=lambda each: each.settings.kernel,
    )
    return best.settings, Selection(
        basis="synthetic defects",
        defects=count,
        image_auroc=best.image_auroc,
        pixel_auroc=best.pixel_auroc,
    )


def _filled_in(settings: AnomalyMap, difference: Difference, kernel: int) -> MapSettings:
    found = {"difference": difference, "kernel": kernel}
    return MapSettings.model_validate(settings.model_dump() | found)


def judge(
    evidence: Mapping[Difference, Evidence], candidates: Sequence[MapSettings], threads: int = 1
) -> list[Judged]:
    """Judges settings of the anomaly map, each as if it were alone.

    Args:
        evidence: for every kind of difference among the candidates.
        candidates: in any order.
        threads: how many smoothings to work on at once.

    Returns:
        One for each candidate, in their order.
    """
    groups = defaultdict[tuple[Difference, int], list[int]](list)
    for number, settings in enumerate(candidates):
        groups[settings.difference, settings.kernel].append(number)

    def judge_group(key: tuple[Difference, int]) -> list[tuple[int, Judged]]:
        members = {number: candidates[number] for number in groups[key]}
        return list(_judge_one_kernel(evidence[key[0]], members))

    with ThreadPoolExecutor(threads) as pool:
        judged = dict(pair for pairs in pool.map(judge_group, groups) for pair in pairs)
    return [judged[number] for number in range(len(candidates))]


def _judge_one_kernel(
    evidence: Evidence, candidates: Mapping[int, MapSettings]
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
        smoothed = smooth(smoothed, settings.kernel, repeats - done)
        done = repeats
        maps = MapMaker.fitted_to_smoothed(settings, smoothed[:clean]).joined(smoothed, stride)
        pixel = pixel_auroc(maps.cpu().numpy(), truth)
        for number in numbers:
            settings = candidates[number]
            scores = image_scores(maps, settings.image_score, settings.top_fraction)
            yield number, Judged(settings, image_auroc(labels, scores.cpu().numpy()), pixel)


def kernels_of(shares: Sequence[float], evidence: Evidence) -> list[int]:
    """Odd sides in pixels, from shares of the maps' shorter side."""
    side = min(evidence.clean.shape[2:])
    return [round(share * side) // 2 * 2 + 1 for share in shares]
