"""What runs a network while images are scored: torch, or OpenVINO, which is faster on CPUs."""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ssray.config import Backend, Difference
from ssray.method.anomaly_map import Comparer, Comparers
from ssray.method.inference import Reconstructor
from ssray.method.linear import LinearAutoencoder
from ssray.models.device import OPENVINO_PRECISIONS

if TYPE_CHECKING:
    import openvino


_COMPILED: tuple[Difference, ...] = ("ssim", "both")
"""The kinds of difference that take long enough to be worth it."""


def resolve_backend(backend: Backend, device: torch.device) -> Backend:
    """``auto`` takes OpenVINO on CPUs."""
    if backend != "auto":
        return backend
    return "openvino" if device.type == "cpu" else "torch"


def on_openvino(experts: Reconstructor) -> Reconstructor:
    """The same with networks and neighbours run by OpenVINO.

    The linear autoencoder stays in torch. Neighbours compute in float32, since what they compare
    are small differences of large numbers, and so do differences of images.
    """
    threads = torch.get_num_threads()
    networks = [
        network
        if isinstance(network, LinearAutoencoder)
        else OpenVinoNetwork(network, experts.precision, threads)
        for network in experts.networks
    ]
    neighbours = experts.neighbours and OpenVinoNetwork(experts.neighbours, torch.float32, threads)
    compared: Comparers = {kind: Comparer(kind) for kind in _COMPILED} | dict(experts.comparers)
    comparers = {
        kind: OpenVinoNetwork(compare, torch.float32, threads, channels=6)
        for kind, compare in compared.items()
    }
    return Reconstructor(networks, experts.precision, neighbours, comparers)


class OpenVinoNetwork(nn.Module):
    """Computes what the network it was made from does, one image at a time.

    Compiled once for each size of images it meets. In float32 its reconstructions are torch's to
    1e-5; in bfloat16 both are about as far from these.
    """

    def __init__(
        self, network: nn.Module, precision: torch.dtype, threads: int, channels: int = 3
    ) -> None:
        """Compiles nothing yet.

        Args:
            network: in eval mode.
            precision: of the inner layers.
            threads: for each image.
            channels: of what comes in.
        """
        super().__init__()
        self._channels = channels
        self._network = copy.deepcopy(network).cpu().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self._settings = {
            "INFERENCE_PRECISION_HINT": OPENVINO_PRECISIONS[precision],
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # two processes would choose the same cores
        }
        self._compiled: dict[tuple[int, int], openvino.CompiledModel] = {}

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) float32 in [0, 1] to what the network makes of it."""
        height, width = images.shape[-2:]
        compiled = self._compiled.get((height, width))
        if compiled is None:
            compiled = self._compiled[height, width] = self._compile(height, width)
        whole = images.cpu().contiguous().numpy()
        parts = [compiled(whole[number : number + 1])[0] for number in range(len(whole))]
        return torch.from_numpy(np.concatenate(parts)).to(images.device)

    def _compile(self, height: int, width: int) -> openvino.CompiledModel:
        import openvino

        images = torch.zeros(1, self._channels, height, width)
        with (
            torch.no_grad(),
            torch.autocast("cpu", enabled=False),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # torch.export warns of torch's own code
            # A network that torch.jit.trace has seen stays in memory, several times over.
            program = torch.export.export(self._network, (images,))
            model = openvino.convert_model(program)
        model.reshape([1, self._channels, height, width])
        return openvino.Core().compile_model(model, "CPU", self._settings)
