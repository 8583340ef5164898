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

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from ssray.config import Augmentation, Recipe, Schedule
from ssray.errors import TrainingError
from ssray.method.autoencoder import ModelI
from ssray.method.corruption import corrupt
from ssray.method.inference import autocast, image_batches, reconstruct
from ssray.method.objective import reconstruction_objective

VALIDATION_IMAGES = 8
SECONDS_BETWEEN_ROWS = 10.0

_Tensors = tuple[Tensor, ...] | list[Tensor]


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One row of the epoch log, written every few seconds and at the end.

    ``epoch`` counts how often the training set was seen, fractions included.

    Losses are objective (1) on pixel values in [0, 1], the training loss averaged since the
    previous row over all workers, the validation loss on held-out images with the averaged
    weights. Times are seconds. Images are counted over all workers, crops by their area.
    """

    epoch: float
    images_seen: float
    budget_spent: float
    crop: int
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
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> Fitted:
    """Trains one autoencoder.

    Args:
        training: (N, H, W, 3) uint8 defect-free images, any device; sides multiples of 8.
        held_out: (M, H, W, 3) uint8 images for the validation loss.
        recipe: what to train.
        device: where to train. The training images are moved there as uint8.
        precision: float32, or bfloat16 for autocast with float32 weights.
        seed: fixes initial weights and, with the rank, what this worker draws.
        max_minutes: time budget; None leaves ``schedule.images`` alone to end the run.
        on_epoch: called on every process with each row of the epoch log.
    """
    schedule = recipe.schedule
    team = _Team.current()
    torch.manual_seed(seed)  # initial weights are drawn from torch's global generator
    model = ModelI(recipe.network)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = AveragedModel(model, multi_avg_fn=_decay(schedule.averaging), use_buffers=True)
    network: nn.Module = DistributedDataParallel(model) if team.size > 1 else model
    optimizer = torch.optim.Adam(network.parameters(), lr=schedule.learning_rate)
    generator = torch.Generator(device).manual_seed(seed * 1_000_003 + team.rank)
    training = training.to(device)

    history: list[Epoch] = []
    loss_sum = torch.zeros((), device=device)
    image_pixels = training.shape[1] * training.shape[2]
    steps = 0
    seen = row_seen = spent = 0.0
    started = row_time = time.monotonic()
    network.train()
    while spent < 1.0:
        crop = crop_side(spent, schedule, training.shape[1:3])
        batch = batch_size(crop, schedule, team.size)
        rate = learning_rate(spent, schedule)
        for group in optimizer.param_groups:
            group["lr"] = rate

        images = draw_crops(training, batch, crop, schedule.augmentation, generator)
        x_hat, mask = corrupt(images, recipe.corruption, generator)
        with autocast(device, precision):
            reconstruction = network(x_hat)
        loss = reconstruction_objective(reconstruction, images, mask, recipe.objective.lam)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        average.update_parameters(model)

        loss_sum += loss.detach()
        steps += 1
        seen += team.size * batch * crop**2 / image_pixels
        now = time.monotonic()
        clock = (now - started) / (60 * max_minutes) if max_minutes else 0.0
        spent, row_due = team.agree(
            max(seen / schedule.images, clock), now - row_time >= SECONDS_BETWEEN_ROWS
        )
        if row_due or spent >= 1.0:
            train_loss = team.mean(loss_sum / steps)
            validation = validation_loss(average.module, held_out, recipe, precision)
            if not math.isfinite(train_loss + validation):
                raise TrainingError(
                    f"the loss became {train_loss} after {seen:.0f} images; try a lower "
                    "schedule.learning_rate or --precision float32."
                )
            now = time.monotonic()
            epoch = Epoch(
                epoch=seen / len(training),
                images_seen=seen,
                budget_spent=min(spent, 1.0),
                crop=crop,
                learning_rate=rate,
                train_loss=train_loss,
                validation_loss=validation,
                images_per_second=(seen - row_seen) / (now - row_time),
                seconds=now - started,
                seconds_left=(now - started) * max(1 / spent - 1, 0),
            )
            history.append(epoch)
            on_epoch(epoch)
            loss_sum.zero_()
            steps, row_seen, row_time = 0, seen, now
    return Fitted(model=average.module.eval(), history=history)


def learning_rate(spent: float, schedule: Schedule) -> float:
    """Linear warm-up, then a cosine that reaches 0 when the budget is spent."""
    if spent < schedule.warmup:
        return schedule.learning_rate * max(spent, 0.01 * schedule.warmup) / schedule.warmup
    along = min(1.0, (spent - schedule.warmup) / (1 - schedule.warmup))
    return schedule.learning_rate * 0.5 * (1 + math.cos(math.pi * along))


def crop_side(spent: float, schedule: Schedule, image_shape: tuple[int, ...]) -> int:
    """Side of the square crops, pixels: each of ``schedule.crops`` for an equal share.

    Crops never exceed the image's shorter side.
    """
    stage = min(int(spent * len(schedule.crops)), len(schedule.crops) - 1)
    return min(schedule.crops[stage], *image_shape)


def batch_size(crop: int, schedule: Schedule, workers: int) -> int:
    """Crops a step on each worker: as many as fill its part of ``batch_pixels``.

    At least two, for batch statistics.
    """
    return max(2, schedule.batch_pixels // (crop**2 * workers))


def draw_crops(
    images: Tensor, batch: int, crop: int, augmentation: Augmentation, generator: torch.Generator
) -> Tensor:
    """Random square crops, flipped or turned as the augmentation allows.

    Args:
        images: (N, H, W, C) uint8 on the generator's device.
        batch: number of crops B, drawn with replacement.
        crop: side, pixels, at most H and W.

    Returns:
        (B, C, crop, crop) float32 in [0, 1], channels-last in memory.
    """
    count, height, width, _ = images.shape

    def draw(high: int) -> Tensor:
        return torch.randint(high, (batch, 1), generator=generator, device=images.device)

    span = torch.arange(crop, device=images.device)
    index, rows, columns = (
        draw(count),
        draw(height - crop + 1) + span,
        draw(width - crop + 1) + span,
    )
    if augmentation in ("flip", "dihedral"):
        rows = torch.where(draw(2) == 1, rows.flip(1), rows)
    if augmentation != "none":
        columns = torch.where(draw(2) == 1, columns.flip(1), columns)
    crops = images[index.unsqueeze(2), rows.unsqueeze(2), columns.unsqueeze(1)]
    if augmentation == "dihedral":
        turned = (draw(2) == 1).view(batch, 1, 1, 1)
        crops = torch.where(turned, crops.transpose(1, 2), crops)
    return crops.permute(0, 3, 1, 2).float().div_(255)


@torch.inference_mode()
def validation_loss(
    model: nn.Module, held_out: Tensor, recipe: Recipe, precision: torch.dtype
) -> float:
    """Objective (1) on corrupted held-out images; the same corruption on every call.

    Args:
        held_out: (M, H, W, 3) uint8; the first 8 are used.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(0)
    was_training = model.training
    model.eval()
    losses = []
    for images in image_batches(held_out[:VALIDATION_IMAGES], 4, device):
        x_hat, mask = corrupt(images, recipe.corruption, generator)
        reconstruction = reconstruct(model, x_hat, precision)
        losses.append(reconstruction_objective(reconstruction, images, mask, recipe.objective.lam))
    model.train(was_training)
    return float(torch.stack(losses).mean())


