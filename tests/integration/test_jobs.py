"""The jobs as users start them: ``ray job submit`` to a cluster, here one node on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import pyarrow.parquet as pq
import pytest
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

from ssray.data.demo.dataset import write_demo_data
from ssray.models.artifact import load
from ssray.models.store import published, versions
from ssray.scoring.tables import METRICS
from ssray.storage.location import Location

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
HOST = "127.0.0.1"
TINY = [
    *("--recipe", "demo", "--max-minutes", "0.02", "--force"),
    *("--set", "image_size=64", "--set", "schedule.crops=[0.5,1]", "--set", "network.width=4"),
    *("--set", "features.image_size=64", "--set", "features.memory_mib=0.02"),
]


@dataclass(frozen=True)
class Cluster:
    address: str
    environment: dict[str, str]

    def submit(
        self, *command: str | Path, timeout: float = 600
    ) -> subprocess.CompletedProcess[str]:
        """Runs a job to its end; its output comes back with that of the client."""
        return self.run("--", "python", *command, timeout=timeout)

    def run(self, *options: str | Path, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """``ray job submit`` with these options."""
        return subprocess.run(
            [
                *(BIN / "ray", "job", "submit", "--address", self.address),
                *("--working-dir", ROOT, *options),
            ],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    ports = free_ports(6)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "NO_PROXY": HOST,
        "RAY_AUTH_MODE": "disabled",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    address = f"http://{HOST}:{ports[1]}"
    # Ray's sockets lie below it, and their paths must stay under 108 bytes.
    place = Path(tempfile.mkdtemp(prefix="ssray-", dir="/tmp"))
    with (place / "head.log").open("w") as log:
        head = subprocess.Popen(
            [
                *(BIN / "ray", "start", "--head", "--block", "--disable-usage-stats"),
                *(f"--node-ip-address={HOST}", f"--port={ports[0]}"),
                *(f"--dashboard-host={HOST}", f"--dashboard-port={ports[1]}"),
                *(f"--dashboard-agent-listen-port={ports[2]}", f"--temp-dir={place}"),
                *(f"--dashboard-agent-grpc-port={ports[3]}", f"--metrics-export-port={ports[4]}"),
                *(f"--ray-client-server-port={ports[5]}", "--num-cpus=2"),
                f"--object-store-memory={256 * 1024**2}",
            ],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until_ready(head, address, place / "head.log")
        yield Cluster(address, environment)
    finally:
        end(head)
        shutil.rmtree(place, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on, outside the range that Ray keeps for its workers."""
    with contextlib.ExitStack() as held:
        ports: list[int] = []
        while len(ports) < count:
            probe = held.enter_context(socket.socket())
            probe.bind((HOST, 0))
            port = probe.getsockname()[1]
            if not 10_000 <= port < 20_000:
                ports.append(port)
        return ports


def wait_until_ready(head: subprocess.Popen[bytes], address: str, log: Path) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + 180
    while head.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), direct.open(f"{address}/api/jobs/", timeout=5):
            return
        time.sleep(0.2)
    pytest.fail(f"no Ray head:\n{log.read_text()}")


def end(head: subprocess.Popen[bytes]) -> None:
    """Ends the head and everything it started: its session, which the fixture made.

    Asked to end, a head waits 30 s for actors that Ray Data keeps; here nothing is lost.
    """
    while members := [pid for pid in processes() if session_of(pid) == head.pid]:
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        head.poll()
        time.sleep(0.1)


def processes() -> list[int]:
    return [int(place.name) for place in Path("/proc").iterdir() if place.name.isdigit()]


