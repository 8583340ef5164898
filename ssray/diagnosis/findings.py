"""What the measurements of a diagnosis mean: the kind of category, and a paragraph in words.

The measurements are those of sections 3.4 and 4.2 of the paper.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ssray.diagnosis.theorem import Theorem
from ssray.method.projection import TEXTURE_SHARE, PositionMoments, Projection, mean
from ssray.metrics.values import percent

Kind = Literal["texture", "aligned pattern", "object"]

WINDOW_SHARE = 0.0003
"""From what share on a category is an object rather than a pattern that repeats.

It is the share of the variance that a pixel's position explains within windows of half the side.
Measured at 256 px: below 0.00005 for textures (MVTec AD grid; the generated weave and grain),
0.0011 to 0.0043 for objects (MVTec AD transistor, hazelnut, cookie; the generated washer and
connector)."""

FEW_IMAGES = 20
"""With fewer training images than this the shares are called rough."""

MIN_ACCURACY = 0.95
"""How often the clean image must be the nearest one for the model to count as a projection."""

REPAIRED = 0.5
"""A patch counts as repaired if at most this part of its difference (rms) is left."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The measurements of one category and its model.

    Attributes:
        category: the category's name.
        model_version: the version of the model whose projection was measured.
        shape: the rows and columns of the model's input, in pixels.
        skipped: how many training images could not be read.
        pixels: mean and standard deviation of every pixel over the training images.
        windows: the same of every pixel of a window of half the side, over all its places.
        neighbours: how many training images took part in the patch test.
        projections: what was measured for each width of patch, ascending; the first has width 0.
        theorem: what Theorem 2 says of the recipe's corruption.
    """

    category: str
    model_version: str
    shape: tuple[int, int]
    skipped: int
    pixels: PositionMoments
    windows: PositionMoments
    neighbours: int
    projections: list[Projection]
    theorem: Theorem

    @property
    def kind(self) -> Kind:
        """What the category is, by how much the position of a pixel says about its value."""
        if self.pixels.position_share() < TEXTURE_SHARE:
            return "texture"
        if self.windows.position_share() < WINDOW_SHARE:
            return "aligned pattern"
        return "object"

    def area_share(self, width: int) -> float:
        """Returns the part of the image that a square patch covers."""
        return width * width / math.prod(self.shape)

    def projected_width(self) -> int:
        """Returns the width of the largest patch that the model projects, in pixels; 0 for none.

        A model f projects an image x_hat, which is x with a foreign patch, if two things hold.
        Inside the patch f(x_hat) is on average nearer to x than x_hat is; outside it x_hat equals
        x, so only the model's own error would count there. And x is the nearest of all images to
        f(x_hat) in at least ``MIN_ACCURACY`` of the trials, at this width and all smaller ones.
        """
        largest = 0
        for at in self.patches:
            if mean(at.output_hits) < MIN_ACCURACY:
                break
            if mean(at.output_patch_rms) < mean(at.input_patch_rms):
                largest = at.width
        return largest

    def closer_from(self) -> int:
        """Returns the width of the smallest patch that the output improves on, in pixels.

        Improving means that the output is nearer to the clean image than the input is, over the
        whole image. The result is 0 if there is no such width.
        """
        closer = (at.width for at in self.patches if mean(at.output_rms) < mean(at.input_rms))
        return next(closer, 0)

    def repaired_width(self) -> int:
        """Returns the width of the largest patch that the model repairs, in pixels; 0 for none.

        Of it and of all smaller ones at most ``REPAIRED`` of the difference is left.
        """
        largest = 0
        for at in self.patches:
            if mean(at.output_patch_rms) > REPAIRED * mean(at.input_patch_rms):
                break
            largest = at.width
        return largest

    @property
    def patches(self) -> list[Projection]:
        """The projections without the one of width 0."""
        return [at for at in self.projections if at.width]


def paragraph(diagnosis: Diagnosis) -> str:
    """Describes the diagnosis in one paragraph, with its numbers."""
    return " ".join(
        [
            *_appearance(diagnosis),
            *_projected(diagnosis),
            _repaired(diagnosis),
            *_ensured(diagnosis),
            *_held(diagnosis.theorem),
        ]
    )


def _appearance(diagnosis: Diagnosis) -> list[str]:
    """Says what kind of category it is, and which settings suit it."""
    share = percent(diagnosis.pixels.position_share())
    within = percent(diagnosis.windows.position_share())
    measured = (
        f"a pixel's position explains {share} of the variance of {diagnosis.pixels.images} "
        f"training images (a texture: less than {percent(TEXTURE_SHARE)}), and {within} within "
        "windows of half the side."
    )
    sentences = {
        "texture": [
            f"{diagnosis.category} is texture-like: {measured}",
            "Every place looks like every other: crops smaller than the image are enough to "
            "train on, and flips and quarter turns are sensible augmentation unless the surface "
            "has a direction, which this measurement does not see.",
            "Rotating the whole image is a corruption for aligned objects, not for this category.",
        ],
        "aligned pattern": [
            f"{diagnosis.category} is a pattern that lies at the same place in every image: "
            f"{measured}",
            "Within a window all positions look alike, so smaller crops are enough to train on.",
            "Flips and quarter turns are sensible augmentation only if they leave the pattern as "
            "it is; rotating the whole image is worth a try as a corruption.",
        ],
        "object": [
            f"{diagnosis.category} is not texture-like but an aligned object: {measured}",
            "Positions matter: training should end on crops that cover the whole image, and flips "
            "and quarter turns are sensible augmentation only if a part turned that way is a good "
            "part.",
            "Rotating the whole image is worth a try as a corruption, so that a misplaced part "
            "shows.",
        ],
    }[diagnosis.kind]
    if diagnosis.pixels.images < FEW_IMAGES:
        sentences.append(f"With only {diagnosis.pixels.images} images these shares are rough.")
    return sentences


def _projected(diagnosis: Diagnosis) -> list[str]:
    """Says up to which width the model projects foreign patches, or why it projects none."""
    smallest = diagnosis.patches[0]
    projected, closer = diagnosis.projected_width(), diagnosis.closer_from()
    nearest = f"the clean image is the nearest of {diagnosis.neighbours} training images"
    if not projected:
        accuracy = mean(smallest.output_hits)
        reason = (
            f"already at {smallest.width} px {nearest} to its output in only {percent(accuracy)} "
            "of the trials."
            if accuracy < MIN_ACCURACY
            else "inside the patch its output is no nearer to the clean image than the input is."
        )
        return [f"The model projects foreign patches of no tested width: {reason}"]
    sentences = [
        f"The model still projects foreign patches of up to {_size(diagnosis, projected)}: "
        f"{nearest} to its output in at least {percent(MIN_ACCURACY)} of the trials, and inside "
        "the patch the output is nearer to the clean image than the input is."
    ]
    if closer != smallest.width:
        since = f"only from {closer} px on" if closer else "at no tested width"
        error = percent(mean(diagnosis.projections[0].output_rms))
        sentences.append(
            f"Over the whole image the latter holds {since}, because the model's own error on a "
            f"clean image ({error} of full scale, rms) outweighs a smaller patch."
        )
    return sentences


def _repaired(diagnosis: Diagnosis) -> str:
    """Says up to which width the model repairs patches."""
    repaired = diagnosis.repaired_width()
    if repaired:
        return (
            f"It takes away at least {percent(1 - REPAIRED)} of the difference inside the patch "
            f"(rms) up to {_size(diagnosis, repaired)}; larger defects stay partly in the output "
            "and show less in the anomaly map."
        )
    smallest = _size(diagnosis, diagnosis.patches[0].width)
    return (
        f"Even inside the smallest patch, {smallest}, it leaves more than {percent(REPAIRED)} of "
        "the difference (rms)."
    )


def _ensured(diagnosis: Diagnosis) -> list[str]:
    """Says which of the recipe's regions are as small as Theorem 2 wants them."""
    theorem = diagnosis.theorem
    low, high = theorem.recipe.radius
    sentences = [
        f"Theorem 2 covers corrupted regions below {percent(theorem.small_area)} of the image; "
        f"{percent(theorem.recipe.too_large)} of those that the recipe draws "
        f"(corruption.patches.radius {low:g} to {high:g} of the shorter side) are larger."
    ]
    if diagnosis.kind != "texture":
        sentences.append("It is about textures, so here it is a guide only.")
    return sentences


