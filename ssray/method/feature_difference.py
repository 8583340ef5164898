"""Compares an image and its reconstruction by what they look like to a pretrained network.

Pixels that differ need not look different: a highlight that lies one pixel further is normal. In
features the two are compared as wholes, each feature in units of what it differs by in images that
were trained on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssray.errors import ConfigError
from ssray.method.pretrained import FeatureNetwork, State, enlarged

_RESIDUALS = "residuals"


class FeatureDifference(nn.Module):
    """The difference of two images in the features of a pretrained network.

    It computes in float32.

    Args:
        network: what makes the features.
        residuals: (C,), what each feature usually differs by (root mean square).
        image_size: images with fewer pixels than a square of this side are enlarged to as many.
    """

    residuals: Tensor

    def __init__(self, network: FeatureNetwork, residuals: Tensor, image_size: int) -> None:
        super().__init__()
        self.network, self.image_size = network, image_size
        self.register_buffer("residuals", residuals, persistent=False)

    @classmethod
    @torch.no_grad()
    def fitted(
        cls, network: FeatureNetwork, pairs: Iterable[tuple[Tensor, Tensor]], image_size: int
    ) -> Self:
        """Measures what each feature usually differs by.

        Args:
            network: what makes the features.
            pairs: images that were trained on, and what became of them, (B, 3, H, W) each.
            image_size: as for the class.
        """
        squares, count = torch.zeros(network.channels, device=network.mean.device), 0
        unscaled = cls(network, torch.ones_like(squares), image_size)
        for pair in pairs:
            apart = unscaled.apart(torch.cat(pair, dim=1))
            squares += torch.cat([each.square().mean(dim=(2, 3)).sum(dim=0) for each in apart])
            count += len(pair[0])
        tiny = torch.finfo(torch.float32).tiny
        return cls(network, (squares / count).clamp_min(tiny).sqrt(), image_size)

    def kept(self) -> dict[str, Tensor]:
        """All that ``restored`` needs, as an artifact keeps it: tensors on the CPU."""
        return {_RESIDUALS: self.residuals.cpu(), **self.network.weights}

    @classmethod
    def restored(cls, kept: State, image_size: int, source: str) -> Self:
        """Makes it again from what ``kept`` gave.

        Raises:
            ConfigError: if it is something else.
        """
        weights = {name: weight for name, weight in kept.items() if name != _RESIDUALS}
        network, residuals = FeatureNetwork.of(weights, source), kept.get(_RESIDUALS)
        if residuals is None or residuals.shape != (network.channels,):
            found = "none" if residuals is None else f"some of shape {tuple(residuals.shape)}"
            raise ConfigError(
                f"{source}: expected {network.channels} features' usual differences, found {found}."
            )
        return cls(network, residuals, image_size)

    def apart(self, pairs: Tensor) -> list[Tensor]:
        """How far the features of (B, 6, H, W) pairs of images are apart, for each stride."""
        one, other = (self.network(enlarged(each, self.image_size)) for each in pairs.chunk(2, 1))
        parts = self.residuals.split([features.shape[1] for features in one])
        return [
            (first - second) / usual.view(-1, 1, 1)
            for first, second, usual in zip(one, other, parts, strict=True)
        ]

    def forward(self, pairs: Tensor) -> Tensor:
        """Gives the difference maps of pairs of images in [0, 1].

        Args:
            pairs: (B, 6, H, W) float32, an image and its reconstruction.

        Returns:
            (B, 1, H, W), at least 0: the root mean square over the features of each stride, and
            the mean of these; 1 is usual.
        """
        shape = (int(pairs.shape[-2]), int(pairs.shape[-1]))
        maps = [
            F.interpolate(each.square().mean(dim=1, keepdim=True).sqrt(), shape, mode="bilinear")
            for each in self.apart(pairs)
        ]
        return torch.stack(maps).mean(dim=0)
