"""Unit tests need no Ray, server or browser: one that asks for any of them fails."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def ray_local() -> None:
    refuse("Ray")


@pytest.fixture(scope="session")
def s3_server() -> None:
    refuse("an S3 server")


@pytest.fixture(scope="session")
def browser() -> None:
    refuse("a browser")


@pytest.fixture(autouse=True)
def _no_ray() -> Iterator[None]:
    """Fails the test that starts Ray, and ends that Ray before the next one.

    One that runs already is that of integration tests in the same process, and stays.
    """
    ran_before = _ray_runs()
    yield
    if _ray_runs() and not ran_before:
        sys.modules["ray"].shutdown()
        refuse("Ray")


def _ray_runs() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def refuse(what: str) -> None:
    pytest.fail(f"a unit test needs {what}: move it to tests/integration", pytrace=False)
