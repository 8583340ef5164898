"""Decides once which device, precision and number of threads a process uses."""

from __future__ import annotations

import ctypes
import functools
import math
import os
import platform
import resource
import sys
import time
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssray.config import Device, Network, Precision
from ssray.errors import ConfigError
from ssray.method.autoencoder import Autoencoder
from ssray.method.inference import autocast

PrecisionName = Literal["float32", "bfloat16"]

PRECISION_NAMES: dict[torch.dtype, PrecisionName] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
}
"""The names of the precisions in which a network's inner layers can run."""
PRECISIONS: dict[str, torch.dtype] = {name: dtype for dtype, name in PRECISION_NAMES.items()}
"""The precisions by their names."""
OPENVINO_PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}
"""What OpenVINO calls the precisions."""
_TIMED_STEPS = 3
_TIMED_SIDE = 96
_GLIBC_OPTIONS = {-3: 32 * 1024**2, -1: 2**31 - 1}
"""Options for glibc's ``mallopt`` by their numbers. Only blocks above the first value, the largest
that it accepts, are mapped afresh, and freed memory is returned to the system above the second."""


def use_cores(threads: int) -> None:
    """Prepares this process for tensor operations with so many threads.

    glibc is told to keep the memory that they free. Otherwise each step gives its activations back
    to the system and waits for the same pages again, which takes a tenth of a compact recipe's
    step.
    """
    torch.set_num_threads(threads)
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in _GLIBC_OPTIONS.items():
            mallopt(option, value)


def resolve_device(device: Device) -> torch.device:
    """The device to use; ``auto`` takes CUDA where torch sees it.

    Raises:
        ConfigError: if CUDA was asked for and is not there.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device cuda: torch sees no CUDA device here. Use --device cpu or --device auto, "
            "or install a CUDA build of torch."
        )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def describe_hardware(device: torch.device) -> dict[str, str]:
    """The machine, processor and GPU that a process runs on, for the record."""
    found = {"machine": platform.machine(), "cores": str(os.cpu_count()), "cpu": _cpu_name()}
    if device.type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(device), "cuda": str(torch.version.cuda)}
    return found


def _cpu_name() -> str:
    """The name of the processor's model, or what Python knows of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def resolve_precision(precision: Precision, device: torch.device, network: Network) -> torch.dtype:
    """The precision of a network's inner layers.

    ``auto`` is bfloat16 on GPUs that have instructions for it, and float32 on others. On a CPU it
    is the precision that is faster in a few timed steps. Some processors have bfloat16 instructions
    and are twice as fast with them; others emulate them and are slower. A second of measuring, once
    a process, settles it for the network at hand.

    Raises:
        ConfigError: if bfloat16 was asked for on a GPU without instructions for it.
    """
    if precision == "bfloat16" and not _computes_bfloat16(device):
        raise ConfigError(
            f"precision bfloat16: {torch.cuda.get_device_name(device)} has no instructions for it, "
            "and would be slower than in float32. Use --precision auto or float32."
        )
    if precision != "auto":
        return PRECISIONS[precision]
    if device.type == "cuda":
        return torch.bfloat16 if _computes_bfloat16(device) else torch.float32
    return _faster_precision(network, device)


def kept_precision(precision: str, device: torch.device) -> torch.dtype:
    """The precision in which a model goes on that was trained in another so far.

    It is the same one, except on a GPU without instructions for bfloat16, where it is float32.
    """
    return PRECISIONS[precision] if _computes_bfloat16(device) else torch.float32


def _computes_bfloat16(device: torch.device) -> bool:
    """Whether a GPU has bfloat16 instructions; true of CPUs, which emulate what they lack."""
    if device.type != "cuda":
        return True
    native: bool = torch.cuda.is_bf16_supported(including_emulation=False)
    return native


@functools.cache
def _faster_precision(network: Network, device: torch.device) -> torch.dtype:
    """The precision in which a forward and backward pass on a small batch takes less time."""
    seconds = {}
    for precision in PRECISIONS.values():
        model = Autoencoder(network).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = torch.rand(4, 3, _TIMED_SIDE, _TIMED_SIDE, device=device)
        images = images.contiguous(memory_format=torch.channels_last)
        seconds[precision] = seconds_a_step(model, images, precision)
    return min(seconds, key=lambda precision: seconds[precision])


def seconds_a_step(
    network: nn.Module,
    images: Tensor,
    precision: torch.dtype,
    optimizer: torch.optim.Optimizer | None = None,
) -> float:
    """Times a few steps on the same images and returns the seconds of the fastest.

    Args:
        network: maps the images to a reconstruction of the same shape. It is changed if there is an
            optimizer.
        images: (B, 3, H, W) float32, on the network's device.
        precision: the data type of the network's inner layers.
        optimizer: takes a step with the gradients. Without one a step is a forward and a backward
            pass whose gradients add up.
    """
    fastest = math.inf
    for step in range(1 + _TIMED_STEPS):
        _wait_for(images.device)
        started = time.perf_counter()
        if optimizer:
            optimizer.zero_grad(set_to_none=True)
        with autocast(images.device, precision):
            loss = F.mse_loss(network(images), images)
        loss.backward()
        if optimizer:
            optimizer.step()
        _wait_for(images.device)
        if step:
            fastest = min(fastest, time.perf_counter() - started)
    return fastest


def _wait_for(device: torch.device) -> None:
    """Waits until a GPU has done all that it was told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory_gib(device: torch.device) -> dict[str, float]:
    """The most memory that this process has held so far, in GiB.

    ``resident`` is main memory. On a GPU there is also ``device``, the memory of tensors on it.
    """
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, else in KiB
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    peak = {"resident": resident / 1024**3}
    if device.type == "cuda":
        peak["device"] = torch.cuda.max_memory_allocated(device) / 1024**3
    return peak
