"""Brings the layouts of other benchmarks into that of MVTec AD, by renaming paths in thought.

MVTec LOCO:
    ``train/good``, ``test/good|logical_anomalies|structural_anomalies`` and any number of masks
    for an image, ``ground_truth/KIND/STEM/000.png``, whose union counts. ``validation/good`` is
    left out: held-out images are taken from the training images.
BTAD:
    ``train/ok``, ``test/ok``, ``test/ko``, ``ground_truth/ko``.
VisA:
    ``Data/Images/Normal|Anomaly`` and ``Data/Masks/Anomaly``, split by ``split_csv/1cls.csv`` above
    the categories.

KolektorSDD has no folders of training and test images, so it is only recognised.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from ssray.data.category_files import SPLITS, CategoryFile
from ssray.data.image_files import MASKS, some
from ssray.data.labels import GOOD, refuse_like_good
from ssray.errors import DataError
from ssray.storage.location import Location

DEPTH = 2
"""How many folders lie between a category's folder and an image: split and type."""
VISA_FOLDER = ("Data", "Images")
VISA_SPLIT = "split_csv/1cls.csv"
VISA_COLUMNS = ("object", "split", "label", "image")
_VISA_KINDS = {"Normal": GOOD, "Anomaly": "anomaly"}
_VISA_LABELS = {"normal": GOOD, "anomaly": "anomaly"}
_LOCO_DEFECTS = frozenset(["logical_anomalies", "structural_anomalies"])


def in_mvtec_ad(
    root: Location, category: str, files: Sequence[CategoryFile], good_name: str
) -> list[CategoryFile]:
    """Gives a category's images the paths that they would have in the layout of MVTec AD.

    Args:
        root: the folder above the categories.
        category: the name of the category.
        files: its images and masks.
        good_name: the name of the folders of good images.

    Returns:
        The files with paths ``train/good/...``, ``test/TYPE/...`` and ``ground_truth/TYPE/...``;
        others are left out. Where an image has several masks, they are the parts of one.

    Raises:
        DataError: if an image lies in a split but in no folder of a type, a folder is called like
            good images and is not theirs, or VisA's split is missing or names other images.
    """
    training, tested = _kinds(files, "train"), _kinds(files, "test")
    if not training | tested and any(file.path.parts[:2] == VISA_FOLDER for file in files):
        return _of_visa(root, category, files)
    if training == {"ok"} and "ko" in tested and tested <= {"ok", "ko"} and good_name == GOOD:
        good_name = "ok"
    if tested & _LOCO_DEFECTS and tested <= {GOOD, *_LOCO_DEFECTS}:
        files = _joined(files)
    return _renamed(root / category, files, good_name)


def why_none(root: Location, paths: Sequence[str]) -> str:
    """Explains why a place has no category, by the first paths that it has."""
    found = f"{root}: no category found. Found {some(paths)}."
    label = next((path for path in paths if PurePosixPath(path).stem.endswith("_label")), None)
    if label:
        return (
            f"{found} {label} is a mask of KolektorSDD's, which does not say which images are for "
            "training. Copy images whose mask is black to ROOT/CATEGORY/train/good and, of other "
            "parts, test/good, the others to test/defect, and their masks to "
            "ground_truth/defect/NAME_mask.bmp; as names are the same in all folders, put the "
            "folder's in front (kos01_Part0). 'Prepare a data set' in the documentation "
            "(docs/how-to/data.md) has a script that does it."
        )
    if any(PurePosixPath(path).parts[0] in (*SPLITS, MASKS) for path in paths):
        return (
            f"{found} This is a category itself: expected the folder above it, and --category with "
            "the name of this one."
        )
    return (
        f"{found} Expected folders ROOT/CATEGORY/train/good (MVTec AD layout; also MVTec LOCO, "
        "BTAD and VisA as they are published) or archives ROOT/CATEGORY.tar; give the folder above "
        "the categories. To train on a folder of good photographs alone, give that one: ssray "
        "train --good FOLDER --name CATEGORY."
    )


