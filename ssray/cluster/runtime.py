"""Connects to Ray: the cluster a job runs in, or a private one on this machine."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Iterator

import ray

LOCAL_OBJECT_STORE_BYTES = 512 * 1024**2


@contextlib.contextmanager
def ray_session(num_cpus: int | None = None) -> Iterator[None]:
    """Joins the cluster that ``RAY_ADDRESS`` names, or starts Ray here for the duration.

    ``ray job submit`` sets that variable. A Ray that is already connected is used as it is.
    The private one takes as many CPUs as the machine has, no more, listens on the loopback
    interface alone and ends with the block.

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


def cluster_cpus() -> int:
    """Logical CPUs of the whole cluster, at least one."""
    cpus: float = ray.cluster_resources().get("CPU", 1)
    return max(1, math.floor(cpus))
