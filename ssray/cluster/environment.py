"""Settings Ray reads while it is being imported; call before anything below ``cluster``."""

from __future__ import annotations

import os

_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_QUIET = {"RAY_BACKEND_LOG_LEVEL": "fatal"}


def quiet_local_ray() -> None:
    """A private Ray that listens on loopback only and sends no usage statistics.

    Variables that are already set stay. Inside a cluster (``RAY_ADDRESS`` set) its own
    settings count and nothing is changed.
    """
    if os.environ.get("RAY_ADDRESS"):
        return
    chosen = _DEFAULTS if wants_ray_logs() else _DEFAULTS | _QUIET
    for name, value in chosen.items():
        os.environ.setdefault(name, value)


def wants_ray_logs() -> bool:
    """Whether the user asked to see what Ray and its workers say (``SSRAY_RAY_LOGS=1``)."""
    return bool(os.environ.get("SSRAY_RAY_LOGS"))
