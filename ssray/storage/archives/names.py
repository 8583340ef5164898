"""Names of archives and of the files in them."""

from __future__ import annotations

import re
from typing import Literal

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
"""How the name of an archive ends, in any case."""
_SPLIT = re.compile(rf"(.+?(?i:{'|'.join(map(re.escape, SUFFIXES))}))#(.+)", re.DOTALL)
_DRIVE = re.compile(r"[A-Za-z]:/")

Kind = Literal["tar", "compressed tar", "zip"]


def split_member(uri: str) -> tuple[str, str] | None:
    """Splits ``ARCHIVE#MEMBER`` into its two parts; returns None if the URI names a plain file.

    >>> split_member("s3://bucket/a.tar#x/1.png")
    ('s3://bucket/a.tar', 'x/1.png')
    """
    parts = _SPLIT.fullmatch(uri)
    return (parts[1], parts[2]) if parts else None


def category_of(archive: str) -> str | None:
    """Returns the category that an archive is named after: its name without the suffix.

    The result is None if the name does not end like an archive's.

    >>> category_of("grid.tar.gz"), category_of("GRID.ZIP"), category_of("grid.txt")
    ('grid', 'GRID', None)
    """
    suffix = _suffix(archive)
    return archive[: -len(suffix)] if suffix else None


def kind_of(archive: str) -> Kind | None:
    """Returns what an archive is by its name; None if the name does not end like an archive's."""
    suffix = _suffix(archive)
    if suffix is None:
        return None
    if suffix == ".zip":
        return "zip"
    return "tar" if suffix == ".tar" else "compressed tar"


def is_compressed_tar(archive: str) -> bool:
    """Tells whether a name is that of a compressed tar, which must be read from its beginning."""
    return kind_of(archive) == "compressed tar"


def normalised(name: str, below: str = "") -> str:
    r"""Returns a file's path inside an archive as rules and tables see it.

    Backslashes are slashes; a drive, leading slashes and ``.`` go; ``..`` goes one folder up, but
    never out of the archive. Nothing is written to such a path, so none of them can do harm.

    Args:
        name: the name that the archive gives the file.
        below: the folder, in the same form, that a relative name begins in.

    >>> normalised("./a/b.png"), normalised(r"C:\a\b.png"), normalised("/a/../../b.png")
    ('a/b.png', 'a/b.png', 'b.png')
    """
    return "/".join(_parts(name, below)[0])


def link_target(name: str, below: str = "") -> str | None:
    """Returns the path that a link points to inside its archive; None if it points outside.

    >>> link_target("../b.png", "a"), link_target("../b.png"), link_target("/etc/passwd")
    ('b.png', None, None)
    """
    parts, leaves = _parts(name, below)
    return None if leaves else "/".join(parts)


def _parts(name: str, below: str) -> tuple[list[str], bool]:
    """Returns the folders and file of a path, and whether it leaves the archive on its way."""
    path = name.replace("\\", "/")
    leaves = path.startswith("/") or _DRIVE.match(path) is not None
    parts = below.split("/") if below and not leaves else []
    for part in _DRIVE.sub("/", path, count=1).split("/") if leaves else path.split("/"):
        if part == "..":
            leaves = leaves or not parts
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return parts, leaves


def _suffix(archive: str) -> str | None:
    """Returns the suffix of an archive's name in lower case; None if it ends like no archive's."""
    lower = archive.lower()
    return max((s for s in SUFFIXES if lower.endswith(s)), key=len, default=None)
