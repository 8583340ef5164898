"""Lets a step take more images than in the recipe, where a GPU or many cores would stand idle.

A recipe states how many images a step takes, for its learning rate. A step that takes ``g`` times
as many is trained with ``sqrt(g)`` times the learning rate and averages its weights over as many
images as before (decay ``** g``); as many images are seen, in fewer steps. The square root is the
rule for Adam, whose steps do not grow with the gradient: what a larger batch changes is the noise
(Malladi et al., "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms").

``LEAST_STEPS`` bounds it. Of equal images, networks ended worse after 500 steps than after 4,000,
and no worse after 1,000 (``docs/measured.md``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from ssray.config import Compute, Recipe
from ssray.method.autoencoder import Autoencoder
from ssray.models.device import seconds_a_step
from ssray.training.distributed import ProcessGroup
from ssray.training.images import Feed
from ssray.training.schedule import batch_size, images_to_see
from ssray.training.trainer import Numerics

LEAST_STEPS = 2000
"""How many steps a training keeps at least, where crops are whole images."""
LEAST_GAIN = 1.1
"""How many times the images a second must rise for twice the images a step to be worth it."""
MEMORY_SHARE = 0.5
"""The share of a GPU's memory, or of a worker's part of it, that the network with its gradients and
the images of the training may take. Their corruption and other processes need some, too."""


def most_growth(recipe: Recipe, training_images: int) -> float:
    """How many times the recipe's images a step may take at most.

    ``LEAST_STEPS`` remain. The result is at least 1.

    >>> from ssray.config import Schedule
    >>> schedule = Schedule(images=80_000, batch=4, epochs=None)
    >>> most_growth(Recipe(schedule=schedule), training_images=100)
    10.0
    """
    networks = 2 if recipe.objective.kind == "ensemble" else 1  # they share the budget
    steps = images_to_see(recipe.schedule, training_images) / recipe.schedule.batch
    return max(1.0, steps / networks / LEAST_STEPS)


def grown(recipe: Recipe, growth: float) -> Recipe:
    """The recipe, changed to steps of ``growth`` times as many images."""
    schedule = recipe.schedule
    changed = {
        "batch": max(1, round(schedule.batch * growth)),
        "learning_rate": schedule.learning_rate * math.sqrt(growth),
        "averaging": schedule.averaging**growth,
    }
    return recipe.model_copy(update={"schedule": schedule.model_copy(update=changed)})


def choose_growth(recipe: Recipe, compute: Compute, feed: Feed, numerics: Numerics) -> float:
    """How many times the recipe's images a step takes; the same for all processes.

    It is as many as were stated. Otherwise a GPU gets as many as fill it. On CPUs, where nobody
    stated how many workers share a step, each of them gets a step of the recipe's.

    Args:
        recipe: what is to be trained.
        compute: images a step, number of workers and share of a GPU, where they are stated.
        feed: the images to train on.
        numerics: how a step is computed.
    """
    if compute.images_per_step:
        return compute.images_per_step / recipe.schedule.batch
    processes = ProcessGroup.current()
    most = most_growth(recipe, feed.training_images)
    if numerics.device.type != "cuda":
        return min(most, 1.0 if compute.workers else float(processes.size))
    growth = filling_growth(
        recipe,
        feed.shape,
        numerics,
        most=most,
        memory_share=min(1.0, compute.gpus_per_worker or 1.0),
        taken_bytes=feed.nbytes,
    )
    return processes.least(float(growth))


def filling_growth(
    recipe: Recipe,
    shape: tuple[int, int],
    numerics: Numerics,
    *,
    most: float,
    memory_share: float = 1.0,
    taken_bytes: int = 0,
) -> int:
    """The growth that fills a device.

    Bare steps are timed to find it, which takes a second or two.

    Args:
        recipe: what is to be trained.
        shape: the rows and columns of its images.
        numerics: the device to fill, the precision, and in how many parts a step is taken, of
            which the device takes one at a time.
        most: the growth not to exceed.
        memory_share: the share of the device's memory that this process may take.
        taken_bytes: how much of it the training's images will take.

    Returns:
        A power of two.
    """
    device = numerics.device
    parts = numerics.count_parts(ProcessGroup.current().size)
    sizes: dict[int, int] = {}  # a part has two images at least, at several growths perhaps
    for growth in (2**power for power in range(int(math.log2(most)) + 1)):
        sizes[batch_size(shape, shape, grown(recipe, growth).schedule, parts)] = growth
    found = worth_growing(_speed(recipe, shape, numerics, memory_share, taken_bytes), list(sizes))
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return sizes[found]


def _speed(
    recipe: Recipe,
    shape: tuple[int, int],
    numerics: Numerics,
    memory_share: float,
    taken_bytes: int,
) -> Callable[[int], float | None]:
    """Prepares the function that ``worth_growing`` asks for the speed of a batch.

    Args:
        recipe: what is to be trained.
        shape: the rows and columns of its images.
        numerics: the device and the precision.
        memory_share: the share of the device's memory that this process may take.
        taken_bytes: how much of it the training's images will take.
    """
    device = numerics.device
    network = Autoencoder(recipe.network).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    on_gpu = device.type == "cuda"
    held = torch.cuda.memory_allocated(device) if on_gpu else 0

    def speed(batch: int) -> float | None:
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
        try:
            images = torch.rand(batch, 3, *shape, device=device)
            images = images.contiguous(memory_format=torch.channels_last)
            seconds = seconds_a_step(network, images, numerics.precision, optimizer)
        except RuntimeError:  # libraries that find no memory have errors of their own
            if not on_gpu:
                raise
            return None
        if on_gpu:
            needed = torch.cuda.max_memory_allocated(device) - held
            total = memory_share * torch.cuda.get_device_properties(device).total_memory
            if needed + taken_bytes > MEMORY_SHARE * total:
                return None
        return batch / seconds

    return speed


def worth_growing(speed: Callable[[int], float | None], batches: Sequence[int]) -> int:
    """The largest batch up to which the images a second rise by a tenth from each to the next.

    Args:
        speed: gives the images a second with a batch; None where the memory holds no such step.
        batches: the batches to try, in rising order. If there is only one, it is not timed.

    >>> worth_growing({4: 250.0, 8: 490.0, 16: 900.0, 32: 950.0}.get, [4, 8, 16, 32])
    16
    """
    best, *larger = batches
    fastest = speed(best) if larger else None
    for batch in larger:
        found = speed(batch) if fastest else None
        if fastest is None or found is None or found < LEAST_GAIN * fastest:
            break
        best, fastest = batch, found
    return best
