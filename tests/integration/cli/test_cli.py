"""The command line as a user meets it, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ssray.cli.main import cli
from ssray.storage.location import Location
from tests.helpers import TINY

COMMANDS = sorted(cli.commands)


def ssray(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ssray", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=720,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_every_command_explains_itself() -> None:
    from click.testing import CliRunner

    names = "demo demo-data diagnose evaluate heatmap models nightly score sweep train"
    assert names.split() == COMMANDS
    for command in COMMANDS:
        result = CliRunner().invoke(cli, [command, "--help"])
        assert result.exit_code == 0
        assert len(result.output.splitlines()) > 5


def test_options_mirror_the_configuration() -> None:
    from ssray.config import Compute

    commands = (cli.commands[name] for name in ("train", "evaluate"))
    options = {p.name: p for command in commands for p in command.params}
    for name, field in Compute.model_fields.items():
        assert options[name].default == field.default
        assert options[name].help == f"{field.description}."


def test_data_models_and_results_may_lie_in_s3(demo_root: Path, s3_server: str) -> None:
    data = Location.parse(f"s3://{s3_server}/cli/data")
    for path in (demo_root / "weave").rglob("*.png"):
        (data / str(path.relative_to(demo_root))).write(path.read_bytes())
    store, out = f"s3://{s3_server}/cli/models", f"s3://{s3_server}/cli/out"
    tiny = [part for setting in TINY for part in ("--set", setting)]
    chosen = ("--data", str(data), "--category", "weave", "--models", store)
    trained = ssray("train", *chosen, "--recipe", "demo", *tiny)
    assert trained.returncode == 0, trained.stderr
    assert "weave  published" in trained.stdout
    assert "up to date" in ssray("train", *chosen, "--recipe", "demo", *tiny).stdout
    maps = ("--maps", f"{out}/maps")
    evaluated = ssray("evaluate", *chosen, "--out", out, *maps)
    assert evaluated.returncode == 0, evaluated.stderr
    names = {info.base_name for info in Location.parse(out).files()}
    assert {"metrics.parquet", "scores.parquet", "report.html", "000.npy"} <= names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--data", "{root}", "--category", "nut", "--models", "{out}"],
         "no category nut. Found: grain, weave."),
        (["train", "--data", "{root}/nowhere", "--category", "nut", "--models", "{out}"],
         "no such folder"),
        (["train", "--data", "{root}", "--category", "weave", "--models", "{out}",
          "--set", "network.wdth=3"], "unknown key 'network.wdth'"),
        (["train", "--data", "{root}", "--category", "weave", "--models", "{out}",
          "--max-minutes", "-1"], "max_minutes"),
        (["train", "--data", "{root}", "--category", "weave", "--models", "{out}",
          "--recipe", "best"], "Known: compact, paper, compact-texture"),
        (["evaluate", "--data", "{root}", "--models", "{out}", "--out", "{out}"],
         "no published model for any category"),
        (["score", "--images", "{root}/nope", "--category", "weave", "--models", "{out}",
          "--out", "{out}"], "no published model for 'weave'"),
        (["diagnose", "--data", "{root}", "--category", "weave", "--models", "{out}",
          "--out", "{out}"], "no published model for 'weave'"),
        (["models", "list", "--models", "{out}"], "no models here"),
        (["demo-data", "--out", "{root}/weave"], "{root}/weave"),
        (["demo-data", "--out", "{out}", "--images", "1"], "images"),
        (["train"], "Missing option '--data'"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_clear_line_and_exit_code_2(
    arguments: list[str], message: str, demo_root: Path, tmp_path: Path
) -> None:
    values = {"root": demo_root, "out": tmp_path / "out"}
    result = ssray(*(argument.format(**values) for argument in arguments))
    assert result.returncode == 2
    assert message.format(**values) in result.stderr
    assert "Traceback" not in result.stderr + result.stdout


def test_from_data_to_scores(tmp_path: Path) -> None:
    """The whole contract once: demo-data, train, models list, evaluate, score."""
    data, store = tmp_path / "data", tmp_path / "models"
    assert ssray("demo-data", "--out", data, "--categories", "1", "--images", "6").returncode == 0
    small = ["image_size=64", "network.width=4", "schedule.crops=[1]", "schedule.images=12"]
    settings = [word for setting in small for word in ("--set", setting)]
    trained = ssray(
        "train", "--data", data, "--category", "weave", "--models", store,
        "--recipe", "demo", *settings,
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
