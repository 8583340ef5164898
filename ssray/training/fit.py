"""``fit``: one process's training loop.

It knows nothing of Ray. Where ``torch.distributed`` is initialised it trains with DDP,
each process on its share of every step; otherwise alone.

The learning rate and the crop size follow one number, the share of the budget that is
spent: images seen out of ``schedule.images`` or ``schedule.epochs``, or minutes out of
``max_minutes``, whichever is further along. So a run of fifteen minutes anneals within them.
A crop counts as the share of an image that it covers, so that equal shares of the budget
cost about equal time whatever the crop.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssray.config import Objective, Recipe
from ssray.data.window import ImageWindow
from ssray.errors import TrainingError
from ssray.method.augmentation import draw_crops, random_light
from ssray.method.autoencoder import Autoencoder
from ssray.method.corruption import Corrupted, corrupt
from ssray.method.inference import autocast, evaluating, image_batches, reconstruct
from ssray.method.objective import amplification_objective, reconstruction_objective
from ssray.training.averaging import PartStatistics, WeightAverage
from ssray.training.checkpoint import Checkpoint
from ssray.training.distributed import ProcessGroup
from ssray.training.early_stopping import EarlyStopping
from ssray.training.schedule import batch_size, crop_shape, images_to_see, learning_rate

VALIDATION_IMAGES = 8
SECONDS_BETWEEN_ROWS = 10.0
ROW_COST = 0.01
"""Share of the time that rows of the epoch log may take, for their validation loss."""


@dataclass(frozen=True, kw_only=True)
class ProgressRow:
    """One row of the epoch log, written every ten seconds or more, and at the end.

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
    history: list[ProgressRow]


def fit(
    training: Tensor | ImageWindow,
    held_out: Tensor,
    recipe: Recipe,
    *,
    device: torch.device,
    precision: torch.dtype,
    seed: int = 0,
    max_minutes: float | None = None,
    textures: Tensor | None = None,
    parts: int | None = None,
    compiled: bool = False,
    resume: Checkpoint | None = None,
    checkpoint_minutes: float = math.inf,
    on_row: Callable[[ProgressRow, nn.Module], None] = lambda epoch, network: None,
    on_checkpoint: Callable[[Checkpoint], None] = lambda checkpoint: None,
) -> Fitted:
    """Trains one autoencoder.

    Args:
        training: (N, H, W, 3) uint8 defect-free images, any device, the same in every process; or
            a window over more, each process's own.
        held_out: (M, H, W, 3) uint8 images for the validation loss, the same in every process.
        recipe: what to train; its objective is (1) or (4), no ensemble.
        device: where to train. The training images are moved there as uint8.
        precision: float32, or bfloat16 for autocast with float32 weights.
        seed: fixes initial weights and, with a part's number, what is drawn for it.
        max_minutes: time budget; None leaves it to the schedule to end the run.
        textures: (T, H', W', 3) uint8 foreign content for the corruption, any device.
        parts: in how many parts each step's batch goes through the network, shared out over the
            processes; default: one each. The result depends on them and, but for rounding and
            windows, not on how many processes share them.
        compiled: run the network through ``torch.compile``, once for each crop size.
        resume: goes on from there. On the CPU, with a budget in images, the same threads and the
            same number of processes, the weights end as they would have without the stop; to
            rounding, with any number that shares the same parts.
        checkpoint_minutes: how often ``on_checkpoint`` is called.
        on_row: called on every process with each row of the epoch log and the averaged
            network as it is then.
        on_checkpoint: called on every process with the state to resume from.

    Raises:
        ValueError: if the objective is an ensemble, or there are fewer parts than processes.
        TrainingError: if the loss is no longer finite.
    """
    if recipe.objective.kind == "ensemble":
        raise ValueError(
            "fit trains one network; ssray.training.build.ensemble_parts splits an ensemble"
        )
    run = _Run(training, held_out, recipe, device, precision, seed, max_minutes, textures, parts)
    if compiled:
        run.compile()
    if resume:
        run.restore(resume)
    checkpointed = time.monotonic()
    while not run.finished:
        due = time.monotonic() - checkpointed >= 60 * checkpoint_minutes
        row_due, due = run.step(due)
        if row_due:
            on_row(run.add_row(), run.average.model)
        if due:
            checkpointed = time.monotonic()
            on_checkpoint(run.checkpoint())
    return Fitted(model=run.average.model.eval(), history=run.history)


