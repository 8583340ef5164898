"""What each worker has: what Ray reserves for it, how many threads it takes, where it computes.

Where a worker computes and what is reserved for it are two settings, so that jobs can be tried on
GPUs that a cluster only pretends to have: ``Compute(device="cpu", gpus_per_worker=0.5)`` reserves
half of one and computes on the CPU.

A step of a recipe's batch keeps about two cores busy: sixteen threads took hardly more images
through it than two (``docs/measured.md``). So where nobody states anything else, further cores do
not become further threads of one worker, but further trainings side by side, or further workers of
one, each with a step of the recipe's, as far as ``ssray.training.growth`` lets steps grow. Cores
that neither can use stay free.
"""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass, replace
from typing import Literal

import ray

from ssray.config import Compute, Recipe
from ssray.errors import ConfigError
from ssray.training.growth import most_growth

CORES_PER_WORKER = 2
"""Cores of a worker that trains or scores on CPUs, where nothing else is stated."""
PROCESS_BYTES = 1.5 * 1024**3
"""Memory of a worker's process that trains a compact recipe, beside its decoded images."""
_GIB = 1024**3
_LOOPBACK = ("127.0.0.1", "::1")
WORK_PER_THREAD = 128 * 128 * 16
"""Pixels of a step times the network's width, for which a further thread is worth its waiting."""


@dataclass(frozen=True)
class WorkerResources:
    """What one worker has.

    Attributes:
        device: where it computes.
        cpus: how many Ray reserves.
        gpus: likewise; a fraction shares one.
        stated: whether the CPUs are what the user stated.
    """

    device: Literal["cpu", "cuda"]
    cpus: int
    gpus: float
    stated: bool = False

    @classmethod
    def of(cls, compute: Compute, each: int | None = None) -> WorkerResources:
        """As configured.

        Args:
            compute: of which workers.
            each: CPUs of each worker, where they are not stated; default: its share of the node
                that has fewest for it.
        """
        device = worker_device(compute)
        gpus = 1.0 if device == "cuda" else 0.0
        if device == compute.device or device == "cuda":  # on auto, a CPU has no use for a GPU
            gpus = compute.gpus_per_worker or gpus
        stated = compute.cpus_per_worker
        cpus = stated or each or _smallest_share(compute.workers or 1, gpus)
        return cls(device, cpus, gpus, stated is not None)

    def fitting(self, node: dict[str, float]) -> int:
        """How many such workers a node holds, by its GPUs if they have some, else by its CPUs."""
        if self.gpus:
            return _fitting(node, self.gpus)
        return int(node.get("CPU", 0)) // self.cpus

    def threads(self) -> int:
        """How many CPU threads the worker takes; asked where it runs.

        A worker with a GPU takes its share of the CPUs of the node it came to, which may have been
        started for it after the CPUs to reserve were counted. Without a GPU it takes what is
        reserved, as the rest of the node is for others.
        """
        if self.stated or not self.gpus:
            return self.cpus
        here = ray.get_runtime_context().get_node_id()
        [node] = [node["Resources"] for node in ray.nodes() if node["NodeID"] == here]
        return max(self.cpus, _share(node, self.gpus))


def worker_device(compute: Compute) -> Literal["cpu", "cuda"]:
    """Where workers compute: as configured; on ``auto`` on CUDA if the cluster has GPUs now, and
    the backend runs there.
    """
    if compute.device != "auto":
        return compute.device
    has_gpus = ray.cluster_resources().get("GPU", 0) > 0
    return "cuda" if has_gpus and compute.backend != "openvino" else "cpu"


