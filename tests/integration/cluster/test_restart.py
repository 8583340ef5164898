"""Workers, drivers and nodes that are killed: the training ends as if nothing had happened."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ssray.config import Compute, Recipe, override
from ssray.models import artifact
from ssray.models.artifact import ModelArtifact
from ssray.models.store import published_version
from ssray.storage.location import Location
from ssray.training.checkpoint import Checkpoint
from ssray.training.progress import ProgressRow

CATEGORY = "weave"
IMAGES = 2500
EVERY_SECOND = 1 / 60
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def recipe(tiny: Recipe) -> Recipe:
    """Trains for some seconds."""
    return override(tiny, [f"schedule.images={IMAGES}"])


@pytest.fixture(scope="module")
def compute() -> Compute:
    return Compute(precision="float32", cpus_per_worker=1, checkpoint_minutes=EVERY_SECOND)


@pytest.fixture(scope="module")
def whole(
    ray_local: None,
    demo_root: Path,
    recipe: Recipe,
    compute: Compute,
    tmp_path_factory: pytest.TempPathFactory,
) -> ModelArtifact:
    """The model of a training that nothing interrupted."""
    return trained(demo_root, recipe, compute, tmp_path_factory.mktemp("whole"))


def trained(
    root: Path,
    recipe: Recipe,
    compute: Compute,
    store: Path,
    **callbacks: Any,
) -> ModelArtifact:
    from ssray.cluster.train import train_category

    uris = [str(path) for path in (root / CATEGORY / "train/good").iterdir()]
    place = Location.parse(store)
    done = train_category(uris, CATEGORY, recipe, compute, place, **callbacks)
    return artifact.load(place, CATEGORY, done.version)


def assert_same(model: ModelArtifact, whole: ModelArtifact) -> None:
    [weights], [expected] = model.weights, whole.weights
    for name, weight in expected.items():
        assert torch.equal(weight, weights[name]), name
    assert model.calibration == whole.calibration


def checkpoint_of(store: Location) -> Location | None:
    folder = store / ".training" / CATEGORY
    found = [info for info in folder.files() if info.base_name == "checkpoint.safetensors"]
    return folder.at(found[0]) if found else None


class KillsOnce:
    """Kills something as soon as there is a checkpoint, and looks at where that one stands."""

    def __init__(self, store: Path, kill: Callable[[], None]) -> None:
        self._store, self._kill = Location.parse(store), kill
        self.checkpoints: list[float] = []
        self.reasons: list[str] = []
        self.killed_at: float | None = None

    def on_row(self, epoch: ProgressRow) -> None:
        if self.killed_at is not None:
            return
        place = checkpoint_of(self._store)
        if place:
            stands = Checkpoint.from_bytes(place.read()).facts["images_seen"]
            self.checkpoints += [stands] if stands not in self.checkpoints else []
        if epoch.budget_spent > 0.3 and len(self.checkpoints) > 1:
            self.killed_at = epoch.images_seen
            self._kill()

    @property
    def repeated(self) -> float:
        """Images that were trained on twice: those since the last checkpoint."""
        assert self.killed_at is not None
        return self.killed_at - self.checkpoints[-1]

    @property
    def interval(self) -> float:
        """The most images between two checkpoints."""
        ends = [0.0, *self.checkpoints]
        return max(b - a for a, b in itertools.pairwise(ends))


def train_workers() -> list[int]:
    """Processes of Ray Train's workers that descend from this one."""
    parents = {}
    for place in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            parents[int(place.name)] = int(
                (place / "stat").read_text().rpartition(")")[2].split()[1]
            )
    found = []
    for pid in parents:
        with contextlib.suppress(OSError):
            if b"RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                ancestor = pid
                while ancestor in parents and ancestor != os.getpid():
                    ancestor = parents[ancestor]
                if ancestor == os.getpid():
                    found.append(pid)
    return found


def kill_train_workers() -> None:
    for pid in train_workers():
        os.kill(pid, signal.SIGKILL)


def test_a_killed_worker_costs_no_more_than_a_checkpoint(
    demo_root: Path, recipe: Recipe, compute: Compute, whole: ModelArtifact, tmp_path: Path
) -> None:
    killer = KillsOnce(tmp_path, kill_train_workers)
    model = trained(
        demo_root,
        recipe,
        compute,
        tmp_path,
        on_row=killer.on_row,
        on_state=killer.reasons.append,
    )
    assert len(killer.reasons) == 1
    assert model.facts.resumed == 1
    assert_same(model, whole)
    assert checkpoint_of(Location.parse(tmp_path)) is None
    assert 0 <= killer.repeated <= 1.5 * killer.interval, "steps are not equally fast"


