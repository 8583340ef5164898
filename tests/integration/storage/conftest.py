"""Where the tests of this folder write, those of tests/unit/storage among them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssray.storage.location import Location


@pytest.fixture
def place(s3_server: str, tmp_path: Path) -> Location:
    """An empty folder of an S3 server."""
    return Location.parse(f"s3://{s3_server}/{tmp_path.name}/folder/")
