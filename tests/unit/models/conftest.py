"""Where the tests of this folder write; tests/integration/models runs some of them on S3."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssray.storage.location import Location


@pytest.fixture
def place(tmp_path: Path) -> Location:
    """An empty store of a disk."""
    return Location.parse(tmp_path / "models")
