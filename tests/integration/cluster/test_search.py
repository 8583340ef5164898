"""Searches on a real Ray with two CPUs: what they try, choose, publish, and do not repeat."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest
import torch

from ssray.calibration.criterion import Criterion
from ssray.calibration.map_settings import NARROW, NT, WIDE
from ssray.config import Compute, Recipe
from ssray.data.demo.dataset import write_demo_data
from ssray.errors import ConfigError
from ssray.models import artifact
from ssray.models import store as model_store
from ssray.models.stored import is_complete
from ssray.recipes.request import RecipeRequest
from ssray.search.trials import TrialResult
from ssray.storage.fingerprint import fingerprint
from ssray.storage.location import Location
from ssray.training.build import BuildRequest, build_model
from tests.helpers import TINY_FAMILY

if TYPE_CHECKING:
    from ssray.cluster.tune import Search

SPACE = {
    "schedule.learning_rate": [1e20],
    "objective.corrupted_weight": {"low": 0.2, "high": 0.9},
}
"""With this learning rate every training ends with a loss that is no number."""
TRIALS = 3
CATEGORIES = ("grain", "weave")
"""Searched side by side."""


def leaderboard(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(out / "leaderboard.parquet").to_pylist()
    return rows


def models_of(out: Path, category: str) -> list[str]:
    """Complete models of a category's trials."""
    folders = (out / "trials" / category).iterdir()
    return sorted(place.name for place in folders if is_complete(Location.parse(place)))


@pytest.fixture(scope="module")
def swept(
    ray_local: None, demo_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Exception]]:
    """A folder with a search's data, results and store; and which categories failed."""
    folder = tmp_path_factory.mktemp("sweep")
    for category in CATEGORIES:
        shutil.copytree(demo_root / category, folder / "data" / category)
    broken = folder / "data/broken/train/good"
    broken.mkdir(parents=True)
    (broken / "0.png").write_bytes(b"no image")
    (folder / "space.json").write_text(json.dumps(SPACE))
    return folder, search(folder)


def search(folder: Path) -> dict[str, Exception]:
    from ssray.cluster.search import SweepRequest, sweep_categories

    request = SweepRequest(
        recipe=RecipeRequest("demo", TINY_FAMILY),
        space=str(folder / "space.json"),
        trials=TRIALS,
        grid=NARROW,
        force=True,
    )
    data, store, out = (Location.parse(folder / name) for name in ("data", "store", "out"))
    return sweep_categories(data, [], request, Compute(precision="float32"), store, out)


def command(folder: Path, place: Path | Location, trials: int) -> list[str]:
    """Searches the folder's data; store and results are at a place."""
    return [
        *(sys.executable, "-m", "ssray", "sweep", "--data", str(folder / "data")),
        *("--models", f"{place}/store", "--out", f"{place}/out", "--recipe", "demo"),
        *("--space", str(folder / "space.json"), "--trials", str(trials)),
        *("--precision", "float32", "--map-settings", "narrow", "--force"),
        *(part for setting in TINY_FAMILY for part in ("--set", setting)),
    ]


def test_each_trial_is_on_the_leaderboard(swept: tuple[Path, dict[str, Exception]]) -> None:
    folder, _ = swept
    rows = leaderboard(folder / "out")
    assert [row["category"] for row in rows] == sorted(TRIALS * CATEGORIES)
    for row in rows:
        if row["schedule.learning_rate"] == 1e20:
            assert row["state"] == "failed"
            assert "loss became" in row["reason"]
        else:
            assert row["state"] in ("finished", "stopped")
            assert row["reason"] is None
            assert 0 <= row["selection_score"] <= 1
    assert {row["state"] for row in rows} >= {"finished", "failed"}
    defaults = [row for row in rows if row["is_default"]]
    assert [row["category"] for row in defaults] == list(CATEGORIES)
    for default in defaults:
        assert default["state"] == "finished"
        assert default["objective.corrupted_weight"] == 0.5


def test_each_category_is_searched_on_its_own_images(
    swept: tuple[Path, dict[str, Exception]],
) -> None:
    """Two searches at once once ran each other's trials."""
    folder, _ = swept
    for category in CATEGORIES:
        uris = sorted(str(path) for path in (folder / "data" / category / "train/good").iterdir())
        rows = [row for row in leaderboard(folder / "out") if row["category"] == category]
        versions = sorted(row["version"] for row in rows if row["version"])
        assert versions == models_of(folder / "out", category)
        for version in versions:
            facts = artifact.load_facts(Location.parse(folder / "out/trials"), category, version)
            assert facts.data_fingerprint == fingerprint(uris)


