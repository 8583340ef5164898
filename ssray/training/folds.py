"""Calibration folds: parts of the training images, each of which is left out once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ssray.errors import TrainingError
from ssray.training.images import MIN_HELD_OUT, Feed


@dataclass(frozen=True)
class Fold:
    """One of several parts into which all images are cut, and the rest of them.

    Neither is copied before it is asked for, and both are copied anew each time.

    Attributes:
        feed: the images that are cut.
        number: the number of the part, from 0.
        count: how many parts there are.
    """

    feed: Feed
    number: int
    count: int

    @property
    def training(self) -> Tensor:
        """All images but the part, (N, H, W, 3) uint8."""
        return self._chosen(left_out=False)

    @property
    def held_out(self) -> Tensor:
        """The images of the part, (M, H, W, 3) uint8."""
        return self._chosen(left_out=True)

    def cut(self) -> Feed:
        """The images to train on and those of the part as a feed of their own."""
        return Feed(self.training, self.held_out, textures=self.feed.textures)

    def _chosen(self, left_out: bool) -> Tensor:
        """The images of the part, or all others."""
        chosen, before = [], 0
        for images in (self.feed.training, self.feed.held_out):
            assert isinstance(images, Tensor)
            numbers = torch.arange(before, before + len(images))
            chosen.append(images[(numbers % self.count == self.number) == left_out])
            before += len(images)
        return torch.cat(chosen)


def cut_folds(feed: Feed, count: int) -> list[Fold]:
    """Cuts all images, those held out included, into parts that are to be left out once each.

    Args:
        feed: the images.
        count: how many parts to cut; for 0 there are none.

    Raises:
        TrainingError: if a fold would have fewer than two images, or not all are in memory.
    """
    if not count:
        return []
    if not isinstance(feed.training, Tensor):
        raise TrainingError(
            "calibration folds need all images in memory. Use --calibration-folds 0, as so many "
            "held-out images support small rates, or a larger --memory-gib."
        )
    images = len(feed.training) + len(feed.held_out)
    if images < MIN_HELD_OUT * count:
        raise TrainingError(
            f"{images} usable training images; {count} calibration folds need at least "
            f"{MIN_HELD_OUT * count}."
        )
    return [Fold(feed, number, count) for number in range(count)]
