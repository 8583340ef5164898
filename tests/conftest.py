"""What several test modules share: small data, small recipes, one Ray."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

from ssray.cluster.environment import quiet_local_ray
from ssray.config import Recipe, override
from ssray.data.demo import write_demo_data
from ssray.recipes.compact import demo

quiet_local_ray()

TINY = (
    "image_size=64",
    "network.width=4",
    "schedule.crops=[0.5,1]",
    "schedule.batch=2",
    "schedule.images=24",
)
"""Settings with which the demo recipe trains in a second."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """One Ray for the whole run, with the two CPUs of the smallest machine we support."""
    from ssray.cluster.runtime import ray_session

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
