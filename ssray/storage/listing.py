"""Lists the files below a folder or S3 prefix one at a time, also where there are millions.

What counts as a file of the user's is decided here, for every listing: ``is_hidden`` names what
operating systems and programs leave beside it.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from ssray.errors import DataError
from ssray.storage import disk, s3
from ssray.storage.location import Location

_LEFT_BY_PROGRAMS = frozenset(
    [
        *("__macosx", "icon\r", "network trash folder", "temporary items"),  # macOS
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini"),  # Windows
        *("$recycle.bin", "system volume information"),
        *("@eadir", "#recycle", "#snapshot"),  # storage servers: thumbnails, deleted files
        *("lost+found", "__pycache__"),
    ]
)
"""Names of files and folders, in lower case, that nobody photographed."""


@dataclass(frozen=True)
class ListedFile:
    """A file that was found in a listing.

    Attributes:
        place: where the file is.
        path: the path relative to the place that was listed, with slashes; the file's name if a
            single file was listed.
        size: the size in bytes; 0 if it can't be read.
        error: the reason code if it is known already that it can't be read: ``missing`` for a link
            whose target is not there, ``forbidden`` for what is no regular file.
        etag: what changes when the file does; None where it can't be read.
    """

    place: Location
    path: str
    size: int
    error: str | None = None
    etag: str | None = None

    @property
    def is_lost_folder(self) -> bool:
        """Whether it is a link to nothing that may have led to a folder: its name has no suffix."""
        return self.error == "missing" and not posixpath.splitext(self.path)[1]


def is_hidden(path: str) -> bool:
    """Tells whether a path below a listed place is to be left out of every listing.

    It is if any part of it begins with a dot, or is a name that operating systems use for files of
    their own.

    >>> [is_hidden(p) for p in ("a/.ipynb_checkpoints/0.png", "__MACOSX/0.png", "a/Thumbs.db")]
    [True, True, True]
    >>> is_hidden("a/0.png")
    False
    """
    return any(
        part.startswith(".") or part.casefold() in _LEFT_BY_PROGRAMS for part in path.split("/")
    )


def walk(root: Location) -> Iterator[ListedFile]:
    """Yields every file below a folder or prefix, at any depth; or the file itself.

    On a disk links are followed, and each real folder is visited once, by its own path if it lies
    below ``root``. Links whose target is not there are yielded, as are devices and pipes, with the
    reason why they can't be read.

    Memory holds one page of the listing on S3, and on a disk the names in the folders that lead to
    the present one and the path of each folder. The order is by name within each folder, and the
    same each time. What ``is_hidden`` is left out.

    Raises:
        DataError: if there is no such place, or it can't be listed.
    """
    try:
        if not root.exists():
            root.check_bucket()
            raise DataError(f"{root}: no such file, folder or prefix. Check the path.")
        if not root.is_dir():
            yield _single(root)
        elif root.in_s3:
            yield from _walk_s3(root)
        else:
            yield from _walk_disk(root)
    except OSError as error:
        raise DataError(
            f"{root}: can't be listed. Check the path and the access to it. ({error})"
        ) from None


def lost_links(place: Location) -> list[ListedFile]:
    """Returns the links directly inside a folder whose target is not there; S3 has none."""
    if place.in_s3:
        return []
    entries = (entry for entry in _entries(place.path) if not _is_folder(entry))
    listed = (_listed(place, entry.name, entry) for entry in entries)
    return [file for file in listed if file.error == "missing"]


def _single(place: Location) -> ListedFile:
    name = posixpath.basename(place.path)
    if place.in_s3:
        size, etag = place.size_and_etag()
        return ListedFile(place, name, size, etag=etag)
    return _on_disk(place, name, os.stat(place.path))


def _walk_s3(root: Location) -> Iterator[ListedFile]:
    bucket, _, key = root.path.partition("/")
    prefix = f"{key}/" if key else ""
    for found in s3.list_objects(bucket, prefix):
        path = found.key.removeprefix(prefix)
        if path.endswith("/") or is_hidden(path):
            continue
        place = Location(root.filesystem, f"{bucket}/{found.key}", root.prefix)
        yield ListedFile(place, path, found.size, etag=found.etag)


def _walk_disk(root: Location) -> Iterator[ListedFile]:
    real_root = os.path.realpath(root.path)
    visited = {real_root}
    open_folders = [(real_root, "", _entries(root.path))]
    while open_folders:
        real, below, entries = open_folders[-1]
        entry = next(entries, None)
        if entry is None:
            open_folders.pop()
            continue
        path = f"{below}{entry.name}"
        if not _is_folder(entry):
            yield _listed(root, path, entry)
            continue
        target = os.path.join(real, entry.name)
        if entry.is_symlink():
            target = os.path.realpath(entry.path)
            inside = os.path.relpath(target, real_root)
            if target == real_root or not is_hidden(inside):  # what is outside begins with ".."
                continue
        if target not in visited:
            visited.add(target)
            open_folders.append((target, f"{path}/", _entries(entry.path)))


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """Yields what lies in a folder, by name, without what ``is_hidden``."""
    with os.scandir(folder) as entries:
        ordered = sorted((e for e in entries if not is_hidden(e.name)), key=lambda e: e.name)
    yield from ordered


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links in a circle, or into a folder that may not be read
        return False


def _listed(root: Location, path: str, entry: os.DirEntry[str]) -> ListedFile:
    try:
        found = entry.stat()
    except OSError as error:
        code = "forbidden" if isinstance(error, PermissionError) else "missing"
        return ListedFile(root / path, path, 0, code)
    return _on_disk(root / path, path, found)


def _on_disk(place: Location, path: str, found: os.stat_result) -> ListedFile:
    if not stat.S_ISREG(found.st_mode):
        return ListedFile(place, path, found.st_size, "forbidden")
    return ListedFile(place, path, found.st_size, etag=disk.etag_of(found))
