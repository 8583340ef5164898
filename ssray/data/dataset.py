"""Turns the folders of a data set into an image table: an Arrow table with a row for each image.

The layout is that of MVTec AD::

    ROOT/CATEGORY/train/good/NAME.png
    ROOT/CATEGORY/test/TYPE/NAME.png                  TYPE is good or a kind of defect
    ROOT/CATEGORY/ground_truth/TYPE/NAME_mask.png     NAME as in test/TYPE

or one that ``ssray.data.layouts`` brings into it. A mask belongs to the image of exactly the same
stem; its extension may differ (``ssray.data.mask_pairs``). An archive ``ROOT/CATEGORY.tar`` (or
another of ``ssray.storage.archives.SUFFIXES``) may stand for the folder.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from ssray.data.category_files import (
    SPLITS,
    CategoryFile,
    archives_of,
    image_files,
    packed_files,
    refuse_lost,
)
from ssray.data.image_files import MASKS, passed_over_as, some
from ssray.data.labels import GOOD
from ssray.data.layouts import VISA_FOLDER, in_mvtec_ad, why_none
from ssray.data.mask_pairs import mask_columns, pair_masks
from ssray.errors import DataError
from ssray.storage.archives import category_of
from ssray.storage.listing import is_hidden, lost_links, walk
from ssray.storage.location import Location

IMAGE_TABLE_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("split", pa.string(), metadata={"values": "train, test; null for unlabelled"}),
        pa.field("split_type", pa.string(), metadata={"values": "good or a kind of defect"}),
        pa.field("label", pa.int8(), metadata={"values": "0 good, 1 defect, null unknown"}),
        pa.field(
            "mask_uris",
            pa.list_(pa.string()),
            metadata={"values": "null if there is none; several are parts, whose union counts"},
        ),
        pa.field("mask_conflict", pa.string(), metadata={"values": "the masks, if several"}),
        pa.field("mask_level", pa.int32(), metadata={"of": "ssray.data.masks.with_mask_levels"}),
        pa.field("size_bytes", pa.int64(), nullable=False),
    ]
)

_SHOWN_OF_NONE = 100
"""How many files are looked at to say what a place has in place of categories."""


def categories(root: Location) -> list[str]:
    """Returns the names of the categories below ``root``, sorted.

    A category is a folder that holds a ``train`` or ``test`` folder, or VisA's ``Data/Images``, or
    an archive that is named after its category.

    Raises:
        DataError: if there is no category, or a folder below ``root`` is a link to nothing.
    """
    if not root.is_dir():
        root.check_bucket()
        raise DataError(f"{root}: no such folder. Expected ROOT/CATEGORY/train/good/*.png.")
    refuse_lost([f for f in lost_links(root) if f.is_lost_folder or category_of(f.path)])
    found = set(archives_of(root))
    for info in root.children():
        if info.type == fs.FileType.Directory and not is_hidden(info.base_name):
            folders = (root.at(info) / name for name in (*SPLITS, "/".join(VISA_FOLDER)))
            if any(folder.is_dir() for folder in folders):
                found.add(info.base_name)
    if not found:
        paths = [file.path for file in itertools.islice(walk(root), _SHOWN_OF_NONE)]
        raise DataError(why_none(root, paths))
    return sorted(found)


def index_dataset(
    root: Location, only: list[str] | tuple[str, ...] = (), good_name: str = GOOD
) -> pa.Table:
    """Makes the image table of a labelled data set.

    Args:
        root: the folder above the categories.
        only: the categories to take; empty takes all.
        good_name: the name of the folders of good images.

    Returns:
        A table of ``IMAGE_TABLE_SCHEMA``, ordered by category, split, type and path.

    Raises:
        DataError: if a category is missing, a training image lies outside ``good``, good images
            might be meant by the name of another folder, a mask has no image, or a defect folder
            has masks for only some of its images.
    """
    present = categories(root)
    missing = [name for name in only if name not in present]
    if missing:
        raise DataError(f"{root}: no category {', '.join(missing)}. Found: {', '.join(present)}.")
    rows: list[dict[str, object]] = []
    for category in only or present:
        rows += _category_rows(root, category, good_name)
    return pa.Table.from_pylist(rows, schema=IMAGE_TABLE_SCHEMA)


def index_images(place: Location, category: str) -> pa.Table:
    """Makes the image table of unlabelled images: one file, or all below a folder or prefix or in
    an archive.

    Hidden files and masks below ``ground_truth`` are left out.

    Args:
        place: the file, folder, prefix or archive.
        category: the category that all rows get.

    Raises:
        DataError: if there is no such place, or no file in it has an image's extension.
    """
    if not place.exists():
        place.check_bucket()
        raise DataError(
            f"{place}: no such file or folder. Expected an image or a folder of images."
        )
    if place.is_dir():
        found = sorted(walk(place), key=lambda file: file.path)
        paths = [file.path for file in found]
        images = [f for f in found if passed_over_as(f.path) is None or f.is_lost_folder]
        rows = [_row(file.place.uri, file.size, category=category) for file in images]
    elif category_of(place.path):
        packed = sorted(packed_files(place), key=lambda file: str(file.path))
        paths = [str(file.path) for file in packed]
        shown = [file for file in packed if passed_over_as(str(file.path)) is None]
        rows = [_row(file.uri, file.size, category=category) for file in shown]
    else:
        paths = [place.path]
        rows = [_row(file.place.uri, file.size, category=category) for file in walk(place)]
    if not rows:
        raise DataError(
            f"{place}: {len(paths)} files, none with an image's extension. Found {some(paths)}. "
            "Expected files such as NAME.png."
        )
    return pa.Table.from_pylist(rows, schema=IMAGE_TABLE_SCHEMA)


def _category_rows(root: Location, category: str, good_name: str) -> list[dict[str, object]]:
    """Makes the rows of one category, and checks that its images and masks belong together."""
    groups: dict[tuple[str, str], list[CategoryFile]] = defaultdict(list)
    for file in in_mvtec_ad(root, category, image_files(root, category), good_name):
        groups[file.path.parts[0], file.path.parts[1]].append(file)
    _check_kinds(root / category, groups)
    rows = []
    for split in SPLITS:
        for kind in sorted(kind for found, kind in groups if found == split):
            if split == "train" and kind != GOOD:
                raise DataError(
                    f"{root / category}: training images must be defect-free and lie in "
                    f"train/{good_name}; move '{kind}' to test/."
                )
            images = groups[split, kind]
            masks: dict[str, list[list[str]]] = {}
            if split == "test":
                masks = pair_masks(
                    root / category / MASKS / kind,
                    [file.path.stem for file in images],
                    [
                        (file.path.stem, [file.uri, *file.further])
                        for file in groups.get((MASKS, kind), [])
                    ],
                    defective=kind != GOOD,
                )
            rows += [
                _row(
                    file.uri,
                    file.size,
                    category=category,
                    split=split,
                    split_type=kind,
                    label=int(kind != GOOD),
                    **mask_columns(masks.get(file.path.stem, ())),
                )
                for file in images
            ]
    return rows


def _check_kinds(place: Location, groups: Iterable[tuple[str, str]]) -> None:
    """Checks that masks lie in folders that are called as those of their images.

    Raises:
        DataError: if a folder of masks has no folder of images, though there are test images.
    """
    tested = sorted(kind for split, kind in groups if split == "test")
    lonely = sorted(kind for split, kind in groups if split == MASKS and kind not in tested)
    if tested and lonely:
        raise DataError(
            f"{place / MASKS / lonely[0]}: masks without images. Expected the name of a folder in "
            f"test/, which has {', '.join(tested)}; rename or remove it."
        )


def _row(uri: str, size: int, *, category: str, **labels: object) -> dict[str, object]:
    return {"uri": uri, "category": category, "size_bytes": size, **labels}


def training_uris(root: Location, category: str, good_name: str = GOOD) -> list[str]:
    """The defect-free training images of a category.

    Raises:
        DataError: as ``index_dataset``, or if there is none.
    """
    table = index_dataset(root, [category], good_name)
    training = table.filter(pc.equal(table["split"], "train"))
    if not len(training):
        found = [file.path for file in image_files(root, category)]
        several = any({*SPLITS} & {*path.parts[1:-1]} for path in found)
        raise DataError(
            f"{root / category}: no images in train/{good_name}. Found {some([*map(str, found)])}. "
            f"Expected good photographs in {category}/train/{good_name}."
            + " Unpack an archive of several categories, and give their folder."
            * several
        )
    uris: list[str] = training["uri"].to_pylist()
    return uris
