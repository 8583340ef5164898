"""A location (path, ``file://`` or object-store URI) as a filesystem and a path.

The only module that knows there are clouds.
"""

from __future__ import annotations

import posixpath
import secrets
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from ssray.errors import DataError


@dataclass(frozen=True)
class Location:
    """A place on a filesystem. ``/`` joins, ``uri`` is what tables store.

    >>> str(Location.parse("/data") / "grid" / "000.png")
    '/data/grid/000.png'
    """

    filesystem: fs.FileSystem
    path: str
    prefix: str = ""

    @classmethod
    def parse(cls, uri: str | Path) -> Location:
        """Reads a path, relative or absolute, or a URI that pyarrow knows.

        Raises:
            DataError: if the scheme is unknown or the URI malformed.
        """
        text = str(uri)
        if "://" not in text:
            return cls(fs.LocalFileSystem(), str(Path(text).expanduser().absolute()))
        scheme = text.partition("://")[0]
        try:
            filesystem, path = fs.FileSystem.from_uri(text)
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{text}: expected a path or a URI such as s3://bucket/prefix. ({error})"
            ) from None
        if scheme == "file":
            return cls(filesystem, path)
        return cls(filesystem, path.rstrip("/"), f"{scheme}://")

    def __truediv__(self, name: str) -> Location:
        return Location(self.filesystem, posixpath.join(self.path, name), self.prefix)

    def __str__(self) -> str:
        return self.prefix + self.path

    @property
    def uri(self) -> str:
        return str(self)

    def make_folder(self) -> None:
        """Creates the folder and those above it.

        Raises:
            DataError: if something else has its name or it can't be created.
        """
        try:
            self.filesystem.create_dir(self.path, recursive=True)
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{self}: can't be created. Expected a folder to write to. ({error})"
            ) from None

    def exists(self) -> bool:
        info: fs.FileInfo = self.filesystem.get_file_info(self.path)
        return bool(info.type != fs.FileType.NotFound)

    def is_dir(self) -> bool:
        info: fs.FileInfo = self.filesystem.get_file_info(self.path)
        return bool(info.type == fs.FileType.Directory)

    def children(self) -> list[fs.FileInfo]:
        """What lies directly inside, by name; empty if there is no such place."""
        selector = fs.FileSelector(self.path, allow_not_found=True)
        found: list[fs.FileInfo] = self.filesystem.get_file_info(selector)
        return sorted(found, key=lambda info: str(info.path))

    def files(self) -> list[fs.FileInfo]:
        """Every file below, at any depth, by path; empty if there is no such place."""
        selector = fs.FileSelector(self.path, recursive=True, allow_not_found=True)
        found: list[fs.FileInfo] = self.filesystem.get_file_info(selector)
        return sorted((f for f in found if f.is_file), key=lambda info: str(info.path))

    def at(self, info: fs.FileInfo) -> Location:
        return Location(self.filesystem, info.path, self.prefix)

    def read(self) -> bytes:
        with self.filesystem.open_input_stream(self.path) as stream:
            content: bytes = stream.read()
        return content

    def write(self, content: bytes) -> None:
        """Writes a file; on a local disk under another name first, so none is ever half there."""
        self.filesystem.create_dir(posixpath.dirname(self.path), recursive=True)
        local = isinstance(self.filesystem, fs.LocalFileSystem)
        target = f"{self.path}.{secrets.token_hex(4)}.partial" if local else self.path
        with self.filesystem.open_output_stream(target) as stream:
            stream.write(content)
        if local:
            self.filesystem.move(target, self.path)
