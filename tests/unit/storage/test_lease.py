"""Leases: on a disk here; tests/integration/storage runs the same tests on an S3 server."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ssray.errors import ConflictError
from ssray.storage.lease import Lease
from ssray.storage.location import Location

BEAT, SILENCE = 0.1, 0.5


@pytest.fixture
def place(tmp_path: Path) -> Location:
    """An empty folder."""
    return Location.parse(tmp_path / "folder")


def lease(place: Location, on_wait: Callable[[], None] = lambda: None, beat: float = BEAT) -> Lease:
    return Lease(place / "lease", "the work", on_wait, beat=beat, silence=SILENCE)


def test_a_lease_is_held_by_one(place: Location) -> None:
    waited: list[str] = []
    with lease(place) as first:
        assert not first.taken_over
        second = lease(place, lambda: waited.append("once"))
        with pytest.raises(ConflictError, match=r"^the work is under way elsewhere"), second:
            pass
        assert waited == ["once"]
    assert not (place / "lease").exists()
    with lease(place) as third:
        assert not third.taken_over


def test_a_silent_lease_is_taken_over(place: Location) -> None:
    (place / "lease").write(b"of a process that was killed")
    started = time.monotonic()
    with lease(place) as held:
        assert held.taken_over
        assert time.monotonic() - started >= SILENCE
    assert not (place / "lease").exists()


def test_a_lease_that_was_lost_is_left_to_its_new_holder(place: Location) -> None:
    with lease(place) as held:
        assert not held.lost
        (place / "lease").write(b"someone else's")
        time.sleep(3 * BEAT)
        assert held.lost
    assert (place / "lease").read() == b"someone else's"


def test_who_lost_a_lease_writes_nothing_more(place: Location) -> None:
    with lease(place) as held:
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
    place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sleeps after it made sure of the lease; another one takes over and writes meanwhile."""
    write_if = Location.write_if

    def late(self: Location, content: bytes, tag: str | None) -> None:
        monkeypatch.setattr(Location, "write_if", write_if)
        (place / "lease").write(b"another's")
        (place / "marker").write(b"another's")
        write_if(self, content, tag)

    with lease(place, beat=60) as held:
        monkeypatch.setattr(Location, "write_if", late)
        with pytest.raises(ConflictError, match="was taken over"):
            held.write(place / "marker", b"late")
    assert (place / "marker").read() == b"another's"


def test_of_many_who_want_a_lease_one_gets_it(place: Location) -> None:
    inside, most = [0], [0]

    def work(number: int) -> bool:
        try:
            with lease(place):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(2 * SILENCE)
                inside[0] -= 1
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(work, range(6))) == 1
    assert most == [1]
