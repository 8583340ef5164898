"""Connects to Ray: the cluster a job runs in, or a private one on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Iterator

import ray
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

from ssray.cluster.environment import wants_ray_logs, worker_environment
from ssray.errors import ClusterError, ConfigError

LOCAL_OBJECT_STORE_BYTES = 512 * 1024**2
LATE_SECONDS = 20
"""How long a cluster's head may take to come up after whoever joins it."""
_RAISED = re.compile(r"(?!ray\.)[\w.]+(Error|Exception)\b")
"""The line of a traceback that names an error other than Ray's wrappers."""


@contextlib.contextmanager
def ray_session(num_cpus: int | None = None, num_gpus: int | None = None) -> Iterator[None]:
    """Joins the cluster that ``RAY_ADDRESS`` names, or starts Ray here for the duration.

    ``ray job submit`` sets that variable. A Ray that is already connected is used as it is.
    The private one takes as many CPUs as the machine has, no more, and ends with the block. Only
    the user that started it can reach it: its services are bound to the loopback interface and ask
    for a token that is made anew each time, and its files lie in a folder that others can't enter.

    Args:
        num_cpus: logical CPUs of a private Ray; default: the machine's.
        num_gpus: its GPUs, which may be pretended; default: the machine's.

    Raises:
        ClusterError: if a private Ray does not come up.
        ConfigError: if no Ray answers at the address.
    """
    if ray.is_initialized():
        yield
        return
    if not wants_ray_logs():
        for name in ("ray.data", "ray.train"):  # their errors are raised as well
            logging.getLogger(name).setLevel(logging.CRITICAL)
    address = os.environ.get("RAY_ADDRESS", "")
    with _joined(address) if address else _private_ray(num_cpus, num_gpus):
        yield


@contextlib.contextmanager
def _joined(address: str) -> Iterator[None]:
    """Connects to a Ray that someone else started and guards."""
    if address.startswith("http"):
        raise ConfigError(
            f"RAY_ADDRESS={address} is the address of the job server. Unset it to work on this "
            "machine, or send a job: ray job submit --address ADDRESS -- python jobs/..."
        )
    try:
        try:
            _wait_for(address)
            with _silent_core():
                ray.init(
                    address=address,
                    logging_level=logging.ERROR,
                    runtime_env={"env_vars": worker_environment()},
                )
        except Exception as error:  # of many kinds, by what is wrong with the address or the Ray
            raise ConfigError(
                f"RAY_ADDRESS={address}: no Ray answers there that this one can join. Start one, "
                f"or unset RAY_ADDRESS to work on this machine. ({first_line(error)})"
            ) from None
        yield
    finally:
        ray.shutdown()


def _wait_for(address: str) -> None:
    """Waits until something listens at HOST:PORT; Ray itself would try for minutes.

    Raises:
        OSError: if nothing does after ``LATE_SECONDS``.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or "/" in host:
        return  # Ray knows further kinds
    deadline = time.monotonic() + LATE_SECONDS
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), LATE_SECONDS).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.5)


@contextlib.contextmanager
def _private_ray(num_cpus: int | None, num_gpus: int | None) -> Iterator[None]:
    """Starts a Ray for this user alone, and ends it."""
    with _token_of_its_own(), _folder_of_its_own() as folder:
        try:
            try:
                with _silent_core():
                    ray.init(
                        address="local",
                        num_cpus=num_cpus,
                        num_gpus=num_gpus,
                        include_dashboard=False,
                        object_store_memory=LOCAL_OBJECT_STORE_BYTES,
                        logging_level=logging.ERROR,
                        log_to_driver=wants_ray_logs(),
                        _temp_dir=folder,
                    )
            except Exception as error:  # what Ray raises when a part of it is late or dies
                raise ClusterError(
                    "Ray did not start on this machine: it may be short of memory or busy. Try "
                    f"again; SSRAY_RAY_LOGS=1 shows what Ray says. ({first_line(error)})"
                ) from None
            yield
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _token_of_its_own() -> Iterator[None]:
    """Lets a Ray that is started in the block refuse whoever lacks a token, which its processes
    inherit in their environment. Ray's own way is a file in the user's home.
    """
    before = {name: os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    _read_authentication()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        _read_authentication()


def _read_authentication() -> None:
    """Makes Ray read mode and token anew, which it does once a process.

    The mode comes first: a thread that asks for a token that is no longer there ends the process.
    """
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextlib.contextmanager
def _folder_of_its_own() -> Iterator[str]:
    """A folder for Ray's logs and sockets, which Ray itself opens to everyone, within one that only
    the user may enter. It is removed in the end.

    It lies where Ray's would; the path of a socket must stay short.
    """
    parent = os.environ.get("RAY_TMPDIR") or "/tmp"  # noqa: S108
    with tempfile.TemporaryDirectory(
        prefix="ssray-",
        dir=parent,
        ignore_cleanup_errors=True,  # a process may still write logs
    ) as folder:
        yield os.path.join(folder, "ray")


@contextlib.contextmanager
def _silent_core() -> Iterator[None]:
    """Keeps Ray's core from announcing its log level; what goes wrong is raised."""
    if wants_ray_logs():
        yield
        return
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


def first_line(error: Exception) -> str:
    """The first line of an error that has no traceback within, or its type if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
