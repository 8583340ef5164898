"""How good a trained model is, decided without the test set: what a search minimises.

Synthetic defects are the default. Whoever has labelled images apart from the test set may use
these; the plain reconstruction error is there to compare with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ssray.calibration.evidence import (
    DefectSource,
    Evidence,
    LabelledImage,
    SyntheticDefects,
    gather_evidence,
    read_labelled,
)
from ssray.calibration.map_settings import (
    NARROW,
    Candidate,
    Choice,
    Grid,
    choose,
    judge,
    open_differences,
)
from ssray.config import AnomalyMap, Basis, Difference, MapSettings, Recipe
from ssray.method.inference import evaluating, image_batches, reconstruct

_BATCH = 8


@dataclass(frozen=True)
class Result:
    """What an examination found.

    Attributes:
        settings: of the anomaly map, all chosen.
        selection: how.
        evidence: that they were judged on.
        judged: every candidate.
    """

    settings: MapSettings
    selection: Choice
    evidence: dict[Difference, Evidence]
    judged: Sequence[Candidate]


class Criterion(BaseModel):
    """What the models of one category are compared by.

    Attributes:
        by: synthetic or labelled defects, by ``Candidate.error``; or the mean squared error of
            reconstructing defect-free images, while the settings of the map are chosen on synthetic
            defects.
        radius: of the synthetic defects, shares of the image's shorter side: one and the same for
            all models that are compared.
        seed: of the synthetic defects.
        labelled: the validation set.
        labelled_fingerprint: of its images and masks, so that changed ones are noticed.
        grid: settings of the map to try beside difference and kernel.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: Basis = "synthetic"
    radius: tuple[float, float]
    seed: int
    labelled: tuple[LabelledImage, ...] = ()
    labelled_fingerprint: str = ""
    grid: Grid = NARROW

    @classmethod
    def of(cls, recipe: Recipe, seed: int) -> Criterion:
        """For a model alone: synthetic defects of the sizes it was taught to repair."""
        return cls(radius=recipe.corruption.patches.radius, seed=seed)

    def examine(
        self,
        networks: Sequence[nn.Module],
        references: Tensor,
        wanted: AnomalyMap,
        precision: torch.dtype,
        threads: int = 1,
    ) -> Result:
        """Judges networks, and chooses what ``wanted`` leaves open.

        Args:
            networks: in any mode; several for an ensemble.
            references: (M, H, W, 3) uint8 defect-free images.
            wanted: of the anomaly map.
            precision: of the forward pass.
            threads: how many settings to judge at once.

        Raises:
            DataError: if no defective image of the validation set can be used.
        """
        evidence = self.gather(networks, references, wanted, precision)
        examined = self.judge(evidence, wanted, threads)
        if self.by != "reconstruction":
            return examined
        with evaluating(*networks):
            error = _squared_error(networks, references, precision)
        selection = examined.selection.model_copy(update={"error": error})
        return dataclasses.replace(examined, selection=selection)

    def gather(
        self,
        networks: Sequence[nn.Module],
        references: Tensor,
        wanted: AnomalyMap,
        precision: torch.dtype,
    ) -> dict[Difference, Evidence]:
        """The difference maps to judge settings on; arguments and errors as of ``examine``."""
        source: DefectSource = SyntheticDefects(self.radius, self.seed)
        clean = references
        if self.by == "labelled":
            good, source = read_labelled(self.labelled, references)
            clean = torch.cat([references, good])
        with evaluating(*networks):
            evidence = gather_evidence(networks, clean, open_differences(wanted), precision, source)
        if len(clean) == len(references):
            return evidence
        return {
            kind: dataclasses.replace(seen, fitted_on=seen.clean[: len(references)])
            for kind, seen in evidence.items()
        }

    def judge(
        self, evidence: dict[Difference, Evidence], wanted: AnomalyMap, threads: int = 1
    ) -> Result:
        """Judges settings on what was gathered, by images with a defect and without."""
        judged = judge(evidence, self.grid.candidates(evidence, wanted), threads)
        return Result(*choose(judged, evidence, wanted), evidence, judged)


def _squared_error(networks: Sequence[nn.Module], images: Tensor, precision: torch.dtype) -> float:
    """Mean over the networks, images and pixel values."""
    device = next(networks[0].parameters()).device
    total = 0.0
    for batch in image_batches(images, _BATCH, device):
        for network in networks:
            error = (reconstruct(network, batch, precision) - batch).square().mean()
            total += float(error) * len(batch)
    return total / (len(images) * len(networks))
