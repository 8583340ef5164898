"""DDP without Ray: two processes over gloo must hold one and the same network."""

from __future__ import annotations

import socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from ssray.config import Recipe, override
from ssray.method.autoencoder import Autoencoder
from ssray.method.inference import reconstruct, to_network
from ssray.training.checkpoint import Checkpoint
from ssray.training.fit import Checkpointing, fit
from ssray.training.images import Feed
from ssray.training.trainer import Numerics

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Task:
    """What each rank is told."""

    recipe: Recipe
    images: Tensor
    resume: bytes | None = None
    checkpoints: int = 0
    parts: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What a rank ended with: the network, its log, and the last checkpoint asked for."""

    weights: dict[str, Tensor]
    images_seen: list[float]
    validation: list[float]
    checkpoint: bytes | None


def train(task: Task) -> Outcome:
    taken: list[bytes] = []

    def keep(checkpoint: Checkpoint) -> None:
        if len(taken) < task.checkpoints:
            taken.append(checkpoint.to_bytes())

    fitted = fit(
        Feed(task.images[:8], task.images[8:]),
        task.recipe,
        Numerics(CPU, torch.float32, parts=task.parts),
        checkpointing=Checkpointing(
            resume=Checkpoint.from_bytes(task.resume) if task.resume else None,
            every_minutes=0 if task.checkpoints else 1e9,
            callback=keep,
        ),
    )
    return Outcome(
        {name: value.detach().clone() for name, value in fitted.model.state_dict().items()},
        [row.images_seen for row in fitted.history],
        [row.validation_loss for row in fitted.history],
        taken[-1] if taken else None,
    )


def train_one_rank(rank: int, port: int, task: Task, out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.save(vars(train(task)), out / f"{rank}.pt")
    dist.destroy_process_group()


class Ranks(Protocol):
    """Trains on two ranks; gives both outcomes, which must hold the same network."""

    def __call__(self, task: Task) -> tuple[Outcome, Outcome]: ...


@pytest.fixture
def ranks(tmp_path: Path) -> Ranks:
    def run(task: Task) -> tuple[Outcome, Outcome]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        mp.spawn(train_one_rank, args=(port, task, tmp_path), nprocs=2)
        first, second = (
            Outcome(**torch.load(tmp_path / f"{rank}.pt", weights_only=True)) for rank in range(2)
        )
        assert_same(first.weights, second.weights)
        assert first.images_seen == second.images_seen
        assert first.validation == second.validation
        return first, second

    return run


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name


def distance(one: Outcome, other: Outcome, task: Task) -> float:
    """Of the reconstructions, as a share of how far the other's are from the images.

    Weights would not do: the gradient of a bias in front of a batch normalisation is all rounding,
    which Adam makes as large as any.
    """
    images = to_network(task.images, CPU)
    made = []
    for found in (one, other):
        network = Autoencoder(task.recipe.network).eval()
        network.load_state_dict(found.weights)
        made.append(reconstruct(network, images, torch.float32))
    return float((made[0] - made[1]).norm() / (made[1] - images).norm())


def test_ranks_draw_different_crops_and_hold_the_same_network(
    stripes: Tensor, tiny: Recipe, ranks: Ranks
) -> None:
    together, _ = ranks(Task(tiny, stripes))
    alone = train(Task(tiny, stripes))
    # Alone, rank 0 draws the same crops but lacks the other's gradients and statistics.
    for name in ("to_image.weight", next(n for n in alone.weights if "running_mean" in n)):
        assert not torch.allclose(alone.weights[name], together.weights[name])


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_processes_that_share_the_parts_give_the_same_model_as_one(
    stripes: Tensor, tiny: Recipe, ranks: Ranks, parts: int
) -> None:
    recipe = override(tiny, ["schedule.batch=12", "schedule.images=120"])
    task = Task(recipe, stripes, parts=parts)
    together, _ = ranks(task)
    alone = train(task)
    # A slow machine has a row more, as there is one every ten seconds; the last is at the end.
    assert together.images_seen[-1] == alone.images_seen[-1]
    assert together.validation[-1] == pytest.approx(alone.validation[-1], rel=1e-3)
    near, far = (
        distance(found, together, task) for found in (alone, train(replace(task, parts=parts + 1)))
    )
    assert near < 5e-4
    assert far > 3 * near


def test_fewer_parts_than_processes_are_refused(stripes: Tensor, tiny: Recipe) -> None:
    with pytest.raises(ValueError, match="0 parts for 1 processes"):
        fit(Feed(stripes[:8], stripes[8:]), tiny, Numerics(CPU, torch.float32, parts=0))


def test_ranks_stop_early_together(stripes: Tensor, tiny: Recipe, ranks: Ranks) -> None:
    recipe = override(
        tiny, ["objective.kind=amplify", "objective.patience=0.04", "schedule.images=200"]
    )
    first, _ = ranks(Task(recipe, stripes))
    assert first.images_seen[-1] < 200


def test_two_ranks_resume_to_the_same_weights(stripes: Tensor, tiny: Recipe, ranks: Ranks) -> None:
    whole, _ = ranks(Task(tiny, stripes, checkpoints=3))
    resumed, _ = ranks(Task(tiny, stripes, resume=whole.checkpoint))
    assert len(resumed.images_seen) < len(whole.images_seen)
    assert_same(whole.weights, resumed.weights)


def test_one_rank_goes_on_where_two_stopped(stripes: Tensor, tiny: Recipe, ranks: Ranks) -> None:
    whole, _ = ranks(Task(tiny, stripes, checkpoints=3))
    task = Task(tiny, stripes, parts=2, resume=whole.checkpoint)
    alone = train(task)
    assert alone.images_seen[:3] == whole.images_seen[:3]
    assert distance(alone, whole, task) < 1e-3
    in_other_parts = train(Task(tiny, stripes, resume=whole.checkpoint))
    assert tiny.schedule.images <= in_other_parts.images_seen[-1] < tiny.schedule.images + 4
