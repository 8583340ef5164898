"""From a folder of photographs to a verdict, by Python and by the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import ssray
from ssray.cli.main import cli
from ssray.models.store import published
from ssray.storage.location import Location
from tests.helpers import TINY_FAMILY

pytestmark = pytest.mark.usefixtures("ray_local")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def photographs(demo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good ones, some of them deeper than others, and a file that is none."""
    folder = tmp_path_factory.mktemp("photographs")
    for number, image in enumerate(sorted((demo_root / "weave/train/good").iterdir())):
        place = folder / ("monday" if number % 2 else "tuesday/early")
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, place)
    (folder / "notes.txt").write_text("nothing to see")
    return folder


@pytest.fixture(scope="module")
def model(
    photographs: Path, tmp_path_factory: pytest.TempPathFactory, ray_local: None
) -> ssray.Model:
    said: list[str] = []
    store = tmp_path_factory.mktemp("store")
    settings = (*TINY_FAMILY, "schedule.images=400")
    trained = ssray.train(
        photographs,
        "bracket",
        store,
        recipe="demo",
        settings=settings,
        force=True,
        progress=said.append,
    )
    assert any("8 images, recipe demo" in line for line in said)
    assert any("flags at most" in line for line in said)
    assert said[-1].startswith(f"bracket  published {trained.version}")
    assert published(Location.parse(store)) == {"bracket": trained.version}
    return trained


def test_one_photograph_in_every_form_gets_one_verdict(model: ssray.Model, demo_root: Path) -> None:
    path = sorted((demo_root / "weave/test/good").iterdir())[0]
    pixels = np.asarray(Image.open(path).convert("RGB"))
    forms = (path, str(path), path.read_bytes(), Image.open(path), pixels)
    verdicts = [model.judge(form) for form in forms]
    assert len({verdict.score for verdict in verdicts}) == 1
    for verdict in verdicts:
        assert verdict.decision == ("flagged" if verdict.score > model.threshold else "passed")
        assert verdict.heatmap().size == (pixels.shape[1], pixels.shape[0])
        assert verdict.anomaly_map.shape == (64, 64)
        assert 0 < verdict.p_value <= 1


def test_what_is_no_photograph_is_named_and_loses_no_other(
    model: ssray.Model, demo_root: Path, tmp_path: Path
) -> None:
    good = sorted((demo_root / "weave/test/good").iterdir())[0]
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    many = [good, b"no image", noise.astype(np.float32), tmp_path / "gone.png", noise, 7]
    results = list(model.judge_many(many))  # type: ignore[arg-type]
    codes = [r.code if isinstance(r, ssray.ImageError) else r.decision for r in results]
    assert codes[1:] == [
        "unknown_format",
        "unsupported_array",
        "missing",
        "flagged",
        "unsupported_type",
    ]
    assert isinstance(results[0], ssray.Verdict)
    with pytest.raises(ssray.ImageError, match=r"float32 and shape \(64, 64, 3\); expected uint8"):
        model.judge(noise.astype(np.float32))


def test_the_api_and_the_night_say_the_same(
    model: ssray.Model, photographs: Path, demo_root: Path, tmp_path: Path
) -> None:
    """All ways that score go through one core."""
    import pyarrow.parquet as pq

    from ssray.nightly.table import ScoreTable

    store = tmp_path / "store"
    trained = ssray.train(
        photographs, "weave", store, recipe="demo", settings=TINY_FAMILY, force=True, progress=None
    )
    images = demo_root / "weave/test/good"
    common: tuple[str | Path, ...] = ("--images", images, "--category", "weave", "--models", store)
    by_hand = run("score", *common, "--out", tmp_path / "scores")
    assert by_hand.exit_code == 0
    assert "of 8 images flagged" in by_hand.output
    (tmp_path / "none.txt").write_text("no image")
    none = run(
        "score", "--images", tmp_path / "none.txt", "--category", "weave", "--models", store,
        "--out", tmp_path / "nothing",
    )  # fmt: skip
    assert isinstance(none.exception, ssray.ScoringError)
    assert "none of 1 images could be scored" in str(none.exception)
    night = run("nightly", *common, "--out", tmp_path / "nights", "--date", "2026-11-21")
    assert night.exit_code == 0, night.output
    figures = ssray.evaluate(demo_root, store, tmp_path / "evaluated", categories=["weave"])
    assert 0 <= figures["weave"]["image_auroc"] <= 1
    rows = ScoreTable(Location.parse(tmp_path / "nights")).night("2026-11-21").to_pylist()
    scored = pq.read_table(tmp_path / "scores/scores.parquet").to_pylist()
    evaluated = pq.read_table(tmp_path / "evaluated/scores.parquet").to_pylist()
    by_path = {row["uri"]: row["score"] for row in rows}
    assert len(by_path) == len(scored) == 8
    tested = {row["uri"]: row["score"] for row in evaluated}
    for row in scored:
        verdict = trained.judge(row["uri"])
        assert verdict.score == pytest.approx(row["score"], rel=1e-4)
        assert by_path[row["uri"]] == pytest.approx(row["score"], rel=1e-4)
        assert tested[row["uri"]] == pytest.approx(row["score"], rel=1e-4)


def test_train_takes_a_folder_or_one_some_or_all_categories(
    photographs: Path, demo_root: Path, tmp_path: Path
) -> None:
    tiny = [word for setting in TINY_FAMILY for word in ("--set", setting)]
    common: list[str | Path] = [
        "--models",
        tmp_path / "store",
        "--recipe",
        "demo",
        "--force",
        *tiny,
    ]
    done = run("train", "--good", photographs, "--name", "bracket", *common)
    assert done.exit_code == 0, done.output
    assert "Next: ssray score --images NEW --category bracket" in done.output
    done = run("train", "--data", demo_root, "--category", "weave", "--category", "grain", *common)
    assert done.exit_code == 0, done.output
    assert "2 of 2 categories have a model." in done.output
    assert sorted(published(Location.parse(tmp_path / "store"))) == ["bracket", "grain", "weave"]
    again = run("train", "--data", demo_root, *common)
    assert again.output.count("up to date") == 2
