"""Where a file or folder is: a path, or a ``file://`` or ``s3://`` URI, with reads and writes.

All other modules work with a ``Location`` and don't tell disks from S3; what only S3 needs is in
``ssray.storage.s3``.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import posixpath
import re
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import fs

from ssray.errors import ConflictError, DataError, too_large
from ssray.storage import s3

_S3 = "s3://"


class Tagged(NamedTuple):
    """A file's content with a tag that changes whenever the content does."""

    content: bytes
    tag: str


@dataclass(frozen=True)
class Location:
    """A place on a filesystem, which need not exist.

    ``place / name`` is the place of that name below it.

    Attributes:
        filesystem: the pyarrow filesystem.
        path: the path on that filesystem; for S3 it begins with the bucket.
        prefix: what goes before the path in a URI: ``s3://``, or nothing.

    >>> str(Location.parse("/data") / "grid" / "000.png")
    '/data/grid/000.png'
    """

    filesystem: fs.FileSystem
    path: str
    prefix: str = ""

    @classmethod
    def parse(cls, uri: str | Path) -> Location:
        """Makes a location from a URI, or from a relative or absolute path.

        Raises:
            DataError: if the scheme is unknown, the URI is malformed or the bucket can't be
                reached.
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
            raise DataError(
                f"{text}: can't be opened. Check the URI and the AWS variables. ({error})"
            ) from None
        raise DataError(f"{text}: expected a path, or file:// or s3://bucket/prefix.")

    def __truediv__(self, name: str) -> Location:
        return Location(self.filesystem, posixpath.join(self.path, name), self.prefix)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles an S3 location as its URI, since pyarrow's own pickling drops the retries."""
        if self.in_s3:
            return Location.parse, (self.uri,)
        return Location, (self.filesystem, self.path, self.prefix)

    def __str__(self) -> str:
        return self.prefix + self.path

    @property
    def uri(self) -> str:
        """The location as text, as tables store it; ``parse`` reads it back."""
        return str(self)

    def make_folder(self) -> None:
        """Creates the folder and those above it; in S3 it only checks that the bucket exists.

        Raises:
            DataError: if a file of that name is in the way, the folder can't be created, or there
                is no such bucket.
        """
        try:
            if not self.in_s3:
                self.filesystem.create_dir(self._arrow_path, recursive=True)
            elif not self._bucket.exists():
                raise DataError(f"{self}: no such bucket. Create it, or check its name.")
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{self}: can't be created. Expected a folder to write to. ({error})"
            ) from None

    def exists(self) -> bool:
        """Tells whether there is a file, folder or prefix here."""
        info: fs.FileInfo = self.filesystem.get_file_info(self._arrow_path)
        return bool(info.type != fs.FileType.NotFound)

    def is_dir(self) -> bool:
        """Tells whether there is a folder, or a prefix of S3 objects, here.

        An empty object that is called like a prefix is a mark that some programs leave, and no
        file.
        """
        info: fs.FileInfo = self.filesystem.get_file_info(self._arrow_path)
        if self.in_s3 and info.is_file and not info.size:
            bucket, key = self._bucket_and_key
            return any(True for _ in s3.list_objects(bucket, f"{key}/"))
        return bool(info.type == fs.FileType.Directory)

    def children(self) -> list[fs.FileInfo]:
        """Lists what lies directly inside, by name; empty if there is no such place."""
        selector = fs.FileSelector(self._arrow_path, allow_not_found=True)
        found: list[fs.FileInfo] = self.filesystem.get_file_info(selector)
        return sorted(found, key=lambda info: str(info.path))

    def files(self) -> list[fs.FileInfo]:
        """Lists every file below, at any depth, by path; empty if there is no such place."""
        selector = fs.FileSelector(self._arrow_path, recursive=True, allow_not_found=True)
        found: list[fs.FileInfo] = self.filesystem.get_file_info(selector)
        return sorted((f for f in found if f.is_file), key=lambda info: str(info.path))

    def at(self, info: fs.FileInfo) -> Location:
        """Returns the location of something that ``children`` or ``files`` found."""
        return Location(self.filesystem, info.path, self.prefix)

    def open_file(self) -> fs.NativeFile:
        """Opens the file for reads of byte ranges; many threads may call ``read_at`` at once.

        Raises:
            OSError: as ``read`` does.
        """
        self._refuse_devices()
        return self.filesystem.open_input_file(self._arrow_path)

    def read(self, attempts: int = s3.ATTEMPTS, most: int | None = None) -> bytes:
        """Returns the content of the file.

        Args:
            attempts: how often a request to S3 is made before its error is raised.
            most: the largest file to read, in bytes; default: any.

        Raises:
            ImageError: with code ``too_large``, before any of the content is read.
            OSError: if there is no such file or it can't be read; a ``PermissionError`` if it is
                a folder, a device or a pipe.
        """
        self._refuse_devices()
        if self.in_s3:
            return s3.read(*self._bucket_and_key, attempts=attempts, most=most)
        if most is not None and (size := Path(self.path).stat().st_size) > most:
            raise too_large(self.uri, size, most)
        return Path(self.path).read_bytes()

    def read_range(self, offset: int, size: int, attempts: int = s3.ATTEMPTS) -> bytes:
        """Returns some bytes of the file; of a range beyond its end what there is, or an error.

        Args:
            offset: the position of the first byte.
            size: how many bytes.
            attempts: as in ``read``.

        Raises:
            OSError: as ``read`` does.
        """
        self._refuse_devices()
        if size == 0:
            return b""
        if self.in_s3:
            return s3.read(*self._bucket_and_key, (offset, size), attempts)
        with Path(self.path).open("rb", buffering=0) as file:
            return os.pread(file.fileno(), size, offset)

    def write(self, content: bytes) -> None:
        """Writes a file; a reader sees the old content or the new one, never a part of it."""
        if self.in_s3:
            with self.filesystem.open_output_stream(self._arrow_path) as stream:
                stream.write(content)
            return
        self.filesystem.create_dir(posixpath.dirname(self.path), recursive=True)
        partial = f"{self.path}.{secrets.token_hex(4)}.partial"
        with self.filesystem.open_output_stream(partial) as stream:
            stream.write(content)
        self.filesystem.move(partial, self.path)

    def open_output(self) -> fs.NativeFile:
        """Opens the file to write it piece by piece; what was there is lost.

        Raises:
            OSError: if it can't be written.
        """
        if not self.in_s3:
            self.filesystem.create_dir(posixpath.dirname(self.path), recursive=True)
        return self.filesystem.open_output_stream(self._arrow_path)

    def delete(self) -> None:
        """Removes a file, or a folder and all below it; does nothing if there is none."""
        with contextlib.suppress(FileNotFoundError):  # a prefix may be listed that holds nothing
            if self.is_dir():
                self.filesystem.delete_dir(self.path)
            elif self.exists():
                self.filesystem.delete_file(self.path)

    def read_tagged(self) -> Tagged | None:
        """Returns the content with the tag that ``write_if`` takes; None if there is no file."""
        if self.in_s3:
            found = s3.read_tagged(*self._bucket_and_key)
            return Tagged(*found) if found else None
        try:
            content = Path(self.path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Tagged(content, hashlib.sha256(content).hexdigest())

    def write_if(self, content: bytes, tag: str | None) -> None:
        """Writes the file unless it was changed since it was read; of several writers one wins.

        Args:
            content: what to write.
            tag: the tag that ``read_tagged`` gave; None if there was no file.

        Raises:
            ConflictError: if another process wrote the file since.
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
                raise ConflictError(
                    f"{self}: someone else wrote it first. Read it again before writing."
                )
            self.write(content)

    def delta_options(self) -> dict[str, str] | None:
        """What delta-rs has to be told to open a table here; None on a disk.

        Raises:
            OSError: if the AWS variables or the profile are not valid.
        """
        return s3.delta_options(self._bucket.path) if self.in_s3 else None

    @property
    def in_s3(self) -> bool:
        """Whether this is an object, or a prefix of objects, in S3."""
        return self.prefix == _S3

    @property
    def _arrow_path(self) -> str:
        """The path for pyarrow, which refuses S3 keys with an empty part.

        Raises:
            DataError: if it is such a key.
        """
        if self.in_s3 and "//" in self.path:
            single = re.sub("/+", "/", self.path)
            raise DataError(
                f"{self}: two slashes in a row. Expected names between them; did you mean "
                f"{self.prefix}{single}?"
            )
        return self.path

    def _refuse_devices(self) -> None:
        """Refuses what reading might never end of: only files of the disk have an end."""
        if not self.in_s3 and not stat.S_ISREG(os.stat(self.path).st_mode):
            raise PermissionError(f"{self}: not a regular file")

    @property
    def _bucket(self) -> Location:
        return Location(self.filesystem, self.path.partition("/")[0], self.prefix)

    @property
    def _bucket_and_key(self) -> tuple[str, str]:
        bucket, _, key = self.path.partition("/")
        return bucket, key
