"""From a category's images to a complete model artifact: load, hold out, fit, calibrate.

One process's share of it; where ``torch.distributed`` is initialised every process calls
``build_model`` with the same arguments. All end with the same weights; batch statistics are each
process's own, and rank 0's artifact is the one to keep.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

import ssray
from ssray.artifact import ModelArtifact, TrainingFacts
from ssray.calibration import calibrate
from ssray.config import Compute, Recipe
from ssray.data.index import index_images
from ssray.data.loading import load_images, spread
from ssray.data.storage import Location
from ssray.device import resolve_precision
from ssray.errors import TrainingError
from ssray.training import Epoch, fit

MIN_IMAGES = 4
MIN_HELD_OUT = 2
MOST_TEXTURES = 256


def build_model(
    uris: Sequence[str],
    category: str,
    version: str,
    recipe: Recipe,
    compute: Compute,
    device: torch.device,
    *,
    threads: int,
    on_epoch: Callable[[Epoch, nn.Module], None] = lambda epoch, network: None,
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
        on_epoch: receives each row of the epoch log, and the averaged network as it is then.

    Raises:
        DataError: if no image can be decoded.
        TrainingError: if fewer than 4 can.
    """
    loaded = load_images(uris, recipe.image_size, threads)
    textures = load_textures(recipe, threads)
    training, held_out = split_held_out(
        torch.from_numpy(loaded.images), recipe.schedule.holdout, compute.seed
    )
    torch.set_num_threads(threads)
    precision = _agreed(resolve_precision(compute.precision, device, recipe.network))
    parts = ensemble_parts(recipe)
    networks, history = list[nn.Module](), list[Epoch]()
    for number, part in enumerate(parts):
        in_whole = functools.partial(
            _in_whole, before=history[-1] if history else None, number=number, parts=len(parts)
        )
        fitted = fit(
            training,
            held_out,
            part,
            device=device,
            precision=precision,
            seed=compute.seed,
            max_minutes=compute.max_minutes and compute.max_minutes / len(parts),
            textures=textures,
            on_epoch=lambda epoch, network, whole=in_whole: on_epoch(  # type: ignore[misc]
                whole(epoch), network
            ),
        )
        networks.append(fitted.model)
        history.append(in_whole(fitted.history[-1]))
    calibration, average_map = calibrate(
        networks, held_out, training, recipe, precision, compute.seed
    )
    last = history[-1]
    facts = TrainingFacts(
        training_images=len(training),
        held_out_images=len(held_out),
        skipped_images=len(loaded.skipped),
        input_shape=(training.shape[1], training.shape[2]),
        images_seen=last.images_seen,
        seconds=last.seconds,
        validation_loss=history[0].validation_loss,
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
        calibration=calibration,
        facts=facts,
        weights=tuple(_on_cpu(network) for network in networks),
        average_map=average_map,
    )


def ensemble_parts(recipe: Recipe) -> list[Recipe]:
    """The recipe of each network: itself, or for an ensemble one an objective, half the budget."""
    if recipe.objective.kind != "ensemble":
        return [recipe]
    half = recipe.schedule.model_copy(update={"images": max(1, recipe.schedule.images // 2)})
    return [
        recipe.model_copy(
            update={
                "objective": recipe.objective.model_copy(update={"kind": kind}),
                "schedule": half,
            }
        )
        for kind in ("reconstruct", "amplify")
    ]


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


def _in_whole(epoch: Epoch, before: Epoch | None, number: int, parts: int) -> Epoch:
    """A network's epoch as a row of the log of all ``parts`` networks."""
    passes, images, seconds = (
        (before.epoch, before.images_seen, before.seconds) if before else (0.0, 0.0, 0.0)
    )
    still_to_come = (parts - number - 1) * (epoch.seconds + epoch.seconds_left)
    return dataclasses.replace(
        epoch,
        epoch=passes + epoch.epoch,
        images_seen=images + epoch.images_seen,
        budget_spent=(number + epoch.budget_spent) / parts,
        seconds=seconds + epoch.seconds,
        seconds_left=epoch.seconds_left + still_to_come,
    )


def _on_cpu(network: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}


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
