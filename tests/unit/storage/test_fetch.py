"""Files are read with retries, and no larger ones than memory can bear."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from ssray.errors import ImageError
from ssray.storage import fetch
from ssray.storage.archives import limits
from ssray.storage.fetch import Fetcher
from ssray.storage.location import Location


@pytest.mark.parametrize("size", [None, 11])
def test_a_file_beyond_the_limit_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int | None
) -> None:
    monkeypatch.setattr(fetch, "MAX_FILE_BYTES", 10)
    place = tmp_path / "0.png"
    place.write_bytes(bytes(10))
    assert Fetcher()(str(place)) == bytes(10)
    place.write_bytes(bytes(11))
    with pytest.raises(ImageError, match="11 bytes; at most 10 are read") as error:
        Fetcher()(str(place), size)
    assert error.value.code == "too_large"


def raised(uri: str, *known: int | str | None) -> tuple[str, bool]:
    """The code of what a fetcher raises, and whether it is transient."""
    with pytest.raises(ImageError) as error:
        Fetcher(attempts=2)(uri, *known)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    return error.value.code, error.value.transient


def write_zip(place: Path, name: str, content: bytes) -> str:
    """Writes a zip of one file; returns the file's URI."""
    with zipfile.ZipFile(place, "w") as archive:
        archive.writestr(name, content)
    return f"{place}#{name}"


def test_what_lies_at_the_image_is_not_transient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = write_zip(tmp_path / "weave.zip", "0.png", bytes(11))
    (tmp_path / "0.png").write_bytes(bytes(11))
    (tmp_path / "bad.zip").write_bytes(b"no archive")
    (tmp_path / "bad.tgz").write_bytes(b"no archive")
    for uri in ("none.png", "0.png/1.png", "none.tar#0.png", "none.zip#0.png", "weave.zip#1.png"):
        assert raised(f"{tmp_path}/{uri}") == ("missing", False)
    assert raised(f"{tmp_path}/none.tar#0.png", 3, 0) == ("missing", False)
    for uri in ("bad.zip#0.png", "bad.tgz#0.png"):
        assert raised(f"{tmp_path}/{uri}") == ("bad_archive", False)
    assert raised("ftp://factory/0.png") == ("unreadable", False)
    assert raised("ftp://factory/weave.tar#0.png", 3, 0) == ("unreadable", False)
    monkeypatch.setattr(fetch, "MAX_FILE_BYTES", 10)
    monkeypatch.setattr(limits, "MAX_MEMBER_BYTES", 10)
    for uri in (f"{tmp_path}/0.png", member):
        assert raised(uri) == ("too_large", False)


@pytest.mark.parametrize("known", [(), (3, 0)], ids=["by name", "by range"])
@pytest.mark.parametrize("name", ["0.png", "weave.tar#0.png", "weave.zip#0.png", "weave.tgz#0.png"])
def test_what_the_storage_is_the_reason_of_is_transient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, known: tuple[int, ...]
) -> None:
    monkeypatch.setattr(fetch, "FIRST_PAUSE_SECONDS", 0.0)
    uri = f"{tmp_path}/{name}"
    Path(uri.partition("#")[0]).write_bytes(b"012")
    failure: list[OSError] = []

    def fail(*arguments: object, **named: object) -> bytes:
        raise failure[0]

    for way in ("read", "read_range", "size_and_etag"):
        monkeypatch.setattr(Location, way, fail)
    for error, code, transient in (
        (OSError("reset by peer"), "unreadable", True),
        (PermissionError("not yours"), "forbidden", False),
    ):
        failure[:] = [error]
        assert raised(uri, *known) == (code, transient)


@pytest.mark.parametrize(
    "error", [PermissionError("403"), OSError("AWS Error ACCESS_DENIED during GetObject")]
)
def test_what_s3_refuses_it_may_give_later(error: OSError) -> None:
    def fail() -> bytes:
        raise error

    with pytest.raises(ImageError) as found:
        fetch.Fetcher()._patiently("s3://factory/0.png", fail)
    assert (found.value.code, found.value.transient) == ("forbidden", True)


def test_a_bucket_that_can_not_be_opened_is_no_damaged_archive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "of nobody")
    assert raised("s3://factory/0.png") == ("unreadable", True)
    for known in ((), (3, 0)):
        assert raised("s3://factory/weave.tar#0.png", *known) == ("unreadable", True)
