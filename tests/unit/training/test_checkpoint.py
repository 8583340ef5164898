"""A training that is stopped and resumed ends as if it had never been stopped."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from ssray.config import Recipe, override
from ssray.errors import ArtifactError
from ssray.storage.location import Location
from ssray.training import early_stopping
from ssray.training.checkpoint import Checkpoint, CheckpointFile
from ssray.training.fit import Checkpointing, Fitted, fit
from ssray.training.images import Feed
from ssray.training.trainer import Numerics

CPU = torch.device("cpu")


class KilledError(Exception):
    """Stands for whatever ends a process."""


@pytest.fixture(params=["reconstruct", "amplify"])
def recipe(request: pytest.FixtureRequest, tiny: Recipe, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """With early stopping that finds each network better than the one before."""
    better = itertools.count()
    monkeypatch.setattr(early_stopping, "separation", lambda *_: float(next(better)))
    mix = '{"elastic": 1, "pattern": 1}'
    return override(
        tiny,
        [
            f"objective.kind={request.param}",
            f"corruption.mix={mix}",
            "schedule.images=60",
            "schedule.crops=[0.5]",
            "schedule.augmentation=flip",
        ],
    )


def train(images: torch.Tensor, recipe: Recipe, resume: Checkpoint | None = None) -> Fitted:
    return train_with(images, recipe, Checkpointing(resume))


def train_with(images: torch.Tensor, recipe: Recipe, checkpointing: Checkpointing) -> Fitted:
    feed, numerics = Feed(images[:8], images[8:]), Numerics(CPU, torch.float32)
    return fit(feed, recipe, numerics, checkpointing=checkpointing)


def killed_after(
    images: torch.Tensor, recipe: Recipe, checkpoints: int, resume: Checkpoint | None = None
) -> bytes:
    """The last checkpoint of a training that was killed."""
    taken: list[bytes] = []

    def keep(checkpoint: Checkpoint) -> None:
        taken.append(checkpoint.to_bytes())
        if len(taken) == checkpoints:
            raise KilledError

    with pytest.raises(KilledError):
        train_with(images, recipe, Checkpointing(resume, 0, keep))
    return taken[-1]


def test_the_weights_end_the_same(stripes: torch.Tensor, recipe: Recipe) -> None:
    whole = train(stripes, recipe)
    first = Checkpoint.from_bytes(killed_after(stripes, recipe, 8))
    second = Checkpoint.from_bytes(killed_after(stripes, recipe, 11, resume=first))
    assert 0.2 < first.facts["budget_spent"] < second.facts["budget_spent"] < 0.95
    resumed = train(stripes, recipe, resume=second)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name
    assert resumed.history[-1].images_seen == whole.history[-1].images_seen
    assert resumed.history[-1].validation_loss == whole.history[-1].validation_loss


def test_the_log_and_the_clock_go_on(stripes: torch.Tensor, recipe: Recipe) -> None:
    stopped = Checkpoint.from_bytes(killed_after(stripes, recipe, 4))
    stopped.facts["seconds"] = 1000.0
    history = train_with(stripes, recipe, Checkpointing(stopped, every_minutes=0)).history
    assert [row.images_seen for row in history] == sorted({row.images_seen for row in history})
    assert [row.seconds > 1000 for row in history] == [False] * 4 + [True] * (len(history) - 4)


@pytest.mark.parametrize("recipe", ["amplify"], indirect=True)
def test_what_the_checkpoint_holds_matters(stripes: torch.Tensor, recipe: Recipe) -> None:
    """Without any one of its parts the weights would end differently."""
    whole = train(stripes, recipe).model.state_dict()["to_image.weight"]
    stopped = Checkpoint.from_bytes(killed_after(stripes, recipe, 8))
    for part in ("network", "average", "optimizer", "generator"):
        kept = Checkpoint.from_bytes(stopped.to_bytes())
        for name, tensor in kept.tensors.items():
            if name.startswith(f"{part}.") and tensor.is_floating_point():
                tensor.mul_(0.5)
            elif name.startswith(f"{part}.") and part == "generator":
                tensor.copy_(torch.Generator().manual_seed(9).get_state())
        resumed = train(stripes, recipe, resume=kept).model.state_dict()["to_image.weight"]
        assert not torch.equal(whole, resumed), part


def test_a_file_holds_the_latest_one_and_refuses_a_damaged_one(tmp_path: Path) -> None:
    file = CheckpointFile(Location.parse(tmp_path))
    assert file.read() is None
    for number in (1, 2):
        file.write(Checkpoint({"a": torch.full((2,), float(number))}, {"number": number}))
    read = file.read()
    assert read is not None
    assert (read.facts, read.tensors["a"].tolist()) == ({"number": 2}, [2.0, 2.0])
    [path] = tmp_path.iterdir()
    content = path.read_bytes()
    for damaged in (content[:-1], content[:5], b""):
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=r"Delete it to train from the start"):
            file.read()
