"""Images that may have labels: prepared with their masks, judged, and counted against them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from ssray.data.image_files import some
from ssray.data.masks import Mask, read_masks, same_aspect
from ssray.data.pose import Framing
from ssray.errors import ImageError
from ssray.metrics.labels import DEFECT, GOOD
from ssray.metrics.pixels import PixelCounts
from ssray.scoring.heatmap import levels_to_png
from ssray.scoring.judge import Judge, Prepared, prepare
from ssray.scoring.scorer import resize_map
from ssray.storage.fetch import Fetcher
from ssray.storage.location import Location


@dataclass(frozen=True)
class LabelledImage:
    """An image of a table of images (``ssray.data.dataset``), ready to be judged.

    Attributes:
        uri: where it is.
        category: whose model judges it.
        split_type: ``good``, or the kind of its defect; None where nobody knows.
        label: 0 good, 1 defective; None where nobody knows.
        prepared: the image at the network's size, or why there is none.
        truth: (h, w) bool, True where it is defective, at the mask's size; None where nobody knows.
        mask_error: the reason code of a mask that can't be used.
        mask_detail: the reason in words.
    """

    uri: str
    category: str
    split_type: str | None
    label: int | None
    prepared: Prepared
    truth: Mask | None
    mask_error: str | None = None
    mask_detail: str | None = None


def prepare_labelled(row: Mapping[str, Any], framing: Framing, fetch: Fetcher) -> LabelledImage:
    """Fetches and decodes an image, makes a network's input of it, and reads its mask.

    A mask that can't be used leaves its image as it is, of unknown truth.

    Args:
        row: of a table of images.
        framing: the model's.
        fetch: reads files.
    """
    prepared = prepare(lambda: fetch(row["uri"], row["size_bytes"]), framing)
    truth, code, detail = None, None, None
    if prepared.shape:
        try:
            truth = read_truth(row, prepared.shape, fetch)
        except ImageError as error:
            code, detail = error.code, str(error)
    kind, label = row["split_type"], row["label"]
    return LabelledImage(row["uri"], row["category"], kind, label, prepared, truth, code, detail)


def read_truth(row: Mapping[str, Any], shape: tuple[int, int], fetch: Fetcher) -> Mask | None:
    """Reads where an image is defective.

    Args:
        row: of a table of images.
        shape: rows and columns of the image.
        fetch: reads files.

    Returns:
        (h, w) bool: the mask, which may be smaller or larger than the image but has its aspect; no
        defect anywhere for a good image without a mask; None for a defect without one.

    Raises:
        ImageError: if the image has a mask that can't be used. The code begins with ``mask_``.
    """
    uris, label = row["mask_uris"], row["label"]
    if row["mask_conflict"] is not None:
        raise ImageError(
            "mask_twice",
            f"{row['mask_conflict']}: masks of one image; expected one. Remove others.",
        )
    if uris is None:
        return np.zeros(shape, bool) if label == GOOD else None
    place = some(uris)
    try:
        mask = read_masks(uris, row["mask_level"], fetch)
    except ImageError as error:
        raise ImageError(f"mask_{error.code}", str(error)) from None
    if not same_aspect(_shape(mask), shape):
        raise ImageError(
            "mask_shape",
            f"{place}: {mask.shape[0]} rows x {mask.shape[1]} columns; expected the aspect of its "
            f"image, {shape[0]} rows x {shape[1]} columns",
        )
    if label == GOOD and mask.any():
        raise ImageError(
            "mask_on_good",
            f"{place}: {np.count_nonzero(mask)} defective pixels in an image that lies in 'good'; "
            "expected none. Move the image or remove its mask.",
        )
    if label == DEFECT and not mask.any():
        raise ImageError(
            "mask_empty",
            f"{place}: no defective pixel in a defective image; expected values above half of the "
            "range, or 0 and one other value in all masks of the category",
        )
    return mask


def judge_labelled(
    judge: Judge, images: Sequence[LabelledImage], maps: Location | None = None
) -> list[dict[str, Any]]:
    """Judges images of one category and type.

    Args:
        judge: the category's model.
        images: prepared for it.
        maps: keeps each anomaly map as ``map_place`` says, (H, W) float32, at the resolution of the
            mask, or of the image where there is none.

    Returns:
        Rows of ``ssray.scoring.tables.SCORED_PARTS`` in the images' order. Pixels are counted
        against the masks, and the counts of all images are kept in the first row.
    """
    rows, counts = [], PixelCounts()
    for image, judged in zip(images, judge([each.prepared for each in images]), strict=True):
        row = judged.row() | {
            "uri": image.uri,
            "category": image.category,
            "split_type": image.split_type,
            "label": image.label,
            "model_version": judge.artifact.version,
            "mask_error": image.mask_error,
            "mask_detail": image.mask_detail,
        }
        rows.append(row)
        if judged.verdict is None:
            continue
        row["heatmap"] = levels_to_png(judged.verdict.levels)
        if image.truth is not None:
            full_size = resize_map(judged.verdict.anomaly_map, _shape(image.truth))
            counts.add(full_size, image.truth)
        elif maps is not None:
            full_size = resize_map(judged.verdict.anomaly_map, judged.verdict.shape)
        if maps is not None:
            place = map_place(maps, image.category, image.split_type, image.uri)
            place.write(_npy(full_size))
    if counts.good_pixels or counts.defective_pixels:
        rows[0]["pixel_counts"] = counts.to_bytes()
    return rows


def map_place(maps: Location, category: str, split_type: str | None, uri: str) -> Location:
    """Where the anomaly map of an image is kept: ``CATEGORY/TYPE/NAME.npy``."""
    return maps / category / (split_type or "images") / f"{PurePosixPath(uri).stem}.npy"


def _shape(truth: Mask) -> tuple[int, int]:
    return truth.shape[0], truth.shape[1]


def _npy(array: npt.NDArray[Any]) -> bytes:
    """The array as a file that ``numpy.load`` reads."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
