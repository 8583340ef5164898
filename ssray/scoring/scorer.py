"""The Scorer: a batch of images in, anomaly maps and image scores out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ssray.config import Backend
from ssray.method.inference import to_network
from ssray.method.transfer import downloaded, uploaded
from ssray.models.artifact import ModelArtifact
from ssray.scoring.backends import on_openvino, resolve_backend

Maps = npt.NDArray[np.float32]

PIXELS_AT_ONCE = 16 * 512 * 512
"""Pixels of all images that the networks get together, so that large images take no more memory."""


@dataclass(frozen=True)
class Scored:
    """The anomaly maps and image scores of a batch.

    Attributes:
        maps: (B, H, W) float32 anomaly maps at the network's resolution, non-negative; 1 is
            what a defect-free image typically reaches at its worst place.
        scores: (B,) float32 image scores; larger is more anomalous.
        by_expert: (B, E) float32, the score of each expert of the model.
    """

    maps: Maps
    scores: npt.NDArray[np.float32]
    by_expert: npt.NDArray[np.float32]


class Scorer:
    """The networks of one model, ready to run, and how their maps are made.

    Args:
        artifact: the model.
        device: where it runs.
        precision: of the network's inner layers; maps are always computed in float32.
        backend: what runs the networks.
    """

    def __init__(
        self,
        artifact: ModelArtifact,
        device: torch.device,
        precision: torch.dtype,
        backend: Backend = "torch",
    ) -> None:
        self.artifact = artifact
        self._experts = artifact.reconstructor(device, precision)
        if resolve_backend(backend, device) == "openvino":
            self._experts = on_openvino(self._experts)
        self._maker = artifact.map_maker(device)
        self._device = device

    def __call__(self, images: npt.NDArray[np.uint8]) -> Scored:
        """Scores prepared images, (B, H, W, 3) uint8."""
        height, width = images.shape[1:3]
        most = max(1, PIXELS_AT_ONCE // (height * width))
        launched: list[tuple[Tensor, Tensor, Tensor]] = []
        found: list[list[Tensor]] = []
        for start in range(0, max(1, len(images)), most):
            launched.append(self._launched(images[start : start + most]))
            if len(launched) > 1:  # a GPU works on this part while that before it is copied
                found.append(downloaded(*launched.pop(0)))
        found.append(downloaded(*launched.pop()))
        maps, scores, by_expert = (
            parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*found, strict=True)
        )
        return Scored(maps.numpy(), scores.numpy(), by_expert.numpy())

    def _launched(self, images: npt.NDArray[np.uint8]) -> tuple[Tensor, Tensor, Tensor]:
        """Maps and scores, on a GPU perhaps before they are computed."""
        x = to_network(uploaded(images, self._device), self._device)
        maker = self._maker
        parts = maker.by_expert(self._experts.differences(x, maker.settings.difference))
        maps = maker.join(parts)
        return maps.squeeze(1), maker.scores(maps), maker.scores_by_expert(parts)


def resize_map(anomaly_map: Maps, shape: tuple[int, int]) -> Maps:
    """Resamples (H, W) float32 bilinearly to ``shape``; values stay non-negative."""
    if anomaly_map.shape == shape:
        return anomaly_map
    maps = torch.from_numpy(anomaly_map)[None, None]
    resized = F.interpolate(maps, size=shape, mode="bilinear", align_corners=False)
    result: Maps = resized[0, 0].numpy()
    return result
