"""A second expert: how far from anything in the training images each place looks.

A pretrained network describes each place of an image by its features there. Those of the training
images, thinned out, are the memory bank; the map of an image is each place's distance to the
nearest of them, as PatchCore measures it (Roth et al., "Towards Total Recall in Industrial Anomaly
Detection", section 3). Nothing is trained.

It knows what things look like, and the autoencoders know how these images go together, so each
finds what the other misses.
"""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssray.config import Features
from ssray.errors import ConfigError
from ssray.method.inference import image_batches
from ssray.method.pretrained import STRIDES, FeatureNetwork, State, enlarged

MOST_IMAGES = 512
"""How many training images it is fitted to, at most."""
MOST_VECTORS = 40_000
"""Among how many of their feature vectors the bank is chosen, at most."""
_PROJECTED = 64
"""Dimensions to which vectors are projected at random while distances among them are compared."""
_BATCH = 4
_ROWS = 2048
_MIB = 2**20
_BANK = "bank"


class MemoryBank(nn.Module):
    """The features of the training images, as far as they differ.

    It computes in float32, and whole images at a time.

    Args:
        network: what makes the features.
        bank: (n, C), feature vectors; kept as float16.
        image_size: images with fewer pixels than a square of this side are enlarged to as many.
    """

    bank: Tensor
    squares: Tensor

    def __init__(self, network: FeatureNetwork, bank: Tensor, image_size: int) -> None:
        super().__init__()
        self.network, self.image_size = network, image_size
        kept = bank.half().float()
        self.register_buffer("bank", kept, persistent=False)
        self.register_buffer("squares", kept.square().sum(dim=1), persistent=False)

    @classmethod
    @torch.no_grad()
    def fitted(cls, network: FeatureNetwork, images: Tensor, settings: Features, seed: int) -> Self:
        """Chooses the bank from defect-free images.

        Vectors are drawn evenly from all images. Those with nothing like them in any other image
        are dropped, as they may come from a defect that was overlooked. Of the others the bank
        takes those that are farthest from all that it has already.

        Args:
            network: what makes the features, on the device that is to compute.
            images: (N, H, W, 3) uint8; the first ``MOST_IMAGES`` count.
            settings: how large the bank may be, and how many vectors are dropped.
            seed: of all random choices.
        """
        images = images[:MOST_IMAGES]
        generator = torch.Generator().manual_seed(seed)
        empty = cls(network, torch.empty(0, network.channels), settings.image_size)
        device = empty.network.mean.device
        share = max(1, MOST_VECTORS // len(images))
        vectors, origins = list[Tensor](), list[Tensor]()
        for batch in image_batches(images, _BATCH, device):
            for described in empty.described(batch).flatten(2).transpose(1, 2):
                drawn = torch.randperm(len(described), generator=generator)[:share].to(device)
                origins.append(torch.full((len(drawn),), len(origins), device=device))
                vectors.append(described[drawn])
        every, origin = torch.cat(vectors), torch.cat(origins)
        projection = torch.randn(network.channels, _PROJECTED, generator=generator).to(device)
        projected = every @ (projection / _PROJECTED**0.5)
        if len(images) > 1:
            alone = _farthest_from_other_images(projected, origin, settings.dropped)
            every, projected = every[~alone], projected[~alone]
        most = int(settings.memory_mib * _MIB / (2 * network.channels))
        return cls(network, every[_coreset(projected, most)], settings.image_size)

    def kept(self) -> dict[str, Tensor]:
        """All that ``restored`` needs, as an artifact keeps it: tensors on the CPU."""
        return {_BANK: self.bank.half().cpu(), **self.network.weights}

    @classmethod
    def restored(cls, kept: State, image_size: int, source: str) -> Self:
        """Makes the bank again from what ``kept`` gave.

        Raises:
            ConfigError: if it is something else.
        """
        weights = {name: weight for name, weight in kept.items() if name != _BANK}
        network, bank = FeatureNetwork.of(weights, source), kept.get(_BANK)
        if bank is None or bank.shape[1:] != (network.channels,) or len(bank) > MOST_VECTORS:
            found = "none" if bank is None else f"one of shape {tuple(bank.shape)}"
            raise ConfigError(
                f"{source}: expected a memory bank of at most {MOST_VECTORS:,} vectors of "
                f"{network.channels} features, found {found}."
            )
        return cls(network, bank, image_size)

    def described(self, images: Tensor) -> Tensor:
        """Describes each place of (B, 3, H, W) images in [0, 1] by its features, (B, C, h, w).

        Each feature is the mean over 3 x 3 places, with zeros beyond the border; those of larger
        strides are interpolated. The zeros make places at the border, where the network saw only
        part of what it knows, count less: with the mean over the places that exist, image AUROC of
        the neighbours on MVTec AD grid was 0.76 instead of 0.96.
        """
        images = enlarged(images, self.image_size)
        fine = tuple(int(side) // STRIDES[0] for side in images.shape[-2:])
        found = []
        for features in self.network(images):
            around = F.avg_pool2d(features, 3, stride=1, padding=1)
            if around.shape[-2:] != fine:
                around = F.interpolate(around, fine, mode="bilinear")
            found.append(around)
        return torch.cat(found, dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Gives the map of (B, 3, H, W) float32 images in [0, 1], (B, 1, H, W), at least 0."""
        described = self.described(images)
        distances = [
            (each.square().sum(dim=1, keepdim=True) + self.squares - 2 * each @ self.bank.T).amin(
                dim=1
            )
            for each in described.flatten(2).transpose(1, 2)
        ]
        found = torch.stack(distances).clamp_min(0).sqrt()
        places = found.unflatten(1, described.shape[-2:]).unsqueeze(1)
        return F.interpolate(places, images.shape[-2:], mode="bilinear")


def _farthest_from_other_images(vectors: Tensor, origin: Tensor, share: float) -> Tensor:
    """Marks the share of (n, D) vectors that are farthest from all of other images, (n,) bool.

    Args:
        vectors: feature vectors.
        origin: (n,), the number of the image that each comes from.
        share: from 0 to 1.
    """
    squares = vectors.square().sum(dim=1)
    nearest = []
    for rows, own in zip(vectors.split(_ROWS), origin.split(_ROWS), strict=True):
        distances = squares - 2 * rows @ vectors.T
        distances.masked_fill_(own[:, None] == origin, torch.inf)
        nearest.append(distances.amin(dim=1) + rows.square().sum(dim=1))
    marked = torch.zeros(len(vectors), dtype=torch.bool, device=vectors.device)
    marked[torch.cat(nearest).topk(int(share * len(vectors))).indices] = True
    return marked


def _coreset(vectors: Tensor, most: int) -> Tensor:
    """Chooses vectors greedily, each the farthest from those chosen before it.

    Args:
        vectors: (n, D).
        most: how many.

    Returns:
        (m,) int64, their numbers, with m the smaller one of ``most`` and n.
    """
    chosen = torch.zeros(min(most, len(vectors)), dtype=torch.int64, device=vectors.device)
    distances = (vectors - vectors[0]).square().sum(dim=1)
    for number in range(1, len(chosen)):
        chosen[number] = distances.argmax()
        distances = torch.minimum(
            distances, (vectors - vectors[chosen[number]]).square().sum(dim=1)
        )
    return chosen
