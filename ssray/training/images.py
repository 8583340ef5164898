"""The images that a process trains on, and those that are held out.

Images that fit the memory budget are decoded once. If there are more, a window moves over those to
train on, as ``ssray.data.window`` describes, and each process has its own part of them. The same
images are held out either way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ssray.config import Recipe
from ssray.data.dataset import index_images
from ssray.data.loading import common_framing, load_images, spread
from ssray.data.pose import Framing
from ssray.data.window import Decode, ImageWindow
from ssray.errors import ConfigError, TrainingError
from ssray.storage.fingerprint import fingerprint
from ssray.storage.location import Location
from ssray.training.distributed import ProcessGroup

MIN_IMAGES = 4
MIN_HELD_OUT = 2
MOST_TEXTURES = 256
MOST_HELD_OUT = 1024
MIN_WINDOW = 16
_GIB = 1024**3


@dataclass(frozen=True)
class Feed:
    """The images of a training.

    Attributes:
        training: (N, H, W, 3) uint8 images to train on, or a window over more of them.
        held_out: (M, H, W, 3) uint8 images that are not trained on, the same in every process.
        skipped: how many of the images decoded before the training could not be used.
        textures: (T, H', W', 3) uint8 foreign content for the corruption, or None.
    """

    training: Tensor | ImageWindow
    held_out: Tensor
    skipped: int = 0
    textures: Tensor | None = None

    def sample(self, most: int) -> Tensor:
        """The first images to train on, or those in the window, (N, H, W, 3) uint8 on the CPU."""
        images = self.training if isinstance(self.training, Tensor) else self.training.images
        return images[:most].cpu()

    @property
    def shape(self) -> tuple[int, int]:
        """The rows and columns of every image."""
        return (self.held_out.shape[1], self.held_out.shape[2])

    @property
    def training_images(self) -> int:
        """How many images there are to train on, over all processes."""
        if isinstance(self.training, Tensor):
            return len(self.training)
        return self.training.total

    @property
    def streamed(self) -> bool:
        """Whether a window moves over the images to train on."""
        return isinstance(self.training, ImageWindow)

    @property
    def nbytes(self) -> int:
        """How many bytes the images to train on take on the device."""
        training = self.training
        return training.nbytes if isinstance(training, Tensor) else training.capacity_bytes

    def on(self, device: torch.device) -> Feed:
        """The feed with its images to train on and its textures on a device."""
        training = self.training
        if isinstance(training, ImageWindow):
            training.to(device)
        else:
            training = training.to(device)
        textures = None if self.textures is None else self.textures.to(device)
        return dataclasses.replace(self, training=training, textures=textures)

    def images_after(self, drawn: float) -> Tensor:
        """The images to draw from, (N, H, W, 3) uint8, once this process has drawn so many.

        Raises:
            DataError: if there is a window and none of the images can be used.
        """
        if isinstance(self.training, Tensor):
            return self.training
        self.training.advance(drawn)
        return self.training.images

    def counted(self) -> tuple[int, int]:
        """How many images there were to draw from so far, and how many could not be used.

        Both are counted over all processes, which must ask together.
        """
        if isinstance(self.training, Tensor):
            return len(self.training), self.skipped
        damaged = len(self.training.damaged)
        seen, lost = ProcessGroup.current().total(self.training.met - damaged, damaged)
        return int(seen), self.skipped + int(lost)


def framing_for(uris: Sequence[str], recipe: Recipe, threads: int) -> Framing:
    """How the recipe's network sees these photographs.

    Raises:
        DataError: if none of the images looked at is one.
    """
    return common_framing(
        uris, recipe.image_size, recipe.alignment, threads, recipe.light, recipe.decoding
    )


def exceeds_memory(uris: Sequence[str], recipe: Recipe, memory_gib: float, threads: int) -> bool:
    """Whether the decoded images need more memory than there is for them.

    Raises:
        DataError: if none of the images looked at is one.
    """
    return len(uris) * _bytes(framing_for(uris, recipe, threads).shape) > memory_gib * _GIB


def load_feed(
    uris: Sequence[str],
    recipe: Recipe,
    threads: int,
    seed: int,
    on_decoded: Callable[[int, int], None] = lambda done, count: None,
) -> Feed:
    """Decodes all images, and holds some of them out.

    Args:
        uris: the training images.
        recipe: the size of the images, and the share to hold out.
        threads: how many threads decode.
        seed: decides which images are held out.
        on_decoded: called with how many images are done, and how many there are.

    Raises:
        DataError: if none can be used.
        TrainingError: if fewer than 4 can.
    """
    first, rest = split_uris(uris, recipe.schedule.holdout, seed)
    framing = framing_for(uris, recipe, threads)
    loaded = load_images([*first, *rest], framing, threads, on_decoded=on_decoded)
    count = len(loaded.images)
    if count < MIN_IMAGES:
        raise TrainingError(
            f"{count} usable training images; at least {MIN_IMAGES} are needed, and a few dozen "
            "for a useful model."
        )
    damaged = {uri for uri, _ in loaded.skipped}
    held = max(MIN_HELD_OUT, len(first) - len(damaged & {*first}))
    images = torch.from_numpy(loaded.images)
    return Feed(images[held:], images[:held], len(damaged))


def stream_feed(
    uris: Sequence[str],
    recipe: Recipe,
    threads: int,
    seed: int,
    memory_gib: float,
    decode: Decode,
    on_decoded: Callable[[int, int], None] = lambda done, count: None,
) -> Feed:
    """Decodes the images that are held out; those to train on come when they are due.

    Args:
        uris: the training images.
        recipe: the size of the images, and the share to hold out.
        threads: how many threads decode the images that are held out.
        seed: decides which images are held out, and the order of the others.
        memory_gib: the memory for the decoded images of this process in GiB.
        decode: decodes the images to train on.
        on_decoded: called with how many of the images held out are done, and how many there are.

    Raises:
        ConfigError: if the memory holds too few images.
        DataError: if none can be used.
    """
    framing = framing_for(uris, recipe, threads)
    shape = framing.shape
    affordable = int(memory_gib * _GIB / _bytes(shape))
    first, rest = split_uris(uris, recipe.schedule.holdout, seed)
    held = len(first)
    if affordable - held < MIN_WINDOW:
        least = (held + MIN_WINDOW) * _bytes(shape) / _GIB
        raise ConfigError(
            f"memory for {memory_gib:g} GiB of images is too little: {shape[1]} x {shape[0]} "
            f"pixels need at least {least:.2g} GiB. Use a larger --memory-gib."
        )
    loaded = load_images(first, framing, threads, on_decoded=on_decoded)
    processes = ProcessGroup.current()
    window = ImageWindow(
        rest[processes.rank :: processes.size],
        framing,
        decode,
        affordable - held,
        seed=seed,
        total=len(rest),
    )
    return Feed(window, torch.from_numpy(loaded.images), len(loaded.skipped))


def texture_uris(recipe: Recipe) -> list[str]:
    """The images in the recipe's folder of foreign content; none where it names no folder.

    If there are more than ``MOST_TEXTURES``, that many are taken, spread over the folder.

    Raises:
        DataError: if there is no such folder, or no image in it.
    """
    if recipe.corruption.textures is None:
        return []
    table = index_images(Location.parse(recipe.corruption.textures), "textures")
    return spread(table["uri"].to_pylist(), MOST_TEXTURES)


def data_fingerprint(uris: Sequence[str], recipe: Recipe) -> str:
    """A checksum of all that a training sees: its images and the recipe's foreign content.

    Raises:
        DataError: as ``texture_uris``.
    """
    return fingerprint([*uris, *texture_uris(recipe)])


def load_textures(recipe: Recipe, threads: int) -> Tensor | None:
    """The recipe's foreign content, (T, S, S, 3) uint8 squares of the images' size.

    Returns None where the recipe names no folder of foreign content.

    Raises:
        DataError: as ``texture_uris``, or if none of the images can be decoded.
    """
    uris = texture_uris(recipe)
    if not uris:
        return None
    square = Framing((recipe.image_size, recipe.image_size))
    return torch.from_numpy(load_images(uris, square, threads, middle=True).images)


def split_uris(uris: Sequence[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """Picks 2 to 1,024 images at random to hold out, and returns them and the others."""
    held = min(max(MIN_HELD_OUT, round(share * len(uris))), MOST_HELD_OUT)
    shuffled = [uris[i] for i in np.random.default_rng(seed).permutation(len(uris))]
    return shuffled[:held], shuffled[held:]


def _bytes(shape: tuple[int, int]) -> int:
    """The size of a decoded image."""
    return 3 * shape[0] * shape[1]
