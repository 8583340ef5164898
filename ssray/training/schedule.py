"""What follows the share of the budget that is spent: learning rate, crops and batches."""

from __future__ import annotations

import math

from ssray.config import STRIDE, Schedule

LEAST_CROP = 32
"""Pixels."""


def images_to_see(schedule: Schedule, training_images: int) -> float:
    """The budget in images: ``images``, or ``epochs`` passes over the training images if fewer.

    >>> images_to_see(Schedule(images=1000, epochs=20), training_images=30)
    600.0
    """
    epochs = schedule.epochs or math.inf
    return min(float(schedule.images), epochs * training_images)


def learning_rate(spent: float, schedule: Schedule) -> float:
    """Linear warm-up, then a cosine that reaches 0 when the budget is spent, ``spent`` being 1."""
    if spent < schedule.warmup:
        return schedule.learning_rate * max(spent, 0.01 * schedule.warmup) / schedule.warmup
    along = min(1.0, (spent - schedule.warmup) / (1 - schedule.warmup))
    return schedule.learning_rate * 0.5 * (1 + math.cos(math.pi * along))


def crop_shape(spent: float, schedule: Schedule, image_shape: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the crops: each of ``schedule.crops`` for an equal share of the budget.

    ``spent`` is the share that is gone, in [0, 1].

    Crops that are turned by a right angle are squares. Sides smaller than the image's are
    multiples of 8 and have at least 32 pixels.
    """
    stage = min(int(spent * len(schedule.crops)), len(schedule.crops) - 1)
    if schedule.augmentation in ("turn", "dihedral"):
        image_shape = (min(image_shape), min(image_shape))
    rows, columns = (
        min(side, max(LEAST_CROP, round(schedule.crops[stage] * side / STRIDE) * STRIDE))
        if schedule.crops[stage] < 1
        else side
        for side in image_shape
    )
    return rows, columns


def batch_size(
    crop: tuple[int, int], image_shape: tuple[int, int], schedule: Schedule, workers: int
) -> int:
    """How many crops a step each worker takes: they fill the area of its part of ``batch`` images.

    At least two, for batch statistics.
    """
    return max(2, schedule.batch * math.prod(image_shape) // (math.prod(crop) * workers))
