"""The command line from data to scores: with a Ray that runs, and in processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ssray.storage.location import Location
from tests.helpers import TINY_FAMILY, Ended


def ssray(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ssray", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=720,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_data_models_and_results_may_lie_in_s3(
    ray_local: None, program: Callable[..., Ended], demo_root: Path, s3_server: str
) -> None:
    data = Location.parse(f"s3://{s3_server}/cli/data")
    for path in (demo_root / "weave").rglob("*.png"):
        (data / str(path.relative_to(demo_root))).write(path.read_bytes())
    store, out = f"s3://{s3_server}/cli/models", f"s3://{s3_server}/cli/out"
    tiny = [part for setting in TINY_FAMILY for part in ("--set", setting)]
    chosen = ("--data", str(data), "--category", "weave", "--models", store)
    trained = program("train", *chosen, "--recipe", "demo", "--force", *tiny)
    assert trained.code == 0, trained.err
    assert "weave  published" in trained.out
    assert "up to date" in program("train", *chosen, "--recipe", "demo", *tiny).out
    maps = ("--maps", f"{out}/maps")
    evaluated = program("evaluate", *chosen, "--out", out, *maps)
    assert evaluated.code == 0, evaluated.err
    names = {info.base_name for info in Location.parse(out).files()}
    assert {"metrics.parquet", "scores.parquet", "report.html", "000.npy"} <= names


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--set", "network.wdth=3", "unknown key 'network.wdth'"),
        ("--recipe", "best", "Known: compact, paper, paper-as-published, demo;"),
    ],
)
def test_a_mistake_in_the_recipe_is_one_clear_line_and_exit_code_2(
    ray_local: None,
    program: Callable[..., Ended],
    option: str,
    value: str,
    message: str,
    demo_root: Path,
    tmp_path: Path,
) -> None:
    """Found with the images of the category, when Ray runs already."""
    chosen = ("--data", demo_root, "--category", "weave", "--models", tmp_path)
    result = program("train", *chosen, option, value)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err + result.out


def test_from_data_to_scores(tmp_path: Path) -> None:
    """The whole contract once: demo-data, train, models list, evaluate, score."""
    data, store = tmp_path / "data", tmp_path / "models"
    assert ssray("demo-data", "--out", data, "--categories", "1", "--images", "6").returncode == 0
    small = ["image_size=64", "network.width=4", "schedule.crops=[1]", "schedule.images=12"]
    small += ["features.image_size=64", "features.memory_mib=0.02"]
    settings = [word for setting in small for word in ("--set", setting)]
    trained = ssray(
        "train", "--data", data, "--category", "weave", "--models", store,
        "--recipe", "demo", "--force", *settings,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    assert "weave  100 %  epoch" in trained.stdout
    listed = ssray("models", "list", "--models", store)
    assert listed.stdout.splitlines()[1].split()[0::2][:2] == ["weave", "in"]
    evaluated = ssray("evaluate", "--data", data, "--models", store, "--out", tmp_path / "e")
    assert evaluated.returncode == 0, evaluated.stderr
    assert "Traceback" not in evaluated.stderr
    assert {"metrics.parquet", "scores.parquet", "report.html"} <= {
        path.name for path in (tmp_path / "e").iterdir()
    }
    scored = ssray(
        "score", "--images", data / "weave/test/good", "--category", "weave",
        "--models", store, "--out", tmp_path / "s",
    )  # fmt: skip
    assert scored.returncode == 0, scored.stderr
    assert "8 images: " in scored.stdout
