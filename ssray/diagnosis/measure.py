"""Measures a category's training images and its model, as in sections 3.4 and 4.2 of the paper."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from ssray.config import Compute
from ssray.data.dataset import index_dataset
from ssray.data.decode import UInt8Image
from ssray.data.labels import GOOD
from ssray.data.loading import load_image
from ssray.data.pose import Framing
from ssray.diagnosis import MIN_IMAGES
from ssray.diagnosis.findings import Diagnosis
from ssray.diagnosis.theorem import Theorem, check_theorem
from ssray.errors import ConfigError, DataError, ImageError
from ssray.method.inference import reconstruct, to_network
from ssray.method.projection import PositionMoments, Projection, measure_projection, patch_widths
from ssray.models.artifact import ModelArtifact, load
from ssray.models.device import resolve_device
from ssray.models.store import published_version
from ssray.storage.location import Location

_PART = 32
"""How many images are decoded and measured at a time, which bounds the memory."""


Counting = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Shows the progress of some work, given its name and number of steps.

It is a context manager that yields a function, to be called with the number of steps done.
"""


@contextlib.contextmanager
def _uncounted(work: str, steps: int) -> Iterator[Callable[[int], None]]:
    """Shows no progress."""
    yield lambda step: None


def diagnose(
    root: Location,
    category: str,
    store: Location,
    images: int,
    compute: Compute,
    counting: Counting = _uncounted,
    good_name: str = GOOD,
) -> Diagnosis:
    """Measures a category's training images and its model in use.

    Args:
        root: the folder above the categories.
        category: the category's name.
        store: the model store.
        images: how many training images, chosen at random, the patch test uses, and how many
            patches it tries for each width; Theorem 2 is checked on all pairs of them. Means and
            standard deviations are taken over all.
        compute: device, precision and seed.
        counting: shows the progress of the long parts.
        good_name: the name of the folders of good images.

    Raises:
        ArtifactError: if there is no published model, or it can't be read.
        ConfigError: if the model was trained with objective (4) alone.
        DataError: if there is no such category, or it has fewer than 3 usable training images.
    """
    table = index_dataset(root, [category], good_name)
    uris = table.filter(pc.equal(table["split"], "train"))["uri"].to_pylist()
    model = load(store, category, published_version(store, category))
    if model.recipe.objective.kind == "amplify":
        raise ConfigError(
            f"{category} {model.version} was trained with objective (4), which amplifies what it "
            "finds: no projection to diagnose. Train with objective.kind=reconstruct or ensemble."
        )
    device = resolve_device(compute.device)
    generator = torch.Generator().manual_seed(compute.seed)

    order = torch.randperm(len(uris), generator=generator).tolist()
    surveyed = _survey([uris[i] for i in order], model.framing, images, counting)
    if surveyed.read < MIN_IMAGES:
        raise DataError(
            f"{root / category}: {surveyed.read} usable images in train/{good_name} "
            f"({len(uris) - surveyed.read} could not be read); at least {MIN_IMAGES} are needed."
        )
    kept = surveyed.kept.to(device)
    return Diagnosis(
        category=category,
        model_version=model.version,
        shape=model.input_shape,
        skipped=len(uris) - surveyed.read,
        pixels=surveyed.pixels,
        windows=surveyed.windows,
        neighbours=len(surveyed.kept),
        projections=_project(model, kept, images, compute, generator, counting),
        theorem=_check(model, kept, generator, counting),
    )


@dataclass(frozen=True)
class _Survey:
    """What reading all training images gave.

    Attributes:
        pixels: mean and standard deviation of every pixel.
        windows: the same of every pixel of a window of half the side.
        kept: the first of the images, (N, H, W, 3) uint8.
    """

    pixels: PositionMoments
    windows: PositionMoments
    kept: Tensor

    @property
    def read(self) -> int:
        """How many images could be read."""
        return self.pixels.images


def _survey(uris: Sequence[str], framing: Framing, keep: int, counting: Counting) -> _Survey:
    """Reads every image once, ``_PART`` at a time, and keeps the first ``keep``."""
    shape = framing.shape
    half = shape[0] // 2, shape[1] // 2
    pixels, windows = PositionMoments.zero(shape), PositionMoments.zero(half)
    kept: list[UInt8Image] = []
    with counting("Reading the training images", len(uris)) as report:
        for start in range(0, len(uris), _PART):
            part = list(_read(uris[start : start + _PART], framing))
            for image in part:
                x = to_network(torch.tensor(image[np.newaxis]), torch.device("cpu"))
                pixels += PositionMoments.of(x, shape)
                windows += PositionMoments.of(x, half)
            kept += part[: keep - len(kept)]
            report(start + _PART)
    stack = np.stack(kept) if kept else np.empty((0, *shape, 3), np.uint8)
    return _Survey(pixels, windows, torch.from_numpy(stack))


def _read(uris: Sequence[str], framing: Framing) -> Iterator[UInt8Image]:
    """Yields the images that can be read, as the model's network sees them."""

    def read(uri: str) -> UInt8Image | None:
        try:
            return load_image(uri, framing)
        except ImageError:
            return None

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        yield from (image for image in pool.map(read, uris) if image is not None)


def _project(
    model: ModelArtifact,
    images: Tensor,
    trials: int,
    compute: Compute,
    generator: torch.Generator,
    counting: Counting,
) -> list[Projection]:
    """Measures the model's projection for each width of patch."""
    precision = model.precision(compute.precision, images.device)
    network = model.build(images.device)
    widths = [0, *patch_widths(model.input_shape)]
    measured = []
    with counting("Replacing patches", len(widths)) as report:
        for at in measure_projection(
            images, lambda x: reconstruct(network, x, precision), widths, trials, generator
        ):
            measured.append(at)
            report(len(measured))
    return measured


def _check(
    model: ModelArtifact, images: Tensor, generator: torch.Generator, counting: Counting
) -> Theorem:
    """Checks Theorem 2 with the regions that the model's recipe corrupts."""
    with counting("Comparing pairs of images", math.prod(model.input_shape)) as report:
        return check_theorem(images, model.recipe.corruption, generator, report)
