"""Photographs with a defect as a network sees them: a user's labelled ones, or synthetic ones.

Models of a search may see images of different sizes, or parts with and without their being aligned.
So that all are judged on the same defects, these are laid into the photographs, and each model
frames the photographs as it would any other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from ssray.calibration.evidence import DefectBatch, JudgedOn, in_turn, part_masks
from ssray.config import Alignment
from ssray.data.decode import UInt8Image, read_image
from ssray.data.loading import common_framing
from ssray.data.masks import Mask, read_masks, same_aspect
from ssray.data.pose import Framing, Placement, locate
from ssray.errors import DataError, ImageError
from ssray.method.inference import BATCH, image_batches
from ssray.method.synthetic_defects import KINDS, draw_defects

FINER = 2
"""How many times finer than the largest images synthetic defects are made, so that what is laid
into photographs is sharper than any model sees it."""


class LabelledImage(BaseModel):
    """An image of the user's validation set.

    Attributes:
        uri: the image.
        defective: whether it has a defect.
        mask_uris: the files of the mask that shows where the defect is; empty if there is none.
        mask_level: the value of defective pixels, as ``ssray.data.masks.read_masks`` takes it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str
    defective: bool
    mask_uris: tuple[str, ...] = ()
    mask_level: int | None = None


@dataclass(frozen=True)
class FramedDefect:
    """A photograph with a defect as a network sees it.

    Attributes:
        image: (H, W, 3) uint8.
        mask: (H, W) bool, where the defect is; None if that is not known.
        covered: the share of the photograph that the image shows.
        area: the share of the photograph that the defect covers.
    """

    image: UInt8Image
    mask: Mask | None
    covered: float
    area: float

    @classmethod
    def of(cls, photograph: UInt8Image, truth: Mask | None, framing: Framing) -> Self:
        """Frames a photograph, (h, w, 3) uint8, and the mask of its defect, (h, w) bool.

        Raises:
            ImageError: as ``framing`` does.
        """
        image, placement = framing(photograph)
        covered = framing.covered(photograph.shape[:2])
        if truth is None:
            return cls(image, None, covered, 0.0)
        return cls(image, framing.mask(truth, placement), covered, float(truth.mean()))


@dataclass(frozen=True)
class DefectImages:
    """A ``DefectSource`` of given images.

    Attributes:
        images: (D, H, W, 3) uint8.
        truth: (D, 1, H, W) bool, True where the defect is; all False if that is not known.
        basis: where the defects come from.
        covered: the share of their photographs that the images show.
        hidden: the share of the defects' area that they do not show.
        kinds: of the defects; empty if they are not known.
    """

    images: Tensor
    truth: Tensor
    basis: JudgedOn = "labelled images"
    covered: float = 1.0
    hidden: float = 0.0
    kinds: tuple[str, ...] = ()

    @classmethod
    def framed(cls, shown: Sequence[FramedDefect], basis: JudgedOn) -> Self:
        """The images of photographs that were framed; no masks where one of them is missing."""
        images = torch.from_numpy(np.stack([each.image for each in shown]))
        truth = torch.zeros(len(shown), 1, *images.shape[1:3], dtype=torch.bool)
        covered = float(np.mean([each.covered for each in shown]))
        masks = [each.mask for each in shown if each.mask is not None]
        if len(masks) < len(shown):
            return cls(images, truth, basis, covered)
        truth[:, 0] = torch.from_numpy(np.stack(masks))
        of_all = sum(each.area for each in shown)
        found = sum(
            float(each.mask.mean()) * each.covered for each in shown if each.mask is not None
        )
        hidden = max(0.0, 1 - found / of_all) if of_all and covered < 1 else 0.0
        return cls(images, truth, basis, covered, hidden)

    def batches(self, references: Tensor, device: torch.device) -> Iterator[DefectBatch]:
        """Yields as ``DefectSource`` says."""
        truths = self.truth.to(device).split(BATCH)
        for number, images in enumerate(image_batches(self.images, BATCH, device)):
            yield images, truths[number], self.kinds[number * BATCH :][:BATCH]


def read_labelled(
    labelled: Sequence[LabelledImage], framing: Framing
) -> tuple[Tensor, DefectImages]:
    """Reads the user's validation set, as a network sees it.

    Images that can't be used are left out. Masks are used only if every defective image has one
    that can be used.

    Args:
        labelled: the images of the set.
        framing: makes the network's input of each.

    Returns:
        The good images, (N, H, W, 3) uint8, and the defective ones.

    Raises:
        DataError: if no defective image can be used.
    """
    groups: dict[bool, list[FramedDefect]] = {False: [], True: []}
    reasons = []
    for row in labelled:
        try:
            image = read_image(row.uri, framing.decoding)
            truth = _mask(row, image) if row.defective else None
            groups[row.defective].append(FramedDefect.of(image, truth, framing))
        except ImageError as error:
            reasons.append(f"{row.uri}: {error}")
    if not groups[True]:
        reason = f" The first of {len(reasons)} that can't be read: {reasons[0]}" if reasons else ""
        raise DataError(
            f"no defective image of the validation set can be used; at least one is needed.{reason}"
        )
    good = [torch.from_numpy(each.image.copy()) for each in groups[False]]
    return (
        torch.stack(good) if good else torch.empty(0, *framing.shape, 3, dtype=torch.uint8),
        DefectImages.framed(groups[True], "labelled images"),
    )


