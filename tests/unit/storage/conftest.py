"""Where the tests of this folder write; tests/integration/storage runs some of them on S3."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssray.storage.location import Location


@pytest.fixture
def place(tmp_path: Path) -> Location:
    """An empty folder of a disk."""
    return Location.parse(tmp_path / "folder")