def _held(theorem: Theorem) -> list[str]:
    """Says how often the premise of Theorem 2 is violated, and from what radius on."""
    premise = "Its premise, that two good images differ no more inside the region than outside,"
    pairs = f"{theorem.pairs:,} pairs of training images"
    violated = theorem.recipe.violated
    sentences = [
        f"{premise} is violated by {percent(violated)} of {pairs}, on average over the recipe's "
        "regions."
        if violated
        else f"{premise} holds for all {pairs} with every region that was drawn as in the recipe."
    ]
    if theorem.turned:
        sentences.append(
            f"Images turned as a whole, {percent(theorem.turned)} of those it corrupts, are left "
            "out: nothing of them lies outside."
        )
    held, largest = theorem.held_radius(), theorem.recipe.radius[1]
    if held:
        reach = f"With all patches of one radius no pair violates it up to {held:g}"
    else:
        reach = f"Some pair violates it with patches of {theorem.radii[0].radius[0]:g} already"
    if held >= largest:
        return [*sentences, f"{reach}: the recipe's radius stays within."]
    at_largest = next(at.violated for at in theorem.radii if at.radius[1] == largest)
    return [
        *sentences,
        f"{reach}, and {percent(at_largest)} of the pairs do at {largest:g}: the recipe's radius "
        "goes beyond, where another good image may be nearer to a corrupted one than its original.",
    ]


def _size(diagnosis: Diagnosis, width: int) -> str:
    rows, columns = diagnosis.shape
    area = percent(diagnosis.area_share(width))
    return f"{width} x {width} px ({area} of the image's {columns} x {rows} px)"
