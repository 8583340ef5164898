"""Steps that grow: the rule, what fills a device, and what a training makes of it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ssray.config import Compute, Recipe, override
from ssray.storage.location import Location
from ssray.training import growth
from ssray.training.build import BuildRequest, build_model, training_key
from ssray.training.checkpoint import Checkpoint, CheckpointFile
from ssray.training.growth import LEAST_STEPS, filling_growth, grown, most_growth, worth_growing
from ssray.training.trainer import Numerics

CPU = torch.device("cpu")


def test_a_step_as_it_was_is_the_recipe() -> None:
    assert grown(Recipe(), 1.0) == Recipe()


def test_the_rule() -> None:
    recipe = override(Recipe(), ["schedule.batch=4", "schedule.learning_rate=1e-3"])
    larger = grown(recipe, 9).schedule
    assert larger.batch == 36
    assert larger.learning_rate == pytest.approx(3e-3)
    assert larger.averaging == pytest.approx(recipe.schedule.averaging**9)
    # as many images are remembered as before
    memory = [s.batch / (1 - s.averaging) for s in (recipe.schedule, larger)]
    assert memory[1] == pytest.approx(memory[0], rel=0.01)
    assert larger.images == recipe.schedule.images
    assert larger.epochs == recipe.schedule.epochs


@pytest.mark.parametrize(
    ("speeds", "expected", "asked"),
    [
        ({4: 100, 8: 200, 16: 400, 32: 430, 64: 900}, 16, 4),  # 32 is not a tenth faster
        ({4: 100, 8: 105, 16: 400}, 4, 2),
        ({4: 100, 8: 200, 16: 400}, 16, 3),
        ({4: 100, 8: 200, 16: None, 32: 800}, 8, 3),  # memory
        ({4: None, 8: 100}, 4, 1),
        ({4: 100}, 4, 0),
    ],
)
def test_steps_grow_while_it_pays(
    speeds: dict[int, float | None], expected: int, asked: int
) -> None:
    calls: list[int] = []

    def speed(batch: int) -> float | None:
        calls.append(batch)
        return speeds[batch]

    assert worth_growing(speed, [*speeds]) == expected
    assert calls == [*speeds][:asked]


def test_enough_steps_remain() -> None:
    recipe = override(Recipe(), [f"schedule.images={40 * LEAST_STEPS}", "schedule.epochs=null"])
    assert most_growth(recipe, 100) == 10
    assert most_growth(override(recipe, ["objective.kind=ensemble"]), 100) == 5
    assert most_growth(override(recipe, ["schedule.epochs=1"]), 100) == 1, "never smaller"


def test_a_device_is_filled_by_steps_that_it_was_timed_at(
    tiny: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that takes 10 ms a step and 1 ms an image more."""
    batches: list[int] = []

    def seconds(network: object, images: Tensor, precision: object, optimizer: object) -> float:
        batches.append(len(images))
        return 0.01 + 0.001 * len(images)

    monkeypatch.setattr(growth, "seconds_a_step", seconds)
    shape = (64, 64)
    recipe = override(tiny, ["schedule.batch=4"])
    found = filling_growth(recipe, shape, Numerics(CPU, torch.float32, parts=1), most=100)
    assert batches == [4, 8, 16, 32, 64, 128]
    # images/s: 286, 444, 615, 762, 865, 928, of which the last is not a tenth more
    assert found == 16
    batches.clear()
    filling_growth(recipe, shape, Numerics(CPU, torch.float32, parts=2), most=8)
    assert batches == [2, 4, 8, 16], "each of two parts fills a device"
    batches.clear()
    found = filling_growth(recipe, shape, Numerics(CPU, torch.float32, parts=4), most=100)
    assert batches == [2, 4, 8, 16, 32, 64], "of four, which have two images at least"
    assert found == 64
    assert filling_growth(recipe, shape, Numerics(CPU, torch.float32, parts=1), most=1.9) == 1


def test_a_device_is_really_timed(tiny: Recipe) -> None:
    found = filling_growth(tiny, (64, 64), Numerics(CPU, torch.float32, parts=1), most=4)
    assert found in (1, 2, 4)


@pytest.fixture
def uris(demo_root: Path) -> list[str]:
    return sorted(str(path) for path in (demo_root / "weave/train/good").iterdir())


def test_stated_images_a_step_decide_and_are_remembered(uris: list[str], tiny: Recipe) -> None:
    stated = Compute(precision="float32", images_per_step=6)
    model = build_model(BuildRequest(uris, "weave", "v", tiny, stated), CPU, threads=1)
    assert model is not None
    assert model.facts.images_per_step == 6
    assert model.recipe == tiny, "the recipe stays what was asked for"
    rates = [row["learning_rate"] for row in model.history]
    assert max(rates) <= tiny.schedule.learning_rate * math.sqrt(6 / tiny.schedule.batch)
    alone = Compute(precision="float32")
    plain = build_model(BuildRequest(uris, "weave", "v", tiny, alone), CPU, threads=1)
    assert plain is not None
    assert plain.facts.images_per_step == tiny.schedule.batch
    first, second = (each.weights[0]["to_image.weight"] for each in (model, plain))
    assert not torch.equal(first, second)


def test_a_resumed_training_keeps_its_steps(uris: list[str], tiny: Recipe, tmp_path: Path) -> None:
    """Whatever the machine it goes on on would choose; checkpoints of old take the recipe's."""
    place = CheckpointFile(Location.parse(tmp_path))
    taken: list[Checkpoint] = []

    class Kept(CheckpointFile):
        def write(self, checkpoint: Checkpoint) -> None:
            taken.append(checkpoint)

    whole = Compute(precision="float32", images_per_step=4, checkpoint_minutes=0)
    kept = Kept(Location.parse(tmp_path / "kept"))
    expected = build_model(
        BuildRequest(uris, "weave", "v", tiny, whole), CPU, threads=1, checkpoints=kept
    )
    place.write(taken[1])
    other = whole.model_copy(update={"images_per_step": None})
    resumed = build_model(
        BuildRequest(uris, "weave", "v", tiny, other), CPU, threads=1, checkpoints=place
    )
    assert expected is not None and resumed is not None
    assert resumed.facts.images_per_step == 4
    for name, weight in expected.weights[0].items():
        assert torch.equal(resumed.weights[0][name], weight), name
    facts = {key: value for key, value in taken[1].facts.items() if key != "growth"}
    place.write(Checkpoint(taken[1].tensors, facts))
    of_old = build_model(
        BuildRequest(uris, "weave", "v", tiny, whole), CPU, threads=1, checkpoints=place
    )
    assert of_old is not None
    assert of_old.facts.images_per_step == tiny.schedule.batch


def test_only_stated_images_a_step_make_another_training(tiny: Recipe) -> None:
    keys = [training_key(tiny, Compute(images_per_step=n), "data") for n in (None, 8, 16)]
    assert len({*keys}) == 3
    assert keys[0] == training_key(tiny, Compute(workers=4), "data")
