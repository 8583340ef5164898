"""Every job with workers that reserve GPUs, on a machine that has none.

What runs on a real one is in ``benchmarks/gpu_check.py``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ssray.data.demo.dataset import write_demo_data

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
IMAGES = 24
ROOT = Path(__file__).parents[3]
TESTED = 24
"""Test images of each category that the demo data has at this size."""


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each job reserved, and what came of it."""
    folder = tmp_path_factory.mktemp("gpus")
    write_demo_data(folder / "data", categories=2, images=IMAGES, size=64)
    program = [sys.executable, "-m", "tests.integration.cluster.pretended_gpus"]
    command = [*program, str(folder / "data"), str(folder / "out")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=1400, cwd=ROOT)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    return {row.pop("job"): row for row in rows}


def test_categories_train_side_by_side_on_halves_of_a_gpu(jobs: dict[str, dict[str, Any]]) -> None:
    assert jobs["trained"] == {
        "most_gpus": 1.0,
        "failed": [],
        "threads": [1, 1],  # of four, as each has one of four halves of the two GPUs
        "devices": ["cpu", "cpu"],
    }


def test_two_workers_train_on_a_part_of_a_gpu_each(jobs: dict[str, dict[str, Any]]) -> None:
    expected = {"most_gpus": 1.0, "workers": 2, "streamed": True, "threads": 1}
    assert jobs["streamed_by_two_workers"] == expected


def test_trials_of_a_sweep_reserve_their_parts(jobs: dict[str, dict[str, Any]]) -> None:
    assert jobs["swept"] == {"most_gpus": 1.0, "failed": [], "trials": 2}


def test_evaluation_takes_as_many_actors_as_fit_the_gpus(jobs: dict[str, dict[str, Any]]) -> None:
    """Three blocks of images, so three actors, though four would fit."""
    assert jobs["evaluated"] == {"most_gpus": 1.5, "images": 2 * TESTED}


def test_scoring_reserves_whole_gpus(jobs: dict[str, dict[str, Any]]) -> None:
    assert jobs["scored"] == {"most_gpus": 2.0, "images": IMAGES}


def test_a_night_runs_on_as_many_gpu_actors_as_fit(jobs: dict[str, dict[str, Any]]) -> None:
    expected = {"most_gpus": 2.0, "images": IMAGES + TESTED, "errors": {}, "same": True}
    assert jobs["night"] == expected
