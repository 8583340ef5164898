"""Data sets in archives on an S3 server."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssray.storage.archives import SUFFIXES
from ssray.storage.location import Location
from tests.unit.storage.test_archives import assert_read_as_its_folder

PACKED_ANEW = {".tar.gz", ".tar.bz2"}
"""SeaweedFS 4.48 packs objects of such a name anew; .tgz and .tar.xz are tested."""


@pytest.mark.parametrize("suffix", sorted(set(SUFFIXES) - PACKED_ANEW))
@pytest.mark.parametrize("prefix", ["", "./", "weave/"])
def test_an_archive_is_indexed_and_read_as_its_folder_is(
    s3_server: str, tmp_path: Path, demo_root: Path, suffix: str, prefix: str
) -> None:
    root = Location.parse(f"s3://{s3_server}/{tmp_path.name}")
    assert_read_as_its_folder(root, demo_root, suffix, prefix)
