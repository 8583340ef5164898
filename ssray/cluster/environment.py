"""What Ray reads from the environment, and what workers must find in theirs.

``quiet_local_ray`` sets what Ray reads while it is being imported: call it before anything else
below ``cluster``.
"""

from __future__ import annotations

import json
import os

_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_PLACES_OF_S3 = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")
_QUIET = {"RAY_BACKEND_LOG_LEVEL": "fatal"}


def quiet_local_ray() -> None:
    """A private Ray that listens on loopback only and sends no usage statistics.

    Variables that are already set stay. Inside a cluster (``RAY_ADDRESS`` set) its own
    settings count. Nowhere does Ray start or join by itself: after an interruption the threads
    that wait for trainings would bring it back.
    """
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    if os.environ.get("RAY_ADDRESS"):
        return
    chosen = _DEFAULTS if wants_ray_logs() else _DEFAULTS | _QUIET
    for name, value in chosen.items():
        os.environ.setdefault(name, value)


def worker_environment() -> dict[str, str]:
    """The AWS variables of this process that a cluster's workers are given.

    These are the ones that say where S3 is. Ray shows them in its dashboard and logs, and workers
    have a role or a profile of their own, so credentials are passed on only where the user asks for
    it (``SSRAY_PASS_CREDENTIALS=1``). Those that ``ray job submit`` was given reach the workers
    anyway, and Ray refuses to be told twice.
    """
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    given = (job.get("runtime_env") or {}).get("env_vars") or {}
    everything = bool(os.environ.get("SSRAY_PASS_CREDENTIALS"))
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith("AWS_") and name not in given and (everything or name in _PLACES_OF_S3)
    }


def wants_ray_logs() -> bool:
    """Whether the user asked to see what Ray and its workers say (``SSRAY_RAY_LOGS=1``)."""
    return bool(os.environ.get("SSRAY_RAY_LOGS"))
