"""The tests of leases on a disk, on an S3 server."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssray.storage.location import Location
from tests.unit.storage.test_lease import *  # noqa: F403


@pytest.fixture(name="place")
def on_s3(s3_server: str, tmp_path: Path) -> Location:
    """An empty folder."""
    return Location.parse(f"s3://{s3_server}/{tmp_path.name}/folder/")
