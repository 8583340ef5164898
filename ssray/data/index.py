"""The manifest: one Arrow table that names every image of a data set.

Layout, as MVTec AD::

    ROOT/CATEGORY/train/good/NAME.png
    ROOT/CATEGORY/test/TYPE/NAME.png                  TYPE is good or a kind of defect
    ROOT/CATEGORY/ground_truth/TYPE/NAME_mask.png     NAME as in test/TYPE

A mask belongs to the image of exactly the same stem; its extension may differ.
"""

from __future__ import annotations

from pathlib import PurePosixPath

import pyarrow as pa
from PIL import Image
from pyarrow import fs

from ssray.data.storage import Location
from ssray.errors import DataError

MANIFEST_SCHEMA = pa.schema(
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


def image_extensions() -> frozenset[str]:
    """File extensions that Pillow can read, lower case, with the dot."""
    known = Image.registered_extensions()
    return frozenset(ext.lower() for ext, kind in known.items() if kind in Image.OPEN)


def categories(root: Location) -> list[str]:
    """Names of the categories below ``root``: the folders that hold a ``train`` or ``test``.

    Raises:
        DataError: if there is none.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder. Expected ROOT/CATEGORY/train/good/*.png.")
    found = []
    for info in root.children():
        place = root.at(info)
        if info.type == fs.FileType.Directory and any(
            (place / split).is_dir() for split in ("train", "test")
        ):
            found.append(info.base_name)
    if not found:
        raise DataError(
            f"{root}: no category found. Expected folders ROOT/CATEGORY/train/good "
            "(MVTec AD layout); give the folder above the categories."
        )
    return found


def index_dataset(root: Location, only: list[str] | tuple[str, ...] = ()) -> pa.Table:
    """The manifest of a data set in MVTec AD layout, ordered by uri within category and split.

    Args:
        root: the folder above the categories.
        only: categories to take; empty takes all.

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
        rows += _category_rows(root / category, category)
    return pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA)


def index_images(place: Location, category: str) -> pa.Table:
    """The manifest of unlabelled images: one file, or every image below a folder or prefix.

    Raises:
        DataError: if there is nothing there, or no file that Pillow can read.
    """
    if not place.exists():
        raise DataError(f"{place}: no such file or folder.")
    infos = place.files() if place.is_dir() else [place.filesystem.get_file_info(place.path)]
    images = [info for info in infos if _is_image(info)] if place.is_dir() else infos
    if not images:
        raise DataError(f"{place}: {len(infos)} files, none with an image's extension.")
    rows = [_row(place.at(info), info, category=category) for info in images]
    return pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA)


def _category_rows(place: Location, category: str) -> list[dict[str, object]]:
    rows = []
    for split in ("train", "test"):
        for folder in (place / split).children():
            if folder.type != fs.FileType.Directory:
                continue
            kind = folder.base_name
            if split == "train" and kind != GOOD:
                raise DataError(
                    f"{folder.path}: training images must be defect-free and lie in train/{GOOD}; "
                    f"move '{kind}' to test/."
                )
            masks = _masks(place / "ground_truth" / kind)
            images = [info for info in (place / split / kind).files() if _is_image(info)]
            stems = [PurePosixPath(info.path).stem for info in images]
            _check_pairing(place / "ground_truth" / kind, stems, masks, split, kind)
            rows += [
                _row(
                    place.at(info),
                    info,
                    category=category,
                    split=split,
                    split_type=kind,
                    label=int(kind != GOOD),
                    mask_uri=masks.get(stem) if split == "test" else None,
                )
                for info, stem in zip(images, stems, strict=True)
            ]
    return rows


def _masks(folder: Location) -> dict[str, str]:
    masks = {}
    for info in folder.files():
        stem = PurePosixPath(info.path).stem
        if _is_image(info):
            masks[stem.removesuffix(MASK_SUFFIX)] = folder.at(info).uri
    return masks


def _check_pairing(
    folder: Location, stems: list[str], masks: dict[str, str], split: str, kind: str
) -> None:
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
        raise DataError(f"{folder}: {len(orphans)} masks without an image, first {orphans[0]}.")
    bare = sorted(set(stems) - masks.keys())
    if masks and bare:
        raise DataError(
            f"{folder}: {len(bare)} of {len(stems)} images have no mask, first {bare[0]}. "
            f"Expected {bare[0]}{MASK_SUFFIX}.png; give all of them or none."
        )


def _row(
    place: Location, info: fs.FileInfo, *, category: str, **labels: object
) -> dict[str, object]:
    return {"uri": place.uri, "category": category, "size_bytes": info.size, **labels}


def _is_image(info: fs.FileInfo) -> bool:
    return PurePosixPath(info.path).suffix.lower() in image_extensions()
