"""What people can look at while a training runs."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from ssray.cli import terminal
from ssray.cli.terminal import PrintableConsole, TrainingBoard
from ssray.cluster.categories import each_category
from ssray.cluster.environment import worker_environment
from ssray.errors import DataError
from ssray.models.store import StoredVersion
from ssray.report.reconstructions import IMAGES, reconstruction_sheet
from ssray.scoring.heatmap import CONTOUR
from ssray.training.progress import ProgressRow
from ssray.training.tensorboard import event_log
from tests.helpers import Ended


class Repair(nn.Conv2d):
    """Gives back upright stripes, whatever was painted on them."""

    def forward(self, x: Tensor) -> Tensor:
        return x.median(dim=2, keepdim=True).values.expand_as(x)


def cells(sheet: bytes, side: int) -> np.ndarray:
    """(rows, 3, side, side, 3) uint8."""
    picture = np.asarray(Image.open(io.BytesIO(sheet)))
    rows, columns = ((length + 4) // (side + 4) for length in picture.shape[:2])
    assert picture.shape == (rows * (side + 4) - 4, columns * (side + 4) - 4, 3)
    starts = [range(0, length, side + 4) for length in picture.shape[:2]]
    return np.array([[picture[y : y + side, x : x + side] for x in starts[1]] for y in starts[0]])


def test_a_sheet_shows_input_reconstruction_and_heatmap(stripes: Tensor) -> None:
    network = Repair(1, 1, 1)
    network.train()
    sheet = reconstruction_sheet(network, stripes, "squared", torch.float32)
    assert network.training
    found = cells(sheet, stripes.shape[1])
    clean, defective = found[:IMAGES], found[IMAGES:]
    assert len(defective) > 0
    np.testing.assert_array_equal(clean[:, 0], stripes[:IMAGES].numpy())
    np.testing.assert_array_equal(clean[:, 1], clean[:, 0])
    assert (defective[:, 0] != defective[:, 1]).any(axis=(1, 2, 3)).all()
    marked = (found[:, 2] == CONTOUR).all(axis=-1).any(axis=(1, 2))
    assert marked.tolist() == [False] * IMAGES + [True] * len(defective)
    assert sheet == reconstruction_sheet(network, stripes, "squared", torch.float32)


EPOCH = ProgressRow(
    objective="reconstruct",
    epoch=1.5,
    images_seen=30.0,
    budget_spent=0.5,
    crop_rows=32,
    crop_columns=32,
    learning_rate=1e-3,
    train_loss=0.25,
    validation_loss=0.125,
    images_per_second=9.0,
    seconds=3.0,
    seconds_left=3.0,
)


def test_events_hold_the_log(tmp_path: Path) -> None:
    with event_log(tmp_path / "grid") as log:
        log(EPOCH)
    [file] = (tmp_path / "grid").iterdir()
    content = file.read_bytes()
    for name in ("train_loss", "validation_loss", "images_per_second"):
        assert name.encode() in content
    assert np.float32(0.125).tobytes() in content
    with event_log(None) as log:
        log(EPOCH)


def test_the_live_table_has_a_row_a_category(monkeypatch: pytest.MonkeyPatch) -> None:
    wrote = io.StringIO()
    screen = Console(file=wrote, force_terminal=True, width=160)
    monkeypatch.setattr(terminal, "console", screen)
    board = TrainingBoard()
    board.begin(["grid", "screw", "cable"])
    board.state("cable", "failed: no images")
    board.update("grid", EPOCH)
    with board:
        pass
    shown = wrote.getvalue().splitlines()
    [head] = [line for line in shown if "category" in line]
    for column in ("state", "done", "epoch", "loss", "validation", "images/s", "left"):
        assert column in head
    [grid] = [line for line in shown if "grid" in line]
    for value in ("training", "50 %", "1.5", "0.25000", "0.12500", "9.0", "0:03"):
        assert value in grid
    assert any("screw" in line and "waiting" in line for line in shown)
    assert any("cable" in line and "failed: no images" in line for line in shown)


def test_without_a_terminal_each_change_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    wrote = io.StringIO()
    screen = Console(file=wrote, force_terminal=False, width=300)
    monkeypatch.setattr(terminal, "console", screen)
    with TrainingBoard() as board:
        board.begin(["grid"])
        board.state("grid", "reading images")
        board.update("grid", EPOCH)
    board.show_totals({})
    board.begin([f"category-{number}" for number in range(15)])
    board.show_totals({"category-3": DataError("no images")})
    first, second, third = wrote.getvalue().splitlines()
    assert first == "grid  reading images"
    assert second.startswith("grid   50 %  epoch 1.5  loss 0.25000  validation 0.12500")
    assert third == "14 of 15 categories have a model, 1 failed."


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("categories", [1, 2])
def test_why_a_category_failed_is_printed_once(
    monkeypatch: pytest.MonkeyPatch, live: bool, categories: int
) -> None:
    """And whole: a live table has no place for all of it."""
    wrote = io.StringIO()
    screen = Console(file=wrote, force_terminal=live, width=100, soft_wrap=True, highlight=False)
    monkeypatch.setattr(terminal, "console", screen)
    reason = "none of 8 images can be used, although every one of them was looked at twice"

    def work(name: str) -> str:
        if name == "nut":
            raise DataError(reason)
        return "published v1"

    with TrainingBoard() as board:
        names = ["nut", "bolt"][:categories]
        board.begin(names)
        failed = each_category(names, 1, work, board)
    board.show_totals(failed)
    assert wrote.getvalue().count(reason) == 1


HOSTILE = "a\x1b[2J\x9b31m\rb\u202egnp\u2028\nc\udcff"
WRITTEN_OUT = r"a\x1b[2J\x9b31m\rb\u202egnp\u2028\nc\udcff"


def test_names_show_on_the_terminal_and_do_nothing_there(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = PrintableConsole(file=io.StringIO(), width=400, markup=False, highlight=False)
    monkeypatch.setattr(terminal, "console", screen)
    with TrainingBoard() as board:
        board.begin([HOSTILE, "second"])
        board.state(HOSTILE, HOSTILE)
        board.note(HOSTILE, HOSTILE)
        screen.print(board._table())
    screen.print(terminal.versions_table([(HOSTILE, StoredVersion(HOSTILE, False, None, HOSTILE))]))
    wrote = screen.file.getvalue()  # type: ignore[attr-defined]
    assert wrote.count(WRITTEN_OUT) == 9
    assert all(line.isprintable() for line in wrote.split("\n"))


def test_progress_shows_names_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    wrote = io.StringIO()
    screen = Console(file=wrote, force_terminal=True, width=200, color_system=None)
    monkeypatch.setattr(terminal, "console", screen)
    with terminal.scoring_progress() as (state, _):
        state(HOSTILE + "[red]")
    assert f"{WRITTEN_OUT}[red]" in wrote.getvalue()
    assert "\x9b31m" not in wrote.getvalue()


def test_an_error_is_one_line_whatever_it_quotes(
    program: Callable[..., Ended], tmp_path: Path
) -> None:
    ended = program("models", "list", "--models", tmp_path, "--category", "x\x1b[2J\ny")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.count("\n") == 1
    assert r"x\x1b[2J\ny" in ended.err


def test_workers_get_credentials_only_where_the_user_asks_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("SSRAY_PASS_CREDENTIALS", raising=False)
    place = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_REGION": "eu-central-1"}
    secret = {"AWS_PROFILE": "factory", "AWS_SECRET_ACCESS_KEY": "s", "AWS_SESSION_TOKEN": "t"}
    for name, value in (place | secret | {"HOME_OF_NOBODY": "x"}).items():
        monkeypatch.setenv(name, value)
    assert worker_environment() == place
    monkeypatch.setenv("SSRAY_PASS_CREDENTIALS", "1")
    assert worker_environment() == place | secret
    given = {"runtime_env": {"env_vars": {"AWS_PROFILE": "factory"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(given))
    del secret["AWS_PROFILE"]
    assert worker_environment() == place | secret