def training_workers(
    compute: Compute, recipe: Recipe, training_images: int, cores: int | None = None
) -> tuple[int, WorkerResources]:
    """How many workers a training has, and what each of them.

    Args:
        compute: of the training.
        recipe: whose steps bound how many workers can share them.
        training_images: how many it has.
        cores: of the training, where its workers' CPUs are not stated; default: those of the
            smallest node, or of as many nodes as it has workers.

    Raises:
        ConfigError: if its workers would share a GPU, over which they can't exchange anything, or
            there are to be more at least than there are.
    """
    count = compute.workers or 1
    workers = WorkerResources.of(compute, cores and max(1, cores // count))
    if workers.device == "cuda" and count > 1 and workers.gpus < 1:
        raise ConfigError(
            f"{count} workers of one training with {workers.gpus:g} of a GPU each: NCCL, which "
            "exchanges their gradients, connects no two processes on one GPU. Use --workers 1, or "
            "--gpus-per-worker 1; several categories share a GPU by fractions of it."
        )
    if not (compute.workers or compute.cpus_per_worker or workers.gpus):
        stated = compute.images_per_step
        most = stated / recipe.schedule.batch if stated else most_growth(recipe, training_images)
        held = min(training_images * 3 * recipe.image_size**2, compute.memory_gib * _GIB)
        fit = int(_least_memory() / (PROCESS_BYTES + held))  # each decodes the images for itself
        count = max(1, min(workers.cpus // CORES_PER_WORKER, int(most), fit))
        workers = replace(workers, cpus=workers.cpus // count)
    if not (compute.cpus_per_worker or workers.gpus):
        workers = replace(workers, cpus=min(workers.cpus, usable_threads(recipe)))
    if compute.min_workers and compute.min_workers > count:
        raise ConfigError(
            f"--min-workers {compute.min_workers} is more than the {count} that the training has."
        )
    return count, workers


def _least_memory() -> float:
    """The memory, in bytes, of the node that has least for workers."""
    return min((node.get("memory", sys.maxsize) for node in node_resources()), default=0.0)


def usable_threads(recipe: Recipe) -> int:
    """The number of CPU threads beyond which the recipe's step gains nothing.

    >>> from ssray.recipes import compact
    >>> usable_threads(compact.object_()), usable_threads(compact.texture())
    (4, 16)
    """
    pixels = recipe.schedule.batch * recipe.image_size**2
    return max(CORES_PER_WORKER, int(pixels * recipe.network.width / WORK_PER_THREAD))


def scoring_workers(compute: Compute, most: int) -> tuple[int, WorkerResources]:
    """How many actors score, at most ``most`` of them, and what each of them has."""
    workers = WorkerResources.of(compute)
    if compute.workers:
        return min(compute.workers, most), workers
    if workers.gpus:
        fit = sum(map(workers.fitting, node_resources()))
    elif compute.cpus_per_worker:
        fit = 1
    else:
        fit = sum(int(node.get("CPU", 0)) // CORES_PER_WORKER for node in node_resources())
    count = max(1, min(fit, most))
    return count, WorkerResources.of(compute.model_copy(update={"workers": count}))


def node_resources() -> list[dict[str, float]]:
    """What each node that is there now has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _smallest_share(workers: int, gpus: float) -> int:
    """The CPUs of each worker on the node that has fewest for it; 1 if no node can take part.

    Workers with GPUs get the CPUs of their part of a node's, others are taken to spread evenly.
    """
    needed = "GPU" if gpus else "CPU"
    nodes = [node for node in node_resources() if node.get(needed, 0) > 0]
    if not nodes:
        return 1
    if gpus:
        return min(_share(node, gpus) for node in nodes)
    return max(1, min(int(node["CPU"]) for node in nodes) // math.ceil(workers / len(nodes)))


def _share(node: dict[str, float], gpus: float) -> int:
    """The CPUs of a node that go with so many of its GPUs."""
    return max(1, int(node.get("CPU", 0)) // max(1, _fitting(node, gpus)))


def _fitting(node: dict[str, float], gpus: float) -> int:
    """How many workers the GPUs of a node hold; a part of one never lies on two.

    >>> [_fitting({"GPU": 4}, gpus) for gpus in (0.33, 0.4, 0.6, 1, 2)]
    [12, 8, 4, 4, 2]
    """
    cards = int(node.get("GPU", 0))
    return cards * int(1 / gpus + 1e-9) if gpus < 1 else int(cards // gpus)


@dataclass(frozen=True)
class SideBySide:
    """Trainings that run at once.

    Attributes:
        at_once: how many.
        cores: of each, where none are stated, several run and none has a GPU, which brings its
            share of its node's.
    """

    at_once: int
    cores: int | None


def side_by_side(compute: Compute, trainings: int, at_once: int | None = None) -> SideBySide:
    """How many trainings run at once: as many as there are, with fewer cores each, rather than one
    after another, as training on one core wastes no time on waiting for another.

    Args:
        compute: of each training.
        trainings: how many there are.
        at_once: how many to run at once, if that was decided.
    """
    available = ray.cluster_resources()
    workers = compute.workers or 1
    cpus = int(available.get("CPU", 1))
    most = cpus // (workers * (compute.cpus_per_worker or 1))
    each = WorkerResources.of(compute)
    if each.gpus and may_grow() and not available.get("GPU"):
        most = trainings  # the GPUs are started for them
    elif each.gpus:
        most = min(most, sum(map(each.fitting, node_resources())) // workers)
    at_once = at_once or max(1, min(trainings, most))
    if compute.cpus_per_worker or each.gpus or at_once == 1:
        return SideBySide(at_once, None)
    smallest = min(int(node.get("CPU", 0)) or cpus for node in node_resources())
    return SideBySide(at_once, max(1, min(cpus // at_once, smallest * workers)))


def on_one_machine() -> bool:
    """Whether all nodes are reached over the loopback interface, as those of a private Ray are."""
    return all(node["NodeManagerAddress"] in _LOOPBACK for node in ray.nodes() if node["Alive"])


def may_grow() -> bool:
    """Whether this is a cluster, which may start further nodes, and not a private Ray."""
    return bool(os.environ.get("RAY_ADDRESS"))


def check_capacity(workers: int, cpus: float, gpus: float) -> None:
    """Refuses what a private Ray can't hold: it does not grow, so the work would wait for ever.

    A cluster may start further nodes and is taken at its word.

    Args:
        workers: how many run at once.
        cpus: CPUs of each.
        gpus: GPUs of each.

    Raises:
        ConfigError: if this machine has less.
    """
    if may_grow():
        return
    for name, each, advice in (
        ("CPU", cpus, "Use fewer --workers or --cpus-per-worker."),
        ("GPU", gpus, "Use --device cpu without --gpus-per-worker, or less of either."),
    ):
        available = ray.cluster_resources().get(name, 0)
        if workers * each > available:
            raise ConfigError(
                f"{workers} workers with {each:g} {name}s each need {workers * each:g} {name}s; "
                f"this machine has {available:g}. {advice}"
            )
