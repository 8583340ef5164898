"""Computes the difference maps that settings of the anomaly map are judged on.

They come from images without and with a defect. The defects are synthetic ones, made in defect-free
images, or those of ``ssray.calibration.defect_images``.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from ssray.config import Difference, Experts, Light
from ssray.data.light import levels
from ssray.data.pose import covered_by_part
from ssray.errors import ImageError
from ssray.method.inference import BATCH, Reconstructor, image_batches
from ssray.method.synthetic_defects import KINDS, draw_defects

SYNTHETIC_DEFECTS = 120
"""How many images with a synthetic defect are made; imperceptible defects are dropped."""

JudgedOn = Literal["synthetic defects", "labelled images", "recipe"]
"""What settings were judged on; ``recipe`` if there was nothing to judge on."""
DefectBatch = tuple[Tensor, Tensor, Sequence[str]]
"""Some images with a defect, where it is, and of which kind, as ``DefectSource`` says."""


@dataclass(frozen=True)
class Evidence:
    """The difference maps of one kind that settings are judged on, for K networks.

    Attributes:
        clean: (M, K, H, W) float32 difference maps of M defect-free images.
        defects: (D, K, H, W) float32 difference maps of D images with a defect; D may be 0.
        truth: (D, 1, H, W) bool, True where the defect is; all False if that is not known.
        basis: where the defects come from.
        fitted_on: (R, K, H, W) difference maps of the R images that scale and average map are
            computed from; None if these are the clean ones.
        mean: the mean difference map of images that were trained on, a channel for each network;
            None takes that of the clean ones.
        covered: the share of their photographs that the images show; less than 1 in a frame around
            a part.
        hidden: the share of the defects' area that the images do not show.
        neighbours: whether the last channel is that of the neighbours.
        defect_kinds: of which kind each defect is; empty if that is not known.
    """

    clean: Tensor
    defects: Tensor
    truth: Tensor
    basis: JudgedOn = "synthetic defects"
    fitted_on: Tensor | None = None
    mean: Tensor | None = None
    covered: float = 1.0
    hidden: float = 0.0
    neighbours: bool = False
    defect_kinds: tuple[str, ...] = ()

    def of(self, experts: Experts | None) -> Evidence:
        """The same with the channels of these experts alone; all where there are no neighbours."""
        if experts == "joined" or not self.neighbours:
            return self
        chosen = slice(-1, None) if experts == "neighbours" else slice(None, -1)
        known = None if self.fitted_on is None else self.fitted_on[:, chosen]
        return dataclasses.replace(
            self,
            clean=self.clean[:, chosen],
            defects=self.defects[:, chosen],
            fitted_on=known,
            mean=None if experts == "neighbours" else self.mean,
            neighbours=experts == "neighbours",
        )

    def over_photographs(self, pixel_auroc: float) -> float:
        """The pixel AUROC over whole photographs, from that over the images.

        Outside of the frame a map is 0, so these places rank below all others: right where they are
        good, missed where they are not. So models that see more of a photograph and models that see
        less are compared on the same pixels.

        >>> nothing = torch.empty(0, 1, 8, 8)
        >>> seen = Evidence(nothing, nothing, nothing.bool(), covered=0.25)
        >>> round(seen.over_photographs(0.96), 6)
        0.99
        """
        outside = 1 - self.covered
        shown = self.covered * pixel_auroc + outside
        return (1 - self.hidden) * shown + self.hidden * outside / 2

    def joined_with(self, other: Evidence) -> Evidence:
        """Joins the evidence of two models on the same images into that of their ensemble.

        Only the second one may have neighbours.
        """

        def both(one: Tensor, another: Tensor) -> Tensor:
            return torch.cat([one, another], dim=1)

        assert torch.equal(self.truth, other.truth) and not self.neighbours
        known = mean = None
        if self.fitted_on is not None and other.fitted_on is not None:
            known = both(self.fitted_on, other.fitted_on)
        if self.mean is not None and other.mean is not None:
            mean = torch.cat([self.mean, other.mean])
        return dataclasses.replace(
            self,
            clean=both(self.clean, other.clean),
            defects=both(self.defects, other.defects),
            fitted_on=known,
            mean=mean,
            neighbours=other.neighbours,
        )


class DefectSource(Protocol):
    """Where images with a defect come from."""

    @property
    def basis(self) -> JudgedOn:
        """What the defects are, for the report."""

    def batches(self, references: Tensor, device: torch.device) -> Iterator[DefectBatch]:
        """Yields images with a defect, B at a time, where their defects are, and of which kind.

        Args:
            references: (M, H, W, 3) uint8 defect-free images.
            device: where to put the images and the masks.

        Yields:
            (B, 3, H, W) float32 images in [0, 1], (B, 1, H, W) bool masks, and B names of kinds, or
            none where they are not known.
        """


@dataclass(frozen=True)
class SyntheticDefects:
    """A ``DefectSource`` that makes defects in the references, of kinds no network is trained on.

    Attributes:
        seed: the seed of all random choices.
        light: what the network's images are brought to; an image with a defect is, too.
    """

    seed: int
    light: Light | None = None
    basis: JudgedOn = "synthetic defects"

    def batches(self, references: Tensor, device: torch.device) -> Iterator[DefectBatch]:
        """Yields as ``DefectSource`` says; defects that are not perceptible are left out."""
        generator = torch.Generator().manual_seed(self.seed)
        where = part_masks(references)
        for numbers, kind in in_turn(len(references), generator):
            [batch] = image_batches(references[numbers], BATCH, device)
            found = draw_defects(batch, generator, kind, where[numbers]).visible()
            images = found.images
            if self.light and len(images):
                images = levels(images, self.light) / 255
            if len(images):
                yield images, found.truth, [KINDS[number] for number in found.kind]


def in_turn(references: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Decides which defect is made in which of the references, ``BATCH`` at a time.

    Yields:
        (B,) int64, the numbers of the references, and as many of the kinds, which take turns. All
        references get about as many defects, in an order that has nothing to do with the kinds.
    """
    source = torch.arange(SYNTHETIC_DEFECTS) % references
    source = source[torch.randperm(SYNTHETIC_DEFECTS, generator=generator)]
    kinds = torch.arange(SYNTHETIC_DEFECTS) % len(KINDS)
    yield from zip(source.split(BATCH), kinds.split(BATCH), strict=True)


