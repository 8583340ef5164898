"""What importing ssray and asking for help cost, and what a typo in a command meets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import ssray
from ssray.cli.main import cli
from ssray.errors import ConfigError

HEAVY = ("torch", "ray", "pyarrow", "rich", "scipy", "PIL", "openvino", "kornia", "sklearn")


def loaded_by(program: str) -> list[str]:
    """The heavy packages that a program of one line has loaded."""
    shown = f"{program}\nimport sys\nprint([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", shown], capture_output=True, text=True, check=True, timeout=120
    )
    found: list[str] = eval(done.stdout.splitlines()[-1])
    return found


def test_importing_ssray_loads_nothing_heavy() -> None:
    assert loaded_by("import ssray") == []


def test_help_of_every_command_comes_without_torch() -> None:
    program = """
from click.testing import CliRunner
from ssray.cli.main import cli
def walk(command, path):
    result = CliRunner().invoke(cli, [*path, "--help"])
    assert result.exit_code == 0, (path, result.output)
    for name, below in getattr(command, "commands", {}).items():
        walk(below, [*path, name])
walk(cli, [])
"""
    assert loaded_by(program) == []


def test_every_name_that_is_offered_is_there() -> None:
    for name in ssray.__all__:
        assert getattr(ssray, name) is not None
        assert name in dir(ssray)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        ssray.lod  # noqa: B018


@pytest.mark.parametrize(
    "arguments",
    [
        ["--models", "store"],
        ["--good", "folder", "--models", "store"],
        ["--good", "folder", "--name", "nut", "--data", "root", "--models", "store"],
        ["--data", "root", "--name", "nut", "--models", "store"],
        ["--good", "folder", "--category", "nut", "--models", "store"],
    ],
)
def test_train_refuses_what_does_not_fit_together(arguments: list[str]) -> None:
    result = CliRunner().invoke(cli, ["train", *arguments])
    assert result.exit_code == 2
    assert "expected either --good FOLDER with --name C, or --data ROOT" in result.output


@pytest.mark.parametrize("name", ["", "a/b", ".hidden"])
def test_a_category_has_a_name_that_can_be_a_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be the name of a category"):
        ssray.train(tmp_path, name, tmp_path / "store")


def test_commands_are_click_commands() -> None:
    assert isinstance(cli, click.Group)
