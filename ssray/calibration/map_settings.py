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
"""Kinds of difference to choose from."""
ABOUT_EQUAL = 0.1
"""Of settings whose errors are at most this share above the least, the widest filter is taken."""
FALLBACK_KERNEL_SHARE = 0.06
"""Where no synthetic defect is perceptible, as on images that are all white."""
SIDE = 128
"""Maps are sampled down to about this many pixels a side before settings are compared."""
LEAST = 1e-4
"""Of what an AUROC lacks of 1; less is beyond what so few images can tell."""


class Choice(BaseModel):
    """How the anomaly map's settings were chosen, for the artifact and the report.

    Attributes:
        basis: what they were judged on; ``recipe`` where there was nothing to choose.
        defects: how many images with a defect there were.
        image_auroc: of the settings chosen, on these; None without defects.
        pixel_auroc: likewise; None without masks, too.
        error: what a search minimises; None where nothing could be judged.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    basis: JudgedOn
    defects: int
    image_auroc: float | None
    pixel_auroc: float | None
    error: float | None = None


@dataclass(frozen=True)
class Candidate:
    """What settings are worth on the evidence; NaN where it has no defects.

    Attributes:
        settings: of the anomaly map.
        image_auroc: of images with and without a defect.
        pixel_auroc: over all pixels of both; NaN where no mask is known.
    """

    settings: MapSettings
    image_auroc: float
    pixel_auroc: float

    @property
    def error(self) -> float:
        """To be minimised: the product of what the two AUROC lack of 1.

        Without masks the square of what the image AUROC lacks.
        """
        image = max(1 - self.image_auroc, LEAST)
        return image * (image if np.isnan(self.pixel_auroc) else max(1 - self.pixel_auroc, LEAST))


@dataclass(frozen=True)
class Grid:
    """Settings to try beside the difference and the kernel; empty means the recipe's alone.

    Attributes:
        repeats: of the mean filter, n.
        powers: of the average map, t.
        reductions: of the map to the image score, each with the share that ``topk`` takes.
    """

    repeats: tuple[int, ...] = ()
    powers: tuple[float, ...] = ()
    reductions: tuple[tuple[ImageScore, float], ...] = ()

    def candidates(
        self, evidence: Mapping[Difference, Evidence], wanted: AnomalyMap
    ) -> list[MapSettings]:
        """All combinations, without those that differ in nothing that matters."""
        kinds = open_differences(wanted)
        kernels = kernels_of(KERNEL_SHARES, evidence[kinds[0]])
        found = {
            MapSettings(
                difference=kind,
                kernel=kernel,
                repeats=repeats,
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


NARROW = Grid()
WIDE = Grid(
    repeats=(1, 2, 3),
    powers=(0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0),
    reductions=(("max", 0.001), ("topk", 0.005), ("sum", 0.001)),
)
"""2,160 settings for every model, where kind of difference and kernel are open."""
GRIDS = {"narrow": NARROW, "wide": WIDE}


def open_differences(settings: AnomalyMap) -> tuple[Difference, ...]:
    """The kinds of difference that ``select`` chooses from."""
    return (settings.difference,) if settings.difference else DIFFERENCES


def is_open(settings: AnomalyMap) -> bool:
    """Whether there is anything to choose."""
    return settings.difference is None or settings.kernel is None


def select(
    evidence: Mapping[Difference, Evidence], settings: AnomalyMap, grid: Grid = NARROW
) -> tuple[MapSettings, Choice]:
    """Fills in the difference and the kernel where ``settings`` leave them open.

    The difference is the one with which some settings best tell images with a defect from
    defect-free ones, and the pixels of the defects from all others (``Candidate.error``). Of
    settings with this difference that do about as well, those are taken that depart least from the
    recipe's repetitions, average map and image score, and of these the widest filter: people
    outline real defects more generously than synthetic ones are made, and a wider filter leaves
    less noise.

    Args:
        evidence: for each of ``open_differences``.
        settings: what is None is open.
        grid: what else to try.
    """
    return choose(judge(evidence, grid.candidates(evidence, settings)), evidence, settings)


def choose(
    judged: Sequence[Candidate], evidence: Mapping[Difference, Evidence], settings: AnomalyMap
) -> tuple[MapSettings, Choice]:
    """``select`` from candidates that were judged."""
    some = evidence[open_differences(settings)[0]]
    if not len(some.defects):
        [kernel] = kernels_of((FALLBACK_KERNEL_SHARE,), some)
        chosen = _filled_in(settings, open_differences(settings)[0], settings.kernel or kernel)
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
        basis=some.basis if len(judged) > 1 else "recipe",
        defects=len(some.defects),
        image_auroc=best.image_auroc,
        pixel_auroc=None if np.isnan(best.pixel_auroc) else best.pixel_auroc,
        error=best.error,
    )


def _departures(found: MapSettings, wanted: AnomalyMap) -> int:
    """How many settings are not the recipe's, of those that it always states."""
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

    def judge_group(key: tuple[Difference, int]) -> list[tuple[int, Candidate]]:
        members = {number: candidates[number] for number in groups[key]}
        return list(_judge_one_kernel(evidence[key[0]], members))

    with ThreadPoolExecutor(threads) as pool:
        judged = dict(pair for pairs in pool.map(judge_group, groups) for pair in pairs)
    return [judged[number] for number in range(len(candidates))]


def _judge_one_kernel(
    evidence: Evidence, candidates: Mapping[int, MapSettings]
) -> Iterator[tuple[int, Candidate]]:
    """Judges settings that share their kernel; yields each with its number."""
    clean = len(evidence.clean)
    stride = max(1, min(evidence.clean.shape[2:]) // SIDE)
    labels = np.repeat([0, 1], [clean, len(evidence.defects)])
    none = evidence.truth.new_zeros((clean, *evidence.truth.shape[1:]))
    truth = torch.cat([none, evidence.truth])[..., ::stride, ::stride].cpu().numpy()
    smoothed, known = torch.cat([evidence.clean, evidence.defects]), evidence.fitted_on
    done = 0

    def costly(number: int) -> tuple[int, float]:
        return candidates[number].repeats, candidates[number].average_power

    for (repeats, _), members in itertools.groupby(sorted(candidates, key=costly), costly):
        numbers = list(members)
        settings = candidates[numbers[0]]
        smoothed = smooth(smoothed, settings.kernel, repeats - done)
        if known is not None:
            known = smooth(known, settings.kernel, repeats - done)
        done = repeats
        maker = MapMaker.fitted_to_smoothed(settings, smoothed[:clean] if known is None else known)
        maps = maker.joined(smoothed, stride)
        pixel = pixel_auroc(maps.cpu().numpy(), truth)
        for number in numbers:
            settings = candidates[number]
            scores = image_scores(maps, settings.image_score, settings.top_fraction)
            yield number, Candidate(settings, image_auroc(labels, scores.cpu().numpy()), pixel)


def kernels_of(shares: Sequence[float], evidence: Evidence) -> list[int]:
    """Odd sides in pixels, from shares of the maps' shorter side."""
    side = min(evidence.clean.shape[2:])
    return [round(share * side) // 2 * 2 + 1 for share in shares]
