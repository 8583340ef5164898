"""Lists the files below a folder or S3 prefix one at a time, also where there are millions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from ssray.errors import DataError
from ssray.storage import s3
from ssray.storage.location import Location


@dataclass(frozen=True)
class ListedFile:
    """A file that was found in a listing.

    Attributes:
        place: where the file is.
        path: the path relative to the place that was listed, with slashes; the file's name if a
            single file was listed.
        size: the size in bytes.
    """

    place: Location
    path: str
    size: int


def walk(root: Location) -> Iterator[ListedFile]:
    """Yields every file below a folder or prefix, at any depth; or the file itself.

    Memory holds one page of the listing on S3, and the names in one folder on a disk. The order is
    by name within each folder, and the same each time. Names that begin with a dot are left out.

    Raises:
        DataError: if there is no such place, or it can't be listed.
    """
    try:
        if not root.exists():
            raise DataError(f"{root}: no such file, folder or prefix. Check the path.")
        if not root.is_dir():
            [info] = root.filesystem.get_file_info([root.path])
            yield ListedFile(root, info.base_name, info.size)
        elif root.in_s3:
            yield from _walk_s3(root)
        else:
            yield from _walk_disk(root, "")
    except OSError as error:
        raise DataError(
            f"{root}: can't be listed. Check the path and the access to it. ({error})"
        ) from None


def _walk_s3(root: Location) -> Iterator[ListedFile]:
    bucket, _, key = root.path.partition("/")
    prefix = f"{key}/" if key else ""
    for found, size in s3.list_objects(bucket, prefix):
        path = found.removeprefix(prefix)
        if path.endswith("/") or any(part.startswith(".") for part in path.split("/")):
            continue
        yield ListedFile(Location(root.filesystem, f"{bucket}/{found}", root.prefix), path, size)


def _walk_disk(root: Location, below: str) -> Iterator[ListedFile]:
    with os.scandir(root.path) as entries:
        ordered = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    for entry in ordered:
        path = f"{below}{entry.name}"
        if entry.is_dir():
            yield from _walk_disk(root / entry.name, f"{path}/")
        elif entry.is_file():
            yield ListedFile(root / entry.name, path, entry.stat().st_size)
