"""What a reader must not do, to test the harness."""

from __future__ import annotations

import os
import time
from pathlib import Path


def read(place: Path) -> str:
    """Does the harm that a file names."""
    harm = place.read_text()
    if harm == "raise":
        raised: dict[str, str] = {}
        return raised["raised"]
    if harm == "hang":
        time.sleep(60)
    if harm == "exit":
        os._exit(7)
    if harm == "allocate":
        bytes(2**30)
    return "returned"
