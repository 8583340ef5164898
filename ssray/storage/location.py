"""A location (path, ``file://`` or ``s3://`` URI) as a filesystem and a path.

The only module that knows there are clouds; ``ssray.storage.s3`` is its hand for S3.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import posixpath
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import fs

from ssray.errors import ConflictError, DataError
from ssray.storage import s3

_S3 = "s3://"


class Tagged(NamedTuple):
    """A file's content, and what tells whether it is still the same file."""

    content: bytes
    tag: str


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
        """Reads a path, relative or absolute, or a URI.

        Raises:
            DataError: if the scheme is unknown, the URI malformed or the bucket out of reach.
        """
        text = str(uri)
        if "://" not in text:
            return cls(fs.LocalFileSystem(), str(Path(text).expanduser().absolute()))
        try:
            if path := text.removeprefix(_S3).strip("/") if text.startswith(_S3) else "":
                return cls(s3.filesystem(path.partition("/")[0]), path, _S3)
            if text.startswith("file://"):
                return cls(*fs.FileSystem.from_uri(text))
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{text}: can't be opened. ({error})") from None
        raise DataError(f"{text}: expected a path, or file:// or s3://bucket/prefix.")

    def __truediv__(self, name: str) -> Location:
        return Location(self.filesystem, posixpath.join(self.path, name), self.prefix)

    def __reduce__(self) -> tuple[Any, ...]:
        """A store is opened anew where it arrives: pyarrow's own way forgets how to retry."""
        if self.in_s3:
            return Location.parse, (self.uri,)
        return Location, (self.filesystem, self.path, self.prefix)

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
            if not self.in_s3:
                self.filesystem.create_dir(self.path, recursive=True)
            elif not self._bucket.exists():
                raise DataError(f"{self}: no such bucket.")
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

    def without_retries(self) -> Location:
        """The same place, where a request that fails is not made again."""
        if not self.in_s3:
            return self
        return Location(s3.filesystem(self._bucket.path, attempts=1), self.path, self.prefix)

    def open_file(self) -> fs.NativeFile:
        """For reading by range; many threads may use ``read_at`` at once."""
        return self.filesystem.open_input_file(self.path)

    def read(self) -> bytes:
        if self.in_s3 and "//" in self.path:  # a key that pyarrow refuses
            found = self.read_tagged()
            if found is None:
                raise FileNotFoundError(self.uri)
            return found.content
        with self.filesystem.open_input_stream(self.path) as stream:
            content: bytes = stream.read()
        return content

    def write(self, content: bytes) -> None:
        """Writes a file; readers see the old one or the new one, never a part."""
        if self.in_s3:
            with self.filesystem.open_output_stream(self.path) as stream:
                stream.write(content)
            return
        self.filesystem.create_dir(posixpath.dirname(self.path), recursive=True)
        partial = f"{self.path}.{secrets.token_hex(4)}.partial"
        with self.filesystem.open_output_stream(partial) as stream:
            stream.write(content)
        self.filesystem.move(partial, self.path)

    def delete(self) -> None:
        """Removes a file, or a folder and all below it; nothing if there is none."""
        with contextlib.suppress(FileNotFoundError):  # a prefix may be listed that holds nothing
            if self.is_dir():
                self.filesystem.delete_dir(self.path)
            elif self.exists():
                self.filesystem.delete_file(self.path)

    def read_tagged(self) -> Tagged | None:
        """The file with what ``write_if`` asks for; None if there is none."""
        if self.in_s3:
            found = s3.read(*self._bucket_and_key)
            return Tagged(*found) if found else None
        try:
            content = Path(self.path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Tagged(content, hashlib.sha256(content).hexdigest())

    def write_if(self, content: bytes, tag: str | None) -> None:
        """Writes the file if it is still what was read; of several writers one wins.

        Args:
            content: what to write.
            tag: of the file as it was read; None if there was none.

        Raises:
            ConflictError: if someone else wrote it since.
        """
        if self.in_s3:
            s3.write_if(*self._bucket_and_key, content, tag)
            return
        folder, name = posixpath.split(self.path)
        self.filesystem.create_dir(folder, recursive=True)
        with Path(folder, f".{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            there = self.read_tagged()
            if (there.tag if there else None) != tag:
                raise ConflictError(f"{self}: someone else wrote it first.")
            self.write(content)

    @property
    def in_s3(self) -> bool:
        """Whether it is an object, or a prefix of objects, of a store."""
        return self.prefix == _S3

    @property
    def _bucket(self) -> Location:
        return Location(self.filesystem, self.path.partition("/")[0], self.prefix)

    @property
    def _bucket_and_key(self) -> tuple[str, str]:
        bucket, _, key = self.path.partition("/")
        return bucket, key