def _decay(limit: float) -> Callable[[_Tensors, _Tensors, Tensor | int], None]:
    """Exponential averaging whose memory grows with the run, up to ``limit``.

    Short runs would otherwise still remember their random initial weights at the end.
    """

    @torch.no_grad()
    def update(average: _Tensors, current: _Tensors, count: Tensor | int) -> None:
        decay = min(limit, (1 + int(count)) / (10 + int(count)))
        if average[0].is_floating_point():  # torch groups the tensors by type
            torch._foreach_lerp_(average, current, 1 - decay)
        else:
            torch._foreach_copy_(average, current)

    return update


@dataclass(frozen=True)
class _Team:
    """The processes that train together; alone where torch.distributed is not initialised."""

    rank: int
    size: int

    @classmethod
    def current(cls) -> _Team:
        if not dist.is_initialized():
            return cls(rank=0, size=1)
        return cls(rank=dist.get_rank(), size=dist.get_world_size())

    def agree(self, spent: float, row_due: bool) -> tuple[float, bool]:
        """Rank 0's clock decides for all, so that every process takes the same steps."""
        if self.size == 1:
            return spent, row_due
        decision = torch.tensor([spent, float(row_due)], dtype=torch.float64)
        if dist.get_backend() == "nccl":
            decision = decision.cuda()
        dist.broadcast(decision, src=0)
        return float(decision[0]), bool(decision[1])

    def mean(self, value: Tensor) -> float:
        if self.size > 1:
            dist.all_reduce(value)
        return float(value) / self.size
