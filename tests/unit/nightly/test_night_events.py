"""The log of a night: a line of JSON for each event, where it was asked for and nowhere else."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ssray.errors import ConfigError, ScoringError
from ssray.nightly.night_events import STDERR, NightEvents, log_to
from ssray.nightly.summary import BatchFacts, summarise
from tests.helpers import Ended

NIGHT = "2026-11-21"
FACTS = BatchFacts(
    category="b\nö\x1b[2J\udcfflt",
    images=256,
    flagged=3,
    errors={"empty": 2},
    retries=1,
    seconds={"fetch": 1.23456},
    worker_seconds=60.0,
)


def all_events(run: str) -> None:
    with NightEvents(NIGHT, run) as events:
        events.begun(["s3://prod/a"], {"bolt": "v1"})
        events.listed(images=512, batches=2, categories=1, passed_over=4, seconds=0.5)
        events.scoring(2, "http://127.0.0.1:8080/metrics")
        events.batch_done(0, FACTS)
        events.batch_postponed(1, "bolt", 256, "s3://prod does not answer")
        events.paused("s3://prod does not answer")
        events.went_on(61.5)
        events.committed(rows=512, files=2)
        events.ended(summarise([FACTS, FACTS], 0.5, 64.0, 512, {".txt": 4}))
    with pytest.raises(ScoringError), NightEvents(NIGHT, run):
        raise ScoringError("2 of 9 batches were not scored.")


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("ascii").splitlines()]


def test_each_event_is_one_line_with_its_night_and_run(tmp_path: Path) -> None:
    log = tmp_path / "night.jsonl"
    before = datetime.now(UTC).replace(microsecond=0)
    with log_to(str(log)):
        all_events("run-7")
    lines = lines_of(log)
    assert [(line["event"], line["level"]) for line in lines] == [
        ("begun", "info"),
        ("listed", "info"),
        ("scoring", "info"),
        ("batch_done", "info"),
        ("batch_postponed", "warning"),
        ("paused", "warning"),
        ("went_on", "info"),
        ("committed", "info"),
        ("ended", "info"),
        ("failed", "error"),
    ]
    assert {(line.pop("night"), line.pop("run")) for line in lines} == {(NIGHT, "run-7")}
    for line in lines:
        assert before <= datetime.fromisoformat(line.pop("time")) <= datetime.now(UTC)
        del line["event"], line["level"]
    assert lines == [
        {"images": ["s3://prod/a"], "models": {"bolt": "v1"}},
        {"images": 512, "batches": 2, "categories": 1, "passed_over": 4, "seconds": 0.5},
        {"batches": 2, "metrics": "http://127.0.0.1:8080/metrics"},
        {
            "batch": 0,
            "category": FACTS.category,
            "images": 256,
            "flagged": 3,
            "errors": {"empty": 2},
            "retries": 1,
            "seconds": {"fetch": 1.235},
            "worker_seconds": 60.0,
        },
        {
            "batch": 1,
            "category": "bolt",
            "images": 256,
            "reason": "s3://prod does not answer",
        },
        {"reason": "s3://prod does not answer"},
        {"seconds": 61.5},
        {"rows": 512, "files": 2},
        {
            "images": 512,
            "flagged": 6,
            "errors": {"empty": 4},
            "retries": 2,
            "seconds": 64.0,
            "images_per_second": 8.0,
        },
        {"error": "ScoringError", "detail": "2 of 9 batches were not scored."},
    ]


def test_a_log_is_appended_to_and_ends_with_its_block(tmp_path: Path) -> None:
    log = tmp_path / "night.jsonl"
    events = NightEvents(NIGHT, "run")
    for seconds in (1.0, 2.0):
        with log_to(str(log)):
            events.went_on(seconds)
        events.went_on(9.0)
    assert [line["seconds"] for line in lines_of(log)] == [1.0, 2.0]
    assert logging.getLogger("ssray.nightly").level == logging.NOTSET


def test_events_stay_off_the_terminal_unless_asked_for() -> None:
    """In a process of its own: pytest has handlers that the command line has not."""
    program = (
        "from ssray.nightly.night_events import NightEvents, log_to\n"
        "import sys\n"
        "with log_to(sys.argv[1] if sys.argv[1:] else None):\n"
        "    NightEvents('2026-11-21', 'run').paused('the storage is down')\n"
    )
    for arguments, count in ([], 0), ([STDERR], 1):
        ended = subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
        )
        assert (ended.stdout, len(ended.stderr.splitlines())) == ("", count)
    assert json.loads(ended.stderr)["event"] == "paused"


def test_handlers_of_others_get_the_lines(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ssray.nightly"):
        NightEvents(NIGHT, "run").committed(rows=1, files=1)
    [record] = caplog.records
    assert json.loads(record.getMessage())["event"] == "committed"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told_once_and_costs_the_log_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with log_to("/dev/full"):
        for _ in range(3):
            all_events("run")
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("The log of the night can't be written: ")
    assert "No space left" in line


@pytest.mark.parametrize("target", ["s3://bucket/log", "", "nowhere/night.jsonl"])
def test_a_log_that_can_not_be_written_is_told_at_once(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^--log .*[Ee]xpected a file"), log_to(target):
        pass


def test_the_command_refuses_such_a_log_before_it_scores(
    program: Callable[..., Ended], tmp_path: Path
) -> None:
    ended = program(
        *("nightly", "--images", tmp_path / "images", "--models", tmp_path / "models"),
        *("--out", tmp_path / "out", "--log", tmp_path / "nowhere/night.jsonl"),
    )
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "nowhere/night.jsonl: can't be written (No such file or directory)" in ended.err
