"""The 15 categories of MVTec AD: what people know of them, and what the paper reports."""

from __future__ import annotations

from dataclasses import dataclass

from ssray.config import Augmentation


@dataclass(frozen=True)
class Category:
    """What is known of a category before any training.

    Attributes:
        texture: whether places do not matter.
        augmentation: the flips and turns that leave a good image good. The paper chooses them
            "depending on the category" and does not say which; these are ours.
        published: image and pixel AUROC in percent that the paper reports.
    """

    texture: bool
    augmentation: Augmentation
    published: tuple[float, float]


CATEGORIES = {
    # Woven: warp and weft differ.
    "carpet": Category(True, "flip", (100.0, 99.7)),
    # The wires of the two directions differ.
    "grid": Category(True, "flip", (100.0, 99.7)),
    # No direction at all.
    "leather": Category(True, "dihedral", (100.0, 99.7)),
    # No direction at all.
    "tile": Category(True, "dihedral", (100.0, 99.2)),
    # The grain runs one way.
    "wood": Category(True, "flip", (100.0, 98.1)),
    # A round neck seen from above.
    "bottle": Category(False, "dihedral", (100.0, 98.6)),
    # Three wires of fixed colours: swapped wires are a defect.
    "cable": Category(False, "none", (98.0, 98.2)),
    # Printed, always the same way up.
    "capsule": Category(False, "none", (98.2, 99.1)),
    # Lies in any direction.
    "hazelnut": Category(False, "dihedral", (100.0, 98.9)),
    # Lies in any direction, but the wrong way up is a defect.
    "metal_nut": Category(False, "turn", (100.0, 98.5)),
    # Printed, always the same way up.
    "pill": Category(False, "none", (99.5, 99.3)),
    # Lies in any direction; mirrored, its thread would be left-handed.
    "screw": Category(False, "turn", (98.9, 99.7)),
    # Seen from above, alike left and right.
    "toothbrush": Category(False, "flip_horizontal", (100.0, 99.1)),
    # Fixed in place.
    "transistor": Category(False, "none", (98.8, 98.6)),
    # Alike left and right, its teeth at any height.
    "zipper": Category(False, "flip_horizontal", (100.0, 99.5)),
}
