"""Judges settings of the anomaly map on difference maps that were computed once.

All settings are tried on the same maps, so that thousands of settings cost little more than a few.
Every smoothing is computed once, each repetition from the one before, and shared by all settings
that differ in nothing else.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ssray.calibration.evidence import Evidence
from ssray.config import Difference, Experts, MapSettings
from ssray.method.anomaly_map import MapMaker, image_scores, scaled, smooth
from ssray.metrics.images import image_auroc, standard_error
from ssray.metrics.pixels import pixel_auroc

SIDE = 128
"""About how many pixels the shorter side of a map has when settings are compared."""
MIN_SHORTFALL = 1e-4
"""How far below 1 an AUROC counts as at least: so few images can't tell finer differences."""


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

    def uncertainty(self, good: int, defective: int) -> float:
        """The standard error of log(``error``), that of the two AUROCs together.

        Each is taken for one over images (``ssray.metrics.images.standard_error``), as the pixels
        of a defect are found or missed together. Two models are compared on the same images, so
        their difference is better known than this says.

        Args:
            good: the number of good images that it was judged on.
            defective: the number of images with a defect.

        >>> settings = MapSettings(difference="both", kernel=5)
        >>> round(Candidate(settings, 0.95, 0.97).uncertainty(good=21, defective=90), 2)
        0.62
        """

        def relative(auroc: float) -> float:
            auroc, error = standard_error(auroc, good, defective)
            return error / (1 - auroc)

        image = relative(self.image_auroc)
        if np.isnan(self.pixel_auroc):
            return 2 * image
        return math.hypot(image, relative(self.pixel_auroc))


def is_clearly_lower(error: float, than: float, uncertainty: float | None) -> bool:
    """Whether an error lies below another by more than the standard error of the other's logarithm.

    Args:
        error: of what may be better.
        than: of what it is compared with.
        uncertainty: of the latter; None, as of models of earlier versions, counts as 0.

    >>> is_clearly_lower(0.5, than=1.0, uncertainty=0.6)
    True
    >>> is_clearly_lower(0.6, than=1.0, uncertainty=0.6)
    False
    """
    return error < than * math.exp(-(uncertainty or 0.0))


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
    groups = defaultdict[tuple[Difference, Experts | None, int], list[int]](list)
    for number, settings in enumerate(candidates):
        groups[settings.difference, settings.experts, settings.kernel].append(number)

    def judge_group(key: tuple[Difference, Experts | None, int]) -> list[tuple[int, Candidate]]:
        difference, experts, _ = key
        members = {number: candidates[number] for number in groups[key]}
        return list(_judge_one_kernel(evidence[difference].of(experts), members))

    with ThreadPoolExecutor(threads) as pool:
        judged = dict(pair for pairs in pool.map(judge_group, groups) for pair in pairs)
    return [judged[number] for number in range(len(candidates))]


def _judge_one_kernel(
    evidence: Evidence, candidates: Mapping[int, MapSettings]
) -> Iterator[tuple[int, Candidate]]:
    """Judges settings that share difference, experts and kernel; yields each with its number."""
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
        if maker.average is not None and known is None and clean > 1:
            maps[:clean] = _left_out(maker, maker.average, smoothed[:clean], stride)
        pixel = evidence.over_photographs(pixel_auroc(maps.cpu().numpy(), truth))
        for number in numbers:
            settings = candidates[number]
            scores = image_scores(maps, settings.image_score, settings.top_fraction)
            yield number, Candidate(settings, image_auroc(labels, scores.cpu().numpy()), pixel)


def _left_out(maker: MapMaker, average: Tensor, smoothed: Tensor, stride: int) -> Tensor:
    """The anomaly maps of the images that an average map is the mean of, each as if it were new:
    dimmed by the mean of the others, since its own map would dim it most where it is highest.

    Args:
        maker: was fitted to the images.
        average: its average map, (K, H, W).
        smoothed: (N, K, H, W) smoothed difference maps of the images, N at least 2.
        stride: makes maps from every ``stride``-th row and column alone.
    """
    own = scaled(smoothed if maker.usual is None else smoothed / maker.usual, maker.scale)
    others = (len(own) * average - own) / (len(own) - 1)
    return dataclasses.replace(maker, average=others).joined(smoothed, stride)
