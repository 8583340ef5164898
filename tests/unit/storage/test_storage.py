"""Places on a disk and on a real S3 server."""

from __future__ import annotations

import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ssray.errors import ConflictError, DataError
from ssray.storage import lease
from ssray.storage.lease import Lease
from ssray.storage.location import Location


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An empty folder."""
    if request.param == "disk":
        return Location.parse(tmp_path / "folder")
    bucket = request.getfixturevalue("s3_server")
    return Location.parse(f"s3://{bucket}/{tmp_path.name}/folder/")


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


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that beat five times a second."""
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(lease, "SILENCE_SECONDS", 1.0)


def test_a_lease_is_held_by_one(place: Location, quick: None) -> None:
    waited: list[str] = []
    with Lease(place / "lease", "the work") as first:
        assert not first.taken_over
        second = Lease(place / "lease", "the work", lambda: waited.append("once"))
        with pytest.raises(ConflictError, match=r"^the work is under way elsewhere"), second:
            pass
        assert waited == ["once"]
    assert not (place / "lease").exists()
    with Lease(place / "lease", "the work") as third:
        assert not third.taken_over


def test_a_silent_lease_is_taken_over(place: Location, quick: None) -> None:
    (place / "lease").write(b"of a process that was killed")
    started = time.monotonic()
    with Lease(place / "lease", "the work") as held:
        assert held.taken_over
        assert time.monotonic() - started >= 1.0
    assert not (place / "lease").exists()


def test_a_lease_that_was_lost_is_left_to_its_new_holder(place: Location, quick: None) -> None:
    with Lease(place / "lease", "the work") as held:
        assert not held.lost
        (place / "lease").write(b"someone else's")
        time.sleep(0.5)
        assert held.lost
    assert (place / "lease").read() == b"someone else's"


def test_who_lost_a_lease_writes_nothing_more(place: Location, quick: None) -> None:
    with Lease(place / "lease", "the work") as held:
        held.write(place / "marker", b"first")
        held.write(place / "marker", b"again")
        assert (place / "marker").read() == b"again"
        (place / "lease").write(b"someone else's")
        with pytest.raises(ConflictError, match=r"^the work was taken over"):
            held.write(place / "marker", b"late")
        with pytest.raises(ConflictError, match=r"^the work was taken over"):
            held.write(place / "other", b"late")
    assert (place / "marker").read() == b"again"
    assert not (place / "other").exists()


def test_a_holder_that_sleeps_over_a_write_loses_it(
    place: Location, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sleeps after it made sure of the lease; another one takes over and writes meanwhile."""
    write_if = Location.write_if

    def late(self: Location, content: bytes, tag: str | None) -> None:
        monkeypatch.setattr(Location, "write_if", write_if)
        (place / "lease").write(b"another's")
        (place / "marker").write(b"another's")
        write_if(self, content, tag)

    with Lease(place / "lease", "the work") as held:
        monkeypatch.setattr(lease, "BEAT_SECONDS", 60)
        monkeypatch.setattr(Location, "write_if", late)
        with pytest.raises(ConflictError, match="was taken over"):
            held.write(place / "marker", b"late")
    assert (place / "marker").read() == b"another's"


def test_of_many_who_want_a_lease_one_gets_it(place: Location, quick: None) -> None:
    inside, most = [0], [0]

    def work(number: int) -> bool:
        try:
            with Lease(place / "lease", "the work"):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(2)
                inside[0] -= 1
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(work, range(6))) == 1
    assert most == [1]


def test_nothing_lies_inside_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    assert Location.parse(tmp_path / "file/below").read_tagged() is None
