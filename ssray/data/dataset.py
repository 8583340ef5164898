"""Turns the folders of a data set into an image table: an Arrow table with a row for each image.

The layout is that of MVTec AD::

    ROOT/CATEGORY/train/good/NAME.png
    ROOT/CATEGORY/test/TYPE/NAME.png                  TYPE is good or a kind of defect
    ROOT/CATEGORY/ground_truth/TYPE/NAME_mask.png     NAME as in test/TYPE

A mask belongs to the image of exactly the same stem; its extension may differ. An archive
``ROOT/CATEGORY.tar`` (or another of ``ssray.storage.archives.SUFFIXES``) may stand for the folder;
the paths in it may begin with the category's name.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image
from pyarrow import fs

from ssray.data.decode import FORMATS
from ssray.errors import DataError
from ssray.storage.archives import category_of, members
from ssray.storage.location import Location

IMAGE_TABLE_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("split", pa.string(), metadata={"values": "train, test; null for unlabelled"}),
        pa.field("split_type", pa.string(), metadata={"values": "good or a kind of defect"}),
        pa.field("label", pa.int8(), metadata={"values": "0 good, 1 defect, null unknown"}),
        pa.field("mask_uri", pa.string()),
        pa.field("size_bytes", pa.int64(), nullable=False),
    ]
)

GOOD = "good"
MASK_SUFFIX = "_mask"
"""What a mask's name has after the name of its image, before the extension."""
DEPTH = 2
"""How many folders lie between a category's folder and an image: split and type."""


def image_extensions() -> frozenset[str]:
    """Returns the file extensions of the formats that are decoded, in lower case with the dot."""
    known = Image.registered_extensions()
    return frozenset(ext.lower() for ext, kind in known.items() if kind in FORMATS)


@dataclass(frozen=True)
class _File:
    """A file of a category, which may lie in a folder or an archive.

    Attributes:
        path: the path inside the category, such as ``train/good/000.png``.
        uri: where to read it.
        size: the size in bytes.
    """

    path: PurePosixPath
    uri: str
    size: int

    @property
    def is_image(self) -> bool:
        return self.path.suffix.lower() in image_extensions()


