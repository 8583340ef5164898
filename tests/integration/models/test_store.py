"""The tests of a store on a disk, on an S3 server."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssray.storage.location import Location
from tests.unit.models.test_store import *  # noqa: F403


@pytest.fixture(name="place")
def on_s3(s3_server: str, tmp_path: Path) -> Location:
    return Location.parse(f"s3://{s3_server}/{tmp_path.name}")
