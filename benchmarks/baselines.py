"""What costs seconds: PCA reconstruction and nearest patches, on the images that a model sees.

    python benchmarks/baselines.py --data ROOT [--category C] [--evaluation DIR]

prints a row a method and category: seconds to fit, image and pixel AUROC; with ``--evaluation``,
a folder that ``ssray evaluate --out`` wrote, the model's row beside them. A model that loses to one
of these on any category is at fault. Both methods are scikit-learn's, on raw pixels, and get what
the recipe decides for the category without them: the framing of its photographs (parts are located
and turned upright where that is the default), at ``SIDE`` squared pixels. Their maps are smoothed
by one fixed filter, and the maximum is the image score: nothing of theirs is chosen on any image.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from labelled import TestSet
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from ssray.cluster.categories import survey_of
from ssray.config import override
from ssray.data.dataset import categories, index_dataset
from ssray.data.loading import load_images
from ssray.data.pose import Framing
from ssray.method.anomaly_map import smooth
from ssray.recipes.request import RecipeRequest
from ssray.storage.location import Location
from ssray.training.images import framing_for

SIDE = 128
"""Of a square with as many pixels as the images have."""
EXPLAINED = 0.9
"""The share of the training images' variance that the principal components keep."""
PATCH, STRIDE = 9, 4
"""The side of a patch, and the distance from one to the next, in pixels."""
FEATURES = 32
"""Principal components of a patch."""
REMEMBERED = 20_000
"""Patches of the training images, drawn at random, that others are compared with."""
KERNEL, REPEATS = 5, 3
"""The mean filter, about 4 % of the side, and how often it is applied."""

Pixels = npt.NDArray[np.float32]
Method = Callable[[Tensor], Tensor]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="PCA and nearest patches on a labelled data set.")
    parser.add_argument("--data", required=True, help="folder above the categories")
    parser.add_argument("--category", action="append", help="repeatable; default: all")
    parser.add_argument("--evaluation", help="folder with the metrics.parquet of ssray evaluate")
    options = parser.parse_args()
    root = Location.parse(options.data)
    print(
        "| category | method | seconds to fit | image AUROC | pixel AUROC |\n|---|---|---|---|---|"
    )
    for category in options.category or categories(root):
        manifest = index_dataset(root, [category])
        uris = manifest.filter(pc.equal(manifest["split"], "train"))["uri"].to_pylist()
        framing = framed(category, uris)
        threads = os.cpu_count() or 1
        training = _floats(torch.from_numpy(load_images(uris, framing, threads).images))
        test = TestSet.read(manifest, framing)
        for name, fit in METHODS.items():
            began = time.monotonic()
            method = fit(training)
            seconds = time.monotonic() - began
            maps = smooth(method(_floats(test.images)), KERNEL, REPEATS)[:, 0].numpy()
            image, pixel = test.figures(maps, maps.max(axis=(1, 2)))
            print(
                f"| {category} | {name} | {seconds:.0f} | {image:.4f} | {pixel:.4f} |", flush=True
            )
        if options.evaluation:
            table = pq.read_table(Path(options.evaluation) / "metrics.parquet").to_pylist()
            for row in (row for row in table if row["category"] == category):
                image, pixel = row["image_auroc"], row["pixel_auroc"]
                print(f"| {category} | ssray | | {image:.4f} | {pixel:.4f} |", flush=True)


def framed(category: str, uris: list[str]) -> Framing:
    """How the default recipe frames a category's photographs, at ``SIDE`` squared pixels."""
    recipe = RecipeRequest().resolve(category, lambda: survey_of(uris))
    return framing_for(uris, override(recipe, [f"image_size={SIDE}"]), os.cpu_count() or 1)


def principal_components(training: Tensor) -> Method:
    """Whole images from those principal components that keep ``EXPLAINED`` of the variance.

    Args:
        training: (N, 3, H, W) float32 in [0, 1].

    Returns:
        Maps (M, 3, H, W) images to (M, 1, H, W) squared errors.
    """
    pca = PCA(EXPLAINED, svd_solver="full").fit(training.flatten(1).numpy())

    def maps(images: Tensor) -> Tensor:
        flat = images.flatten(1).numpy()
        back = torch.from_numpy(pca.inverse_transform(pca.transform(flat)).astype(np.float32))
        return (images - back.view_as(images)).square().mean(dim=1, keepdim=True)

    return maps


def nearest_patches(training: Tensor) -> Method:
    """The distance of each patch to the nearest of ``REMEMBERED`` patches of training images.

    Args:
        training: (N, 3, H, W) float32 in [0, 1].

    Returns:
        Maps (M, 3, H, W) images to (M, 1, H, W) distances.
    """
    some = np.random.default_rng(0)
    share = max(1, REMEMBERED // len(training))
    drawn = [_patches(image)[0] for image in training]
    known = np.concatenate([p[some.permutation(len(p))[:share]] for p in drawn])
    pca = PCA(FEATURES, random_state=0).fit(known)
    neighbours = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(pca.transform(known))

    def of_one(image: Tensor) -> Tensor:
        patches, (rows, columns) = _patches(image)
        distances, _ = neighbours.kneighbors(pca.transform(patches))
        grid = torch.from_numpy(distances.astype(np.float32)).view(1, 1, rows, columns)
        inner = [STRIDE * (count - 1) + 1 for count in (rows, columns)]  # to the last centre
        whole = F.interpolate(grid, inner, mode="bilinear", align_corners=True)
        beyond = [side - known for side, known in zip(image.shape[1:], inner, strict=True)]
        return F.pad(whole, (0, beyond[1], 0, beyond[0]), mode="replicate")

    return lambda images: torch.cat([of_one(image) for image in images])


METHODS: dict[str, Callable[[Tensor], Method]] = {
    f"PCA, {EXPLAINED:.0%} of the variance": principal_components,
    f"nearest of {REMEMBERED:,} patches of {PATCH} px": nearest_patches,
}


def _patches(image: Tensor) -> tuple[Pixels, tuple[int, int]]:
    """An image's patches, (P, 3 * PATCH * PATCH), and how many rows and columns of them."""
    padded = F.pad(image[None], [PATCH // 2] * 4, mode="reflect")
    height, width = image.shape[1:]
    rows, columns = (height - 1) // STRIDE + 1, (width - 1) // STRIDE + 1
    patches: Pixels = F.unfold(padded, PATCH, stride=STRIDE)[0].T.numpy()
    return patches, (rows, columns)


def _floats(images: Tensor) -> Tensor:
    """(N, H, W, 3) uint8 as (N, 3, H, W) float32 in [0, 1]."""
    return images.permute(0, 3, 1, 2).float() / 255


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
