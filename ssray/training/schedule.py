"""Learning rate, crops and batches, which follow from the share of the budget that is spent."""

from __future__ import annotations

import math

from ssray.config import STRIDE, Schedule

LEAST_CROP = 32
"""The shortest side of a crop in pixels, unless the image is smaller."""


def images_to_see(schedule: Schedule, training_images: int) -> float:
    """How many images a training sees.

    That is ``schedule.images``, or ``schedule.epochs`` passes over the training images if these are
    fewer.

    >>> images_to_see(Schedule(images=1000, epochs=20), training_images=30)
    600.0
    """
    epochs = schedule.epochs or math.inf
    return min(float(schedule.images), epochs * training_images)


def learning_rate(spent: float, schedule: Schedule) -> float:
    """The learning rate after a share of the budget is spent.

    It rises linearly during the warm-up, and then falls along a cosine that reaches 0 when the
    whole budget is spent.

    Args:
        spent: the share of the budget that is gone, in [0, 1].
        schedule: the highest learning rate, and the share of the budget that the warm-up takes.
    """
    if spent < schedule.warmup:
        return schedule.learning_rate * max(spent, 0.01 * schedule.warmup) / schedule.warmup
    along = min(1.0, (spent - schedule.warmup) / (1 - schedule.warmup))
    return schedule.learning_rate * 0.5 * (1 + math.cos(math.pi * along))


def crop_shape(spent: float, schedule: Schedule, image_shape: tuple[int, int]) -> tuple[int, int]:
    """The rows and columns of the crops after a share of the budget is spent.

    Each of ``schedule.crops`` is used for an equal share of the budget. Crops that are turned by a
    right angle are squares. Sides that are shorter than the image's are multiples of 8 and have at
    least 32 pixels.

    Args:
        spent: the share of the budget that is gone, in [0, 1].
        schedule: the sides of the crops as shares of the image's, and the augmentation.
        image_shape: the rows and columns of the images.
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
    """How many crops each worker takes in a step.

    They fill the area of the worker's part of ``schedule.batch`` images, and are at least two,
    because the statistics of batch normalisation need them.
    """
    return max(2, schedule.batch * math.prod(image_shape) // (math.prod(crop) * workers))
