"""Lists the files of a category, which may be a folder or an archive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from ssray.data.image_files import MASKS, has_image_extension
from ssray.errors import DataError
from ssray.storage.archives import category_of, members
from ssray.storage.listing import ListedFile, is_hidden, walk
from ssray.storage.location import Location

SPLITS = ("train", "test")
"""The folders of photographs in the layout of MVTec AD."""
_TOP = frozenset([*SPLITS, MASKS, "validation"])
"""The folders that a category has at its top."""
_VISA_FOLDERS = ("Images", "Masks")
"""The folders that it has below ``Data`` in VisA's layout."""


@dataclass(frozen=True)
class CategoryFile:
    """A file of a category, which may lie in a folder or an archive.

    Attributes:
        path: the path inside the category, such as ``train/good/000.png``.
        uri: where to read it.
        size: the size in bytes.
        further: where to read the other parts of a mask that has several.
    """

    path: PurePosixPath
    uri: str
    size: int
    further: tuple[str, ...] = ()


def archives_of(root: Location) -> dict[str, Location]:
    """Returns the archives below ``root`` by the category that they are named after."""
    found = {}
    for info in root.children():
        category = category_of(info.base_name)
        if info.is_file and category and not is_hidden(info.base_name):
            found[category] = root.at(info)
    return found


def image_files(root: Location, category: str) -> list[CategoryFile]:
    """Lists the images of a category, masks among them, sorted by path.

    In an archive, folders around those of the layout are passed over, whatever they are called.

    Raises:
        DataError: if the category can't be listed, or a folder of it is a link to nothing.
    """
    folder = root / category
    archive = None if folder.is_dir() else archives_of(root)[category]
    if archive is None:
        listed = list(walk(folder))
        refuse_lost([file for file in listed if file.is_lost_folder])
        found = [CategoryFile(PurePosixPath(f.path), f.place.uri, f.size) for f in listed]
    else:
        found = packed_files(archive)
    images = [file for file in found if has_image_extension(file.path.name)]
    if archive:
        images = _unwrapped(images)
    return sorted(images, key=lambda file: str(file.path))


def packed_files(archive: Location) -> list[CategoryFile]:
    """Lists the files in an archive that are not hidden.

    Raises:
        DataError: if it can't be read.
    """
    return [
        CategoryFile(PurePosixPath(name), f"{archive.uri}#{name}", size)
        for name, size in members(archive).items()
        if not is_hidden(name)
    ]


def refuse_lost(links: Sequence[ListedFile]) -> None:
    """Refuses links to nothing that may have led to folders or archives of images.

    Raises:
        DataError: if there is any.
    """
    if links:
        raise DataError(
            f"{links[0].place}: a link whose target is not there. Restore the target, or remove "
            "the link."
        )


def _unwrapped(files: Sequence[CategoryFile]) -> list[CategoryFile]:
    """Drops the folders around those of the layout, if they are the same for all images."""
    outer = {parts[:start] for parts in (f.path.parts for f in files) if (start := _start(parts))}
    whole = any(_start(file.path.parts) == 0 for file in files)
    if whole or len(outer) != 1:
        return list(files)
    [around] = outer
    return [
        CategoryFile(file.path.relative_to(*around), file.uri, file.size)
        for file in files
        if file.path.parts[: len(around)] == around
    ]


def _start(parts: tuple[str, ...]) -> int | None:
    """Returns where the folders of a layout begin in an image's path; None if there are none.

    The last place counts: people keep data sets in folders called ``test``.
    """
    for start in range(len(parts) - 3, -1, -1):
        if parts[start] in _TOP or (parts[start] == "Data" and parts[start + 1] in _VISA_FOLDERS):
            return start
    return None
