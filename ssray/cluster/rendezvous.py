"""How the workers of a training find each other on one machine, out of everyone else's reach.

``torch.distributed`` has them meet at a TCP port that is open on every interface and asks for no
password. Where all workers are on one machine they meet in a file instead, which only their user
can open, and exchange gradients over the loopback interface.
"""

from __future__ import annotations

import os
import socket
import tempfile
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import (
    _set_torch_distributed_env_vars,
    _setup_torch_process_group,
    _TorchBackend,
)

from ssray.cluster.resources import on_one_machine


def torch_config(backend: str) -> TorchConfig:
    """How Ray Train connects the workers of a training on the connected Ray.

    Args:
        backend: of ``torch.distributed``.
    """
    return _OneMachine(backend=backend) if on_one_machine() else TorchConfig(backend=backend)


class _OneMachine(TorchConfig):  # type: ignore[misc]
    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _FileBackend


class _FileBackend(_TorchBackend):  # type: ignore[misc]
    """Runs where Ray Train's controller does, once for all workers."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Connects the workers, also those that replace lost ones; the folder has mode 700."""
        self._folder = tempfile.TemporaryDirectory(prefix="ssray-")
        worker_group.execute(_set_torch_distributed_env_vars)
        joined = [
            worker_group.execute_single_async(
                rank,
                _join,
                backend=backend_config.backend,
                world_rank=rank,
                world_size=len(worker_group),
                init_method=f"file://{self._folder.name}/workers",
                timeout_s=backend_config.timeout_s,
            )
            for rank in range(len(worker_group))
        ]
        ray.get(joined)

    def on_shutdown(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Disconnects them, after which nobody needs the file."""
        super().on_shutdown(worker_group, backend_config)
        self._folder.cleanup()


def _join(**group: Any) -> None:
    """Runs on each worker: gloo and NCCL listen on the loopback interface alone."""
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    os.environ.update(GLOO_SOCKET_IFNAME=loopback, NCCL_SOCKET_IFNAME=loopback)
    _setup_torch_process_group(**group)
