"""What is read is what was listed: on a disk here; tests/integration/storage does it on S3."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable

import pytest

from ssray.errors import ImageError
from ssray.nightly.sources import CategoryRule, Source, find
from ssray.storage.archives import listed, members, read_file, streamed
from ssray.storage.fetch import Fetcher
from ssray.storage.listing import walk
from ssray.storage.location import Location
from tests.unit.storage.test_archives import WRITING

SUFFIXES = [".tar", ".zip", ".tgz", ".tar.xz"]
"""An archive of each kind; SeaweedFS packs objects of other names anew."""
FIRST = {"0.png": b"first of 15 one", "1.png": b"first of 15 two"}
SECOND = {"1.png": b"other of 15 two", "0.png": b"other of 15 one"}
"""The same names and sizes at each other's positions."""


def archive(suffix: str, files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    if suffix == ".zip":
        with zipfile.ZipFile(buffer, "w") as out:
            for name, content in files.items():
                out.writestr(name, content)
        return buffer.getvalue()
    with tarfile.open(fileobj=buffer, mode=WRITING[suffix]) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def replace(file: Location, content: bytes) -> None:
    """Writes a file anew; two writes within one tick of a disk's clock are no change to it."""
    before = file.size_and_etag()
    while file.size_and_etag() == before:
        file.write(content)


def sources(place: Location) -> dict[str, Source]:
    """What a night finds, by the images' names."""
    found = find(place, CategoryRule(fixed="weave"), Counter())
    return {source.uri[-5:]: source for source in found}


def fetched(source: Source, fetcher: Fetcher | None = None) -> bytes:
    return (fetcher or Fetcher())(source.uri, source.size, source.offset, source.etag)


def assert_changed(read: Callable[[], object], file: Location) -> None:
    with pytest.raises(ImageError, match="was replaced after it was listed") as raised:
        read()
    assert str(file) in str(raised.value)
    assert (raised.value.code, raised.value.transient) == ("changed", True)


def test_a_listing_gives_the_etag_of_each_file(place: Location) -> None:
    (place / "a/0.png").write(b"content")
    [deep] = walk(place)
    [single] = walk(place / "a/0.png")
    assert (deep.path, single.path) == ("a/0.png", "0.png")
    assert (deep.size, deep.etag) == (single.size, single.etag)
    assert (deep.size, deep.etag) == (place / "a/0.png").size_and_etag()
    replace(place / "a/0.png", b"another")
    [after] = walk(place)
    assert after.etag != deep.etag


def test_an_image_is_read_as_it_was_listed_or_not_at_all(place: Location) -> None:
    (place / "0.png").write(b"content")
    source = sources(place)["0.png"]
    assert fetched(source) == b"content"
    replace(place / "0.png", b"another")
    fetcher = Fetcher()
    assert_changed(lambda: fetched(source, fetcher), place / "0.png")
    assert fetcher.retries == 0
    assert fetched(sources(place)["0.png"]) == b"another"
    (place / "0.png").delete()
    with pytest.raises(ImageError) as gone:
        fetched(source)
    assert (gone.value.code, gone.value.transient) == ("missing", False)


def test_an_image_replaced_by_a_shorter_one_is_not_tried_again(place: Location) -> None:
    (place / "0.png").write(b"content")
    source, fetcher = sources(place)["0.png"], Fetcher()
    replace(place / "0.png", b"c")
    assert_changed(lambda: fetched(source, fetcher), place / "0.png")
    assert fetcher.retries == 0


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_member_is_read_as_it_was_listed_or_not_at_all(place: Location, suffix: str) -> None:
    """At a position that was listed before, another member of the same size may lie by now."""
    file = place / f"weave{suffix}"
    file.write(archive(suffix, FIRST))
    before = sources(place)
    assert {source.etag for source in before.values()} == {file.size_and_etag()[1]}
    assert {name: fetched(source) for name, source in before.items()} == FIRST
    replace(file, archive(suffix, SECOND))
    fetcher = Fetcher()
    for source in before.values():
        assert_changed(lambda source=source: fetched(source, fetcher), file)  # type: ignore[misc]
    assert fetcher.retries == 0
    assert {name: fetched(source) for name, source in sources(place).items()} == SECOND


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_archive_that_a_process_remembers_is_opened_anew_once_it_is_another(
    place: Location, suffix: str
) -> None:
    file = place / f"weave{suffix}"
    file.write(archive(suffix, FIRST))
    assert members(file) == {"0.png": 15, "1.png": 15}
    assert {name: read_file(f"{file}#{name}") for name in FIRST} == FIRST
    replace(file, archive(suffix, SECOND))
    assert {name: read_file(f"{file}#{name}") for name in SECOND} == SECOND
    replace(file, archive(suffix, {"2.png": b"third"}))
    assert members(file) == {"2.png": 5}
    assert read_file(f"{file}#2.png") == b"third"
    with pytest.raises(ImageError) as gone:
        read_file(f"{file}#0.png")
    assert gone.value.code == "missing"


def test_a_compressed_tar_is_streamed_as_it_was_listed_or_not_at_all(place: Location) -> None:
    file = place / "weave.tgz"
    file.write(archive(".tgz", FIRST))
    [first, _] = listed(file)
    assert first.offset is not None
    wanted = {first.offset}
    assert list(streamed(file, wanted, first.etag)) == [(first.offset, FIRST["0.png"])]
    replace(file, archive(".tgz", SECOND))
    fetcher = Fetcher()
    files = fetcher.each(file.uri, lambda: streamed(file, wanted, first.etag))
    assert_changed(lambda: next(files), file)
    assert fetcher.retries == 0


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("times", [1, 2])
def test_an_archive_that_is_replaced_while_it_is_listed_is_listed_again(
    place: Location, suffix: str, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All members are of one version of it; of one that is replaced again there are none."""
    file = place / f"weave{suffix}"
    file.write(archive(suffix, {"9.png": bytes(15)}))
    versions = [archive(suffix, FIRST), archive(suffix, SECOND)][:times]
    read_range = Location.read_range

    def read(
        place: Location, offset: int, size: int, attempts: int = 1, etag: str | None = None
    ) -> bytes:
        if versions:
            replace(file, versions.pop(0))
        return read_range(place, offset, size, attempts, etag)

    monkeypatch.setattr(Location, "read_range", read)
    found = sources(place)
    if times == 1:
        assert {name: fetched(source) for name, source in found.items()} == FIRST
    else:
        [source] = found.values()
        assert (source.uri, source.error) == (file.uri, "changed")


def test_what_a_list_names_was_not_listed(place: Location) -> None:
    (place / "0.png").write(b"content")
    (place / "list.csv").write(f"uri\n{place}/0.png\n".encode())
    [source] = sources(place / "list.csv").values()
    assert source.etag is None
    replace(place / "0.png", b"another")
    assert fetched(source) == b"another"
