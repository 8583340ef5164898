"""The parts of the benchmarks that decide what is run and what is shown."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from ssray.config import Light, MapSettings
from ssray.data.pose import Framing
from ssray.method.anomaly_map import MapMaker

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def ablation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import ablation
    import ledger

    monkeypatch.setattr(ablation, "LEDGER", ledger.Ledger(tmp_path / "results.jsonl"))
    yield ablation
    for name in ("ablation", "ledger", "labelled", "lighting", "selection_study"):
        sys.modules.pop(name, None)


CHOSEN = MapSettings(difference="squared", kernel=5, repeats=2, image_score="max")


def test_equal_recipes_run_once_and_as_the_baseline(ablation: ModuleType) -> None:
    runs = ablation.all_runs("ROOT", seed=0)
    waiting = ablation.LEDGER.missing(runs)
    assert len({run.key for run in waiting}) == len(waiting) < len(runs)
    baselines = [run for run in waiting if run.variant.group == "baseline"]
    assert [run.category for run in baselines] == list(ablation.BASES)
    assert waiting[: len(baselines)] == baselines


def test_what_is_stored_is_not_run_again_and_close_ones_get_a_second_seed(
    ablation: ModuleType,
) -> None:
    runs = ablation.all_runs("ROOT", seed=0)
    far, near = "width 8", "width 32"

    def row(run: Any, image: float) -> str:
        return json.dumps(
            {"key": run.key, "category": run.category, "seed": 0, "image_auroc": image,
             "pixel_auroc": image, "commit": "abc1234",
             "lighting": {"none": image, "brightness +10 %": image - 0.02},
             "chosen": CHOSEN.model_dump()}
        )  # fmt: skip

    chosen = [run for run in runs if run.variant.name in ("baseline", far, near)]
    scores = {"baseline": 0.9, near: 0.905, far: 0.7}
    ablation.LEDGER.place.write_text(
        "\n".join(row(run, scores[run.variant.name]) for run in chosen)
    )
    names = {run.variant.name for run in ablation.LEDGER.missing(runs)}
    assert not names & {"baseline", far, near}
    again = {run.variant.name for run in ablation.close_to_baseline(runs)}
    assert {"baseline", near} <= again
    assert far not in again
    page = ablation.table(ablation.LEDGER.rows())
    assert "| width 32 | 90.5 | 90.5 | 88.5 | 1 | squared, k 5, n 2, max |" in page
    assert "width 8" in page
    assert "Commits of the runs: `abc1234`." in page


def test_changes_to_the_defaults_are_recipes_of_their_own(ablation: ModuleType) -> None:
    """And the page has a line for each that was run."""
    import ablation_defaults

    from ssray.config import Alignment
    from ssray.recipes.request import RecipeRequest
    from ssray.recipes.survey import Survey

    seen = Survey(
        texture=False,
        alignment=Alignment(frame=(-0.5, -0.2, 0.5, 0.2)),
        images=64,
        alike=0.1,
        light=Light(mean=0.5, deviation=0.1),
        aligned_light=Light(mean=0.4, deviation=0.2),
    )
    runs = [
        ablation_defaults.Run(
            "ROOT",
            "screw",
            name,
            RecipeRequest("compact", settings).resolve("screw", lambda: seen),
            0,
        )
        for name, settings in ablation_defaults.TRAINED["screw"].items()
    ]
    assert len({run.key for run in runs}) == len(runs)
    figures = {"image_auroc": 0.9, "pixel_auroc": 0.95, "held_out": 0.8, "false_alarms": 0.05}
    ways = {way.name: figures for way in ablation_defaults.WAYS}
    rows = {run.key: {"commit": "abc1234", "ways": ways} for run in runs[:2]}
    page = ablation_defaults.page(runs, rows)
    assert f"| {runs[1].variant} | 90.0 | 80.0 | 95.0 |  | 5.0 | 1 |" in page
    assert runs[2].variant not in page
    sys.modules.pop("ablation_defaults")


def test_maps_are_judged_at_the_size_of_the_masks(ablation: ModuleType) -> None:
    """A map that is high where the mask is, at half the resolution, is perfect."""
    from labelled import TestSet

    mask = np.zeros((64, 64), bool)
    mask[16:32, 32:48] = True
    good = np.zeros((64, 64), bool)
    images, labels = torch.zeros(2, 32, 32, 3, dtype=torch.uint8), np.array([0, 1])
    test_set = TestSet(images, labels, [good, mask], Framing((32, 32)), [None, None])
    stack = torch.zeros(2, 1, 32, 32)
    stack[1, 0, 8:16, 16:24] = 1
    settings = CHOSEN.model_copy(update={"kernel": 1})
    image, pixel = test_set.judge(MapMaker(settings, torch.ones(1)), stack)
    assert image == 1
    assert pixel > 0.999


def test_the_gpu_check_goes_on_after_a_step_that_fails_or_is_late(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_check

    steps = [gpu_check.Step(*each) for each in (("no_such_step", 60), ("bare_steps", 0.2))]
    monkeypatch.setattr(gpu_check, "STEPS", (*steps, gpu_check.Step("machine", 60)))
    out = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--dry-run", "--out", str(out)])
    assert gpu_check.main() == 2
    table = json.loads(out.read_text())
    assert table["dry_run"] is True
    failed = {row["step"]: row["what"] for row in table["rows"] if row.get("failed")}
    assert "no attribute 'no_such_step'" in failed["no_such_step"]
    assert failed["bare_steps"] == "ended after its 0 s"
    found = {row["what"]: row.get("value") for row in table["rows"] if row["step"] == "machine"}
    assert found["torch"] == torch.__version__
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--only", "nothing"])
    with pytest.raises(SystemExit):
        gpu_check.main()
    sys.modules.pop("gpu_check")


def test_the_gpu_check_refuses_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    command = [sys.executable, str(BENCHMARKS / "gpu_check.py"), "--only", "machine"]
    ended = subprocess.run(
        [*command, "--out", str(tmp_path / "gpu.json")], capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert "torch sees no CUDA device here; --dry-run" in ended.stdout


def test_the_last_dry_run_was_whole() -> None:
    """Every step of the GPU check ran, without a GPU, on a machine with nothing but the pack."""
    table = json.loads((BENCHMARKS / "gpu_dry_run.json").read_text())
    assert table["dry_run"] is True
    assert not [row for row in table["rows"] if row.get("failed")]
    source = (BENCHMARKS / "gpu_check.py").read_text()
    for name in {row["step"] for row in table["rows"]}:
        assert f'Step("{name}"' in source
    assert source.count("    Step(") == len({row["step"] for row in table["rows"]})
