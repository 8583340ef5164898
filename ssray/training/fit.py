"""``fit`` is one process's training loop.

It knows nothing of Ray. Where ``torch.distributed`` is initialised it trains with DDP, each process
on its share of every step. Otherwise it trains alone.

The learning rate and the crop size follow one number, the share of the budget that is spent. That
is the share of ``schedule.images`` or ``schedule.epochs`` that was seen, or the share of
``max_minutes`` that has passed, whichever is larger. So a run of fifteen minutes anneals within
them. A crop counts as the share of an image that it covers, so that equal shares of the budget cost
about equal time whatever the crop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from ssray.config import Recipe
from ssray.training.budget import Budget
from ssray.training.checkpoint import Checkpoint
from ssray.training.distributed import ProcessGroup
from ssray.training.early_stopping import EarlyStopping
from ssray.training.images import Feed
from ssray.training.progress import ProgressLog, ProgressRow
from ssray.training.trainer import Numerics, Trainer


@dataclass(frozen=True)
class Checkpointing:
    """Where a training goes on from, and what becomes of its own checkpoints.

    Attributes:
        resume: the state to go on from; None starts anew. On the CPU, with a budget in images, the
            same threads and the same number of processes, the weights end as they would have
            without the stop; with any other number of processes that share the same parts, they
            do but for rounding.
        every_minutes: the least time between two checkpoints; infinity for none.
        callback: called on every process with the state to resume from.
    """

    resume: Checkpoint | None = None
    every_minutes: float = math.inf
    callback: Callable[[Checkpoint], None] = lambda checkpoint: None


_NO_CHECKPOINTS = Checkpointing()


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What ``fit`` returns: the averaged network in eval mode, and its epoch log."""

    model: nn.Module
    history: list[ProgressRow]


def fit(
    feed: Feed,
    recipe: Recipe,
    numerics: Numerics,
    *,
    seed: int = 0,
    max_minutes: float | None = None,
    checkpointing: Checkpointing = _NO_CHECKPOINTS,
    on_row: Callable[[ProgressRow, nn.Module], None] = lambda row, network: None,
) -> Fitted:
    """Trains one autoencoder.

    Args:
        feed: the images on any device. Those held out and the textures are the same in every
            process, and so are those to train on unless they come through a window.
        recipe: what to train; its objective is (1) or (4), no ensemble.
        numerics: where and how to compute. The images to train on are moved to the device as uint8.
        seed: fixes initial weights and, with a part's number, what is drawn for it.
        max_minutes: the time budget; None leaves it to the schedule to end the run.
        checkpointing: where to go on from, and what to do with checkpoints.
        on_row: called on every process with each row of the epoch log and the averaged
            network as it is then.

    Raises:
        ValueError: if the objective is an ensemble, or there are fewer parts than processes.
        TrainingError: if the loss is no longer finite.
    """
    if recipe.objective.kind == "ensemble":
        raise ValueError(
            "fit trains one network; ssray.training.plan.ensemble_parts splits an ensemble"
        )
    run = TrainingRun(feed, recipe, numerics, seed=seed, max_minutes=max_minutes)
    if checkpointing.resume:
        run.restore(checkpointing.resume)
    checkpointed = time.monotonic()
    while not run.budget.finished:
        due = run.step(time.monotonic() - checkpointed >= 60 * checkpointing.every_minutes)
        if due.row:
            on_row(run.add_row(), run.model)
        if due.checkpoint:
            checkpointed = time.monotonic()
            checkpointing.callback(run.checkpoint())
    return Fitted(model=run.model.eval(), history=run.log.history)


@dataclass(frozen=True)
class Due:
    """What is to be done after a step; a row of the epoch log comes before each checkpoint."""

    row: bool
    checkpoint: bool


class TrainingRun:
    """A training under way: what trains, what it may spend, and what it tells.

    Attributes:
        trainer: takes the steps.
        stopping: keeps the best weights, where the recipe asks for it.
        budget: how much is spent.
        log: the epoch log.
    """

    def __init__(
        self,
        feed: Feed,
        recipe: Recipe,
        numerics: Numerics,
        *,
        seed: int = 0,
        max_minutes: float | None = None,
    ) -> None:
        """Takes no step yet; the arguments are those of ``fit``."""
        self._processes = ProcessGroup.current()
        feed = feed.on(numerics.device)
        self.trainer = Trainer(feed, recipe, numerics, seed)
        self.stopping = EarlyStopping(
            recipe.objective, feed.held_out, numerics.precision, self._processes
        )
        self.budget = Budget(recipe.schedule, feed.training_images, max_minutes)
        self.log = ProgressLog(feed, recipe, numerics)
        if numerics.compile:
            self.trainer.compile()

    @property
    def model(self) -> nn.Module:
        """The averaged network as it is now."""
        return self.trainer.average.model

    def step(self, checkpoint_due: bool = False) -> Due:
        """Takes one step of the optimizer, and decides what comes after it.

        Args:
            checkpoint_due: whether this process would like a checkpoint now.

        Returns:
            What rank 0 decided for all processes.
        """
        step = self.trainer.step(self.budget.spent, self.budget.images_seen)
        self.log.add_step(step)
        self.budget.images_seen += step.images
        spent, row, checkpoint = self._processes.first(
            self.budget.share(), self.log.due(), checkpoint_due
        )
        stopped = self.stopping.after(spent, self.model)
        self.budget.spent = 1.0 if stopped else min(1.0, spent)
        finished = self.budget.finished
        if finished:
            self.stopping.put_back(self.model)
        return Due(
            row=bool(row or checkpoint or finished), checkpoint=bool(checkpoint and not finished)
        )

    def add_row(self) -> ProgressRow:
        """Adds the row of the epoch log that is due.

        Raises:
            TrainingError: if the loss is no longer finite.
        """
        return self.log.add_row(self.model, self.budget)

    def checkpoint(self) -> Checkpoint:
        """The state after a row of the epoch log, as a copy."""
        state = (
            self.budget.state() | self.trainer.state() | self.stopping.state() | self.log.state()
        )
        copies = {name: tensor.detach().clone() for name, tensor in state.tensors.items()}
        return Checkpoint(copies, state.facts)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Puts a state back that ``checkpoint`` gave."""
        for part in (self.budget, self.trainer, self.stopping, self.log):
            part.restore(checkpoint)
