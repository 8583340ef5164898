"""What a process trains on, and what is held out.

Images that fit the memory budget are decoded once. Of more, a window moves over those to train
on, which ``ssray.data.window`` describes, each process has its own part of them, and those held
out are limited in number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ssray.config import Recipe
from ssray.data.index import index_images
from ssray.data.loading import common_shape, load_images, spread
from ssray.data.storage import Location
from ssray.data.window import Decode, ImageWindow
from ssray.errors import ConfigError, TrainingError
from ssray.team import Team

MIN_IMAGES = 4
MIN_HELD_OUT = 2
MOST_TEXTURES = 256
MOST_HELD_OUT_OF_WINDOW = 1024
"""Images held out where not all fit into memory; they also take at most a quarter of it."""
MIN_WINDOW = 16
_GIB = 1024**3


@dataclass(frozen=True)
class Feed:
    """The images of a training.

    Attributes:
        training: (N, H, W, 3) uint8, or a window over more.
        held_out: (M, H, W, 3) uint8, the same in every process.
        count: how many images are trained on, over all processes.
        skipped: how many could not be used.
    """

    training: Tensor | ImageWindow
    held_out: Tensor
    count: int
    skipped: int

    @property
    def sample(self) -> Tensor:
        """Images that were trained on, (N, H, W, 3) uint8 on the CPU."""
        if isinstance(self.training, Tensor):
            return self.training
        return self.training.images[:MIN_WINDOW].cpu()

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of every image."""
        return (self.held_out.shape[1], self.held_out.shape[2])

    def skipped_in_all(self) -> int:
        """How many could not be used, over all processes."""
        if isinstance(self.training, Tensor):
            return self.skipped
        [damaged] = Team.current().total(len(self.training.damaged))
        return self.skipped + int(damaged)


def exceeds(uris: Sequence[str], longer_side: int, memory_gib: float, threads: int) -> bool:
    """Whether the decoded images need more memory than there is for them.

    Raises:
        DataError: if none of the images looked at is one.
    """
    return len(uris) * _bytes(common_shape(uris, longer_side, threads)) > memory_gib * _GIB


def load(
    uris: Sequence[str],
    recipe: Recipe,
    threads: int,
    seed: int,
    on_decoded: Callable[[int], None] = lambda done: None,
) -> Feed:
    """Decodes all images.

    Raises:
        DataError: if none can be used.
        TrainingError: if fewer than 4 can.
    """
    loaded = load_images(uris, recipe.image_size, threads, on_decoded=on_decoded)
    training, held_out = split_held_out(
        torch.from_numpy(loaded.images), recipe.schedule.holdout, seed
    )
    return Feed(training, held_out, len(training), len(loaded.skipped))


def stream(
    uris: Sequence[str],
    recipe: Recipe,
    threads: int,
    seed: int,
    memory_gib: float,
    decode: Decode,
    on_decoded: Callable[[int], None] = lambda done: None,
) -> Feed:
    """Decodes the images held out; those to train on come when they are due.

    Args:
        memory_gib: for the decoded images of this process.
        decode: where the images to train on come from.
        on_decoded: called with how many of those held out are done.

    Raises:
        ConfigError: if the memory holds too few images.
        DataError: if none can be used.
    """
    shape = common_shape(uris, recipe.image_size, threads)
    affordable = int(memory_gib * _GIB / _bytes(shape))
    held = min(
        max(MIN_HELD_OUT, round(recipe.schedule.holdout * len(uris))),
        MOST_HELD_OUT_OF_WINDOW,
        max(MIN_HELD_OUT, affordable // 4),
    )
    if affordable - held < MIN_WINDOW:
        least = 2 * MIN_WINDOW * _bytes(shape) / _GIB
        raise ConfigError(
            f"memory for {memory_gib:g} GiB of images is too little: {shape[1]} x {shape[0]} "
            f"pixels need at least {least:.2g} GiB. Use a larger --memory-gib."
        )
    order = _shuffled(len(uris), seed)
    loaded = load_images(
        [uris[i] for i in order[:held]], recipe.image_size, threads, on_decoded=on_decoded
    )
    team = Team.current()
    window = ImageWindow(
        [uris[i] for i in order[held:][team.rank :: team.size]],
        shape,
        decode,
        affordable - held,
        seed=seed,
        total=len(uris) - held,
    )
    return Feed(window, torch.from_numpy(loaded.images), window.total, len(loaded.skipped))


def load_textures(recipe: Recipe, threads: int) -> Tensor | None:
    """The recipe's folder of foreign content, squares of the images' size, (T, S, S, 3) uint8.

    Of more than ``MOST_TEXTURES``, that many are taken, spread over the folder. None where the
    recipe names no folder.

    Raises:
        DataError: if the folder holds no image that can be decoded.
    """
    if recipe.corruption.textures is None:
        return None
    manifest = index_images(Location.parse(recipe.corruption.textures), "textures")
    uris = spread(manifest["uri"].to_pylist(), MOST_TEXTURES)
    return torch.from_numpy(load_images(uris, recipe.image_size, threads, square=True).images)


def split_held_out(images: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Splits (N, H, W, 3) images at random into training and held-out ones, at least 2 of these.

    Raises:
        TrainingError: if there are fewer than 4 images.
    """
    count = len(images)
    if count < MIN_IMAGES:
        raise TrainingError(
            f"{count} usable training images; at least {MIN_IMAGES} are needed, and a few dozen "
            "for a useful model."
        )
    held = max(MIN_HELD_OUT, round(share * count))
    order = torch.from_numpy(_shuffled(count, seed))
    return images[order[held:]], images[order[:held]]


def folds(feed: Feed, count: int) -> list[tuple[Tensor, Tensor]]:
    """Cuts all images into parts, each once left out: the rest, and the part.

    Raises:
        TrainingError: if there are fewer than two images a fold, or not all are in memory.
    """
    if not count:
        return []
    if not isinstance(feed.training, Tensor):
        raise TrainingError(
            "calibration folds need all images in memory. Use --calibration-folds 0, as so many "
            "held-out images support small rates, or a larger --memory-gib."
        )
    images = torch.cat([feed.training, feed.held_out])
    if len(images) < MIN_HELD_OUT * count:
        raise TrainingError(
            f"{len(images)} usable training images; {count} calibration folds need at least "
            f"{MIN_HELD_OUT * count}."
        )
    numbers = torch.arange(len(images))
    return [
        (images[numbers % count != fold], images[numbers % count == fold]) for fold in range(count)
    ]


def _shuffled(count: int, seed: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(count)


def _bytes(shape: tuple[int, int]) -> int:
    return 3 * shape[0] * shape[1]
