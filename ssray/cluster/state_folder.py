"""Keeps what Tune unpickles when a search goes on in a folder that only its owner can write.

Whoever can write a pickle can run code as the one who reads it. In S3 that is whoever may write to
the bucket: there is nothing to check (``docs/security.md``).
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ssray.errors import ConfigError
from ssray.storage.location import Location

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def make_private(folder: Location) -> None:
    """Makes a folder that nobody else may enter (mode 700); one that exists stays as it is."""
    if not folder.in_s3:
        Path(folder.path).mkdir(mode=stat.S_IRWXU, parents=True, exist_ok=True)


def check_private(folder: Location) -> None:
    """Refuses a folder that others can write, or in which something is that they can.

    Raises:
        ConfigError: naming the first such place, and what to do.
    """
    if folder.in_s3:
        return
    root = Path(folder.path)
    closed = not root.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    for place in (root, *(() if closed else root.rglob("*"))):
        found = place.lstat()
        theirs = found.st_uid != os.geteuid()
        if theirs or (not stat.S_ISLNK(found.st_mode) and found.st_mode & _OTHERS_WRITE):
            whose = f"belongs to user {found.st_uid}" if theirs else "can be written by others"
            raise ConfigError(
                f"{place}: {whose}, and a search that goes on would run what they put there. Start "
                f"anew by deleting {root}, or make it yours if you trust it: chmod -R go-w {root}"
            )
