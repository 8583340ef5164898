"""Open archives: what they hold, and the contents of single files."""

from __future__ import annotations

import abc
import contextlib
import io
from collections.abc import Iterable, Iterator
from typing import Any

from ssray.errors import DataError, ImageError
from ssray.storage.archives import limits
from ssray.storage.archives.contents import Contents, Link, Member
from ssray.storage.archives.names import kind_of, link_target, normalised
from ssray.storage.archives.stored import StoredFile, naming_damage, raising_storage_errors
from ssray.storage.archives.tar import Entry, TarFile, TarReader, entries
from ssray.storage.archives.unpacking import Unpacked
from ssray.storage.archives.zip import read_directory, read_zipped
from ssray.storage.location import Location

_BUFFER_BYTES = 1 << 12
_STREAM_BYTES = 1 << 20
_UNPACKED_BYTES = 1 << 18


class Archive(abc.ABC):
    """An open archive, whatever its format."""

    def __init__(self, file: StoredFile, place: Location) -> None:
        self._file, self._place = file, place
        self._contents = Contents[Any](place.uri)

    def check(self) -> None:
        """Makes sure that the archive was not replaced since it was opened.

        Raises:
            ImageError: with code ``changed`` if it was.
            OSError: if the store fails.
        """
        with raising_storage_errors():
            self._file.check()

    @property
    def damage(self) -> DataError | None:
        """Why it could not be read to its end, if so; what stands before that is there."""
        return self._contents.damage

    @abc.abstractmethod
    def members(self) -> Iterator[Member]:
        """Yields what the archive holds, in the order in which it is stored.

        Raises:
            DataError: if its files are too large in all, after those that are not.
        """

    @abc.abstractmethod
    def read(self, path: str) -> bytes:
        """Returns the content of the file at a path; called inside of ``naming_damage``.

        Raises:
            ImageError: as ``Contents.find`` does, or with code ``changed`` if the archive was
                replaced since it was opened.
        """

    @contextlib.contextmanager
    def _until_damage(self) -> Iterator[None]:
        """Keeps what was found up to the archive's damage, and remembers that."""
        try:
            with naming_damage(self._place):
                yield
        except ImageError:
            raise
        except DataError as error:
            self._contents.damage = error


def open_archive(place: Location, etag: str | None = None, *, keep: bool) -> Archive:
    """Opens an archive and reads what it holds; damage is an attribute of what is returned.

    Args:
        place: where it is.
        etag: that of the archive when it was listed, if it is known.
        keep: whether the files of a compressed tar stay in memory; without, none can be read.

    Raises:
        ImageError: with code ``changed`` if it was replaced since, or is while it is read.
        OSError: if the store fails.
    """
    kind = kind_of(place.path)
    with raising_storage_errors():
        file = StoredFile(place, etag)
        if kind == "zip":
            return _Zip(file, place)
        return _Tar(file, place) if kind == "tar" else _CompressedTar(file, place, keep)


def unpacked(file: StoredFile) -> TarReader:
    """Opens a compressed tar for one pass from its beginning; used inside of ``naming_damage``."""
    packed = io.BufferedReader(file.stream(), _STREAM_BYTES)
    stream = Unpacked(packed, limits.unpacked_limit(file.size))
    return TarReader(io.BufferedReader(stream, _UNPACKED_BYTES), None)


class _Tar(Archive):
    """A plain tar; its headers are read once, then each file by its byte range."""

    def __init__(self, file: StoredFile, place: Location) -> None:
        super().__init__(file, place)
        with self._until_damage():
            _add(self._contents, entries(self._reader(0)))

    def members(self) -> Iterator[Member]:
        return self._contents.members(self._file, lambda file: None if file.sparse else file.offset)

    def read(self, path: str) -> bytes:
        file = self._contents.find(path)
        if file.sparse:
            content = next(entries(self._reader(file.header), lambda each: True)).content or b""
        else:
            content = self._file.read_at(file.size, file.offset)
        if len(content) < file.size:
            raise EOFError(f"{len(content)} of {file.size} bytes")
        return content

    def _reader(self, begin: int) -> TarReader:
        stream = io.BufferedReader(self._file.read_ahead(), _BUFFER_BYTES)
        stream.seek(begin)
        return TarReader(stream, self._file.size, begin)


class _CompressedTar(Archive):
    """A compressed tar, read once from its beginning."""

    def __init__(self, file: StoredFile, place: Location, keep: bool) -> None:
        super().__init__(file, place)
        self._kept: dict[int, bytes] = {}
        total = 0

        def wanted(file: TarFile) -> bool:
            nonlocal total
            total += file.size if keep else 0
            if total > limits.MAX_UNPACKED_BYTES:
                raise ValueError(
                    f"more than {limits.MAX_UNPACKED_BYTES / 1024**3:g} GiB unpacked. Store it "
                    "as a plain .tar, which is read in place"
                )
            return keep

        with self._until_damage():
            _add(self._contents, entries(unpacked(file), wanted), self._kept)

    def members(self) -> Iterator[Member]:
        return self._contents.members(self._file, lambda file: file.offset)

    def read(self, path: str) -> bytes:
        self._file.check()
        return self._kept[self._contents.find(path).offset]


class _Zip(Archive):
    """A zip; its directory is read once, then each file by its byte range."""

    def __init__(self, file: StoredFile, place: Location) -> None:
        super().__init__(file, place)
        with self._until_damage():
            read_directory(self._file, self._contents)

    def members(self) -> Iterator[Member]:
        return self._contents.members(self._file, lambda file: None)

    def read(self, path: str) -> bytes:
        return read_zipped(self._file, self._contents.find(path))


def _add(
    contents: Contents[TarFile], found: Iterable[Entry], kept: dict[int, bytes] | None = None
) -> None:
    """Adds the entries of a tar to ``contents``, and what was read of them to ``kept``."""
    for entry in found:
        member = entry.member
        if isinstance(member, TarFile):
            contents.add(entry.name, member)
            if kept is not None and entry.content is not None:
                kept[member.offset] = entry.content
        elif member.hard:
            contents.add_hard_link(entry.name, member.target)
        else:
            folder = normalised(entry.name).rpartition("/")[0]
            contents.add(entry.name, Link(link_target(member.target, folder)))
