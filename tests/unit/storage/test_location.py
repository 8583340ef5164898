"""Places: on a disk here; tests/integration/storage runs the same tests on an S3 server."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path

import pytest

from ssray.errors import ConflictError, DataError
from ssray.storage.location import Location


def test_what_is_written_can_be_found_and_read(place: Location) -> None:
    assert not place.exists()
    assert place.files() == place.children() == []
    place.make_folder()
    (place / "a b+c%20/ü.txt").write(b"one")
    (place / "a b+c%20/ü.txt").write(b"two")
    (place / "z.txt").write(b"")
    again = Location.parse(str(place / "a b+c%20/ü.txt"))
    assert again.read() == b"two"
    assert place.is_dir()
    assert [info.base_name for info in place.children()] == ["a b+c%20", "z.txt"]
    assert [place.at(info).uri for info in place.files()] == [again.uri, (place / "z.txt").uri]


def test_a_place_can_be_sent_to_another_process(place: Location) -> None:
    (place / "x").write(b"here")
    assert pickle.loads(pickle.dumps(place / "x")).read() == b"here"


def test_a_file_is_replaced_only_while_it_is_what_was_read(place: Location) -> None:
    file = place / "pointer.json"
    assert file.read_tagged() is None
    file.write_if(b"first", None)
    with pytest.raises(ConflictError, match=r"pointer\.json: someone else wrote it first"):
        file.write_if(b"second", None)
    seen = file.read_tagged()
    assert seen is not None
    assert seen.content == b"first"
    file.write_if(b"second", seen.tag)
    with pytest.raises(ConflictError):
        file.write_if(b"third", seen.tag)
    assert file.read() == b"second"


def test_of_many_writers_one_wins(place: Location) -> None:
    file = place / "pointer.json"
    winners: list[int] = []
    start = threading.Barrier(8)

    def write(number: int) -> None:
        start.wait()
        try:
            file.write_if(f"{number}".encode(), None)
        except ConflictError:
            return
        winners.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 1
    assert file.read() == f"{winners[0]}".encode()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("nfs4://somewhere", "expected a path, or file:// or s3://bucket/prefix"),
        ("s3://", "expected a path, or file:// or s3://bucket/prefix"),
    ],
)
def test_other_places_are_refused(uri: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Location.parse(uri)


def test_nothing_lies_inside_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    assert Location.parse(tmp_path / "file/below").read_tagged() is None
