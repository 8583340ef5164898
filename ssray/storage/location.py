"""Where a file or folder is: a path, or a ``file://`` or ``s3://`` URI, with reads and writes.

All other modules work with a ``Location`` and don't tell disks from S3; what only one of them needs
is in ``ssray.storage.disk`` and ``ssray.storage.s3``.
"""

from __future__ import annotations

import contextlib
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import fs

from ssray.errors import DataError
from ssray.storage import disk, s3, s3_clients

_S3 = "s3://"


def is_in_s3(uri: str) -> bool:
    """Tells whether a URI is that of an object in S3."""
    return uri.startswith(_S3)


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
                return cls(s3_clients.filesystem(path.partition("/")[0]), path, _S3)
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
            if self.in_s3:
                s3.check_bucket(self._bucket_and_key[0])
            else:
                self.filesystem.create_dir(self.path, recursive=True)
        except s3.NoBucketError:
            raise self._without_bucket() from None
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{self}: can't be created. Expected a folder to write to. ({error})"
            ) from None

    def check_bucket(self) -> None:
        """Makes sure that the bucket is there; on a disk there is none to check.

        Who may only use a prefix may not ask for its bucket, which is taken to be there then.

        Raises:
            DataError: if it is not.
            OSError: if the server can't be reached.
        """
        try:
            if self.in_s3:
                with contextlib.suppress(PermissionError):
                    s3.check_bucket(self._bucket_and_key[0])
        except s3.NoBucketError:
            raise self._without_bucket() from None

    def exists(self) -> bool:
        """Tells whether there is a file, folder or prefix here; raises as ``children`` does."""
        return bool(self._info().type != fs.FileType.NotFound)

    def is_dir(self) -> bool:
        """Tells whether there is a folder, or a prefix of S3 objects, here.

        An empty object that is called like a prefix is a mark that some programs leave, and no
        file.

        Raises:
            DataError: if access is refused.
            OSError: if the server can't be reached.
        """
        info = self._info()
        if self.in_s3 and info.is_file and not info.size:
            bucket, key = self._bucket_and_key
            return any(True for _ in s3.list_objects(bucket, f"{key}/"))
        return bool(info.type == fs.FileType.Directory)

    def children(self) -> list[fs.FileInfo]:
        """Lists what lies directly inside, by name; empty if there is no such place.

        Raises:
            DataError: if access is refused.
            OSError: if the server can't be reached.
        """
        return self._listed(recursive=False)

    def files(self) -> list[fs.FileInfo]:
        """Lists every file below, at any depth, by path; raises as ``children`` does."""
        return [info for info in self._listed(recursive=True) if info.is_file]

    def at(self, info: fs.FileInfo) -> Location:
        """Returns the location of something that ``children`` or ``files`` found."""
        return Location(self.filesystem, info.path, self.prefix)

    def open_file(self) -> fs.NativeFile:
        """Opens the file for reads of byte ranges; many threads may call ``read_at`` at once.

        Raises:
            OSError: as ``read`` does.
        """
        if not self.in_s3:
            disk.check_regular(self.path)
        return self.filesystem.open_input_file(self._arrow_path)

    def size_and_etag(self) -> tuple[int, str]:
        """Returns a file's size in bytes, and what changes when the file does.

        In S3 that is its ETag, on a disk a text of its size and the time of its last change.

        Raises:
            OSError: as ``read`` does.
        """
        return s3.head(*self._bucket_and_key) if self.in_s3 else disk.head(self.path)

    def read(
        self,
        attempts: int = s3_clients.ATTEMPTS,
        most: int | None = None,
        etag: str | None = None,
    ) -> bytes:
        """Returns the content of the file.

        Args:
            attempts: how often a request to S3 is made before its error is raised.
            most: the largest file to read, in bytes; default: any.
            etag: what ``size_and_etag`` must still give; default: anything.

        Raises:
            ImageError: with code ``too_large``, before any of the content is read; ``changed`` if
                the file was replaced since it had the ETag.
            OSError: if there is no such file or it can't be read; a ``PermissionError`` if it is
                a folder, a device or a pipe.
        """
        if self.in_s3:
            return s3.read(*self._bucket_and_key, attempts=attempts, most=most, etag=etag)
        return disk.read(self.path, most=most, etag=etag)

    def read_range(
        self,
        offset: int,
        size: int,
        attempts: int = s3_clients.ATTEMPTS,
        etag: str | None = None,
    ) -> bytes:
        """Returns some bytes of the file; of a range beyond its end what there is, or an error.

        Args:
            offset: the position of the first byte.
            size: how many bytes.
            attempts: as in ``read``.
            etag: as in ``read``.

        Raises:
            ImageError: with code ``changed``, as ``read`` does.
            OSError: as ``read`` does.
        """
        if size == 0:
            return b""
        if self.in_s3:
            return s3.read(*self._bucket_and_key, (offset, size), attempts, etag=etag)
        return disk.read(self.path, (offset, size), etag=etag)

    def write(self, content: bytes) -> None:
        """Writes a file; a reader sees the old content or the new one, never a part of it."""
        if not self.in_s3:
            disk.write(self.path, content)
            return
        s3.write(*self._bucket_and_key, content)

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

    def read_tagged(self, most: int | None = None, seconds: float | None = None) -> Tagged | None:
        """Returns the content with the tag that ``write_if`` takes; None if there is no file.

        Args:
            most: the largest file to read, in bytes; default: any.
            seconds: how long S3 is waited for, as in ``s3.read_tagged``.

        Raises:
            DataError: if there is no such bucket; an ``ImageError`` with code ``too_large``.
            OSError: as ``read`` does.
        """
        try:
            if self.in_s3:
                found = s3.read_tagged(*self._bucket_and_key, most, seconds)
            else:
                found = disk.read_tagged(self.path, most)
        except s3.NoBucketError:
            raise self._without_bucket() from None
        return Tagged(*found) if found else None

    def write_if(self, content: bytes, tag: str | None, seconds: float | None = None) -> None:
        """Writes the file unless it was changed since it was read; of several writers one wins.

        Args:
            content: what to write.
            tag: the tag that ``read_tagged`` gave; None if there was no file.
            seconds: as in ``read_tagged``.

        Raises:
            ConflictError: if another process wrote the file since.
            OSError: if it can't be written.
        """
        if self.in_s3:
            s3.write_if(*self._bucket_and_key, content, tag, seconds)
        else:
            disk.write_if(self.path, content, tag)

    def delta_options(self) -> dict[str, str] | None:
        """What delta-rs has to be told to open a table here; None on a disk.

        Raises:
            OSError: if the AWS variables or the profile are not valid.
        """
        return s3_clients.delta_options(self._bucket_and_key[0]) if self.in_s3 else None

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

    def _info(self) -> fs.FileInfo:
        with self._naming_refusal():
            return self.filesystem.get_file_info(self._arrow_path)

    def _listed(self, *, recursive: bool) -> list[fs.FileInfo]:
        """Lists what lies inside, by path."""
        selector = fs.FileSelector(self._arrow_path, recursive=recursive, allow_not_found=True)
        with self._naming_refusal():
            found: list[fs.FileInfo] = self.filesystem.get_file_info(selector)
        return sorted(found, key=lambda info: str(info.path))

    def _without_bucket(self) -> DataError:
        return DataError(f"{self}: {s3.NO_BUCKET}")

    @contextlib.contextmanager
    def _naming_refusal(self) -> Iterator[None]:
        """Says what to do where a listing is refused."""
        try:
            yield
        except OSError as error:
            if not s3.is_refusal(error):
                raise
            what = "the AWS variables and what they allow" if self.in_s3 else "who may read it"
            why = " ".join(str(error).split())
            raise DataError(f"{self}: may not be listed. Check {what}. ({why})") from None

    @property
    def _bucket_and_key(self) -> tuple[str, str]:
        bucket, _, key = self.path.partition("/")
        return bucket, key
