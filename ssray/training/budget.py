"""How much of its budget a training has spent."""

from __future__ import annotations

import time

from ssray.config import Schedule
from ssray.training.checkpoint import Checkpoint
from ssray.training.schedule import images_to_see


class Budget:
    """What a training may spend, and how much of it is gone.

    A budget is a number of images, and where ``max_minutes`` is set also a number of minutes.
    Whichever is further along counts. The clock runs from the moment the object is made.

    Attributes:
        images_seen: the images seen so far by all processes together. A crop counts as the share
            of an image that it covers.
        spent: the share of the budget that is gone, in [0, 1], as all processes agreed after the
            last step.
    """

    def __init__(
        self, schedule: Schedule, training_images: int, max_minutes: float | None = None
    ) -> None:
        """Starts the clock.

        Args:
            schedule: says how many images or epochs the training takes.
            training_images: the number of different images to train on, over all processes.
            max_minutes: the time limit in minutes; None for no limit.
        """
        self.images_seen = self.spent = 0.0
        self._images = images_to_see(schedule, training_images)
        self._max_minutes = max_minutes
        self._seconds_before = 0.0
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long the training has run, including the time before it was resumed."""
        return self._seconds_before + time.monotonic() - self._started

    @property
    def finished(self) -> bool:
        """Whether the whole budget is spent."""
        return self.spent >= 1.0

    def share(self) -> float:
        """The share that is gone by this process's own count and clock; may exceed 1."""
        clock = self.seconds / (60 * self._max_minutes) if self._max_minutes else 0.0
        return max(self.images_seen / self._images, clock)

    def state(self) -> Checkpoint:
        """What ``restore`` needs."""
        facts = {
            "images_seen": self.images_seen,
            "budget_spent": self.spent,
            "seconds": self.seconds,
        }
        return Checkpoint({}, facts)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes on from a state."""
        self.images_seen = checkpoint.facts["images_seen"]
        self.spent = checkpoint.facts["budget_spent"]
        self._seconds_before = checkpoint.facts["seconds"]
