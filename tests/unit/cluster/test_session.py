"""A Ray that does not come up, and a folder that others can write: one line each."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from ssray.cluster import session
from ssray.cluster.state_folder import check_private, make_private
from ssray.errors import ClusterError, ConfigError
from ssray.storage.location import Location
from tests.helpers import Ended


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this process had no Ray; one that other tests share is left alone."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(session, "_read_authentication", lambda: None)


def late(**options: object) -> None:
    raise Exception("The current node timed out during startup.\nTraceback of something")


def test_a_private_ray_that_does_not_come_up_is_one_line(
    monkeypatch: pytest.MonkeyPatch, program: Callable[..., Ended], tmp_path: Path
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(ray, "init", late)
    before = dict(os.environ)
    ended = program("demo", "--out", tmp_path / "demo")
    assert ended.code == 1
    assert ended.err.splitlines() == [
        "Error: Ray did not start on this machine: it may be short of memory or busy. Try again; "
        "SSRAY_RAY_LOGS=1 shows what Ray says. (The current node timed out during startup.)"
    ]
    assert {k: v for k, v in os.environ.items() if "AUTH" in k} == {
        k: v for k, v in before.items() if "AUTH" in k
    }
    assert [place.name for place in tmp_path.iterdir()] == ["demo"]


def test_the_error_of_a_private_ray_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", late)
    with pytest.raises(ClusterError), session.ray_session():
        pass


@pytest.mark.parametrize("kind", [ConnectionError, RuntimeError, ValueError, Exception])
def test_an_address_that_no_ray_answers_at_is_one_line(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def unreachable(**options: object) -> None:
        raise kind("Failed to connect\nand a long story")

    monkeypatch.setenv("RAY_ADDRESS", "ray://127.0.0.1:1")
    monkeypatch.setattr(ray, "init", unreachable)
    with pytest.raises(ConfigError, match=r"^RAY_ADDRESS=ray://127.0.0.1:1: no Ray") as raised:
        session.ray_session().__enter__()
    assert str(raised.value).endswith("(Failed to connect)")


def test_nobody_waits_minutes_for_a_port_that_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]  # nobody listens
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        monkeypatch.setattr(session, "LATE_SECONDS", 0.2)
        monkeypatch.setattr(ray, "init", lambda **options: pytest.fail("Ray was asked"))
        with pytest.raises(ConfigError, match="Connection refused"):
            session.ray_session().__enter__()


def test_a_head_that_comes_up_late_is_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as head:
        session._wait_for(f"127.0.0.1:{head.getsockname()[1]}")
    for unknown in ("auto", "ray://127.0.0.1:1", "local"):
        session._wait_for(unknown)


def test_a_folder_for_the_state_of_a_search_is_its_owners_alone(tmp_path: Path) -> None:
    folder = Location.parse(tmp_path / "results/.sweep/weave")
    make_private(folder)
    make_private(folder)
    assert os.stat(folder.path).st_mode & 0o777 == 0o700
    (folder / "key/tuner.pkl").write(b"")
    os.chmod(f"{folder}/key", 0o777)  # nobody gets there
    check_private(folder)


@pytest.mark.parametrize("mode", [0o020, 0o002])
@pytest.mark.parametrize("inner", ["", "key", "key/tuner.pkl"])
def test_a_search_does_not_go_on_with_what_others_can_write(
    tmp_path: Path, inner: str, mode: int
) -> None:
    folder = Location.parse(tmp_path / "weave")
    (folder / "key/tuner.pkl").write(b"")
    for place in (tmp_path / "weave", tmp_path / "weave/key", tmp_path / "weave/key/tuner.pkl"):
        place.chmod(0o755)
    check_private(folder)
    place = tmp_path / "weave" / inner
    place.chmod(0o755 | mode)
    with pytest.raises(ConfigError, match=rf"^{place}: can be written by others.*chmod -R go-w"):
        check_private(folder)


def test_a_search_does_not_go_on_with_what_belongs_to_someone_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_private(Location.parse(tmp_path / "weave"))
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(ConfigError, match=rf"weave: belongs to user {os.getuid()}"):
        check_private(Location.parse(tmp_path / "weave"))
