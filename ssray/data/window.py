"""A window that moves over more images than memory holds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ssray.data.decode import UInt8Image
from ssray.errors import DataError

START = 256
"""Images that are there before the first is drawn."""
DRAWS = 4
"""Images that are drawn for each one that comes in."""
_LEAD = 16
"""Images decoded before the first of a window, which may have to stand in for it."""
_STAGED = 64
"""Images that are copied to the device at once, if they are not too large."""
_STAGED_BYTES = 64 * 1024**2

Decode = Callable[[Sequence[str], tuple[int, int]], Iterator[UInt8Image | None]]
"""Yields the image behind each URI in order, resized to the shape; None where it can't be used."""


class ImageWindow:
    """Images to draw from while others take their places, the oldest first.

    What it holds depends only on how many were drawn, so that a training that is resumed sees
    the same images. One that can't be used is replaced by the one before it, or the first of all
    that can.

    Attributes:
        total: how many images the window moves over; with several processes, over all of them.
        damaged: URIs of those met so far that can't be used.
    """

    def __init__(
        self,
        uris: Sequence[str],
        shape: tuple[int, int],
        decode: Decode,
        capacity: int,
        *,
        seed: int = 0,
        total: int | None = None,
    ) -> None:
        """Takes nothing in yet.

        Args:
            uris: of this process; each pass over them has its own order.
            shape: rows and columns.
            decode: how to get at the images.
            capacity: how many to hold at once.
            seed: fixes the order.
            total: how many images there are over all processes; default: ``len(uris)``.
        """
        self.total = total or len(uris)
        self.damaged: set[str] = set()
        self._uris, self._shape, self._decode, self._seed = uris, shape, decode, seed
        self._slots = torch.zeros((capacity, *shape, 3), dtype=torch.uint8)
        self._entered = 0
        self._arrivals: Iterator[UInt8Image] = iter(())

    @property
    def met(self) -> int:
        """How many different images have come in since the start of the training."""
        return min(self._entered, len(self._uris))

    @property
    def capacity_bytes(self) -> int:
        """That the images take when the window is full."""
        return self._slots.nbytes

    @property
    def images(self) -> Tensor:
        """(N, H, W, 3) uint8, on the device last moved to."""
        return self._slots[: self._entered]

    def to(self, device: torch.device) -> None:
        """Moves the images, and those to come, to a device."""
        self._slots = self._slots.to(device)

    def advance(self, drawn: float) -> None:
        """Takes in what is due after so many images were drawn; waits for it if need be.

        Any number may follow any other: where it can't be reached, the window is filled anew.

        Raises:
            DataError: if none of the images can be used.
        """
        capacity = len(self._slots)
        due = min(START, capacity) + int(drawn / DRAWS)
        if self._entered == 0 or not 0 <= due - self._entered < capacity:
            self._entered = max(0, due - capacity)
            lead = min(_LEAD, self._entered)
            self._arrivals = itertools.islice(self._from(self._entered - lead), lead, None)
        staged = min(_STAGED, max(1, _STAGED_BYTES // self._slots[0].nbytes))
        while self._entered < due:
            place = self._entered % capacity
            count = min(due - self._entered, capacity - place, staged)
            self._take_in(itertools.islice(self._arrivals, count), place, count)
            self._entered += count

    def _take_in(self, arrivals: Iterator[UInt8Image], place: int, count: int) -> None:
        """Puts images into neighbouring slots, through memory from which a GPU copies by itself."""
        on_gpu = self._slots.device.type == "cuda"
        staged = torch.empty((count, *self._shape, 3), dtype=torch.uint8, pin_memory=on_gpu)
        for slot, image in zip(staged, arrivals, strict=True):
            slot.numpy()[...] = image
        self._slots[place : place + count].copy_(staged, non_blocking=True)

    def _from(self, position: int) -> Iterator[UInt8Image]:
        """All arrivals from a position on, pass after pass."""
        first, offset = divmod(position, len(self._uris))
        latest: UInt8Image | None = None
        waiting = 0
        for number in itertools.count(first):
            order = np.random.default_rng((self._seed, number)).permutation(len(self._uris))
            chosen = [self._uris[i] for i in order[offset:]]
            offset = 0
            for uri, image in zip(chosen, self._decode(chosen, self._shape), strict=True):
                if image is None:
                    self.damaged.add(uri)
                latest = latest if image is None else image
                waiting += 1
                if latest is not None:
                    yield from itertools.repeat(latest, waiting)
                    waiting = 0
            if len(self.damaged) == len(self._uris):
                raise DataError(f"none of {len(self._uris)} images can be used.")
