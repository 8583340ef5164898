"""Connects to Ray: the cluster a job runs in, or a private one on this machine."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Iterator

import ray

from ssray.config import Compute

LOCAL_OBJECT_STORE_BYTES = 512 * 1024**2


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
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if os.environ.get("RAY_ADDRESS"):
        ray.init(address="auto", logging_level=logging.ERROR)
    else:
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            object_store_memory=LOCAL_OBJECT_STORE_BYTES,
            logging_level=logging.ERROR,
            log_to_driver=bool(os.environ.get("SSRAY_RAY_LOGS")),
        )
    try:
        yield
    finally:
        ray.shutdown()


def threads_per_worker(compute: Compute) -> int:
    """CPU threads each worker gets: as configured, or its share of the largest node.

    Workers are taken to spread evenly over the nodes that have CPUs to give.
    """
    if compute.cpus_per_worker:
        return compute.cpus_per_worker
    cpus = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    nodes = sum(count >= 1 for count in cpus)
    if not nodes:
        return 1
    workers_a_node = math.ceil(compute.workers / nodes)
    return max(1, int(max(cpus)) // workers_a_node)


def wants_gpu(compute: Compute) -> bool:
    """Whether workers get GPUs: as configured, or on ``auto`` if the cluster has any now."""
    if compute.device == "auto":
        return bool(ray.cluster_resources().get("GPU", 0) >= compute.gpus_per_worker)
    return compute.device == "cuda"
