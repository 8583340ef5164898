"""Who can reach a Ray that a command starts: the user that started it, and nobody else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from ssray.config import Compute, Recipe
from ssray.storage.location import Location

LISTENS = "0A"
"""The state of a listening socket in ``/proc/net/tcp``."""
SESSION = """
import json, os
from ssray.cluster.environment import quiet_local_ray
quiet_local_ray()
import ray
from ssray.cluster.session import ray_session
found = []
for _ in range(2):
    with ray_session(num_cpus=1):
        token = os.environ["RAY_AUTH_TOKEN"]
        folder = os.path.dirname(ray._private.worker._global_node.get_temp_dir_path())
        mode = os.stat(folder).st_mode & 0o777
        inherited = ray.get(ray.remote(os.getenv).remote("RAY_AUTH_TOKEN"))
    found.append([token, inherited, mode, os.path.exists(folder)])
print(json.dumps([found, [name for name in os.environ if name.startswith("RAY_AUTH_")]]))
"""
JOIN = """
import ray, sys
try:
    ray.init(address=sys.argv[1], logging_level=50)
    print("joined")
except Exception as error:
    print("refused")
"""


def test_a_private_ray_has_a_token_of_its_own_and_touches_no_home(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment["HOME"] = str(tmp_path)
    program = [sys.executable, "-c", SESSION]
    ended = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    sessions, left = json.loads(ended.stdout.splitlines()[-1])
    for token, inherited, mode, remains in sessions:
        assert len(token) == 64
        assert inherited == token
        assert mode == 0o700
        assert not remains
    assert sessions[0][0] != sessions[1][0]
    assert left == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("mode", "token", "expected"),
    [("disabled", None, "refused"), ("token", "0" * 64, "refused"), ("token", "own", "joined")],
)
def test_who_lacks_the_token_can_not_join(
    ray_local: None, mode: str, token: str | None, expected: str
) -> None:
    import ray

    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH_")}
    environment["RAY_AUTH_MODE"] = mode
    if token:
        own = os.environ["RAY_AUTH_TOKEN"]
        environment["RAY_AUTH_TOKEN"] = own if token == "own" else token
    address = ray.get_runtime_context().gcs_address
    program = [sys.executable, "-c", JOIN, address]
    ended = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.stdout.splitlines()[-1] == expected, ended.stderr


def test_a_training_of_two_workers_listens_on_loopback_alone(
    ray_local: None, demo_root: Path, tiny: Recipe, tmp_path: Path
) -> None:
    from ssray.cluster.train import train_category

    uris = [str(path) for path in (demo_root / "weave/train/good").iterdir()]
    compute = Compute(precision="float32", workers=2, cpus_per_worker=1)
    seen: dict[str, set[str]] = {}

    def on_row(row: object) -> None:
        listeners = dict(sockets())
        for pid in with_descendants(os.getpid()):
            name, found = listening(pid, listeners)
            seen.setdefault(name, set()).update(found)

    train_category(uris, "weave", tiny, compute, Location.parse(tmp_path), on_row=on_row)
    workers = {
        address for name, found in seen.items() if "TrainWorker" in name for address in found
    }
    assert workers == {"127.0.0.1"}
    assert "gcs_server" in " ".join(seen)
    assert set().union(*seen.values()) == {"127.0.0.1"}


def test_what_answers_over_http_asks_for_the_token(ray_local: None) -> None:
    import ray

    [node] = ray.nodes()
    url = f"http://127.0.0.1:{node['RuntimeEnvAgentPort']}/get_or_create_runtime_env"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(url, b"{}"), timeout=30)
    assert refused.value.code == 401


def with_descendants(pid: int) -> list[int]:
    """A process and all that it started, as far as they are there."""
    children: dict[int, list[int]] = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(place.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def listening(pid: int, listeners: Mapping[str, str]) -> tuple[str, set[str]]:
    """The name of a process, and the addresses at which its TCP sockets listen, of all that do."""
    place = Path(f"/proc/{pid}")
    try:
        name = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        links = [os.readlink(entry) for entry in (place / "fd").iterdir() if entry.is_symlink()]
    except OSError:  # it has ended
        return "", set()
    own = {
        link.removeprefix("socket:[").removesuffix("]")
        for link in links
        if link.startswith("socket:[")
    }
    return name, {listeners[inode] for inode in own & listeners.keys()}


def sockets() -> Iterator[tuple[str, str]]:
    """Every listening TCP socket of this machine: its inode, and its address."""
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENS:
                yield fields[9], address(fields[1].partition(":")[0])


def address(digits: str) -> str:
    """An address as it is written, of the kernel's words in the machine's byte order.

    >>> address("0100007F")
    '127.0.0.1'
    """
    words = [bytes.fromhex(digits[at : at + 8]) for at in range(0, len(digits), 8)]
    packed = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    if len(packed) == 4:
        return str(IPv4Address(packed))
    mapped = IPv6Address(packed).ipv4_mapped
    return str(mapped or IPv6Address(packed))
