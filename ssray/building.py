"""From a category's images to a complete model artifact: load, hold out, fit, calibrate.

One process's share of it; where ``torch.distributed`` is initialised every process calls
``build_model`` with the same arguments. All end with the same weights; batch statistics are each
process's own, and rank 0's artifact is the one to keep.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

import ssray
from ssray.artifact import ModelArtifact, TrainingFacts
from ssray.calibration import calibrate
from ssray.config import Compute, Recipe
from ssray.data.loading import load_images
from ssray.device import resolve_precision
from ssray.errors import TrainingError
from ssray.training import Epoch, fit

MIN_IMAGES = 4
MIN_HELD_OUT = 2


def build_model(
    uris: Sequence[str],
    category: str,
    version: str,
    recipe: Recipe,
    compute: Compute,
    device: torch.device,
    *,
    threads: int,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> ModelArtifact:
    """Trains one category's model.

    Args:
        uris: defect-free training images.
        category: whose model it is.
        version: name of the new version.
        recipe: what to train.
        compute: precision, seed, worker count and time budget.
        device: where this process trains.
        threads: CPU threads of this process.
        on_epoch: receives each row of the epoch log.

    Raises:
        DataError: if no image can be decoded.
        TrainingError: if fewer than 4 can.
    """
    loaded = load_images(uris, recipe.image_size, threads)
    training, held_out = split_held_out(
        torch.from_numpy(loaded.images), recipe.schedule.holdout, compute.seed
    )
    torch.set_num_threads(threads)
    precision = _agreed(resolve_precision(compute.precision, device, recipe.network))
    fitted = fit(
        training,
        held_out,
        recipe,
        device=device,
        precision=precision,
        seed=compute.seed,
        max_minutes=compute.max_minutes,
        on_epoch=on_epoch,
    )
    last = fitted.history[-1]
    facts = TrainingFacts(
        training_images=len(training),
        held_out_images=len(held_out),
        skipped_images=len(loaded.skipped),
        input_shape=(training.shape[1], training.shape[2]),
        images_seen=last.images_seen,
        seconds=last.seconds,
        validation_loss=last.validation_loss,
        device=str(device),
        precision="bfloat16" if precision == torch.bfloat16 else "float32",
        workers=compute.workers,
        seed=compute.seed,
        ssray_version=ssray.__version__,
        torch_version=torch.__version__,
    )
    return ModelArtifact(
        category=category,
        version=version,
        recipe=recipe,
        calibration=calibrate(fitted.model, held_out, training, recipe, precision, compute.seed),
        facts=facts,
        weights={k: v.detach().cpu().contiguous() for k, v in fitted.model.state_dict().items()},
    )


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
    order = torch.from_numpy(np.random.default_rng(seed).permutation(count))
    return images[order[held:]], images[order[:held]]


def _agreed(precision: torch.dtype) -> torch.dtype:
    """Rank 0's choice for all: two workers that time themselves may disagree."""
    if not dist.is_initialized():
        return precision
    choice: list[torch.dtype] = [precision]
    dist.broadcast_object_list(choice, src=0)
    return choice[0]
