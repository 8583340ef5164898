"""The sweep's table and page: what was tried, chosen, and which settings mattered."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from ssray.config import MapSettings
from ssray.report.search import render_sweep
from ssray.search.importance import importances
from ssray.search.trials import LEADERBOARD, CategorySweep, TrialResult, best, leaderboard
from tests.unit.report.test_evaluation import HOSTILE, Document

MAP = MapSettings(difference="ssim", kernel=5)


def trial(
    number: int, error: float | None, state: str = "finished", **settings: Any
) -> TrialResult:
    finished = state == "finished"
    return TrialResult(
        trial=f"t{number}",
        settings=settings,
        is_default=number == 0,
        state=state,
        error=error,
        first_error=None if error is None else 2 * error,
        seconds=60.0 + number,
        version=f"v{number}" if finished else None,
        anomaly_map=MAP if finished else None,
        image_auroc=0.9 if finished else None,
        pixel_auroc=0.8 if finished else None,
        reason=f"lost: {HOSTILE}" if state == "failed" else None,
    )


@pytest.fixture
def trials() -> list[TrialResult]:
    """The learning rate decides, the kernel does not."""
    mixes = ({"elastic": 1.0, "cut_out": 0.0}, {"elastic": 0.0, "cut_out": 2.0})
    found = [
        trial(
            number,
            math.exp(-8 + number % 3) * (1 + 0.01 * abs(number // 3 - 1)),
            "finished",
            **{
                "schedule.learning_rate": 1e-3 * (1 + number % 3 + 0.01 * number),
                "network.kernel": (3, 5)[number // 3 % 2],
                "corruption.mix": mixes[number // 6],
                HOSTILE: "a",
            },
        )
        for number in range(9)
    ]
    settings = found[0].settings | {"schedule.learning_rate": 1.09e-3}
    stopped = trial(9, 1.01 * math.exp(-8), "stopped", **settings)
    return [*found, stopped, trial(10, None, "failed", **settings)]


def test_an_ensemble_is_a_row_and_not_a_trial(trials: list[TrialResult]) -> None:
    alone = best(trials)
    assert alone is not None
    changes = {"trial": "t0 + t3", "partner": "t3", "is_default": False, "error": 1e-6}
    pair = alone.model_copy(update=changes)
    table = leaderboard({"bolt": [*trials, pair]}).to_pylist()
    assert [row["trial"] for row in table if row["chosen"]] == ["t0 + t3"]
    assert [row["trial"] for row in table if row["partner"]] == ["t0 + t3"]
    assert importances([*trials, pair]) == importances(trials)
    sweep = CategorySweep(category="bolt", recipe="compact", by="synthetic", trials=[*trials, pair])
    page = render_sweep([sweep], "today", "0.1")
    assert "11 trials: " in page
    assert "The ensemble of trials t0 + t3 has a selection score of 0.9990" in page
    assert f"the best model alone reached {alone.selection_score:.4f}" in page
    assert page.count("<polyline") == 9


def test_the_least_error_of_the_finished_ones_is_best(trials: list[TrialResult]) -> None:
    chosen = best(trials)
    assert chosen is not None
    assert chosen.trial == "t3"
    assert best([t for t in trials if t.state != "finished"]) is None
    same = [trial(1, 0.1), trial(0, 0.1)]
    assert best(same) is same[1], "the recipe as it is, where others are no better"


def test_the_recipe_as_it_is_stays_unless_another_is_clearly_better() -> None:
    """By more than the standard error of its own error's logarithm."""
    default = trial(0, 0.1).model_copy(update={"uncertainty": 0.5})
    lucky, better = trial(1, 0.07), trial(2, 0.05)
    assert best([lucky, default]) is default
    assert best([lucky, better, default]) is better
    assert best([lucky, better]) is better, "without a default there is nothing to compare with"
    failed = default.model_copy(update={"state": "failed", "error": None})
    assert best([lucky, failed]) is lucky
    [first, second] = leaderboard({"weave": [lucky, default]}).to_pylist()
    assert (first["trial"], first["chosen"]) == ("t1", False)
    assert (second["trial"], second["chosen"]) == ("t0", True)
    assert "standard error of its selection score" in page([lucky, default])


def test_parts_may_be_aligned_or_not() -> None:
    frame = {"frame": [-0.5, -0.2, 0.5, 0.2], "turned": True}
    found = [trial(0, 0.1, alignment=frame), trial(1, 0.2, alignment=None)]
    assert "<td>none" in page(found)
    [one, other] = leaderboard({"screw": found}).to_pylist()
    assert (json.loads(one["alignment"]), other["alignment"]) == (frame, None)


def test_the_leaderboard_has_a_column_a_setting(trials: list[TrialResult]) -> None:
    other = [trial(0, 0.01, image_size=128), trial(1, None, "failed", image_size=256)]
    table = leaderboard({"weave": trials, "grain": other})
    assert table.column_names[: len(LEADERBOARD)] == LEADERBOARD.names
    rows = table.to_pylist()
    assert [row["chosen"] for row in rows] == [True] + [False] * 10 + [True, False]
    assert [row["state"] for row in rows[8:]] == [
        *("finished", "stopped", "failed", "finished", "failed"),
    ]
    assert rows[0]["selection_score"] == pytest.approx(1 - math.sqrt(math.exp(-8)))
    assert rows[0]["corruption.mix"] == '{"elastic": 1.0, "cut_out": 0.0}'
    assert rows[0]["anomaly_map.kernel"] == 5
    assert rows[0]["image_size"] is None
    assert rows[-1]["image_size"] == 256
    assert (rows[-1]["version"], rows[-1]["selection_score"]) == (None, None)


def test_what_explains_the_error_is_told_from_what_does_not(trials: list[TrialResult]) -> None:
    shares = importances(trials)
    assert next(iter(shares)) == "schedule.learning_rate"
    assert shares["schedule.learning_rate"] > 0.99
    assert max(shares["network.kernel"], shares["corruption.mix"]) < 0.3
    assert HOSTILE not in shares, "it took one value only"
    assert importances(trials[:5]) == {}


def test_chance_explains_nothing_on_average() -> None:
    rng = np.random.default_rng(0)
    found = [
        importances([trial(n, float(rng.random()), a=n % 4) for n in range(12)])["a"]
        for _ in range(200)
    ]
    assert np.mean(found) < 0.12
    assert np.median(found) < 0.03


def page(trials: list[TrialResult]) -> str:
    sweeps = [
        CategorySweep(category="weave", recipe="demo", by="synthetic", trials=trials),
        CategorySweep(category=HOSTILE, recipe="demo", by="labelled", trials=trials[-1:]),
    ]
    return render_sweep(sweeps, "now", "0.0")


def test_the_page_tells_everything_and_escapes_it(trials: list[TrialResult]) -> None:
    document = Document(page(trials))
    assert document.open == []
    assert "script" not in [name for name, _ in document.elements]
    lines = [e for e in document.all("polyline") if "trial" in (e["class"] or "")]
    assert [line["class"] for line in lines].count("trial chosen") == 1
    assert len(lines) == 9
    assert lines[-1]["class"] == "trial chosen"
    assert "synthetic defects in held-out" in document.words
    assert "selection score is 0.9817; the recipe demo as it is reached 0.9816" in document.words
    assert "No trial ended with a model" in document.words
    assert document.words.count(f"lost: {HOSTILE}") == 2