class _Run:
    """A training under way: all that changes from step to step.

    A step's batch comes in parts. Each is drawn by its own generator and normalised by its own
    statistics, as SyncBatchNorm knows no CPU and waits in every layer. The running statistics that
    the trained network will use are the mean of what each part alone would have made of them, so
    that all processes hold one and the same network at any time, and it does not matter which of
    them trained on which part.
    """

    def __init__(
        self,
        training: Tensor | ImageWindow,
        held_out: Tensor,
        recipe: Recipe,
        device: torch.device,
        precision: torch.dtype,
        seed: int,
        max_minutes: float | None,
        textures: Tensor | None,
        parts: int | None,
    ) -> None:
        self.history: list[ProgressRow] = []
        self.finished = False
        self._recipe, self._device, self._precision = recipe, device, precision
        self._seed, self._max_minutes = seed, max_minutes
        self._team = ProcessGroup.current()
        self._parts = self._team.size if parts is None else parts
        if self._parts < self._team.size:
            raise ValueError(f"{parts} parts for {self._team.size} processes; at least one each")
        self._window = training if isinstance(training, ImageWindow) else None
        if isinstance(training, ImageWindow):
            training.to(device)
            self._images_in_all = training.total
        else:
            self._training, self._images_in_all = training.to(device), len(training)
        self._held_out = held_out
        self._budget = images_to_see(recipe.schedule, self._images_in_all)
        self._textures = None if textures is None else textures.to(device)

        torch.manual_seed(seed)  # initial weights are drawn from torch's global generator
        self._model = Autoencoder(recipe.network)
        self._model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = WeightAverage(self._model, recipe.schedule.averaging)
        self._network: nn.Module = self._model
        if self._team.size > 1:
            self._network = DistributedDataParallel(
                self._model, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        self._network.train()
        self._optimizer = torch.optim.Adam(
            self._network.parameters(), lr=recipe.schedule.learning_rate, fused=True
        )
        self._generators = [
            torch.Generator().manual_seed(_seed_of(seed, part))
            for part in self._team.share(self._parts)
        ]
        self._stopping = EarlyStopping(recipe.objective, held_out, precision, self._team)

        self._loss_sum = torch.zeros((), device=device)
        self._steps_in_row = 0
        self._seen = self._seen_before_row = self._spent = 0.0
        self._seconds_before = 0.0
        self._validation_seconds = math.inf
        self._started = self._row_started = time.monotonic()

    def compile(self) -> None:
        """Compiles the network that is trained; the average stays as it is."""
        self._model.compile(dynamic=False)

    def step(self, checkpoint_due: bool) -> tuple[bool, bool]:
        """One step of the optimizer.

        Returns:
            Whether a row of the epoch log is due, and whether a checkpoint is; a row comes before
            each checkpoint.
        """
        schedule = self._recipe.schedule
        height, width = self._held_out.shape[1:3]
        self._crop = crop_shape(self._spent, schedule, (height, width))
        batch = batch_size(self._crop, (height, width), schedule, self._parts)
        self._rate = learning_rate(self._spent, schedule)
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate
        if self._window:
            self._window.advance(self._seen / self._team.size)
            self._training = self._window.images

        self._optimizer.zero_grad(set_to_none=True)
        statistics = PartStatistics(self._model, self._parts)
        for generator in self._generators:
            last = generator is self._generators[-1]
            with self._gradients_exchanged(last), statistics.part():
                loss = self._loss(batch, generator)
                # DDP takes the mean over processes, however many parts each has.
                (loss * self._team.size / self._parts).backward()
            self._loss_sum += loss.detach()
        statistics.join(self._team)
        self._optimizer.step()
        self.average.update()

        self._steps_in_row += 1
        self._seen += self._parts * batch * math.prod(self._crop) / (height * width)
        clock = self._seconds() / (60 * self._max_minutes) if self._max_minutes else 0.0
        row_due = time.monotonic() - self._row_started >= self._seconds_between_rows()
        self._spent, row, checkpoint = self._team.first(
            max(self._seen / self._budget, clock), row_due, checkpoint_due
        )
        stopped = self._stopping.after(self._spent, self.average.model)
        self.finished = stopped or self._spent >= 1.0
        if self.finished:
            self._spent = 1.0
            self._stopping.restore(self.average.model)
        return bool(row or checkpoint or self.finished), bool(checkpoint and not self.finished)

    def _loss(self, batch: int, generator: torch.Generator) -> Tensor:
        """The objective of crops drawn and corrupted now."""
        schedule, side = self._recipe.schedule, min(self._training.shape[1:3])
        images = draw_crops(self._training, batch, self._crop, schedule.augmentation, generator)
        if schedule.photometric:
            images = random_light(images, schedule.photometric, generator)
        corrupted = corrupt(images, self._recipe.corruption, side, generator, self._textures)
        with autocast(self._device, self._precision):
            reconstruction = self._network(corrupted.images)
        return objective(reconstruction, corrupted, self._recipe.objective)

    def _gradients_exchanged(self, now: bool) -> AbstractContextManager[None]:
        """Whether the block's backward pass exchanges gradients; they add up until one does."""
        if now or not isinstance(self._network, DistributedDataParallel):
            return nullcontext()
        waiting: AbstractContextManager[None] = self._network.no_sync()
        return waiting

    def add_row(self) -> ProgressRow:
        """The row of the epoch log that is due."""
        [loss_sum] = self._team.total(float(self._loss_sum))
        train_loss = loss_sum / (self._steps_in_row * self._parts)
        began = time.monotonic()
        validation = validation_loss(
            self.average.model, self._held_out, self._recipe, self._precision, self._textures
        )
        self._validation_seconds = min(self._validation_seconds, time.monotonic() - began)
        if not math.isfinite(train_loss + validation):
            raise TrainingError(
                f"the loss became {train_loss} after {self._seen:.0f} images; try a lower "
                "schedule.learning_rate or --precision float32."
            )
        now, seconds = time.monotonic(), self._seconds()
        epoch = ProgressRow(
            objective=self._recipe.objective.kind,
            epoch=self._seen / self._images_in_all,
            images_seen=self._seen,
            budget_spent=self._spent,
            crop_rows=self._crop[0],
            crop_columns=self._crop[1],
            learning_rate=self._rate,
            train_loss=train_loss,
            validation_loss=validation,
            images_per_second=(self._seen - self._seen_before_row) / (now - self._row_started),
            seconds=seconds,
            seconds_left=seconds * (1 / self._spent - 1),
        )
        self.history.append(epoch)
        self._loss_sum.zero_()
        self._steps_in_row, self._seen_before_row, self._row_started = 0, self._seen, now
        return epoch

    def checkpoint(self) -> Checkpoint:
        """The state after a row of the epoch log."""
        moments = {
            f"optimizer.{number}.{name}": tensor
            for number, state in self._optimizer.state_dict()["state"].items()
            for name, tensor in state.items()
        }
        generators = self._team.gather([g.get_state() for g in self._generators], self._parts)
        tensors = {
            **_below("network", self._model.state_dict()),
            **_below("average", self.average.model.state_dict()),
            **_below("best", self._stopping.weights),
            **_below("generator", dict(enumerate(generators))),
            **moments,
        }
        facts = {
            "images_seen": self._seen,
            "budget_spent": self._spent,
            "seconds": self._seconds(),
            "averaged_steps": self.average.steps,
            "stopping": self._stopping.progress,
            "history": [dataclasses.asdict(epoch) for epoch in self.history],
        }
        return Checkpoint({k: v.detach().clone() for k, v in tensors.items()}, facts)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Puts a state back that ``checkpoint`` gave."""
        facts = checkpoint.facts
        self._model.load_state_dict(checkpoint.below("network"))
        self.average.model.load_state_dict(checkpoint.below("average"))
        self.average.steps = facts["averaged_steps"]
        state: dict[int, dict[str, Tensor]] = defaultdict(dict)
        weights = list(self._model.parameters())
        for key, tensor in checkpoint.below("optimizer").items():
            number, name = key.split(".")
            if name != "step":  # fused Adam takes the memory layout of moments for the weights'
                tensor = torch.empty_like(weights[int(number)]).copy_(tensor)
            state[int(number)][name] = tensor
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})
        generators = checkpoint.below("generator")
        for part, generator in zip(self._team.share(self._parts), self._generators, strict=True):
            if len(generators) == self._parts:
                generator.set_state(generators[str(part)])
            else:  # other parts than before: new draws, not those of the start once more
                generator.manual_seed(_seed_of(self._seed, part, round(facts["images_seen"])))
        self._stopping.resume(facts["stopping"], checkpoint.below("best"))
        self.history = [ProgressRow(**row) for row in facts["history"]]
        self._seen = self._seen_before_row = facts["images_seen"]
        self._spent = facts["budget_spent"]
        self._seconds_before = facts["seconds"]

    def _seconds_between_rows(self) -> float:
        """As ``ROW_COST`` has it, by the quickest validation so far: others were disturbed."""
        if math.isinf(self._validation_seconds):
            return SECONDS_BETWEEN_ROWS
        return max(SECONDS_BETWEEN_ROWS, self._validation_seconds / ROW_COST)

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._started


def _below(prefix: str, tensors: Mapping[Any, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _seed_of(seed: int, part: int, images_seen: int = 0) -> int:
    return seed * 1_000_003 + part + (images_seen << 32)


def objective(reconstruction: Tensor, corrupted: Corrupted, settings: Objective) -> Tensor:
    """Objective (1) or (4), a scalar."""
    target, mask, lam = corrupted.target, corrupted.mask, settings.corrupted_weight
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
    """The mean objective of corrupted held-out images; the same corruption on every call.

    Processes that train together share the images out and all get the mean over all of them. Each
    image is corrupted by itself, so that patches swapped in from the batch change nothing here.

    Args:
        model: the same in every process.
        held_out: (M, H, W, 3) uint8, the same in every process; the first 8 are used.
        textures: as for ``fit``, on the model's device.
    """
    team = ProcessGroup.current()
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    side = min(held_out.shape[1:3])
    loss, count = 0.0, 0.0
    with evaluating(model):
        for number, image in enumerate(image_batches(held_out[:VALIDATION_IMAGES], 1, device)):
            corrupted = corrupt(image, recipe.corruption, side, generator, textures)
            if number % team.size == team.rank:
                reconstruction = reconstruct(model, corrupted.images, precision)
                loss += float(objective(reconstruction, corrupted, recipe.objective))
                count += 1
    loss, count = team.total(loss, count)
    return loss / count