def test_workers_that_keep_dying_end_the_training(
    demo_root: Path, recipe: Recipe, compute: Compute, ray_local: None, tmp_path: Path
) -> None:
    from ssray.errors import TrainingError

    def kill(epoch: ProgressRow) -> None:
        kill_train_workers()

    with pytest.raises(TrainingError, match=r"weave: lost workers 2 times.* goes on from the last"):
        trained(
            demo_root,
            recipe,
            compute.model_copy(update={"restarts": 1}),
            tmp_path,
            on_row=kill,
        )


def test_what_is_complete_is_not_trained_again(
    demo_root: Path, tiny: Recipe, compute: Compute, ray_local: None, tmp_path: Path
) -> None:
    from ssray.cluster.train import train_category

    uris = [str(path) for path in (demo_root / CATEGORY / "train/good").iterdir()]
    place = Location.parse(tmp_path)
    first = train_category(uris, CATEGORY, tiny, compute, place)
    again = train_category(uris[::-1], CATEGORY, tiny, compute, place)
    assert (first.new, again.new, again.version) == (True, False, first.version)
    other = train_category(uris[1:], CATEGORY, tiny, compute, place)
    assert other.new
    unused = train_category(uris, CATEGORY, tiny, compute, place)
    assert (unused.new, unused.published, unused.version) == (False, False, first.version)


def train_all(root: Path, store: Location, *more: str) -> list[str]:
    return [
        sys.executable,
        str(ROOT / "jobs/train_all.py"),
        *("--data", str(root), "--models", str(store), "--category", CATEGORY),
        *("--cpus-per-worker", "1", "--precision", "float32", "--force"),
        *("--checkpoint-minutes", str(EVERY_SECOND)),
        *more,
    ]


@pytest.mark.parametrize(
    "on_s3", [pytest.param(False, id="disk", marks=pytest.mark.slow), pytest.param(True, id="s3")]
)
def test_a_killed_driver_is_continued_by_the_same_command(
    demo_root: Path,
    recipe: Recipe,
    whole: ModelArtifact,
    s3_server: str,
    tmp_path: Path,
    on_s3: bool,
) -> None:
    file = tmp_path / "recipe.json"
    file.write_text(recipe.model_dump_json())
    store = Location.parse(f"s3://{s3_server}/{tmp_path.name}" if on_s3 else tmp_path / "store")
    command = train_all(demo_root, store, "--recipe", str(file))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as first:
        deadline = time.monotonic() + 360
        while checkpoint_of(store) is None:
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        first.kill()
    second = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert second.returncode == 0, second.stdout + second.stderr
    model = artifact.load(store, CATEGORY, published_version(store, CATEGORY))
    assert model.facts.resumed == 1
    assert_same(model, whole)
    third = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert third.returncode == 0
    assert f"up to date: {model.version}" in third.stdout


def trained_while_a_node_dies(
    root: Path, recipe: Recipe, tmp_path: Path, workers: int
) -> ModelArtifact:
    file, store = tmp_path / "recipe.json", tmp_path / "store"
    file.write_text(recipe.model_dump_json())
    images = root / CATEGORY / "train/good"
    program = [sys.executable, "-m", "tests.integration.cluster.lose_a_node"]
    done = subprocess.run(
        [*program, str(images), str(store), str(file), str(workers)],
        capture_output=True,
        text=True,
        check=False,
        timeout=840,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nodes alive: 2\nrestarts: 1\n" in done.stdout, done.stdout
    version = done.stdout.split("version: ")[1].split()[0]
    model = artifact.load(Location.parse(store), CATEGORY, version)
    assert model.facts.resumed == 1
    return model


@pytest.mark.slow
def test_a_lost_node_costs_no_more_than_a_checkpoint(
    demo_root: Path, recipe: Recipe, whole: ModelArtifact, tmp_path: Path
) -> None:
    assert_same(trained_while_a_node_dies(demo_root, recipe, tmp_path, workers=1), whole)


@pytest.mark.slow
def test_one_worker_ends_what_two_began(
    demo_root: Path, recipe: Recipe, ray_local: None, tmp_path: Path
) -> None:
    """``--min-workers``: the other goes on with both parts of every step, on the same course."""
    model = trained_while_a_node_dies(demo_root, recipe, tmp_path, workers=2)
    assert model.facts.workers == 1
    assert model.facts.parts == 2
    both = Compute(precision="float32", cpus_per_worker=1, accumulate=2)
    expected = trained(demo_root, recipe, both, tmp_path / "alone")
    assert model.facts.validation_loss == pytest.approx(expected.facts.validation_loss, rel=0.02)
