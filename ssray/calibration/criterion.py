"""How good a trained model is, decided without the test set: what a search minimises.

Synthetic defects are the default. Whoever has labelled images apart from the test set may use
these; the plain reconstruction error is there to compare with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ssray.calibration.map_settings import (
    NARROW,
    Basis,
    DefectSource,
    Evidence,
    Grid,
    Judged,
    Selection,
    SyntheticDefects,
    choose,
    gather_evidence,
    judge,
    open_differences,
)
from ssray.config import AnomalyMap, Difference, MapSettings, Recipe
from ssray.data.decode import read_image, read_mask, resize
from ssray.errors import DataError, ImageError
from ssray.method.inference import evaluating, image_batches, reconstruct

By = Literal["synthetic", "labelled", "reconstruction"]
_BATCH = 8


class LabelledImage(BaseModel):
    """An image of the user's validation set.

    Attributes:
        mask_uri: where its defect is, if that is known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str
    defective: bool
    mask_uri: str | None = None


@dataclass(frozen=True)
class Examined:
    """What an examination found.

    Attributes:
        settings: of the anomaly map, all chosen.
        selection: how.
        evidence: that they were judged on.
        judged: every candidate.
    """

    settings: MapSettings
    selection: Selection
    evidence: dict[Difference, Evidence]
    judged: Sequence[Judged]


class Criterion(BaseModel):
    """What the models of one category are compared by.

    Attributes:
        by: synthetic or labelled defects, by ``Judged.error``; or the mean squared error of
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

    by: By = "synthetic"
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
    ) -> Examined:
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
            good, source = _read(self.labelled, references)
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
    ) -> Examined:
        """Judges settings on what was gathered, by images with a defect and without."""
        judged = judge(evidence, self.grid.candidates(evidence, wanted), threads)
        return Examined(*choose(judged, evidence, wanted), evidence, judged)


@dataclass(frozen=True)
class LabelledDefects:
    """As ``DefectSource``: (D, H, W, 3) uint8 images and (D, 1, H, W) bool masks."""

    images: Tensor
    truth: Tensor
    basis: Basis = "labelled images"

    def batches(self, references: Tensor, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        images = image_batches(self.images, _BATCH, device)
        yield from zip(images, self.truth.to(device).split(_BATCH), strict=True)


def _read(labelled: Sequence[LabelledImage], references: Tensor) -> tuple[Tensor, LabelledDefects]:
    """The good and the defective images, resized to those that the model knows.

    Where some defective image has no mask, none is taken to have one. Images that can't be decoded
    are left out.
    """
    shape = references.shape[1], references.shape[2]
    groups: dict[bool, list[Tensor]] = {False: [], True: []}
    masks, reasons = [], []
    for row in labelled:
        try:
            image = resize(read_image(row.uri), shape)
            mask = _resized(read_mask(row.mask_uri), shape) if row.mask_uri else None
        except ImageError as error:
            reasons.append(f"{row.uri}: {error}")
            continue
        groups[row.defective].append(torch.from_numpy(image.copy()))
        if row.defective:
            masks.append(mask)
    if not groups[True]:
        reason = f" The first of {len(reasons)} that can't be read: {reasons[0]}" if reasons else ""
        raise DataError(f"no defective image of the validation set can be used.{reason}")
    known = [mask for mask in masks if mask is not None]
    truth = torch.zeros(len(masks), 1, *shape, dtype=torch.bool)
    if len(known) == len(masks):
        truth[:, 0] = torch.stack(known)
    good = torch.stack(groups[False]) if groups[False] else references[:0]
    return good, LabelledDefects(torch.stack(groups[True]), truth)


def _resized(mask: np.ndarray, shape: tuple[int, int]) -> Tensor:
    rows, columns = shape
    resized = Image.fromarray(mask).resize((columns, rows), Image.Resampling.NEAREST)
    return torch.from_numpy(np.asarray(resized).copy())


def _squared_error(networks: Sequence[nn.Module], images: Tensor, precision: torch.dtype) -> float:
    """Mean over the networks, images and pixel values."""
    device = next(networks[0].parameters()).device
    total = 0.0
    for batch in image_batches(images, _BATCH, device):
        for network in networks:
            error = (reconstruct(network, batch, precision) - batch).square().mean()
            total += float(error) * len(batch)
    return total / (len(images) * len(networks))
