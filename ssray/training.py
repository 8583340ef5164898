"""``fit``: one process's training loop.

It knows nothing of Ray. Where ``torch.distributed`` is initialised it trains with DDP,
each process on its share of every step; otherwise alone.

The learning rate and the crop size follow one number, the share of the budget that is
spent: images seen out of ``schedule.images``, or minutes out of ``max_minutes``,
whichever is further along. So a run that is given fifteen minutes anneals within them.
A crop counts as the share of an image that it covers, so that equal shares of the budget
cost about equal time whatever the crop.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssray.config import Objective, Recipe
from ssray.errors import TrainingError
from ssray.method.augmentation import draw_crops, random_light
from ssray.method.autoencoder import Autoencoder
from ssray.method.corruption import Corrupted, corrupt
from ssray.method.inference import autocast, image_batches, reconstruct
from ssray.method.objective import amplification_objective, reconstruction_objective
from ssray.schedule import batch_size, crop_shape, learning_rate
from ssray.stopping import EarlyStopping
from ssray.team import Team

VALIDATION_IMAGES = 8
SECONDS_BETWEEN_ROWS = 10.0


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One row of the epoch log, written every few seconds and at the end.

    ``objective`` is the one the network is trained with, ``epoch`` counts how often the training
    set was seen, fractions included.

    Losses are the objective on pixel values in [0, 1], the training loss averaged since the
    previous row over all workers, the validation loss on held-out images with the averaged
    weights. Times are seconds. Images are counted over all workers, crops by their area.
    """

    objective: str

    epoch: float
    images_seen: float
    budget_spent: float
    crop_rows: int
    crop_columns: int
    learning_rate: float
    train_loss: float
    validation_loss: float
    images_per_second: float
    seconds: float
    seconds_left: float


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What ``fit`` returns: the averaged network in eval mode, and its epoch log."""

    model: nn.Module
    history: list[Epoch]


def fit(
    training: Tensor,
    held_out: Tensor,
    recipe: Recipe,
    *,
    device: torch.device,
    precision: torch.dtype,
    seed: int = 0,
    max_minutes: float | None = None,
    textures: Tensor | None = None,
    on_epoch: Callable[[Epoch, nn.Module], None] = lambda epoch, network: None,
) -> Fitted:
    """Trains one autoencoder.

    Args:
        training: (N, H, W, 3) uint8 defect-free images, any device.
        held_out: (M, H, W, 3) uint8 images for the validation loss.
        recipe: what to train; its objective is (1) or (4), no ensemble.
        device: where to train. The training images are moved there as uint8.
        precision: float32, or bfloat16 for autocast with float32 weights.
        seed: fixes initial weights and, with the rank, what this worker draws.
        max_minutes: time budget; None leaves ``schedule.images`` alone to end the run.
        textures: (T, H', W', 3) uint8 foreign content for the corruption, any device.
        on_epoch: called on every process with each row of the epoch log and the averaged
            network as it is then.

    Raises:
        ValueError: if the objective is an ensemble.
        TrainingError: if the loss is no longer finite.
    """
    if recipe.objective.kind == "ensemble":
        raise ValueError("fit trains one network; ssray.building.ensemble_parts splits an ensemble")
    schedule = recipe.schedule
    team = Team.current()
    torch.manual_seed(seed)  # initial weights are drawn from torch's global generator
    model = Autoencoder(recipe.network)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = _Average(model, schedule.averaging)
    network: nn.Module = DistributedDataParallel(model) if team.size > 1 else model
    optimizer = torch.optim.Adam(network.parameters(), lr=schedule.learning_rate)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + team.rank)
    training = training.to(device)
    textures = None if textures is None else textures.to(device)
    stopping = EarlyStopping(recipe.objective, held_out, precision, team)

    history: list[Epoch] = []
    loss_sum = torch.zeros((), device=device)
    image_shape = training.shape[1], training.shape[2]
    steps = 0
    seen = row_seen = spent = 0.0
    started = row_time = time.monotonic()
    network.train()
    stopped = False
    while not stopped and spent < 1.0:
        crop = crop_shape(spent, schedule, image_shape)
        batch = batch_size(crop, image_shape, schedule, team.size)
        rate = learning_rate(spent, schedule)
        for group in optimizer.param_groups:
            group["lr"] = rate

        images = draw_crops(training, batch, crop, schedule.augmentation, generator)
        if schedule.photometric:
            images = random_light(images, schedule.photometric, generator)
        corrupted = corrupt(images, recipe.corruption, min(image_shape), generator, textures)
        with autocast(device, precision):
            reconstruction = network(corrupted.images)
        loss = objective(reconstruction, corrupted, recipe.objective)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        average.update(model)

        loss_sum += loss.detach()
        steps += 1
        seen += team.size * batch * crop[0] * crop[1] / math.prod(image_shape)
        now = time.monotonic()
        clock = (now - started) / (60 * max_minutes) if max_minutes else 0.0
        spent, row_due = team.agree(
            max(seen / schedule.images, clock), now - row_time >= SECONDS_BETWEEN_ROWS
        )
        stopped = stopping.after(spent, average.model)
        if stopped or spent >= 1.0:
            stopping.restore(average.model)
        if row_due or stopped or spent >= 1.0:
            train_loss = team.mean(loss_sum / steps)
            validation = team.first(
                validation_loss(average.model, held_out, recipe, precision, textures)
            )
            if not math.isfinite(train_loss + validation):
                raise TrainingError(
                    f"the loss became {train_loss} after {seen:.0f} images; try a lower "
                    "schedule.learning_rate or --precision float32."
                )
            now = time.monotonic()
            epoch = Epoch(
                objective=recipe.objective.kind,
                epoch=seen / len(training),
                images_seen=seen,
                budget_spent=1.0 if stopped else min(spent, 1.0),
                crop_rows=crop[0],
                crop_columns=crop[1],
                learning_rate=rate,
                train_loss=train_loss,
                validation_loss=validation,
                images_per_second=(seen - row_seen) / (now - row_time),
                seconds=now - started,
                seconds_left=0.0 if stopped else (now - started) * max(1 / spent - 1, 0),
            )
            history.append(epoch)
            on_epoch(epoch, average.model)
            loss_sum.zero_()
            steps, row_seen, row_time = 0, seen, now
    return Fitted(model=average.model.eval(), history=history)


def objective(reconstruction: Tensor, corrupted: Corrupted, settings: Objective) -> Tensor:
    """Objective (1) or (4), a scalar."""
    target, mask, lam = corrupted.target, corrupted.mask, settings.lam
    if settings.kind == "amplify":
        return amplification_objective(reconstruction, target, corrupted.images, mask, lam)
    return reconstruction_objective(reconstruction, target, mask, lam)


@torch.inference_mode()
def validation_loss(
    model: nn.Module,
    held_out: Tensor,
    recipe: Recipe,
    precision: torch.dtype,
    textures: Tensor | None = None,
) -> float:
    """The objective on corrupted held-out images; the same corruption on every call.

    Args:
        held_out: (M, H, W, 3) uint8; the first 8 are used.
        textures: as for ``fit``, on the model's device.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    side = min(held_out.shape[1:3])
    was_training = model.training
    model.eval()
    losses = []
    for images in image_batches(held_out[:VALIDATION_IMAGES], 4, device):
        corrupted = corrupt(images, recipe.corruption, side, generator, textures)
        reconstruction = reconstruct(model, corrupted.images, precision)
        losses.append(objective(reconstruction, corrupted, recipe.objective))
    model.train(was_training)
    return float(torch.stack(losses).mean())


class _Average:
    """Exponential average of a network's weights and buffers.

    Its memory grows with the run, up to ``limit``: short runs would otherwise still remember
    their random initial weights at the end.
    """

    def __init__(self, model: nn.Module, limit: float) -> None:
        self.model = copy.deepcopy(model)
        self._limit = limit
        self._steps = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        decay = min(self._limit, (1 + self._steps) / (10 + self._steps)) if self._steps else 0.0
        self._steps += 1
        pairs = list(zip(_state(self.model), _state(model), strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_(
            [mine for mine, _ in floats], [theirs for _, theirs in floats], 1 - decay
        )
        for mine, theirs in pairs:
            if not mine.is_floating_point():
                mine.copy_(theirs)


def _state(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