def _kinds(files: Iterable[CategoryFile], split: str) -> set[str]:
    """Returns the names of the folders in a split."""
    paths = (file.path.parts for file in files)
    return {parts[1] for parts in paths if len(parts) > DEPTH and parts[0] == split}


def _renamed(
    category: Location, files: Iterable[CategoryFile], good_name: str
) -> list[CategoryFile]:
    """Names the folders of good images as MVTec AD does."""
    renamed = []
    for file in files:
        *folders, name = file.path.parts
        if not folders or folders[0] not in (*SPLITS, MASKS):
            continue
        part, *kinds = folders
        if not kinds and part in SPLITS:
            raise DataError(
                f"{category}: {file.path} lies in no folder of a type. Expected "
                f"{part}/{good_name}/{name}"
                + (f" or {part}/DEFECT/{name}." if part == "test" else ".")
            )
        if not kinds:
            continue
        kind, *below = kinds
        if part in SPLITS:
            refuse_like_good(str(category), part, kind, good_name)
        path = PurePosixPath(part, GOOD if kind == good_name else kind, *below, name)
        renamed.append(CategoryFile(path, file.uri, file.size, file.further))
    return renamed


def _joined(files: Iterable[CategoryFile]) -> list[CategoryFile]:
    """Joins the masks that MVTec LOCO has in a folder for each image."""
    joined, masks = [], defaultdict[PurePosixPath, list[CategoryFile]](list)
    for file in files:
        if file.path.parts[0] == MASKS and len(file.path.parts) == DEPTH + 2:
            masks[file.path.parent].append(file)
        else:
            joined.append(file)
    for folder, parts in masks.items():
        path, (uri, *further) = folder.with_name(f"{folder.name}.png"), (part.uri for part in parts)
        size = sum(part.size for part in parts)
        joined.append(CategoryFile(path, uri, size, tuple(further)))
    return joined


def _of_visa(root: Location, category: str, files: Iterable[CategoryFile]) -> list[CategoryFile]:
    """Divides VisA's images by its split; images that the split does not name are left out."""
    split = _visa_split(root, category)
    placed = []
    for file in files:
        if file.path.parts[:2] == VISA_FOLDER and str(file.path) in split:
            part, kind = split.pop(str(file.path))
            placed.append(
                CategoryFile(PurePosixPath(part, kind, file.path.name), file.uri, file.size)
            )
        elif file.path.parts[:2] == ("Data", "Masks") and len(file.path.parts) > DEPTH + 1:
            kind = _VISA_KINDS.get(file.path.parts[2], file.path.parts[2])
            path = PurePosixPath(MASKS, kind, file.path.name)
            placed.append(CategoryFile(path, file.uri, file.size))
    if split:
        raise DataError(
            f"{root / VISA_SPLIT}: {len(split)} images of {category} are not there: "
            f"{some(sorted(split))}. Copy them, or remove their lines."
        )
    return placed


def _visa_split(root: Location, category: str) -> dict[str, tuple[str, str]]:
    """Reads which split and type each image of a category belongs to, by its path in it."""
    place = root / VISA_SPLIT
    expected = f"Expected a table with the columns {', '.join(VISA_COLUMNS)}"
    try:
        rows = list(csv.DictReader(io.StringIO(place.read().decode("utf-8-sig"))))
        return {
            row["image"].removeprefix(f"{category}/"): (
                SPLITS[SPLITS.index(row["split"])],
                _VISA_LABELS[row["label"]],
            )
            for row in rows
            if row["object"] == category
        }
    except FileNotFoundError:
        raise DataError(
            f"{root / category}: images as VisA has them, Data/Images/Normal, but not which are "
            f"for training. {expected} at {place}."
        ) from None
    except (OSError, ValueError, KeyError, AttributeError, csv.Error) as error:
        raise DataError(
            f"{place}: not VisA's split. {expected}. ({type(error).__name__}: {error})"
        ) from None