def test_the_best_trial_is_in_use_and_says_where_it_comes_from(
    swept: tuple[Path, dict[str, Exception]],
) -> None:
    folder, _ = swept
    for category in CATEGORIES:
        rows = [row for row in leaderboard(folder / "out") if row["category"] == category]
        finished = [row for row in rows if row["state"] == "finished"]
        [chosen] = [row for row in rows if row["chosen"]]
        assert rows[0]["selection_score"] == max(row["selection_score"] for row in finished)
        assert chosen is rows[0] or chosen["is_default"], "unless none was clearly better"
        store = Location.parse(folder / "store")
        version = model_store.published_version(store, category)
        assert version == chosen["version"]
        model = artifact.load(store, category, version)
        sweep = model.facts.sweep
        assert sweep is not None
        assert (sweep.trial, sweep.trials) == (chosen["trial"], TRIALS)
        assert sweep.finished == len(finished)
        assert model.recipe.objective.corrupted_weight == chosen["objective.corrupted_weight"]
        assert sweep.error <= (sweep.default_error or 0)
        assert model.calibration.selection.error == sweep.error


def test_a_category_that_fails_leaves_the_others_alone(
    swept: tuple[Path, dict[str, Exception]],
) -> None:
    folder, failed = swept
    assert list(failed) == ["broken"]
    assert "none of 1 images can be used" in str(failed["broken"])
    assert not (folder / "out/trials/broken").exists()


def test_the_same_search_again_trains_nothing(swept: tuple[Path, dict[str, Exception]]) -> None:
    folder, _ = swept
    before, models = leaderboard(folder / "out"), finished(folder / "out")
    pointer = (folder / "store/weave/published.json").read_bytes()
    failed = search(folder)
    assert list(failed) == ["broken"]
    assert finished(folder / "out") == models
    assert leaderboard(folder / "out") == before
    assert (folder / "store/weave/published.json").read_bytes() == pointer


def search_of(demo_root: Path, recipe: Recipe, folder: Path) -> Search:
    """Of one category, with its state and its trials' models in a folder."""
    from ray.util.queue import Queue

    from ssray.cluster.tune import Search

    uris = sorted(str(path) for path in (demo_root / "weave/train/good").iterdir())
    return Search(
        uris=uris,
        category="weave",
        recipe=recipe,
        space={"objective.corrupted_weight": (0.5, 0.8)},
        criterion=Criterion.alone(0),
        compute=Compute(precision="float32", cpus_per_worker=1),
        trials=2,
        at_once=1,
        store=Location.parse(folder / "trials"),
        folder=Location.parse(folder / "state"),
        data_fingerprint="",
        updates=Queue(actor_options={"num_cpus": 0}),
    )


def test_a_stopped_trial_gives_back_what_it_held(
    ray_local: None, demo_root: Path, tiny: Recipe, tmp_path: Path
) -> None:
    """Ray Train's own way of finding out, after a kill, needs a dashboard, which we do not run."""
    import ray
    from ray.util import placement_group_table

    from ssray.cluster.tune import trainable_of

    def held() -> list[dict[str, Any]]:
        return [g for g in placement_group_table().values() if g["state"] == "CREATED"]

    endless = tiny.model_copy(
        update={"schedule": tiny.schedule.model_copy(update={"images": 10**6, "epochs": None})}
    )
    search = search_of(demo_root, endless, tmp_path)
    before = len(held())
    trial = ray.remote(num_cpus=0)(trainable_of(search)).remote({"objective.corrupted_weight": 0.5})
    first = ray.get(trial.train.remote())
    assert (first["percent"], first["error"]) == (0, 1.0)
    deadline = time.monotonic() + 240
    while len(held()) == before:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    ray.get(trial.stop.remote(), timeout=300)
    assert len(held()) == before
    assert ray.available_resources()["CPU"] == ray.cluster_resources()["CPU"]


@pytest.mark.slow
def test_results_and_models_may_lie_on_s3(
    swept: tuple[Path, dict[str, Exception]], s3_server: str
) -> None:
    """The same trials as on a disk; and a second start repeats none of them."""
    folder, _ = swept
    place = Location.parse(f"s3://{s3_server}/sweep")

    def seen() -> tuple[list[dict[str, Any]], list[str]]:
        rows = pq.read_table(io.BytesIO((place / "out/leaderboard.parquet").read())).to_pylist()
        found = model_store.versions(place / "out/trials", "weave")
        return rows, [each.version for each in found if each.facts]

    again = command(folder, place, TRIALS)
    subprocess.run([*again, "--category", "weave"], check=True, capture_output=True)
    rows, models = seen()
    wanted = (
        "state",
        "selection_score",
        "objective.corrupted_weight",
        "schedule.learning_rate",
        "reason",
    )
    on_disk = [row for row in leaderboard(folder / "out") if row["category"] == "weave"]
    assert [[row[name] for name in wanted] for row in rows] == [
        [row[name] for name in wanted] for row in on_disk
    ]
    assert model_store.published_version(place / "store", "weave") in models
    assert (place / "out/sweep.html").exists()
    ended = subprocess.run([*again, "--category", "weave"], check=True, capture_output=True)
    assert b"up to date" in ended.stdout
    assert seen() == (rows, models)