def _mask(row: LabelledImage, image: UInt8Image) -> Mask | None:
    """The mask of a defective image, (h, w) bool; None if it has none that can be used."""
    if not row.mask_uris:
        return None
    try:
        mask = read_masks(row.mask_uris, row.mask_level)
    except ImageError:
        return None
    rows, columns = mask.shape
    fits = same_aspect((rows, columns), (image.shape[0], image.shape[1]))
    return mask if fits and mask.any() else None


@functools.lru_cache(maxsize=1)
def with_synthetic_defects(
    uris: tuple[str, ...],
    size: int,
    alignment: Alignment | None,
    seen_in: Framing,
    seed: int,
) -> DefectImages:
    """Lays synthetic defects into photographs: whatever sees them, they are the same.

    A defect is made as ``SyntheticDefects`` makes it for a model of the largest size, in the frame
    of ``alignment`` at ``FINER`` times this size, and what it changes is added to the photograph.
    Defects that are not perceptible there, or that hide where the part lies, are left out for all
    models. A process that judges a model several times does this once.

    Args:
        uris: defect-free photographs.
        size: the largest ``image_size`` of the models.
        alignment: the frame around the part, if the recipe has one.
        seen_in: the framing of the model that is judged.
        seed: the seed of all random choices.

    Raises:
        DataError: if no photograph can be used.
    """
    made_in = common_framing(uris, FINER * size, alignment, threads=1)
    found: list[tuple[UInt8Image, UInt8Image, Placement | None]] = []
    for uri in uris:
        with contextlib.suppress(ImageError):
            photograph = _reduced(read_image(uri, seen_in.decoding), made_in)
            found.append((photograph, *made_in(photograph)))
    if not found:
        raise DataError(f"none of {len(uris)} held-out photographs can be used to judge models on.")
    images = torch.from_numpy(np.stack([image for _, image, _ in found]))
    generator = torch.Generator().manual_seed(seed)
    where = part_masks(images)
    shown, kinds = [], []
    for numbers, kind in in_turn(len(found), generator):
        [clean] = image_batches(images[numbers], BATCH, torch.device("cpu"))
        made = draw_defects(clean, generator, kind, where[numbers], pixel=FINER)
        changes = torch.cat([made.images - clean, made.truth.float()], dim=1)
        for place in made.perceptible.nonzero()[:, 0].tolist():
            photograph, _, placement = found[int(numbers[place])]
            change = changes[place]
            laid, mask = _laid(change, photograph, made_in, placement)
            with contextlib.suppress(ImageError):
                if alignment and not seen_in.alignment:
                    locate(laid)
                shown.append(FramedDefect.of(laid, mask, seen_in))
                kinds.append(KINDS[kind[place]])
    if not shown:
        raise DataError(
            f"no synthetic defect is perceptible in {len(found)} held-out photographs, so models "
            "can't be compared by them. Use --select-by labelled with labelled images, or "
            "--select-by reconstruction."
        )
    framed = DefectImages.framed(shown, "synthetic defects")
    return dataclasses.replace(framed, kinds=tuple(kinds))


def _reduced(photograph: UInt8Image, framing: Framing) -> UInt8Image:
    """A photograph shrunk by a whole number, if it keeps the frame's resolution.

    A photograph of many megapixels would take long to lay defects into.
    """
    rows, columns = photograph.shape[:2]
    shown = framing.covered((rows, columns)) * rows * columns
    factor = int((shown / (framing.shape[0] * framing.shape[1])) ** 0.5)
    return photograph if factor < 2 else np.asarray(Image.fromarray(photograph).reduce(factor))


def _laid(
    change: Tensor, photograph: UInt8Image, made_in: Framing, placement: Placement | None
) -> tuple[UInt8Image, Mask]:
    """Adds what a defect changes to a photograph.

    Args:
        change: (4, h, w) float32, the change of each colour and the defect's mask, in the frame.
        photograph: (H, W, 3) uint8.
        made_in: the frame.
        placement: where the part lies.

    Returns:
        (H, W, 3) uint8, and where the defect is, (H, W) bool.
    """
    rows, columns = photograph.shape[:2]
    back = np.stack(
        [made_in.laid_back(plane, placement, (rows, columns)) for plane in change.numpy()]
    )
    over = F.interpolate(
        torch.from_numpy(back)[None], (rows, columns), mode="bilinear", antialias=True
    )[0].numpy()
    laid = photograph + 255 * over[:3].transpose(1, 2, 0)
    return laid.round().clip(0, 255).astype(np.uint8), over[3] > 0.5
