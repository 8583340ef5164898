"""What workers get of nodes that need not exist: of machines with many cores, and of GPU nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ssray.cluster import resources
from ssray.cluster.resources import (
    WorkerResources,
    scoring_workers,
    side_by_side,
    training_workers,
    worker_device,
)
from ssray.config import Compute, Recipe, override, parse
from ssray.errors import ConfigError
from ssray.training.growth import LEAST_STEPS

MANY = 10_000
"""Training images, of which a budget leaves steps for many workers."""
LONG = override(Recipe(), [f"schedule.images={64 * 4 * LEAST_STEPS}", "schedule.epochs=null"])

Node = dict[str, float]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretends that Ray has certain nodes."""

    def of(*nodes: Node) -> None:
        found = [{"Alive": True, "NodeID": str(i), "Resources": n} for i, n in enumerate(nodes)]
        total = {key: sum(node.get(key, 0) for node in nodes) for key in ("CPU", "GPU")}
        monkeypatch.setattr("ray.nodes", lambda: found)
        monkeypatch.setattr("ray.cluster_resources", lambda: total)

    return of


def shape(workers: tuple[int, WorkerResources]) -> tuple[int, int, float]:
    count, each = workers
    return count, each.cpus, each.gpus


@pytest.mark.parametrize(
    ("cores", "recipe", "stated", "expected"),
    [
        (2, LONG, {}, (1, 2, 0.0)),
        (3, LONG, {}, (1, 3, 0.0)),
        (16, LONG, {}, (8, 2, 0.0)),
        (64, LONG, {}, (32, 2, 0.0)),
        (16, LONG, {"cpus_per_worker": 1}, (1, 1, 0.0)),
        (16, LONG, {"workers": 2}, (2, 8, 0.0)),
        (16, LONG, {"workers": 2, "cpus_per_worker": 3}, (2, 3, 0.0)),
    ],
)
def test_a_training_takes_a_worker_for_two_cores(
    cores: int,
    recipe: Recipe,
    stated: dict[str, Any],
    expected: tuple[int, int, float],
    cluster: Callable[..., None],
) -> None:
    cluster({"CPU": cores})
    assert shape(training_workers(Compute(device="cpu", **stated), recipe, MANY)) == expected


def test_no_more_workers_than_leave_enough_steps(cluster: Callable[..., None]) -> None:
    """What workers can't use becomes threads, as far as a step has work for them."""
    cluster({"CPU": 16})
    short = override(LONG, [f"schedule.images={3 * 4 * LEAST_STEPS}"])
    assert shape(training_workers(Compute(), short, MANY)) == (3, 5, 0.0)
    few = override(LONG, ["schedule.epochs=1"])
    assert shape(training_workers(Compute(), few, 100)) == (1, 16, 0.0)
    small = override(few, ["image_size=128"])
    assert shape(training_workers(Compute(), small, 100)) == (1, 4, 0.0)
    assert shape(training_workers(Compute(workers=2), small, 100)) == (2, 4, 0.0)
    stated = Compute(images_per_step=32)
    assert shape(training_workers(stated, few, 100)) == (8, 2, 0.0)


def test_no_more_workers_than_the_memory_holds(cluster: Callable[..., None]) -> None:
    """Each decodes the images for itself: 10,000 of 256 px are 1.8 GiB."""
    cluster({"CPU": 16, "memory": 12 * 1024**3})
    assert shape(training_workers(Compute(), LONG, MANY)) == (3, 5, 0.0)
    cluster({"CPU": 16, "memory": 1024**3})
    assert shape(training_workers(Compute(), LONG, MANY)) == (1, 16, 0.0)


def test_trainings_side_by_side_share_the_cores(cluster: Callable[..., None]) -> None:
    cluster({"CPU": 16})
    assert side_by_side(Compute(), 15) == resources.SideBySide(15, 1)
    three = side_by_side(Compute(), 3)
    assert three == resources.SideBySide(3, 5)
    assert shape(training_workers(Compute(), LONG, MANY, three.cores)) == (2, 2, 0.0)
    assert side_by_side(Compute(workers=2), 3) == resources.SideBySide(3, 5)
    assert side_by_side(Compute(), 1) == resources.SideBySide(1, None)
    assert side_by_side(Compute(cpus_per_worker=4), 9) == resources.SideBySide(4, None)


def test_trainings_share_a_gpu_by_fractions(cluster: Callable[..., None]) -> None:
    cluster({"CPU": 16, "GPU": 1})
    third = Compute(device="cuda", gpus_per_worker=1 / 3)
    assert side_by_side(third, 15) == resources.SideBySide(3, None)
    assert shape(training_workers(third, LONG, MANY)) == (1, 5, 1 / 3)
    assert side_by_side(Compute(), 15) == resources.SideBySide(1, None)
    assert shape(training_workers(Compute(), LONG, MANY)) == (1, 16, 1.0)
    cluster({"CPU": 8, "GPU": 2}, {"CPU": 8})
    assert side_by_side(Compute(), 2) == resources.SideBySide(2, None)
    assert shape(training_workers(Compute(), LONG, MANY)) == (1, 4, 1.0)
    cluster({"CPU": 16, "GPU": 1}, {"CPU": 16, "GPU": 1})
    assert side_by_side(Compute(gpus_per_worker=0.4), 9).at_once == 4, "none lies on two cards"


