"""Chooses the best settings of the anomaly map, without retraining and without test labels.

The difference maps of a trained network are computed once, for images without and with a defect.
All settings are then tried on these maps, so that thousands of settings cost little more than a
few. Every smoothing is computed once, each repetition from the one before, and shared by all
settings that differ in nothing else.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from ssray.calibration.evidence import Evidence, JudgedOn
from ssray.config import AnomalyMap, Difference, ImageScore, MapSettings
from ssray.method.anomaly_map import MapMaker, image_scores, smooth
from ssray.metrics.images import image_auroc
from ssray.metrics.pixels import pixel_auroc

KERNEL_SHARES = (0.015, 0.025, 0.04, 0.06, 0.09, 0.13, 0.18, 0.25)
"""Sides of the mean filter to choose from, as shares of the image's shorter side."""
DIFFERENCES: tuple[Difference, ...] = ("squared", "ssim", "both")
"""The kinds of difference to choose from."""
ABOUT_EQUAL = 0.1
"""Settings count as equally good if their error is at most this share above the lowest."""
PLAIN_KERNEL_SHARE = 0.05
"""The side of the mean filter where none is chosen, as a share of the image's shorter side.

The defects to come have no known size, and synthetic ones favour filters as wide as they are made:
left to them, 0.25 was chosen for MVTec AD cookie and hazelnut, and pixel AUROC fell by 0.04.
"""
PLAIN_DIFFERENCE: Difference = "both"
"""The difference where none is chosen."""
SIDE = 128
"""About how many pixels the shorter side of a map has when settings are compared."""
MIN_SHORTFALL = 1e-4
"""How far below 1 an AUROC counts as at least: so few images can't tell finer differences."""


class Choice(BaseModel):
    """How the anomaly map's settings were chosen, for the artifact and the report.

    Attributes:
        tried: how many settings there were to choose from; None in models of earlier versions.
        basis: what they were judged on; ``recipe`` if there was nothing to judge on.
        defects: how many images with a defect they were judged on.
        image_auroc: the image AUROC of the chosen settings; None without defects.
        pixel_auroc: the pixel AUROC of the chosen settings; None without defects or masks.
        error: the error of the model with these settings, which a search minimises; None if nothing
            could be judged.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    basis: JudgedOn
    defects: int
    image_auroc: float | None
    pixel_auroc: float | None
    error: float | None = None
    tried: int | None = None


@dataclass(frozen=True)
class Candidate:
    """Settings of the anomaly map that were tried, and how well they find the defects.

    Attributes:
        settings: the settings.
        image_auroc: how well image scores tell images with a defect from defect-free ones; NaN
            without defects.
        pixel_auroc: how well map values tell defective pixels from all others; NaN without masks.
    """

    settings: MapSettings
    image_auroc: float
    pixel_auroc: float

    @property
    def error(self) -> float:
        """How bad the settings are: (1 - image AUROC) * (1 - pixel AUROC).

        Without masks the image AUROC takes the place of the pixel AUROC.
        """
        image = max(1 - self.image_auroc, MIN_SHORTFALL)
        if np.isnan(self.pixel_auroc):
            return image * image
        return image * max(1 - self.pixel_auroc, MIN_SHORTFALL)


@dataclass(frozen=True)
class Grid:
    """The settings to try; an empty field keeps the recipe's, and so does what the recipe states.

    Attributes:
        differences: the kinds of difference.
        kernels: the sides of the mean filter, as shares of the image's shorter side.
        repeats: how often the mean filter is applied, n in equation (3).
        powers: the powers of the average map, t in equation (14).
        reductions: how a map becomes the image score, each with the share of pixels for ``topk``.
    """

    differences: tuple[Difference, ...] = DIFFERENCES
    kernels: tuple[float, ...] = KERNEL_SHARES
    repeats: tuple[int, ...] = ()
    powers: tuple[float, ...] = ()
    reductions: tuple[tuple[ImageScore, float], ...] = ()

    def kinds(self, wanted: AnomalyMap) -> tuple[Difference, ...]:
        """The kinds of difference to try for a recipe."""
        return (wanted.difference,) if wanted.difference else self.differences

    def candidates(
        self, evidence: Mapping[Difference, Evidence], wanted: AnomalyMap
    ) -> list[MapSettings]:
        """Lists all combinations of settings to try, each once.

        Args:
            evidence: the difference maps, whose size decides the kernels.
            wanted: the recipe's settings; None for difference or kernel tries all of these.
        """
        kinds = self.kinds(wanted)
        kernels = kernels_of(self.kernels, evidence[kinds[0]])
        found = {
            MapSettings(
                difference=kind,
                kernel=kernel,
                repeats=repeats,
                relative=wanted.relative,
                join=wanted.join,
                average_power=power,
                image_score=reduction,
                top_fraction=share,
            ): None
            for kind in kinds
            for kernel in ([wanted.kernel] if wanted.kernel else kernels)
            for repeats in self.repeats or (wanted.repeats,)
            for power in self.powers or (wanted.average_power,)
            for reduction, share in self.reductions or ((wanted.image_score, wanted.top_fraction),)
        }
        return list(found)


PLAIN = Grid((PLAIN_DIFFERENCE,), (PLAIN_KERNEL_SHARE,))
"""Nothing to choose: what a model gets that is compared with no other."""
NARROW = Grid()
"""Difference and kernel."""
WIDE = Grid(
    repeats=(1, 2, 3),
    powers=(0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0),
    reductions=(("max", 0.001), ("topk", 0.005), ("sum", 0.001)),
)
"""These are 2,160 combinations if difference and kernel are open."""
GRIDS = {"plain": PLAIN, "narrow": NARROW, "wide": WIDE}


def choose(
    judged: Sequence[Candidate], evidence: Mapping[Difference, Evidence], settings: AnomalyMap
) -> tuple[MapSettings, Choice]:
    """Chooses from settings that were judged.

    The kind of difference is that of the settings with the lowest ``Candidate.error``. Of all
    settings with this difference that are about equally good, those are preferred that depart least
    from the recipe's repetitions, average map and image score, and of these the one with the widest
    filter: people outline real defects more generously than synthetic ones are made, and a wider
    filter leaves less noise.

    Args:
        judged: what ``judge`` found of all settings of a grid.
        evidence: the difference maps that they were judged on, by kind.
        settings: the recipe's settings; those that are None are open.

    Returns:
        The chosen settings, and how they were chosen.
    """
    some = next(iter(evidence.values()))
    if not len(some.defects):
        [kernel] = kernels_of((PLAIN_KERNEL_SHARE,), some)
        kind = settings.difference or PLAIN_DIFFERENCE
        chosen = _filled_in(settings, kind, settings.kernel or kernel)
        return chosen, Choice(basis="recipe", defects=0, image_auroc=None, pixel_auroc=None)
    least = min(judged, key=lambda each: each.error)
    best = min(
        (
            each
            for each in judged
            if each.settings.difference == least.settings.difference
            and each.error <= (1 + ABOUT_EQUAL) * least.error
        ),
        key=lambda each: (_departures(each.settings, settings), -each.settings.kernel, each.error),
    )
    return best.settings, Choice(
        basis=some.basis,
        defects=len(some.defects),
        image_auroc=best.image_auroc,
        pixel_auroc=None if np.isnan(best.pixel_auroc) else best.pixel_auroc,
        error=best.error,
        tried=len(judged),
    )


def _departures(found: MapSettings, wanted: AnomalyMap) -> int:
    """Counts the settings that differ from the recipe's, difference and kernel apart."""
    return sum(
        getattr(found, name) != getattr(wanted, name)
        for name in ("repeats", "average_power", "image_score", "top_fraction")
    )


