"""What several test modules share: small data, small recipes, one Ray."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from ssray.cluster.environment import quiet_local_ray
from ssray.config import Compute, Recipe, override
from ssray.data.demo.dataset import write_demo_data
from ssray.models.artifact import ModelArtifact
from ssray.recipes.compact import demo
from ssray.storage.location import Location
from ssray.training.build import BuildRequest, build_model
from tests.helpers import BUCKET, TINY, Ended, free_ports

if TYPE_CHECKING:
    from selenium import webdriver

quiet_local_ray()


def pytest_collection_finish() -> None:
    """Spares the garbage collector what was imported: it stays to the end, and is a lot."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_local(s3_server: str) -> Iterator[None]:
    """One Ray for the whole run, with the two CPUs of the smallest machine we support.

    Its workers see the environment in which it starts, so the S3 server comes first.
    """
    from ssray.cluster.session import ray_session

    with ray_session(num_cpus=2):
        yield


@pytest.fixture(scope="session")
def demo_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small generated categories at 64 px."""
    root = tmp_path_factory.mktemp("data")
    write_demo_data(root, categories=2, images=8, size=64)
    return root


@pytest.fixture(scope="session")
def tiny() -> Recipe:
    """A recipe that trains in a second."""
    return override(demo(), TINY)


@pytest.fixture(scope="session")
def tiny_model(demo_root: Path, tiny: Recipe) -> ModelArtifact:
    """A model of ``weave`` that was trained for a moment, version v1; for all, so change copies."""
    uris = sorted(str(path) for path in (demo_root / "weave/train/good").iterdir())
    compute, device = Compute(precision="float32"), torch.device("cpu")
    model = build_model(BuildRequest(uris, "weave", "v1", tiny, compute), device, threads=1)
    assert model is not None
    return model


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """SeaweedFS with an empty bucket, found through the AWS variables; yields the bucket."""
    folder = tmp_path_factory.mktemp("s3")
    ports = dict(zip(("master", "volume", "filer", "s3"), free_ports(4), strict=True))
    identity = {
        "name": "tester",
        "credentials": [{"accessKey": "tester", "secretKey": "not-a-secret"}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    settings = folder / "s3.json"
    settings.write_text(json.dumps({"identities": [identity]}))
    options = {
        "dir": folder,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        **{f"{name}.port": port for name, port in ports.items()},
        "s3.config": settings,
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "master.telemetry": "false",
        "admin.ui": "false",
        "webdav": "false",
        "bucket": BUCKET,
    }
    variables = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3']}",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "not-a-secret",
    }
    weed = Path(sys.executable).with_name("weed")
    command = [str(weed), "-logtostderr=true", "mini", *(f"-{k}={v}" for k, v in options.items())]
    with (
        (folder / "weed.log").open("w") as log,
        pytest.MonkeyPatch.context() as patch,
        subprocess.Popen(command, stdout=log, stderr=log) as server,
    ):
        try:
            for name, value in variables.items():
                patch.setenv(name, value)
            _wait_for_a_write(server, folder / "weed.log")
            yield BUCKET
        finally:
            server.terminate()


def _wait_for_a_write(server: subprocess.Popen[bytes], log: Path) -> None:
    place = Location.parse(f"s3://{BUCKET}/ready")
    deadline = time.monotonic() + 180
    while True:
        try:
            place.write(b"ready")
            return
        except OSError as error:
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"SeaweedFS does not answer: {error}\n{log.read_text()[-2000:]}")
            time.sleep(0.2)


@pytest.fixture
def program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    """Runs ``ssray`` with arguments to its end, in this process."""
    from ssray.cli.main import main

    def run(*arguments: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["ssray", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        wrote = capsys.readouterr()
        return Ended(int(left.value.code or 0), wrote.out, wrote.err)

    return run


@pytest.fixture
def stripes() -> torch.Tensor:
    """(12, 32, 32, 3) uint8 images of shifted stripes: something a network can learn."""
    columns = np.arange(32)
    images = [128 + 100 * np.sin((columns + shift) * np.pi / 4) for shift in range(12)]
    stack = np.stack([np.tile(row[None, :, None], (32, 1, 3)) for row in images])
    return torch.from_numpy(stack.astype(np.uint8))


@pytest.fixture(scope="session")
def browser() -> Iterator[webdriver.Chrome]:
    """A headless browser."""
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    names = ("chromium", "chromium-browser", "google-chrome")
    binary = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        reason = "needs chromium and chromedriver on the PATH"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    options = Options()
    options.binary_location = binary
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options, Service(driver))
    yield chrome
    chrome.quit()