def test_gpus_that_are_yet_to_be_started_are_asked_for(
    cluster: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster({"CPU": 4})
    assert side_by_side(Compute(device="cuda"), 5).at_once == 1
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert side_by_side(Compute(device="cuda"), 5) == resources.SideBySide(5, None)


def test_parts_of_gpus_are_for_those_who_compute_there_or_say_that_they_do_not(
    cluster: Callable[..., None],
) -> None:
    cluster({"CPU": 4})
    assert WorkerResources.of(Compute(gpus_per_worker=0.5)).gpus == 0
    assert WorkerResources.of(Compute(gpus_per_worker=0.5, device="cpu")).gpus == 0.5
    assert WorkerResources.of(Compute(gpus_per_worker=0.5, device="cuda")).gpus == 0.5


def test_workers_that_share_a_gpu_are_refused(cluster: Callable[..., None]) -> None:
    cluster({"CPU": 16, "GPU": 2})
    half = Compute(device="cuda", gpus_per_worker=0.5, workers=2)
    with pytest.raises(ConfigError, match=r"2 workers .* 0.5 of a GPU each: NCCL.*--workers 1"):
        training_workers(half, LONG, MANY)
    pretended = half.model_copy(update={"device": "cpu"})  # gloo connects any
    assert shape(training_workers(pretended, LONG, MANY)) == (2, 4, 0.5)
    whole = Compute(device="cuda", workers=2)
    assert shape(training_workers(whole, LONG, MANY)) == (2, 8, 1.0)


def test_more_workers_at_least_than_there_are_is_refused(cluster: Callable[..., None]) -> None:
    cluster({"CPU": 2})
    with pytest.raises(ConfigError, match=r"--min-workers 3 is more than the 1 "):
        training_workers(Compute(min_workers=3), LONG, MANY)


@pytest.mark.parametrize(
    ("nodes", "stated", "blocks", "expected"),
    [
        ([{"CPU": 2.0}], {}, 9, (1, 2, 0.0)),
        ([{"CPU": 16.0}], {}, 99, (8, 2, 0.0)),
        ([{"CPU": 16.0}], {}, 3, (3, 5, 0.0)),
        ([{"CPU": 16.0}], {"workers": 2}, 1, (1, 8, 0.0)),
        ([{"CPU": 16.0}], {"cpus_per_worker": 4}, 99, (1, 4, 0.0)),
        ([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0}], {}, 99, (2, 4, 1.0)),
        ([{"CPU": 8.0, "GPU": 1.0}], {"gpus_per_worker": 0.25}, 99, (4, 2, 0.25)),
    ],
)
def test_scoring_takes_what_there_is(
    nodes: list[Node],
    stated: dict[str, Any],
    blocks: int,
    expected: tuple[int, int, float],
    cluster: Callable[..., None],
) -> None:
    cluster(*nodes)
    assert shape(scoring_workers(Compute(**stated), blocks)) == expected


def test_a_backend_for_cpus_reserves_no_gpu(cluster: Callable[..., None]) -> None:
    cluster({"CPU": 16, "GPU": 1})
    assert worker_device(Compute()) == "cuda"
    assert worker_device(Compute(backend="openvino")) == "cpu"
    assert WorkerResources.of(Compute(backend="openvino")).gpus == 0
    with pytest.raises(ConfigError, match=r"openvino computes on CPUs.*--backend torch"):
        parse(Compute, {"backend": "openvino", "device": "cuda"}, "options")


def test_an_actor_takes_its_share_of_the_node_it_came_to(
    cluster: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster at rest has no node with GPUs to count the CPUs of."""
    cluster({"CPU": 0})
    each = WorkerResources.of(Compute(device="cuda"))
    assert each.cpus == 1
    cluster({"CPU": 0}, {"CPU": 32, "GPU": 4})

    class Context:
        def get_node_id(self) -> str:
            return "1"

    monkeypatch.setattr("ray.get_runtime_context", Context)
    assert each.threads() == 8
    assert WorkerResources.of(Compute(device="cuda", cpus_per_worker=2)).threads() == 2
    assert WorkerResources.of(Compute(device="cpu", cpus_per_worker=3)).threads() == 3


def test_parts_of_several_gpus_are_refused() -> None:
    with pytest.raises(ConfigError, match="a part of one GPU or a whole number of them"):
        parse(Compute, {"gpus_per_worker": 1.5}, "options")
    assert Compute(gpus_per_worker=2).gpus_per_worker == 2
