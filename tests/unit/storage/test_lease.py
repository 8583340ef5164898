"""Leases: on a disk here; tests/integration/storage runs the same tests on an S3 server."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from ssray.errors import ConflictError
from ssray.storage import lease as leases
from ssray.storage.lease import Lease
from ssray.storage.location import Location
from ssray.storage.s3_clients import BOUNDED_ATTEMPTS

BEAT, SILENCE = 0.1, 1.0


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
    """It holds the lease until all others were refused, however slow the storage is."""
    others = threading.Semaphore(0)
    count = 6

    def work(number: int) -> bool:
        try:
            with lease(place):
                return all(others.acquire(timeout=30) for _ in range(count - 1))
        except ConflictError:
            others.release()
            return False

    with ThreadPoolExecutor(count) as pool:
        assert sum(pool.map(work, range(count))) == 1


def test_a_holder_that_storage_keeps_waiting_has_lost_its_lease(
    place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own clock tells, however long the request hangs; another process is free to take over."""
    goes_on, write_if = threading.Event(), Location.write_if

    def hang(self: Location, content: bytes, tag: str | None, seconds: float | None = None) -> None:
        goes_on.wait()
        write_if(self, content, tag, seconds)

    with lease(place) as held:
        monkeypatch.setattr(Location, "write_if", hang)
        assert not held.lost
        time.sleep(SILENCE + 2 * BEAT)
        assert held.lost
        monkeypatch.setattr(Location, "write_if", write_if)
        with lease(place) as other:
            assert other.taken_over
            goes_on.set()
            with pytest.raises(ConflictError, match="the work was taken over"):
                held.confirm()
            assert held.lost
            assert not other.lost
        assert not (place / "lease").exists()


def test_a_storage_that_hangs_does_not_keep_a_holder(
    place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on, read_tagged = threading.Event(), Location.read_tagged

    def hang(self: Location, seconds: float) -> None:
        goes_on.wait()
        raise OSError("no answer")

    with lease(place) as held:
        monkeypatch.setattr(Location, "read_tagged", hang)
        time.sleep(2 * BEAT)
        left = time.monotonic()
    assert time.monotonic() - left < 2 * SILENCE
    assert held.lost
    monkeypatch.setattr(Location, "read_tagged", read_tagged)
    assert (place / "lease").read().startswith(held.name.encode())
    goes_on.set()


def test_a_lease_that_nobody_took_is_held_again_once_the_storage_is_back(
    place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Location, seconds: float) -> None:
        raise OSError("no answer")

    with lease(place) as held:
        with monkeypatch.context() as patch:
            patch.setattr(Location, "read_tagged", fail)
            time.sleep(SILENCE + 2 * BEAT)
            assert held.lost
        held.confirm()
        assert not held.lost


def test_requests_of_a_lease_end_before_others_take_it_over() -> None:
    """Each of two attempts may wait for a connection and for an answer; a second lies between."""
    longest = BOUNDED_ATTEMPTS * 2 * leases.REQUEST_SECONDS + 1
    assert longest < leases.SILENCE_SECONDS


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tester")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-a-secret")
        file = Location.parse("s3://factory/lease")
        asking: list[Callable[[], object]] = [
            lambda: file.read_tagged(seconds=0.2),
            lambda: file.write_if(b"content", None, 0.2),
            lambda: file.write_if(b"content", "tag", 0.2),
        ]
        for ask in asking:
            begun = time.monotonic()
            with pytest.raises(OSError, match="s3://factory/lease"):
                ask()
            assert time.monotonic() - begun < BOUNDED_ATTEMPTS * 2 * 0.2 + 1 + 1