def part_masks(images: Tensor) -> Tensor:
    """Where the part is in each image, (N, 1, H, W) bool; everywhere where none stands out.

    Args:
        images: (N, H, W, 3) uint8.
    """
    found = torch.ones(len(images), 1, *images.shape[1:3], dtype=torch.bool)
    for mask, image in zip(found, images.cpu().numpy(), strict=True):
        with contextlib.suppress(ImageError):
            mask[0] = torch.tensor(covered_by_part(image))
    return found


def gather_evidence(
    reconstructor: Reconstructor,
    references: Tensor,
    kinds: Sequence[Difference],
    source: DefectSource | None,
    training: Tensor | None = None,
) -> dict[Difference, Evidence]:
    """Reconstructs images without and with a defect, and computes their difference maps.

    Args:
        reconstructor: the networks, in eval mode; several for an ensemble.
        references: (M, H, W, 3) uint8 defect-free images.
        kinds: the kinds of difference to compute.
        source: where the images with a defect come from; None for none.
        training: (N, H, W, 3) uint8 images that the networks were trained on, for the mean
            difference map; without any it is left open.

    Returns:
        The evidence for each kind of difference, all from the same images.
    """
    clean, defects = (defaultdict[Difference, list[Tensor]](list) for _ in range(2))
    truths, defect_kinds = [], list[str]()

    def compare(images: Tensor, into: dict[Difference, list[Tensor]]) -> None:
        for kind, maps in reconstructor.all_differences(images, kinds).items():
            into[kind].append(maps)

    means = mean_differences(reconstructor, kinds, training)
    for batch in reconstructor.batches(references):
        compare(batch, clean)
    batches = source.batches(references, reconstructor.device) if source else ()
    for defective, truth, kinds_made in batches:
        compare(defective, defects)
        truths.append(truth)
        defect_kinds += kinds_made
    evidence = {}
    for kind in kinds:
        maps = torch.cat(clean[kind])
        none = maps[:0], maps[:0, :1].bool()
        found = (torch.cat(defects[kind]), torch.cat(truths)) if truths else none
        basis = source.basis if source else "recipe"
        evidence[kind] = Evidence(
            maps,
            *found,
            basis,
            mean=means.get(kind),
            neighbours=reconstructor.neighbours is not None,
            defect_kinds=tuple(defect_kinds),
        )
    return evidence


def mean_differences(
    reconstructor: Reconstructor, kinds: Sequence[Difference], images: Tensor | None
) -> dict[Difference, Tensor]:
    """The mean difference map of some images, by kind; nothing without images.

    Its shape is (K, H, W) with a channel for each network; neighbours would only find the images
    themselves in their bank.
    """
    if images is None or not len(images):
        return {}
    if not reconstructor.networks:
        none = torch.empty(0, *images.shape[1:3], device=reconstructor.device)
        return dict.fromkeys(kinds, none)
    totals: dict[Difference, Tensor] = {}
    autoencoders = reconstructor.only("autoencoders")
    for batch in reconstructor.batches(images):
        for kind, maps in autoencoders.all_differences(batch, kinds).items():
            total = maps.sum(dim=0)
            totals[kind] = totals[kind] + total if kind in totals else total
    return {kind: total / len(images) for kind, total in totals.items()}
