"""What settings of the anomaly map are judged on: difference maps, of clean images and of defects.

Defects are synthetic ones, made in defect-free images, or those of a user's labelled images.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ssray.config import Difference
from ssray.data.decode import read_image, read_mask, resize
from ssray.errors import DataError, ImageError
from ssray.method.anomaly_map import difference_maps
from ssray.method.inference import image_batches, reconstruct
from ssray.method.synthetic_defects import add_defects

SYNTHETIC_DEFECTS = 96


_BATCH = 8


JudgedOn = Literal["synthetic defects", "labelled images", "recipe"]


@dataclass(frozen=True)
class Evidence:
    """What settings are judged on, for one kind of difference.

    Attributes:
        clean: (M, K, H, W) float32 difference maps of defect-free images.
        defects: (D, K, H, W) of images with a defect; D may be 0.
        truth: (D, 1, H, W) bool, where it is; all False where that is not known.
        basis: where the defects come from.
        fitted_on: (R, K, H, W) of the images that scale and average map come from, if these are
            others than the clean ones.
    """

    clean: Tensor
    defects: Tensor
    truth: Tensor
    basis: JudgedOn = "synthetic defects"
    fitted_on: Tensor | None = None

    def joined_with(self, other: Evidence) -> Evidence:
        """Of an ensemble, from that of its networks on the same images."""

        def both(one: Tensor, another: Tensor) -> Tensor:
            return torch.cat([one, another], dim=1)

        assert torch.equal(self.truth, other.truth)
        known = None
        if self.fitted_on is not None and other.fitted_on is not None:
            known = both(self.fitted_on, other.fitted_on)
        return Evidence(
            both(self.clean, other.clean),
            both(self.defects, other.defects),
            self.truth,
            self.basis,
            known,
        )


class DefectSource(Protocol):
    """Images with a defect, to judge settings on."""

    @property
    def basis(self) -> JudgedOn:
        """What they are."""

    def batches(self, references: Tensor, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Images, (B, 3, H, W) float32 in [0, 1], and (B, 1, H, W) bool, where the defect is.

        Args:
            references: (M, H, W, 3) uint8 defect-free images.
            device: of the images and the masks.
        """


@dataclass(frozen=True)
class SyntheticDefects:
    """Made in the references, of kinds that no network is trained on.

    Attributes:
        radius: shares of the image's shorter side, best those that the networks were taught to
            repair.
        seed: the same gives the same defects.
    """

    radius: tuple[float, float]
    seed: int
    basis: JudgedOn = "synthetic defects"

    def batches(self, references: Tensor, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """As ``DefectSource``; what is not perceptible is left out."""
        generator = torch.Generator().manual_seed(self.seed)
        source = torch.arange(SYNTHETIC_DEFECTS) % len(references)
        # Kinds take turns along a batch, so a fixed order would give every image one kind only.
        source = source[torch.randperm(SYNTHETIC_DEFECTS, generator=generator)]
        for batch in image_batches(references[source], _BATCH, device):
            defective, truth = add_defects(batch, generator, self.radius)
            if len(defective):
                yield defective, truth


def gather_evidence(
    networks: Sequence[nn.Module],
    references: Tensor,
    kinds: Sequence[Difference],
    precision: torch.dtype,
    source: DefectSource | None,
) -> dict[Difference, Evidence]:
    """Runs images through networks, defect-free ones and ones with a defect.

    Args:
        networks: in eval mode, on the device to use; several for an ensemble.
        references: (M, H, W, 3) uint8 defect-free images.
        kinds: of difference, each with evidence of its own from the same images.
        precision: of the forward pass.
        source: of the images with a defect; None goes without.
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
    for defective, truth in source.batches(references, device) if source else ():
        compare(defective, defects)
        truths.append(truth)
    evidence = {}
    for kind in kinds:
        maps = torch.cat(clean[kind])
        none = maps[:0], maps[:0, :1].bool()
        found = (torch.cat(defects[kind]), torch.cat(truths)) if truths else none
        evidence[kind] = Evidence(maps, *found, source.basis if source else "recipe")
    return evidence


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
class LabelledDefects:
    """As ``DefectSource``: (D, H, W, 3) uint8 images and (D, 1, H, W) bool masks."""

    images: Tensor
    truth: Tensor
    basis: JudgedOn = "labelled images"

    def batches(self, references: Tensor, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        images = image_batches(self.images, _BATCH, device)
        yield from zip(images, self.truth.to(device).split(_BATCH), strict=True)


def read_labelled(
    labelled: Sequence[LabelledImage], references: Tensor
) -> tuple[Tensor, LabelledDefects]:
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
