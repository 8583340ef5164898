"""What an archive holds, by path; the same rules for names and links in every format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from ssray.errors import DataError, ImageError
from ssray.storage.archives import limits
from ssray.storage.archives.names import normalised
from ssray.storage.archives.stored import StoredFile, naming_damage

_SHOWN = 64
"""How many characters of a name that is too long stay at either end."""


class Stored(Protocol):
    """A file that an archive holds."""

    @property
    def size(self) -> int:
        """The size of the unpacked file in bytes, as the archive states it."""
        ...


@dataclass(frozen=True)
class Member:
    """A file in an archive, as it is listed.

    Attributes:
        name: its normalised path inside the archive.
        size: the size of the unpacked file in bytes; 0 if it can't be read.
        offset: the position of its first byte in a plain tar, or in what a compressed tar unpacks
            to. None if it can't be read by byte range: in a zip, with holes in a plain tar, or not
            at all.
        etag: that of the archive.
        error: why it can't be read.
    """

    name: str
    size: int
    offset: int | None
    etag: str
    error: ImageError | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """A member that stands for another one.

    Attributes:
        target: the path inside the archive; None if it lies outside.
    """

    target: str | None


@dataclass(frozen=True, slots=True)
class Refused:
    """A member that can't be read.

    Attributes:
        code: the reason as tables store it.
        why: the reason as a sentence.
    """

    code: str
    why: str


File = TypeVar("File", bound=Stored)


class Contents(Generic[File]):
    """The members of an archive by their path, in the order in which they are stored.

    Of two members with the same path the last one counts, as it does when an archive is unpacked.

    Attributes:
        damage: why the archive could not be read to its end; the members before that are there.
    """

    def __init__(self, archive: str) -> None:
        """Begins without members; ``archive`` is named in errors."""
        self.damage: DataError | None = None
        self._archive = archive
        self._members: dict[str, File | Link | Refused] = {}

    def members(
        self, archive: StoredFile, offset: Callable[[File], int | None]
    ) -> Iterator[Member]:
        """Yields the members.

        Args:
            archive: the archive itself.
            offset: gives a file's position, if it can be read by its byte range.

        Raises:
            DataError: if the files are too large in all, after those that are not.
        """
        total = 0
        for path in self._members:
            try:
                file = self.find(path)
            except ImageError as error:
                yield Member(path, 0, None, archive.etag, error)
                continue
            total += file.size
            with naming_damage(self._archive):
                limits.check_unpacked(total, archive.size)
            yield Member(path, file.size, offset(file), archive.etag)

    def add(self, name: str, member: File | Link | Refused) -> None:
        """Adds a member under the path that its name in the archive stands for.

        Raises:
            ValueError: if there are more members than ``MAX_MEMBERS``.
        """
        if len(name.encode(errors="surrogateescape")) > limits.MAX_NAME_BYTES:
            why = f"the path has more than {limits.MAX_NAME_BYTES:,} bytes"
            name = f"{name[:_SHOWN]}...{len(self._members)}...{name[-_SHOWN:]}"
            member = Refused("bad_name", why)
        path = normalised(name)
        if not path:
            return
        self._members.pop(path, None)
        self._members[path] = member
        limits.check_members(len(self._members))

    def add_hard_link(self, name: str, target: str) -> None:
        """Adds a second name of a member: of the one before it, if there are several."""
        path = normalised(target)
        self.add(name, self._members.get(path, Link(path)))

    def find(self, path: str) -> File:
        """Returns the file at a path; links are followed, also those that stand for folders.

        Raises:
            ImageError: with code ``missing`` if there is none; ``bad_archive`` if it may lie behind
                the archive's damage, or if links lead out of the archive or in a circle;
                ``too_large`` if it has more than ``MAX_MEMBER_BYTES``; or with the code of a
                refused member.
        """
        place = path
        for _ in range(limits.MAX_LINKS):
            member = self._members.get(place)
            rest = ""
            if member is None:
                member, rest = self._linked_folder(place)
            if isinstance(member, Refused):
                raise self._error(member.code, path, member.why)
            if not isinstance(member, Link):
                if member.size > limits.MAX_MEMBER_BYTES:
                    why = f"{member.size:,} bytes; at most {limits.MAX_MEMBER_BYTES:,} are read"
                    raise self._error("too_large", path, why)
                return member
            if member.target is None:
                raise self._error("bad_archive", path, "a link to outside of the archive")
            place = f"{member.target}{rest}".lstrip("/")
        raise self._error("bad_archive", path, f"more than {limits.MAX_LINKS} links in a row")

    def _linked_folder(self, place: str) -> tuple[Link | Refused, str]:
        """Returns the link in place of a folder on the way to a path, and the path below it."""
        end = place.find("/")
        while end > 0:
            member = self._members.get(place[:end])
            if isinstance(member, Link):
                return member, place[end:]
            end = place.find("/", end + 1)
        if self.damage:
            return Refused("bad_archive", f"no file {place} before the damage ({self.damage})"), ""
        return Refused("missing", f"the archive has no file {place}"), ""

    def _error(self, code: str, path: str, why: str) -> ImageError:
        return ImageError(code, f"{self._archive}#{path}: {why}")