def categories(root: Location) -> list[str]:
    """Returns the names of the categories below ``root``, sorted.

    A category is a folder that holds a ``train`` or ``test`` folder, or an archive that is named
    after its category.

    Raises:
        DataError: if there is no category.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder. Expected ROOT/CATEGORY/train/good/*.png.")
    found = set(_archives(root))
    for info in root.children():
        place = root.at(info)
        if info.type == fs.FileType.Directory and any(
            (place / split).is_dir() for split in ("train", "test")
        ):
            found.add(info.base_name)
    if not found:
        raise DataError(
            f"{root}: no category found. Expected folders ROOT/CATEGORY/train/good "
            "(MVTec AD layout) or archives ROOT/CATEGORY.tar; give the folder above the "
            "categories."
        )
    return sorted(found)


def index_dataset(root: Location, only: list[str] | tuple[str, ...] = ()) -> pa.Table:
    """Makes the image table of a labelled data set in the layout of MVTec AD.

    Args:
        root: the folder above the categories.
        only: the categories to take; empty takes all.

    Returns:
        A table of ``IMAGE_TABLE_SCHEMA``, ordered by category, split, type and path.

    Raises:
        DataError: if a category is missing, a training image lies outside ``good``, a mask
            has no image, or a defect folder has masks for only some of its images.
    """
    present = categories(root)
    missing = [name for name in only if name not in present]
    if missing:
        raise DataError(f"{root}: no category {', '.join(missing)}. Found: {', '.join(present)}.")
    rows: list[dict[str, object]] = []
    for category in only or present:
        rows += _category_rows(root, category)
    return pa.Table.from_pylist(rows, schema=IMAGE_TABLE_SCHEMA)


def index_images(place: Location, category: str) -> pa.Table:
    """Makes the image table of unlabelled images: one file, or all below a folder or prefix.

    Args:
        place: the file, folder or prefix.
        category: the category that all rows get.

    Raises:
        DataError: if there is no such place, or no file in it has an image's extension.
    """
    if not place.exists():
        raise DataError(
            f"{place}: no such file or folder. Expected an image or a folder of images."
        )
    infos = place.files() if place.is_dir() else [place.filesystem.get_file_info(place.path)]
    images = [info for info in infos if _is_image(info)] if place.is_dir() else infos
    if not images:
        raise DataError(
            f"{place}: {len(infos)} files, none with an image's extension. Expected files such as "
            "NAME.png."
        )
    rows = [_row(place.at(info).uri, info.size, category=category) for info in images]
    return pa.Table.from_pylist(rows, schema=IMAGE_TABLE_SCHEMA)


def _archives(root: Location) -> dict[str, Location]:
    """Returns the archives below ``root`` by the category that they are named after."""
    found = {}
    for info in root.children():
        category = category_of(info.base_name)
        if info.is_file and category:
            found[category] = root.at(info)
    return found


def _files(root: Location, category: str) -> list[_File]:
    """Lists all files of a category, sorted by path."""
    folder = root / category
    if folder.is_dir():
        return [
            _File(PurePosixPath(info.path).relative_to(folder.path), folder.at(info).uri, info.size)
            for info in folder.files()
        ]
    archive = _archives(root)[category]
    sizes = members(archive)
    wrapped = all(PurePosixPath(name).parts[0] == category for name in sizes)
    found = []
    for name in sorted(sizes):
        path = PurePosixPath(name)
        uri = f"{archive.uri}#{name}"
        found.append(_File(path.relative_to(category) if wrapped else path, uri, sizes[name]))
    return found


def _category_rows(root: Location, category: str) -> list[dict[str, object]]:
    """Makes the rows of one category, and checks that its images and masks belong together."""
    groups: dict[tuple[str, str], list[_File]] = defaultdict(list)
    for file in _files(root, category):
        if file.is_image and len(file.path.parts) > DEPTH:
            groups[file.path.parts[0], file.path.parts[1]].append(file)
    rows = []
    for split in ("train", "test"):
        for kind in sorted(kind for found, kind in groups if found == split):
            if split == "train" and kind != GOOD:
                raise DataError(
                    f"{root / category}: training images must be defect-free and lie in "
                    f"train/{GOOD}; move '{kind}' to test/."
                )
            images = groups[split, kind]
            masks = {
                file.path.stem.removesuffix(MASK_SUFFIX): file.uri
                for file in groups.get(("ground_truth", kind), [])
            }
            stems = [file.path.stem for file in images]
            _check_pairing(root / category / "ground_truth" / kind, stems, masks, split, kind)
            rows += [
                _row(
                    file.uri,
                    file.size,
                    category=category,
                    split=split,
                    split_type=kind,
                    label=int(kind != GOOD),
                    mask_uri=masks.get(file.path.stem) if split == "test" else None,
                )
                for file in images
            ]
    return rows


def _check_pairing(
    folder: Location, stems: list[str], masks: dict[str, str], split: str, kind: str
) -> None:
    """Checks that a defect folder has a mask for each of its images, or none at all.

    Raises:
        DataError: if it does not, or two images share a name.
    """
    if split == "train" or kind == GOOD:
        return
    duplicates = sorted({stem for stem in stems if stems.count(stem) > 1})
    if duplicates and masks:
        raise DataError(
            f"{folder}: two images share the name {duplicates[0]}, so that their masks cannot be "
            "told apart. Rename one."
        )
    orphans = sorted(masks.keys() - set(stems))
    if orphans:
        raise DataError(
            f"{folder}: {len(orphans)} masks without an image, first {orphans[0]}. Expected an "
            f"image of that name in test/{kind}; add it or remove the mask."
        )
    bare = sorted(set(stems) - masks.keys())
    if masks and bare:
        raise DataError(
            f"{folder}: {len(bare)} of {len(stems)} images have no mask, first {bare[0]}. "
            f"Expected {bare[0]}{MASK_SUFFIX}.png; give all of them or none."
        )


def _row(uri: str, size: int, *, category: str, **labels: object) -> dict[str, object]:
    return {"uri": uri, "category": category, "size_bytes": size, **labels}


def _is_image(info: fs.FileInfo) -> bool:
    return PurePosixPath(info.path).suffix.lower() in image_extensions()


def training_uris(root: Location, category: str) -> list[str]:
    """The defect-free training images of a category.

    Raises:
        DataError: as ``index_dataset``, or if there is none.
    """
    table = index_dataset(root, [category])
    training = table.filter(pc.equal(table["split"], "train"))
    if not len(training):
        raise DataError(f"{root / category}: no images in train/good.")
    uris: list[str] = training["uri"].to_pylist()
    return uris
