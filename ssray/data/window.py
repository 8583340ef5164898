"""Lets a training draw from more images than memory holds: part of them, which keeps changing."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ssray.data.decode import UInt8Image
from ssray.data.pose import Framing
from ssray.errors import DataError

START = 256
"""How many images are loaded before the first one is drawn."""
DRAWS = 4
"""How many images are drawn for each new one that is loaded."""
_LEAD = 16
"""How many images before the window's first one are decoded, to replace it if it is damaged."""
_STAGED = 64
"""How many images are copied to the device at once, if they take no more than the next limit."""
_STAGED_BYTES = 64 * 1024**2

Decode = Callable[[Sequence[str], Framing], Iterator[UInt8Image | None]]
"""Decodes images: yields one for each URI, in order, as the framing makes it.

For an image that can't be used it yields None.
"""


class ImageWindow:
    """A fixed number of images in memory, of which the oldest are replaced by new ones.

    Which images it holds depends only on how many were drawn, so a resumed training sees the same
    images again. An image that can't be used is replaced by the one before it; if there is none,
    by the first one that can be used.

    Attributes:
        total: how many images there are; with several processes, the number over all of them.
        damaged: the URIs of the images that turned out unusable so far.
    """

    def __init__(
        self,
        uris: Sequence[str],
        framing: Framing,
        decode: Decode,
        capacity: int,
        *,
        seed: int = 0,
        total: int | None = None,
    ) -> None:
        """Makes an empty window; ``advance`` loads images.

        Args:
            uris: the images of this process; each pass over them has its own random order.
            framing: makes images of one shape of the photographs.
            decode: reads and decodes images.
            capacity: how many images to hold at once.
            seed: fixes the orders.
            total: how many images there are over all processes; default: ``len(uris)``.
        """
        self.total = total or len(uris)
        self.damaged: set[str] = set()
        self._uris, self._framing, self._decode, self._seed = uris, framing, decode, seed
        self._slots = torch.zeros((capacity, *framing.shape, 3), dtype=torch.uint8)
        self._entered = 0
        self._arrivals: Iterator[UInt8Image] = iter(())

    @property
    def met(self) -> int:
        """How many different images have been loaded since the start of the training."""
        return min(self._entered, len(self._uris))

    @property
    def capacity_bytes(self) -> int:
        """How many bytes the images take when the window is full."""
        return self._slots.nbytes

    @property
    def images(self) -> Tensor:
        """The images that the window holds now: (N, H, W, 3) uint8, on the window's device."""
        return self._slots[: self._entered]

    def to(self, device: torch.device) -> None:
        """Moves the window to a device; images that are loaded later go there, too."""
        self._slots = self._slots.to(device)

    def advance(self, drawn: float) -> None:
        """Loads the images that are due once ``drawn`` images have been drawn since the start.

        The number may also jump or fall: if the window can't get there by moving on, it is filled
        anew.

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
        """Copies ``count`` images into the slots from ``place`` on; for a GPU by pinned memory."""
        on_gpu = self._slots.device.type == "cuda"
        staged = torch.empty((count, *self._framing.shape, 3), dtype=torch.uint8, pin_memory=on_gpu)
        for slot, image in zip(staged, arrivals, strict=True):
            slot.numpy()[...] = image
        self._slots[place : place + count].copy_(staged, non_blocking=True)

    def _from(self, position: int) -> Iterator[UInt8Image]:
        """Yields the images from a position on without end, one pass after the other."""
        first, offset = divmod(position, len(self._uris))
        latest: UInt8Image | None = None
        waiting = 0
        for number in itertools.count(first):
            order = np.random.default_rng((self._seed, number)).permutation(len(self._uris))
            chosen = [self._uris[i] for i in order[offset:]]
            offset = 0
            for uri, image in zip(chosen, self._decode(chosen, self._framing), strict=True):
                if image is None:
                    self.damaged.add(uri)
                latest = latest if image is None else image
                waiting += 1
                if latest is not None:
                    yield from itertools.repeat(latest, waiting)
                    waiting = 0
            if len(self.damaged) == len(self._uris):
                raise DataError(
                    f"none of {len(self._uris)} images can be used. Expected images that Pillow "
                    "can read."
                )
