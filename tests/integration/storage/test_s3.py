"""What only an S3 server can refuse or grant."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ssray.errors import DataError
from ssray.storage.location import Location


def test_a_bucket_that_is_not_there_is_named(s3_server: str) -> None:
    place = Location.parse("s3://nowhere/models")
    with pytest.raises(DataError, match="s3://nowhere/models: no such bucket"):
        place.make_folder()
    assert not place.exists()


def test_a_wrong_key_is_refused_by_name(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    place = Location.parse(f"s3://{s3_server}/models")
    with pytest.raises(DataError, match=f"s3://{s3_server}/models: can't be created"):
        place.make_folder()
    with pytest.raises(OSError, match=f"s3://{s3_server}/models/x"):
        (place / "x").read_tagged()


def test_endpoint_and_credentials_may_come_from_a_profile(
    s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = (
        f"[profile plant]\nregion = us-east-1\nendpoint_url = {os.environ['AWS_ENDPOINT_URL']}\n"
    )
    keys = "[plant]\naws_access_key_id = tester\naws_secret_access_key = not-a-secret\n"
    (tmp_path / "config").write_text(config)
    (tmp_path / "credentials").write_text(keys)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_PROFILE", "plant")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    place = Location.parse(f"s3://{s3_server}/{tmp_path.name}/x")
    place.write(b"by profile")
    assert place.read() == b"by profile"
    assert place.read_tagged() is not None
