"""The forward pass: from stored uint8 images to reconstructions and difference maps."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ssray.config import Difference, Experts
from ssray.method.anomaly_map import Comparers, each_difference
from ssray.method.linear import LinearAutoencoder
from ssray.method.tiling import Tiling, in_tiles

TILING = Tiling()
"""How large images are cut wherever a model scores, so that its maps are the same everywhere."""


def to_network(images: Tensor, device: torch.device) -> Tensor:
    """Turns (B, H, W, 3) uint8 into (B, 3, H, W) float32 in [0, 1], channels-last in memory."""
    return images.to(device).permute(0, 3, 1, 2).float().div_(255)


def image_batches(images: Tensor, batch: int, device: torch.device) -> Iterator[Tensor]:
    """Yields (N, H, W, 3) uint8 images as ``to_network`` makes them, ``batch`` at a time."""
    for part in images.split(batch):
        yield to_network(part, device)


@torch.inference_mode()
def reconstruct(model: nn.Module, images: Tensor, precision: torch.dtype) -> Tensor:
    """Reconstructs (B, 3, H, W) float32 images; the result has their shape and lies in [0, 1].

    Images with a side beyond ``TILING.side`` are reconstructed in tiles, but for the linear
    autoencoder, which knows whole images.
    """
    if isinstance(model, LinearAutoencoder):
        whole: Tensor = model(images)
        return whole

    def one_pass(part: Tensor) -> Tensor:
        with autocast(images.device, precision):
            reconstruction: Tensor = model(part)
        return reconstruction

    return in_tiles(one_pass, images, TILING)


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Puts networks into eval mode while the block runs, and then back into the mode they had."""
    modes = [network.training for network in networks]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for network, mode in zip(networks, modes, strict=True):
            network.train(mode)


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """Lowers the precision of a network's inner layers in a block; not if it is float32."""
    return torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32)


BATCH = 8
"""How many whole images a ``Reconstructor`` runs through its networks at once."""


@dataclass(frozen=True)
class Reconstructor:
    """What reconstructs images, and what else compares them, all on the same device.

    Attributes:
        networks: one network, or several for an ensemble, and perhaps the linear autoencoder; in
            eval mode unless the caller puts them there for a while with ``evaluating``. None at all
            where neighbours alone count.
        precision: the type in which the networks' inner layers compute: float32 or bfloat16.
        neighbours: makes the map of the second expert, a ``MemoryBank``, or nothing.
        comparers: what compares images with reconstructions for some kinds of difference
            (``ssray.method.anomaly_map.each_difference``): for ``features`` a
            ``FeatureDifference``.
    """

    networks: Sequence[nn.Module]
    precision: torch.dtype
    neighbours: nn.Module | None = None
    comparers: Comparers = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """The device that the networks are on."""
        first = self.networks[0] if self.networks else self.neighbours
        assert first is not None
        return next(itertools.chain(first.parameters(), first.buffers())).device

    def batches(self, images: Tensor) -> Iterator[Tensor]:
        """Yields (N, H, W, 3) uint8 images as (B, 3, H, W) float32 in [0, 1], on the device."""
        return image_batches(images, BATCH, self.device)

    def reconstruct(self, images: Tensor) -> list[Tensor]:
        """Returns what each network makes of (B, 3, H, W) float32 images, in the same shape."""
        return [reconstruct(network, images, self.precision) for network in self.networks]

    def differences(self, images: Tensor, kind: Difference) -> Tensor:
        """Returns the maps of (B, 3, H, W) float32 images.

        Their shape is (B, K, H, W), with one of the K channels for each network, and at the end one
        for the neighbours.
        """
        return self.all_differences(images, (kind,))[kind]

    def stacked(self, images: Tensor, kind: Difference) -> Tensor:
        """Returns what ``differences`` does for (N, H, W, 3) uint8 images, (N, K, H, W)."""
        return torch.cat([self.differences(batch, kind) for batch in self.batches(images)])

    @torch.no_grad()
    def all_differences(
        self, images: Tensor, kinds: Sequence[Difference]
    ) -> dict[Difference, Tensor]:
        """Returns what ``differences`` does for several kinds, from the same reconstructions."""
        reconstructions = self.reconstruct(images)
        others = [self.neighbours(images)] if self.neighbours else []
        return {
            kind: torch.cat(
                [*each_difference(images, reconstructions, kind, self.comparers), *others], dim=1
            )
            for kind in kinds
        }

    def only(self, experts: Experts | None) -> Reconstructor:
        """The same without what these experts do not need."""
        if experts == "neighbours":
            return dataclasses.replace(self, networks=())
        return self if experts == "joined" else dataclasses.replace(self, neighbours=None)
