"""The loss of a network on corrupted images: what a step lowers, and what the epoch log shows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssray.config import Objective, Recipe
from ssray.method.corruption import Corrupted, corrupt
from ssray.method.inference import evaluating, image_batches, reconstruct
from ssray.method.objective import amplification_objective, reconstruction_objective
from ssray.training.distributed import ProcessGroup

VALIDATION_IMAGES = 8
"""The number of held-out images whose loss is the validation loss."""


def objective(reconstruction: Tensor, corrupted: Corrupted, settings: Objective) -> Tensor:
    """The paper's objective (1), or (4) where the recipe says so, as a scalar.

    Args:
        reconstruction: (B, C, H, W) what the network made of the corrupted images.
        corrupted: the corrupted images, the originals and the masks.
        settings: which objective, and how much the corrupted pixels weigh in it.
    """
    target, mask, weight = corrupted.target, corrupted.mask, settings.corrupted_weight
    if settings.kind == "amplify":
        return amplification_objective(reconstruction, target, corrupted.images, mask, weight)
    return reconstruction_objective(reconstruction, target, mask, weight)


@torch.inference_mode()
def validation_loss(
    model: nn.Module,
    held_out: Tensor,
    recipe: Recipe,
    precision: torch.dtype,
    textures: Tensor | None = None,
) -> float:
    """The mean objective of held-out images that are corrupted in the same way on every call.

    Processes that train together share the images out among them, and each gets the mean over all
    of them. Each image is corrupted by itself, so that patches which are swapped in from other
    images of a batch do not make the result depend on the batch.

    Args:
        model: the network, the same in every process.
        held_out: (M, H, W, 3) uint8, the same in every process; the first 8 are used.
        recipe: says how images are corrupted and what the objective is.
        precision: the data type of the network's inner layers.
        textures: (T, H', W', 3) uint8 foreign content for the corruption, on the model's device.
    """
    processes = ProcessGroup.current()
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    side = min(held_out.shape[1:3])
    loss, count = 0.0, 0.0
    with evaluating(model):
        for number, image in enumerate(image_batches(held_out[:VALIDATION_IMAGES], 1, device)):
            corrupted = corrupt(image, recipe.corruption, side, generator, textures)
            if number % processes.size == processes.rank:
                reconstruction = reconstruct(model, corrupted.images, precision)
                loss += float(objective(reconstruction, corrupted, recipe.objective))
                count += 1
    loss, count = processes.total(loss, count)
    return loss / count