def _filled_in(settings: AnomalyMap, difference: Difference, kernel: int) -> MapSettings:
    found = {"difference": difference, "kernel": kernel}
    return MapSettings.model_validate(settings.model_dump() | found)


def judge(
    evidence: Mapping[Difference, Evidence], candidates: Sequence[MapSettings], threads: int = 1
) -> list[Candidate]:
    """Judges many settings of the anomaly map on the same difference maps.

    Args:
        evidence: the maps for every kind of difference among the candidates.
        candidates: the settings to judge, in any order.
        threads: how many kernels to work on at once.

    Returns:
        What each candidate is worth, in their order.
    """
    groups = defaultdict[tuple[Difference, int], list[int]](list)
    for number, settings in enumerate(candidates):
        groups[settings.difference, settings.kernel].append(number)

    def judge_group(key: tuple[Difference, int]) -> list[tuple[int, Candidate]]:
        members = {number: candidates[number] for number in groups[key]}
        return list(_judge_one_kernel(evidence[key[0]], members))

    with ThreadPoolExecutor(threads) as pool:
        judged = dict(pair for pairs in pool.map(judge_group, groups) for pair in pairs)
    return [judged[number] for number in range(len(candidates))]


def _judge_one_kernel(
    evidence: Evidence, candidates: Mapping[int, MapSettings]
) -> Iterator[tuple[int, Candidate]]:
    """Judges settings that share difference and kernel; yields each with its number."""
    clean = len(evidence.clean)
    stride = max(1, min(evidence.clean.shape[2:]) // SIDE)
    labels = np.repeat([0, 1], [clean, len(evidence.defects)])
    none = evidence.truth.new_zeros((clean, *evidence.truth.shape[1:]))
    truth = torch.cat([none, evidence.truth])[..., ::stride, ::stride].cpu().numpy()
    smoothed, known = torch.cat([evidence.clean, evidence.defects]), evidence.fitted_on
    mean = None if evidence.mean is None else evidence.mean[None]
    done = 0

    def costly(number: int) -> tuple[int, float]:
        return candidates[number].repeats, candidates[number].average_power

    for (repeats, _), members in itertools.groupby(sorted(candidates, key=costly), costly):
        numbers = list(members)
        settings = candidates[numbers[0]]
        smoothed = smooth(smoothed, settings.kernel, repeats - done)
        if known is not None:
            known = smooth(known, settings.kernel, repeats - done)
        if mean is not None:
            mean = smooth(mean, settings.kernel, repeats - done)
        done = repeats
        fitted_to = smoothed[:clean] if known is None else known
        maker = MapMaker.fitted_to_smoothed(settings, fitted_to, None if mean is None else mean[0])
        maps = maker.joined(smoothed, stride)
        pixel = pixel_auroc(maps.cpu().numpy(), truth)
        for number in numbers:
            settings = candidates[number]
            scores = image_scores(maps, settings.image_score, settings.top_fraction)
            yield number, Candidate(settings, image_auroc(labels, scores.cpu().numpy()), pixel)


def kernels_of(shares: Sequence[float], evidence: Evidence) -> list[int]:
    """Turns shares of the maps' shorter side into odd numbers of pixels."""
    side = min(evidence.clean.shape[2:])
    return [round(share * side) // 2 * 2 + 1 for share in shares]