def session_of(pid: int) -> int | None:
    """The session of a process that runs; None of one that has ended, or waits to be reaped."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, _, _, session = status.rpartition(")")[2].split()[:4]
    return None if state == "Z" else int(session)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("jobs") / "data"
    assert write_demo_data(out, categories=2, images=8, size=64) == ["weave", "grain"]
    return out


@pytest.fixture(scope="module")
def trained(
    cluster: Cluster, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    store = tmp_path_factory.mktemp("jobs") / "models"
    return store, cluster.submit("jobs/train_all.py", "--data", data, "--models", store, *TINY)


def test_train_all_publishes_every_category(
    trained: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    store, job = trained
    assert job.returncode == 0, job.stdout
    models = published(Location.parse(store))
    assert set(models) == {"weave", "grain"}
    for category, version in models.items():
        assert f"{category}  published {version}" in job.stdout  # by force or not
        assert load(Location.parse(store), category, version).input_shape == (64, 64)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_fifteen_categories_one_of_them_broken(cluster: Cluster, tmp_path: Path) -> None:
    """The others are published; the same command again trains nothing but what is missing."""
    data, store = tmp_path / "data", tmp_path / "models"
    names = write_demo_data(data, categories=15, images=8, size=64)
    for image in (data / names[3] / "train/good").iterdir():
        image.write_bytes(b"not an image")
    command: list[str | Path] = ["jobs/train_all.py", "--data", data, "--models", store, *TINY]
    first = cluster.submit(*command, timeout=900)
    assert first.returncode == 1, first.stdout
    assert f"{names[3]}  failed: none of 8 images can be used" in first.stdout
    assert "14 of 15 categories have a model, 1 failed." in first.stdout
    models = published(Location.parse(store))
    assert set(models) == {*names} - {names[3]}
    again = cluster.submit(*command)
    assert again.returncode == 1, again.stdout
    assert up_to_date(again) == 14, again.stdout
    assert published(Location.parse(store)) == models
    shutil.copytree(
        data / names[0] / "train/good", data / names[3] / "train/good", dirs_exist_ok=True
    )
    last = cluster.submit(*command)
    assert last.returncode == 0, last.stdout
    assert up_to_date(last) == 14, last.stdout
    assert set(published(Location.parse(store))) == {*names}


def up_to_date(job: subprocess.CompletedProcess[str]) -> int:
    """Categories that a job found complete; Ray's client shows some of its lines twice."""
    return len({line for line in job.stdout.splitlines() if "up to date" in line})


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_two_jobs_on_s3_train_each_category_once(
    cluster: Cluster, data: Path, s3_server: str, tmp_path: Path
) -> None:
    """Images and models on S3; its address and keys come with the job."""
    root, store = (Location.parse(f"s3://{s3_server}/{tmp_path.name}/{n}") for n in ("in", "out"))
    for image in data.rglob("*.png"):
        (root / str(image.relative_to(data))).write(image.read_bytes())
    variables = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    command = [
        *("--runtime-env-json", json.dumps({"env_vars": variables}), "--"),
        *("python", "jobs/train_all.py", "--data", str(root), "--models", str(store)),
        *(*TINY, "--max-minutes", "0.3", "--at-once", "1"),
    ]
    with ThreadPoolExecutor(2) as pool:
        jobs = [job.result() for job in [pool.submit(cluster.run, *command) for _ in range(2)]]
    shown = "\n".join(job.stdout for job in jobs)
    for category in ("weave", "grain"):
        assert sum(f"{category}  published" in job.stdout for job in jobs) == 1, shown
        [version] = [v for v in versions(store, category) if v.facts]
        assert version.published
        refused = f"{category}: the same training is under way elsewhere"
        skipped = f"{category}  up to date"
        assert sum(refused in job.stdout or skipped in job.stdout for job in jobs) == 1, shown
    assert not (store / ".training").files()


def test_the_upload_holds_the_code_and_no_more(tmp_path: Path) -> None:
    project, package = tmp_path / "project", tmp_path / "package.zip"
    sent = ["pyproject.toml", "jobs/train_all.py", "ssray/config.py"]
    kept = [".git/HEAD", ".venv/bin/python", "site/a.html", "demo-out/a.png", "runs/a", "dist/a"]
    for name in [*sent, *kept, "ssray/__pycache__/a.pyc"]:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).touch()
    for rules in (".gitignore", ".rayignore"):
        if (ROOT / rules).exists():
            shutil.copy(ROOT / rules, project)
    excludes = get_runtime_env_default_excludes()
    create_package(str(project), package, include_gitignore=True, excludes=excludes)
    names = {name for name in ZipFile(package).namelist() if not name.endswith("/")}
    assert names == {*sent, ".gitignore"}


def test_evaluate_all_writes_the_metrics_of_every_category(
    cluster: Cluster,
    data: Path,
    trained: tuple[Path, subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    store, _ = trained
    job = cluster.submit(
        "jobs/evaluate_all.py", "--data", data, "--models", store, "--out", tmp_path
    )
    assert job.returncode == 0, job.stdout
    metrics = pq.read_table(tmp_path / "metrics.parquet")
    assert metrics.schema.equals(METRICS)
    assert metrics["category"].to_pylist() == ["grain", "weave"]
    assert metrics["model_version"].to_pylist() == [
        published(Location.parse(store))[name] for name in ("grain", "weave")
    ]
    for name, counted in {"n_good": [8, 8], "n_defect": [8, 8], "n_error": [0, 0]}.items():
        assert metrics[name].to_pylist() == counted
    for name in ("image_auroc", "pixel_auroc"):
        assert all(0 <= value <= 1 for value in metrics[name].to_pylist())
    assert (tmp_path / "report.html").stat().st_size > 0


def test_a_broken_category_fails_the_job_and_no_other(
    cluster: Cluster, data: Path, tmp_path: Path
) -> None:
    root, store = tmp_path / "data", tmp_path / "models"
    shutil.copytree(data / "grain", root / "grain")
    broken = root / "broken" / "train" / "good"
    broken.mkdir(parents=True)
    for number in range(8):
        (broken / f"{number:03d}.png").write_bytes(b"no image")
    job = cluster.submit("jobs/train_all.py", "--data", root, "--models", store, *TINY)
    assert job.returncode != 0
    assert job.stdout.count("broken  failed: none of 8 images") == 1, job.stdout
    assert "grain  failed" not in job.stdout
    assert set(published(Location.parse(store))) == {"grain"}
