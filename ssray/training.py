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
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssray.config import STRIDE, Objective, Recipe, Schedule
from ssray.errors import TrainingError
from ssray.method.anomaly_map import smooth
from ssray.method.augmentation import draw_crops, random_light
from ssray.method.autoencoder import Autoencoder
from ssray.method.corruption import Corrupted, corrupt
from ssray.method.inference import autocast, differences, image_batches, reconstruct
from ssray.method.objective import amplification_objective, reconstruction_objective
from ssray.method.synthetic_defects import add_defects
from ssray.metrics.auroc import PixelCounts

VALIDATION_IMAGES = 8
SECONDS_BETWEEN_ROWS = 10.0
LEAST_CROP = 32
STOPPING_CHECKS = 50
"""How often, over the whole budget, early stopping looks."""


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
    team = _Team.current()
    torch.manual_seed(seed)  # initial weights are drawn from torch's global generator
    model = Autoencoder(recipe.network)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = _Average(model, schedule.averaging)
    network: nn.Module = DistributedDataParallel(model) if team.size > 1 else model
    optimizer = torch.optim.Adam(network.parameters(), lr=schedule.learning_rate)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + team.rank)
    training = training.to(device)
    textures = None if textures is None else textures.to(device)
    stopping = _EarlyStopping(recipe.objective, held_out, precision, team)

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


def learning_rate(spent: float, schedule: Schedule) -> float:
    """Linear warm-up, then a cosine that reaches 0 when the budget is spent."""
    if spent < schedule.warmup:
        return schedule.learning_rate * max(spent, 0.01 * schedule.warmup) / schedule.warmup
    along = min(1.0, (spent - schedule.warmup) / (1 - schedule.warmup))
    return schedule.learning_rate * 0.5 * (1 + math.cos(math.pi * along))


def crop_shape(spent: float, schedule: Schedule, image_shape: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the crops: each of ``schedule.crops`` for an equal share of the budget.

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
    """Crops a step on each worker: as many as fill the area of its part of ``batch`` images.

    At least two, for batch statistics.
    """
    return max(2, schedule.batch * math.prod(image_shape) // (math.prod(crop) * workers))


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


@torch.inference_mode()
def separation(model: nn.Module, held_out: Tensor, precision: torch.dtype) -> float:
    """Pixel AUROC of synthetic defects in held-out images; the same defects on every call.

    Args:
        held_out: (M, H, W, 3) uint8; defects are made in the first 8 of them.

    Returns:
        In [0, 1]; NaN where no defect is perceptible, as on an all-white image.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    chosen = torch.arange(VALIDATION_IMAGES) % len(held_out)
    [images] = image_batches(held_out[chosen], VALIDATION_IMAGES, device)
    defective, truth = add_defects(images, generator)
    if not len(defective):
        return math.nan
    was_training = model.training
    model.eval()
    maps = differences([model], defective, "squared", precision)
    model.train(was_training)
    maps = smooth(maps, min(images.shape[2:]) // 48 * 2 + 1, 2)
    return PixelCounts.of(maps.flatten(1).cpu().numpy(), truth.flatten(1).cpu().numpy()).auroc()


class _EarlyStopping:
    """Keeps the best weights of a network trained with objective (4), which overfits.

    What is best is decided by ``separation``; looking at fixed shares of the budget, not at
    fixed times, lets a budget in images end alike on every machine.
    """

    def __init__(
        self, settings: Objective, held_out: Tensor, precision: torch.dtype, team: _Team
    ) -> None:
        self._team = team
        self._watching = settings.kind == "amplify"
        self._patience = settings.patience
        self._held_out = held_out
        self._precision = precision
        self._checks = 0
        self._best = -math.inf
        self._best_at = 0.0
        self._weights: dict[str, Tensor] = {}

    def after(self, spent: float, model: nn.Module) -> bool:
        """Looks, if it is time to; whether training should stop."""
        if not self._watching or int(spent * STOPPING_CHECKS) <= self._checks:
            return False
        self._checks = int(spent * STOPPING_CHECKS)
        found = self._team.first(separation(model, self._held_out, self._precision))
        if math.isnan(found):
            return False
        if found > self._best:
            self._best, self._best_at = found, spent
            self._weights = {k: v.detach().clone() for k, v in model.state_dict().items()}
        return spent - self._best_at >= self._patience

    def restore(self, model: nn.Module) -> None:
        """Puts the best weights back."""
        if self._weights:
            model.load_state_dict(self._weights)


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
        spent, due = self._from_first(spent, float(row_due))
        return spent, bool(due)

    def first(self, value: float) -> float:
        """Rank 0's value for all: batch statistics, and so measurements, are each rank's own."""
        [value] = self._from_first(value)
        return value

    def mean(self, value: Tensor) -> float:
        if self.size > 1:
            dist.all_reduce(value)
        return float(value) / self.size

    def _from_first(self, *values: float) -> list[float]:
        if self.size == 1:
            return list(values)
        message = torch.tensor(values, dtype=torch.float64)
        if dist.get_backend() == "nccl":
            message = message.cuda()
        dist.broadcast(message, src=0)
        numbers: list[float] = message.tolist()
        return numbers
