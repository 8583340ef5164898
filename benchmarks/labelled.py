"""Labelled test images, and what a model's maps are worth on them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from ssray.calibration.calibrate import Calibration, PlaceMaps
from ssray.config import Difference
from ssray.data.decode import read_image
from ssray.data.masks import read_masks, with_mask_levels
from ssray.data.pose import Framing, Placement
from ssray.method.anomaly_map import MapMaker
from ssray.method.inference import Reconstructor
from ssray.metrics.images import image_auroc
from ssray.metrics.pixels import PixelCounts
from ssray.metrics.values import Metrics
from ssray.scoring.scorer import Maps, resize_map

BATCH = 8


def category_parser(description: str) -> argparse.ArgumentParser:
    """What every benchmark of one category is told."""
    parser = argparse.ArgumentParser(description=description)
    for name in ("data", "category", "models"):
        parser.add_argument(f"--{name}", required=True)
    return parser


@dataclass(frozen=True)
class TestSet:
    """Labelled images of a category.

    Attributes:
        images: (N, H, W, 3) uint8, as networks see them.
        labels: (N,) 1 = defect, 0 = good.
        masks: of each, at its own size.
        framing: made the images of photographs.
        placements: where the part of each lies, or None.
    """

    images: Tensor
    labels: npt.NDArray[np.int64]
    masks: list[npt.NDArray[np.bool_]]
    framing: Framing
    placements: list[Placement | None]

    @classmethod
    def read(cls, manifest: pa.Table, framing: Framing) -> TestSet:
        """The test images of a category's manifest."""
        test = with_mask_levels(manifest.filter(pc.equal(manifest["split"], "test")))
        rows = test.to_pylist()
        photographs = [read_image(row["uri"]) for row in rows]
        images, placements = zip(*map(framing, photographs), strict=True)
        masks = [
            read_masks(row["mask_uris"], row["mask_level"])
            if row["mask_uris"]
            else np.zeros(image.shape[:2], bool)
            for row, image in zip(rows, photographs, strict=True)
        ]
        labels = np.array([row["label"] for row in rows])
        stack = torch.from_numpy(np.stack(images))
        return cls(stack, labels, masks, framing, list(placements))

    def without(self, left_out: npt.NDArray[np.int64]) -> TestSet:
        """The same without the images of these numbers."""
        kept = np.setdiff1d(np.arange(len(self.labels)), left_out)
        return TestSet(
            self.images[torch.from_numpy(kept)],
            self.labels[kept],
            [self.masks[number] for number in kept],
            self.framing,
            [self.placements[number] for number in kept],
        )

    def judge(self, maker: MapMaker, stacks: Tensor) -> tuple[float, float]:
        """Image and pixel AUROC of the test images' difference maps, (N, K, H, W)."""
        maps = maker(stacks)
        return self.figures(maps[:, 0].numpy(), maker.scores(maps).numpy())

    def figures(self, maps: Maps, scores: npt.NDArray[np.float32]) -> tuple[float, float]:
        """Image and pixel AUROC of the test images' (N, H, W) anomaly maps and (N,) scores."""
        return image_auroc(self.labels, scores), self.pixels(maps)["pixel_auroc"]

    def pixels(self, maps: Maps) -> Metrics:
        """The pixel metrics of the test images' (N, H, W) anomaly maps, against their masks."""
        counts = PixelCounts()
        for one, placement, mask in zip(maps, self.placements, self.masks, strict=True):
            shape = (mask.shape[0], mask.shape[1])
            counts.add(resize_map(self.framing.laid_back(one, placement, shape), shape), mask)
        return counts.metrics()


def difference_stack(
    networks: Sequence[nn.Module], images: Tensor, difference: Difference, precision: torch.dtype
) -> Tensor:
    """The difference maps of (N, H, W, 3) uint8 images, (N, K, H, W) float32."""
    return Reconstructor(networks, precision).stacked(images, difference)


def judge(
    networks: Sequence[nn.Module],
    calibration: Calibration,
    places: PlaceMaps,
    test_set: TestSet,
    precision: torch.dtype,
) -> tuple[float, float]:
    """Image and pixel AUROC of calibrated networks."""
    settings = calibration.anomaly_map
    maker = calibration.map_maker(places, torch.device("cpu"))
    stacks = difference_stack(networks, test_set.images, settings.difference, precision)
    return test_set.judge(maker, stacks)
