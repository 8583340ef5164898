"""Chooses the best settings of the anomaly map, without retraining and without test labels.

The difference maps of a trained network are computed once, for images without and with a defect.
All settings are then tried on these maps (``ssray.calibration.candidates``). The plain ones are
always among them, and stay unless others are clearly better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict

from ssray.calibration.candidates import Candidate, is_clearly_lower
from ssray.calibration.evidence import Evidence, JudgedOn
from ssray.config import AnomalyMap, Difference, Experts, ImageScore, MapSettings

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
        uncertainty: the standard error of the error's logarithm; None where there is no error, and
            in models of earlier versions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    basis: JudgedOn
    defects: int
    image_auroc: float | None
    pixel_auroc: float | None
    error: float | None = None
    tried: int | None = None
    uncertainty: float | None = None


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
        if wanted.difference:
            return (wanted.difference,)
        return tuple(dict.fromkeys((PLAIN_DIFFERENCE, *self.differences)))

    def candidates(
        self, evidence: Mapping[Difference, Evidence], wanted: AnomalyMap
    ) -> list[MapSettings]:
        """Lists all combinations of settings to try, each once, and the plain ones.

        Args:
            evidence: the difference maps, whose size decides the kernels.
            wanted: the recipe's settings; None for difference or kernel tries all of these.
        """
        kinds = self.kinds(wanted)
        kernels = kernels_of(self.kernels, evidence[kinds[0]])
        experts = experts_of(wanted, evidence[kinds[0]])
        found = {
            MapSettings(
                difference=kind,
                kernel=kernel,
                repeats=repeats,
                relative=wanted.relative,
                join=wanted.join,
                experts=whose,
                average_power=power,
                image_score=reduction,
                top_fraction=share,
            ): None
            for kind in kinds
            for whose in experts
            for kernel in ([wanted.kernel] if wanted.kernel else kernels)
            for repeats in self.repeats or (wanted.repeats,)
            for power in self.powers or (wanted.average_power,)
            for reduction, share in self.reductions or ((wanted.image_score, wanted.top_fraction),)
        }
        return list({plain_settings(evidence, wanted): None, **found})


PLAIN = Grid((PLAIN_DIFFERENCE,), (PLAIN_KERNEL_SHARE,))
"""Nothing to choose: what a model gets that is compared with no other."""
NARROW = Grid()
"""Difference and kernel."""
REPEATS = (1, 2, 3)
"""The repetitions n to choose from."""
NT = Grid((PLAIN_DIFFERENCE,), (PLAIN_KERNEL_SHARE,), REPEATS, (0.0, 0.5, 1.0, 2.0, 4.0))
"""Repetitions n and power t of the average map: 15 combinations."""
WIDE = Grid(
    repeats=REPEATS,
    powers=(0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0),
    reductions=(("max", 0.001), ("topk", 0.005), ("sum", 0.001)),
)
"""These are 2,160 combinations if difference and kernel are open."""
GRIDS = {"plain": PLAIN, "nt": NT, "narrow": NARROW, "wide": WIDE}


EXPERTS_TRIED = 3
"""How many settings there are to choose from where only the experts are open."""


def experts_of(wanted: AnomalyMap, evidence: Evidence) -> tuple[Experts | None, ...]:
    """Whose maps to try, the plain choice first; None where there are no neighbours.

    >>> import torch
    >>> maps = torch.empty(0, 2, 8, 8)
    >>> experts_of(AnomalyMap(), Evidence(maps, maps, maps.bool(), neighbours=True))
    ('joined', 'autoencoders', 'neighbours')
    """
    if not evidence.neighbours:
        return (None,)
    return (wanted.experts,) if wanted.experts else ("joined", "autoencoders", "neighbours")


def plain_settings(evidence: Mapping[Difference, Evidence], wanted: AnomalyMap) -> MapSettings:
    """The recipe's settings, with the plain difference, kernel and experts where it leaves these
    open.
    """
    some = next(iter(evidence.values()))
    [kernel] = kernels_of((PLAIN_KERNEL_SHARE,), some)
    found = {
        "difference": wanted.difference or PLAIN_DIFFERENCE,
        "kernel": wanted.kernel or kernel,
        "experts": experts_of(wanted, some)[0],
    }
    return MapSettings.model_validate(wanted.model_dump() | found)


def choose(
    judged: Sequence[Candidate], evidence: Mapping[Difference, Evidence], settings: AnomalyMap
) -> tuple[MapSettings, Choice]:
    """Chooses from settings that were judged.

    The plain ones stay unless the error of others is lower by more than its standard error. Then
    difference and experts are those of the settings with the lowest ``Candidate.error``. Of all
    settings with these that are about equally good, those are preferred that depart least
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
    plain = plain_settings(evidence, settings)
    good, defective = len(some.clean), len(some.defects)
    if not defective:
        return plain, Choice(basis="recipe", defects=0, image_auroc=None, pixel_auroc=None)
    [stays] = (each for each in judged if each.settings == plain)
    uncertainty = stays.uncertainty(good, defective)
    better = [each for each in judged if is_clearly_lower(each.error, stays.error, uncertainty)]
    best = _preferred(better, settings) if better else stays
    return best.settings, Choice(
        basis=some.basis,
        defects=defective,
        image_auroc=best.image_auroc,
        pixel_auroc=None if np.isnan(best.pixel_auroc) else best.pixel_auroc,
        error=best.error,
        tried=len(judged),
        uncertainty=best.uncertainty(good, defective),
    )


def _preferred(judged: Sequence[Candidate], settings: AnomalyMap) -> Candidate:
    """The settings to take of some, as ``choose`` says."""
    least = min(judged, key=lambda each: each.error)
    about_equal = (
        each
        for each in judged
        if each.settings.difference == least.settings.difference
        and each.settings.experts == least.settings.experts
        and each.error <= (1 + ABOUT_EQUAL) * least.error
    )
    return min(
        about_equal,
        key=lambda each: (_departures(each.settings, settings), -each.settings.kernel, each.error),
    )


def _departures(found: MapSettings, wanted: AnomalyMap) -> int:
    """Counts the settings that differ from the recipe's, difference and kernel apart."""
    return sum(
        getattr(found, name) != getattr(wanted, name)
        for name in ("repeats", "average_power", "image_score", "top_fraction")
    )


def kernels_of(shares: Sequence[float], evidence: Evidence) -> list[int]:
    """Turns shares of the maps' shorter side into odd numbers of pixels."""
    side = min(evidence.clean.shape[2:])
    return [round(share * side) // 2 * 2 + 1 for share in shares]
