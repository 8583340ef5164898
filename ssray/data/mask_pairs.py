"""Tells which image each ground-truth mask belongs to, by their names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from ssray.data.image_files import some
from ssray.errors import DataError
from ssray.storage.location import Location

MASK_SUFFIX = "_mask"
"""What a mask's name has after the name of its image, before the extension."""


def pair_masks(
    folder: Location,
    stems: Sequence[str],
    masks: Iterable[tuple[str, list[str]]],
    *,
    defective: bool,
) -> dict[str, list[list[str]]]:
    """Finds the masks of the images of one type.

    Args:
        folder: where the masks lie, ``ground_truth/TYPE``; for error messages.
        stems: of the images.
        masks: stem of each mask, and the URIs of its parts.
        defective: whether the type is a kind of defect, whose images have masks all or none.

    Returns:
        The masks of each image that has any, by its stem, each as the URIs of its parts: more than
        one is for the user to mend.

    Raises:
        DataError: if only some of the images of a defect have masks, a mask has no image, or two
            images share a name.
    """
    found: dict[str, list[list[str]]] = {}
    for stem, uris in masks:
        found.setdefault(stem.removesuffix(MASK_SUFFIX), []).append(uris)
    if not found or not defective:
        return found
    duplicates = sorted({stem for stem in stems if stems.count(stem) > 1})
    if duplicates:
        raise DataError(
            f"{folder}: two images share the name {duplicates[0]}, so that their masks cannot be "
            "told apart. Rename one."
        )
    orphans = sorted(found.keys() - set(stems))
    if orphans:
        raise DataError(
            f"{folder}: {len(orphans)} masks without an image, first {orphans[0]}. Expected an "
            f"image of that name in test/{PurePosixPath(folder.path).name}; add it or remove the "
            "mask."
        )
    bare = sorted(set(stems) - found.keys())
    if bare:
        raise DataError(
            f"{folder}: {len(bare)} of {len(stems)} images have no mask, first {bare[0]}. "
            f"Expected {bare[0]}{MASK_SUFFIX}.png; give all of them or none."
        )
    return found


def mask_columns(masks: Sequence[list[str]]) -> dict[str, list[str] | str | None]:
    """The columns ``mask_uris`` and ``mask_conflict`` of an image with these masks, each given by
    the URIs of its parts.
    """
    if len(masks) > 1:
        return {"mask_uris": None, "mask_conflict": " and ".join(map(some, masks))}
    return {"mask_uris": masks[0] if masks else None, "mask_conflict": None}
