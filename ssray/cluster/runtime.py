"""Connects to Ray: the cluster a job runs in, or a private one on this machine."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import sys
from collections.abc import Iterator

import ray

from ssray.cluster.environment import wants_ray_logs, worker_environment
from ssray.config import Compute
from ssray.errors import ConfigError

LOCAL_OBJECT_STORE_BYTES = 512 * 1024**2
_RAISED = re.compile(r"(?!ray\.)[\w.]+(Error|Exception)\b")
"""The line of a traceback that names an error other than Ray's wrappers."""


@contextlib.contextmanager
def ray_session(num_cpus: int | None = None) -> Iterator[None]:
    """Joins the cluster that ``RAY_ADDRESS`` names, or starts Ray here for the duration.

    ``ray job submit`` sets that variable. A Ray that is already connected is used as it is.
    The private one takes as many CPUs as the machine has, no more, binds its services to the
    loopback interface and ends with the block.

    Args:
        num_cpus: logical CPUs of a private Ray; default: the machine's.
    """
    if ray.is_initialized():
        yield
        return
    if not wants_ray_logs():
        for name in ("ray.data", "ray.train"):  # their errors are raised as well
            logging.getLogger(name).setLevel(logging.CRITICAL)
    address = os.environ.get("RAY_ADDRESS", "")
    if address.startswith("http"):
        raise ConfigError(
            f"RAY_ADDRESS={address} is the address of the job server. Unset it to work on this "
            "machine, or send a job: ray job submit --address ADDRESS -- python jobs/..."
        )
    if address:
        try:
            ray.init(
                address=address,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": worker_environment()},
            )
        except ConnectionError as error:
            raise ConfigError(f"RAY_ADDRESS={address}: no Ray answers there. ({error})") from None
    else:
        with contextlib.nullcontext() if wants_ray_logs() else _silent_core():
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                object_store_memory=LOCAL_OBJECT_STORE_BYTES,
                logging_level=logging.ERROR,
                log_to_driver=wants_ray_logs(),
            )
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _silent_core() -> Iterator[None]:
    """Keeps Ray's core from announcing its log level; what goes wrong is raised."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def wants_gpu(compute: Compute) -> bool:
    """Whether workers get GPUs: as configured, or on ``auto`` if the cluster has any now."""
    if compute.device == "auto":
        return bool(ray.cluster_resources().get("GPU", 0) > 0)
    return compute.device == "cuda"


def node_resources() -> list[dict[str, float]]:
    """What each node that is there now has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def threads_per_worker(compute: Compute, use_gpu: bool) -> int:
    """CPU threads each worker gets: as configured, or its share of the smallest node that can
    take part. Workers are taken to spread evenly over these nodes.
    """
    if compute.cpus_per_worker:
        return compute.cpus_per_worker
    needed = "GPU" if use_gpu else "CPU"
    cpus = [int(node.get("CPU", 0)) for node in node_resources() if node.get(needed, 0) > 0]
    if not cpus:
        return 1
    return max(1, min(cpus) // math.ceil(compute.workers / len(cpus)))


def shared_out(compute: Compute, trainings: int, at_once: int | None = None) -> tuple[Compute, int]:
    """How many trainings run at once, and the ``Compute`` with each one's share of the CPUs.

    As many as there are, with fewer threads each, rather than one after another: training on one
    core wastes no time on waiting for another.

    Args:
        compute: of each training.
        trainings: how many there are.
        at_once: how many to run at once, if that was decided.
    """
    available = ray.cluster_resources()
    workers = compute.workers
    cpus = int(available.get("CPU", 1))
    most = cpus // (workers * (compute.cpus_per_worker or 1))
    if wants_gpu(compute):
        most = min(most, int(available.get("GPU", 0) / (workers * compute.gpus_per_worker)))
    at_once = at_once or max(1, min(trainings, most))
    if compute.cpus_per_worker or at_once == 1:
        return compute, at_once
    smallest = min(int(node.get("CPU", 0)) or cpus for node in node_resources())
    threads = max(1, min(cpus // (at_once * workers), smallest))
    return compute.model_copy(update={"cpus_per_worker": threads}), at_once


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
        ("GPU", gpus, "Use --device cpu, or fewer --workers or --gpus-per-worker."),
    ):
        available = ray.cluster_resources().get(name, 0)
        if workers * each > available:
            raise ConfigError(
                f"{workers} workers with {each:g} {name}s each need {workers * each:g} {name}s; "
                f"this machine has {available:g}. {advice}"
            )


def one_line(error: Exception) -> str:
    """What a foreign error says below the workers' tracebacks, without what Ray says about it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    raised = [line for line in lines if _RAISED.match(line)]
    return f"{(raised or lines)[-1]} (SSRAY_RAY_LOGS=1 shows more)"
