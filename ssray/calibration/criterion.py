"""Judges how good a trained model is, without the test set: the error that a search minimises.

By default models are judged on synthetic defects. Users who have labelled images besides the test
set may use these instead; the plain reconstruction error is offered for comparison.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from ssray.calibration.candidates import Candidate, judge
from ssray.calibration.defect_images import (
    DefectImages,
    LabelledImage,
    read_labelled,
    with_synthetic_defects,
)
from ssray.calibration.evidence import DefectSource, Evidence, SyntheticDefects, gather_evidence
from ssray.calibration.map_settings import NARROW, PLAIN, Choice, Grid, choose
from ssray.config import Alignment, AnomalyMap, Basis, Difference, MapSettings
from ssray.data.pose import Framing
from ssray.method.inference import Reconstructor, evaluating


@dataclass(frozen=True)
class Result:
    """What ``Criterion.examine`` found out about a model.

    Attributes:
        settings: the chosen settings of the anomaly map.
        selection: how they were chosen, with the model's error.
        evidence: the difference maps that they were judged on, by kind of difference.
        judged: all settings that were tried, each with what it is worth.
    """

    settings: MapSettings
    selection: Choice
    evidence: dict[Difference, Evidence]
    judged: Sequence[Candidate]


class Criterion(BaseModel):
    """What the models of one category are compared by.

    Attributes:
        by: what a model's error is: ``Candidate.error`` on synthetic or on labelled defects; or the
            mean squared error of reconstructing defect-free images, in which case the settings of
            the map are still chosen on synthetic defects.
        seed: the seed of the synthetic defects.
        labelled: the images of the user's validation set, if ``by`` is ``labelled``.
        labelled_fingerprint: a checksum of these images and their masks, which tells whether any
            has changed.
        photographs: held-out defect-free photographs that synthetic defects are laid into, so that
            they are the same for models that see photographs differently; none makes the defects
            in the references, for models that all see them alike.
        image_size: the largest size of the images that are compared.
        alignment: the frame around the part in which defects are made, if there is one.
        grid: the settings of the map to try.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: Basis = "synthetic"
    seed: int
    labelled: tuple[LabelledImage, ...] = ()
    labelled_fingerprint: str = ""
    photographs: tuple[str, ...] = ()
    image_size: int = 256
    alignment: Alignment | None = None
    grid: Grid = NARROW

    @classmethod
    def alone(cls, seed: int) -> Criterion:
        """Makes the criterion of a model that is compared with no other.

        Its synthetic defects choose whose maps count, and no other setting: they say what the model
        is worth.
        """
        return cls(seed=seed, grid=PLAIN)

    def examine(
        self,
        reconstructor: Reconstructor,
        references: Tensor,
        wanted: AnomalyMap,
        threads: int = 1,
        training: Tensor | None = None,
        framing: Framing | None = None,
    ) -> Result:
        """Judges trained networks, and chooses the map settings that are left open.

        Args:
            reconstructor: the networks, in any mode; several for an ensemble.
            references: (M, H, W, 3) uint8 defect-free images.
            wanted: the settings of the anomaly map; those that are None are chosen, and so is the
                difference in a training under way that is to compare features at its end.
            threads: how many settings to judge at once.
            training: (N, H, W, 3) uint8 images that the networks were trained on, for what
                difference is usual; without any that is taken from the references.
            framing: how photographs become images like the references; default: whole ones.

        Raises:
            DataError: if no defective image of the validation set can be used.
        """
        if wanted.difference == "features" and "features" not in reconstructor.comparers:
            wanted = wanted.model_copy(update={"difference": None})
        evidence = self.gather(reconstructor, references, wanted, training, framing)
        examined = self.judge(evidence, wanted, threads)
        if self.by != "reconstruction":
            return examined
        with evaluating(*reconstructor.networks):
            error, uncertainty = _squared_error(reconstructor, references)
        selection = examined.selection.model_copy(
            update={"error": error, "uncertainty": uncertainty}
        )
        return dataclasses.replace(examined, selection=selection)

    def gather(
        self,
        reconstructor: Reconstructor,
        references: Tensor,
        wanted: AnomalyMap,
        training: Tensor | None = None,
        framing: Framing | None = None,
    ) -> dict[Difference, Evidence]:
        """Computes the difference maps that settings are judged on, for each open difference.

        Args:
            reconstructor: the networks, in any mode; several for an ensemble.
            references: (M, H, W, 3) uint8 defect-free images.
            wanted: the settings of the anomaly map; those that are None are open.
            training: as for ``examine``.
            framing: as for ``examine``.

        Raises:
            DataError: if no defective image of the validation set can be used.
        """
        framing = framing or Framing((references.shape[1], references.shape[2]))
        source: DefectSource = SyntheticDefects(self.seed, framing.light)
        clean = references
        if self.by == "labelled":
            good, source = read_labelled(self.labelled, framing)
            clean = torch.cat([references, good])
        elif self.photographs:
            source = with_synthetic_defects(
                self.photographs, self.image_size, self.alignment, framing, self.seed
            )
        with evaluating(*reconstructor.networks):
            evidence = gather_evidence(
                reconstructor, clean, self.grid.kinds(wanted), source, training
            )
        known: dict[str, Any] = {}
        if isinstance(source, DefectImages):
            known = {"covered": source.covered, "hidden": source.hidden}
        return {
            kind: dataclasses.replace(
                seen,
                fitted_on=None if clean is references else seen.clean[: len(references)],
                **known,
            )
            for kind, seen in evidence.items()
        }

    def judge(
        self, evidence: dict[Difference, Evidence], wanted: AnomalyMap, threads: int = 1
    ) -> Result:
        """Judges all settings on the maps that ``gather`` computed, and chooses the best."""
        judged = judge(evidence, self.grid.candidates(evidence, wanted), threads)
        return Result(*choose(judged, evidence, wanted), evidence, judged)


def _squared_error(reconstructor: Reconstructor, images: Tensor) -> tuple[float, float]:
    """Computes the mean squared error of reconstruction over networks, images and pixel values, and
    the standard error of its logarithm, from how it varies over the images.
    """
    errors = torch.cat(
        [
            torch.stack(
                [
                    (each - batch).square().mean(dim=(1, 2, 3))
                    for each in reconstructor.reconstruct(batch)
                ]
            ).mean(dim=0)
            for batch in reconstructor.batches(images)
        ]
    ).double()
    mean = float(errors.mean())
    if not mean or len(errors) < 2:
        return mean, 0.0
    return mean, float(errors.std()) / len(errors) ** 0.5 / mean
