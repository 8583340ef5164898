"""Connects to Ray: the cluster a job runs in, or a private one on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Iterator

import ray

from ssray.cluster.environment import wants_ray_logs, worker_environment
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


def one_line(error: Exception) -> str:
    """What a foreign error says below the workers' tracebacks, without what Ray says about it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    raised = [line for line in lines if _RAISED.match(line)]
    return f"{(raised or lines)[-1]} (SSRAY_RAY_LOGS=1 shows more)"