def test_what_is_tried_of_the_map_follows_from_what_chooses() -> None:
    from ssray.cluster.search import SweepRequest

    place = Location.parse("data")
    recipe = RecipeRequest("demo")
    assert SweepRequest(recipe=recipe).map_grid == NT
    assert SweepRequest(recipe=recipe, by="labelled", validation=place).map_grid == WIDE
    assert SweepRequest(recipe=recipe, grid=NARROW).map_grid == NARROW


def test_a_validation_set_and_what_chooses_by_it_go_together() -> None:
    from ssray.cluster.search import SweepRequest

    with pytest.raises(ConfigError, match="go together"):
        SweepRequest(recipe=RecipeRequest("demo"), by="labelled")
    with pytest.raises(ConfigError, match="go together"):
        SweepRequest(recipe=RecipeRequest("demo"), validation=Location.parse("data"))


def test_pairs_of_the_best_models_are_tried_once(
    ray_local: None, demo_root: Path, tiny: Recipe, tmp_path: Path
) -> None:
    from ssray.cluster.ensembles import ensemble_of

    search = search_of(demo_root, tiny, tmp_path)
    trials = [finished_trial(search, "a", 0.5), finished_trial(search, "b", 0.8)]
    assert ensemble_of(search, trials[:1]) is None, "one model makes no pair"
    ensemble = ensemble_of(search, trials)
    assert ensemble is not None
    assert (ensemble.trial, ensemble.partner) == ("a + b", "b")
    assert ensemble.version is not None
    model = artifact.load(search.store, "weave", ensemble.version)
    assert len(model.weights) == 2
    assert model.recipe.objective.corrupted_weight == 0.5
    assert model.partner is not None
    assert model.partner.objective.corrupted_weight == 0.8
    assert model.calibration.selection.error == ensemble.error
    shutil.rmtree(tmp_path / "trials")
    assert ensemble_of(search, trials) == ensemble, "nothing is read again"
    search.updates.shutdown()


def finished_trial(search: Search, name: str, lam: float) -> TrialResult:
    """A trial whose model is in the store and said to be as bad as can be."""
    settings = {"objective.corrupted_weight": lam}
    model = build_model(
        BuildRequest(
            search.uris,
            search.category,
            name,
            search.recipe_of(settings),
            search.compute,
            criterion=search.criterion,
        ),
        torch.device("cpu"),
        threads=1,
    )
    assert model is not None
    worst = model.calibration.selection.model_copy(update={"error": 1.0})
    calibration = model.calibration.model_copy(update={"selection": worst})
    artifact.save(dataclasses.replace(model, calibration=calibration), search.store)
    return TrialResult(
        trial=name,
        settings=settings,
        is_default=lam == 0.5,
        state="finished",
        error=1.0,
        seconds=1.0,
        version=name,
    )


def test_an_ensemble_needs_a_criterion_that_can_judge_it() -> None:
    from ssray.cluster.search import SweepRequest

    with pytest.raises(ConfigError, match="does not tell how good an ensemble is"):
        SweepRequest(recipe=RecipeRequest("demo"), by="reconstruction", ensemble=True)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_fifteen_categories_killed_twice(tmp_path: Path) -> None:
    """SIGKILL of the driver, twice: in the end every category is published, nothing done twice."""
    names = write_demo_data(tmp_path / "data", categories=15, images=12, size=64)
    (tmp_path / "space.json").write_text(
        json.dumps({"objective.corrupted_weight": [0.3, 0.5, 0.8]})
    )
    finished_before: dict[str, list[str]] = {}
    log = tmp_path / "log.txt"
    for kill_after in (4, 12, None):
        with log.open("ab") as output:
            process = subprocess.Popen(command(tmp_path, tmp_path, 2), stdout=output, stderr=output)
        if kill_after is None:
            assert process.wait(timeout=1200) == 0, log.read_text()
            break
        while sum(map(len, finished(tmp_path / "out").values())) < kill_after:
            assert process.poll() is None, log.read_text()
            time.sleep(1)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        finished_before = finished(tmp_path / "out")
        time.sleep(5)  # what Ray left behind notices
    rows = leaderboard(tmp_path / "out")
    assert sorted({row["category"] for row in rows}) == sorted(names)
    assert len(rows) == 2 * len(names)
    assert sorted(model_store.published(Location.parse(tmp_path / "store"))) == sorted(names)
    after = finished(tmp_path / "out")
    for category, versions in finished_before.items():
        assert set(versions) <= set(after[category])
    assert all(len(versions) <= 2 for versions in after.values()), "one model a trial"


def finished(out: Path) -> dict[str, list[str]]:
    """Complete models of each category's trials."""
    folder = out / "trials"
    if not folder.is_dir():
        return {}
    categories = [place.name for place in folder.iterdir() if not place.name.startswith(".")]
    return {category: models_of(out, category) for category in categories}
