"""What is seen of a night on the terminal: speed, time left, silence, and how it went."""

from __future__ import annotations

import io
import re
import threading
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from ssray.cli import terminal, watch
from ssray.cli.terminal import PrintableConsole, night_in_words, scoring_progress
from ssray.cli.watch import PACE_SECONDS, Pace, told_of_silence
from ssray.nightly.summary import BatchFacts, Summary, summarise

SECONDS = {"fetch": 12.0, "decode": 41.0, "model": 35.0, "pack": 2.0, "write": 10.0}


def test_the_pace_is_that_of_late() -> None:
    pace = Pace()
    assert pace.add(1000.0, 500) == 0.0, "images of an earlier start count for nothing"
    assert pace.add(1010.0, 600) == 10.0
    assert pace.add(1000.0 + PACE_SECONDS, 6500) == 10.0
    slow = [pace.add(1000.0 + PACE_SECONDS + 60 * minute, 6500 + 60 * minute) for minute in (1, 9)]
    assert slow[0] > 8
    assert pace.add(1000.0 + 3 * PACE_SECONDS, 6500 + 2 * int(PACE_SECONDS)) == pytest.approx(1.0)


def test_a_batch_in_an_hour_still_has_a_pace() -> None:
    pace = Pace()
    found = [pace.add(3600.0 * hour, 4096 * hour) for hour in range(4)]
    assert found == [0.0] + [pytest.approx(4096 / 3600)] * 3


def test_silence_is_told_with_what_was_heard_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(watch, "clock", lambda seconds: f"{seconds:.1f} s")
    lines = list[str]()
    second = threading.Event()

    def say(line: str) -> None:
        if "nor before" not in line:  # on a machine so busy that the news come late
            lines.append(line)
        if len(lines) == 2:
            second.set()

    with told_of_silence(say) as heard:
        heard("256 of 1,024 images")
        assert second.wait(30)
    patterns = [
        rf"Nothing new for {seconds} s; the last was, at \d\d:\d\d:\d\d: 256 of 1,024 images"
        for seconds in ("0.3", "0.6")
    ]
    for line, pattern in zip(lines, patterns, strict=False):
        assert re.fullmatch(pattern, line)


def test_who_is_told_something_now_and_then_hears_of_no_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "SILENCE_SECONDS", 5.0)
    lines = list[str]()
    begun = time.monotonic()
    with told_of_silence(lines.append) as heard:
        while time.monotonic() - begun < 0.5:
            heard("news")
            time.sleep(0.05)
    assert lines == []
    assert threading.active_count() == len(
        [t for t in threading.enumerate() if t.name != "silence"]
    )


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    wrote = io.StringIO()
    screen = PrintableConsole(file=wrote, width=300, soft_wrap=True, highlight=False, markup=False)
    monkeypatch.setattr(terminal, "console", screen)
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0.0)
    return wrote


def test_lines_tell_speed_and_time_left(
    lines: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter([0.0, 0.0, 10.0, 20.0, 110.0])
    monkeypatch.setattr(terminal, "time", SimpleNamespace(monotonic=lambda: next(now)))
    with scoring_progress() as (state, scored):
        state("listing images: 4,000")
        for done in (1000, 1100, 2000, 2500):
            scored(done, 4000)
    assert lines.getvalue().splitlines() == [
        "listing images: 4,000",
        "1,000 of 4,000 images",
        "1,100 of 4,000 images, 10.0 images/s, 4:50 left",
        "2,000 of 4,000 images, 50.0 images/s, 0:40 left",
        "2,500 of 4,000 images, 13.6 images/s, 1:50 left",
    ]


def test_a_live_bar_tells_speed_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    wrote = io.StringIO()
    screen = Console(file=wrote, force_terminal=True, width=160, color_system=None)
    monkeypatch.setattr(terminal, "console", screen)
    monkeypatch.setattr(watch, "SILENCE_SECONDS", 0.2)
    with scoring_progress() as (_, scored):
        scored(0, 4000)
        deadline = time.monotonic() + 30
        while "Nothing new" not in wrote.getvalue() and time.monotonic() < deadline:
            time.sleep(0.05)
        scored(1000, 4000)
    shown = wrote.getvalue()
    assert re.search(r"scoring .*1,000 of 4,000 images, [\d,.]+ images/s, [\d:]+ left", shown)
    assert re.search(r"Nothing new for 0:00; the last was, at [\d:]+: 0 of 4,000 images", shown)


def summary_of(images: int, wall: float = 14.0, scored: int | None = None) -> Summary:
    facts = BatchFacts(
        category="weave",
        images=images,
        flagged=2,
        errors={},
        retries=1200,
        seconds=SECONDS,
        worker_seconds=images * 0.36,
    )
    now = images if scored is None else scored
    return summarise([facts], 2.4, wall, now, {}, price_per_hour=1.5)


def test_a_small_night_is_told_without_extrapolation() -> None:
    assert list(night_in_words(summary_of(11))) == [
        "11 images in 0:14, 0.79 images/s; listing them took 0:02.",
        "Of the workers' time: fetch 12 %, decode 41 %, model 35 %, pack 2 %, write 10 %.",
        "1,200 requests to the storage failed and were made again.",
    ]


def test_a_large_night_tells_what_a_million_would_take() -> None:
    *_, last = night_in_words(summary_of(20_000, 2000.0))
    assert last == "A million such images: 100.0 worker hours, costs 150.00."


def test_a_start_that_scored_nothing_tells_no_speed() -> None:
    first, *_ = night_in_words(summary_of(11, scored=0))
    assert first == "11 images in 0:14, all scored by an earlier start; listing them took 0:02."
