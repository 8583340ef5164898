"""How much of an archive is believed; what exceeds a limit is refused before memory is taken."""

from __future__ import annotations

MAX_MEMBERS = 1_000_000
"""The most files that an archive may hold; their names are held in memory."""
MAX_NAME_BYTES = 1024
"""The longest path inside an archive, as S3 limits keys."""
MAX_HEADER_BYTES = 1024**2
"""The most bytes of a tar's extended header, long name or sparse map."""
MAX_DIRECTORY_BYTES = 128 * 1024**2
"""The most bytes of a zip's directory."""
MAX_MEMBER_BYTES = 1024**3
"""The largest file in an archive that is read."""
MAX_UNPACKED_BYTES = 4 * 1024**3
"""The most bytes that a compressed tar may unpack to where all of it is held in memory."""
MAX_RATIO = 100
"""The files of an archive may have so many times its own size, or ``MAX_UNPACKED_BYTES``."""
MAX_LINKS = 40
"""How many links in a row are followed, as Linux does."""
MAX_DICTIONARY_BYTES = 256 * 1024**2
"""The most memory that an LZMA or xz decoder may ask for; ``xz -9`` asks for 65 MiB."""


def unpacked_limit(archive_bytes: int) -> int:
    """Returns the most bytes that an archive of a size may unpack to.

    >>> unpacked_limit(1000) == 4 * 1024**3, unpacked_limit(10**9) == 10**11
    (True, True)
    """
    return max(MAX_UNPACKED_BYTES, MAX_RATIO * archive_bytes)


def check_members(count: int) -> None:
    """Refuses an archive of too many files.

    Raises:
        ValueError: if there are more than ``MAX_MEMBERS``.
    """
    if count > MAX_MEMBERS:
        raise ValueError(f"more than {MAX_MEMBERS:,} files; divide it into several archives")


def check_unpacked(total: int, archive_bytes: int) -> None:
    """Refuses an archive whose files are too large in all.

    Raises:
        ValueError: if they have more bytes than ``unpacked_limit`` allows.
    """
    if total > unpacked_limit(archive_bytes):
        raise ValueError(
            f"its files have more than {MAX_RATIO} times its own size of {archive_bytes:,} bytes, "
            f"and more than {MAX_UNPACKED_BYTES:,} bytes"
        )
