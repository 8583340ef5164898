"""The command line as a program: what it explains, and what it says of mistakes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from ssray.cli.main import cli
from ssray.config import Compute
from tests.helpers import Ended

COMMANDS = sorted(cli.commands)


def test_every_command_explains_itself() -> None:
    names = "demo demo-data diagnose evaluate heatmap models nightly score scores sweep train"
    assert names.split() == COMMANDS
    for command in COMMANDS:
        result = CliRunner().invoke(cli, [command, "--help"])
        assert result.exit_code == 0
        assert len(result.output.splitlines()) > 5


def test_options_mirror_the_configuration() -> None:
    commands = (cli.commands[name] for name in ("train", "evaluate"))
    options = {p.name: p for command in commands for p in command.params}
    for name, field in Compute.model_fields.items():
        assert options[name].default == field.default
        assert options[name].help == f"{field.description}."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--data", "{root}", "--category", "nut", "--models", "{out}"],
         "no category nut. Found: grain, weave."),
        (["train", "--data", "{root}/nowhere", "--category", "nut", "--models", "{out}"],
         "no such folder"),
        (["train", "--data", "{root}", "--category", "weave", "--models", "{out}",
          "--max-minutes", "-1"], "max_minutes"),
        (["evaluate", "--data", "{root}", "--models", "{out}", "--out", "{out}"],
         "no published model for any category"),
        (["score", "--images", "{root}/nope", "--category", "weave", "--models", "{out}",
          "--out", "{out}"], "no published model for 'weave'"),
        (["diagnose", "--data", "{root}", "--category", "weave", "--models", "{out}",
          "--out", "{out}"], "no published model for 'weave'"),
        (["models", "list", "--models", "{out}"], "no models here"),
        (["demo-data", "--out", "{root}/weave"], "{root}/weave"),
        (["demo-data", "--out", "{out}", "--images", "1"], "images"),
        (["demo-data", "--out", "{out}", "--size", "1"], "size"),
        (["train"], "Missing option '--models'"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_clear_line_and_exit_code_2(
    program: Callable[..., Ended],
    arguments: list[str],
    message: str,
    demo_root: Path,
    tmp_path: Path,
) -> None:
    values = {"root": demo_root, "out": tmp_path / "out"}
    result = program(*(argument.format(**values) for argument in arguments))
    assert result.code == 2
    assert message.format(**values) in result.err
    assert "Traceback" not in result.err + result.out
