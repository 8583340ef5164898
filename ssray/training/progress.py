"""The epoch log, which says every ten seconds or so how far a training has got."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass

import torch
from torch import nn

from ssray.config import Recipe
from ssray.errors import TrainingError
from ssray.training.budget import Budget
from ssray.training.checkpoint import Checkpoint
from ssray.training.distributed import ProcessGroup
from ssray.training.images import Feed
from ssray.training.loss import validation_loss
from ssray.training.trainer import Numerics, Step

SECONDS_BETWEEN_ROWS = 10.0
"""The time from one row to the next, where computing a row takes little time."""
ROW_COST = 0.01
"""The share of the time that rows may take, for their validation loss."""


@dataclass(frozen=True, kw_only=True)
class ProgressRow:
    """One row of the epoch log, written every ten seconds or more, and at the end.

    Images are counted over all processes, and a crop counts as the share of an image that it
    covers. Losses are the objective on pixel values in [0, 1].

    Attributes:
        objective: the kind of objective that the network is trained with.
        epoch: how often the training set was seen, fractions included.
        images_seen: the number of images seen since the start.
        budget_spent: the share of the budget that is gone, in [0, 1].
        crop_rows: the height of the last step's crops in pixels.
        crop_columns: the width of the last step's crops in pixels.
        learning_rate: the learning rate of the last step.
        train_loss: the mean training loss since the previous row, over all processes.
        validation_loss: the loss of the averaged network on held-out images.
        images_per_second: the images seen in a second since the previous row.
        seconds: the time since the start of the training.
        seconds_left: how many seconds the rest of the budget will take at the speed so far.
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


class ProgressLog:
    """The epoch log of one network's training, and what its next row is made of.

    Attributes:
        history: the rows so far.
    """

    def __init__(self, feed: Feed, recipe: Recipe, numerics: Numerics) -> None:
        """Starts the clock of the first row.

        Args:
            feed: the images of the training, its textures on the device that trains.
            recipe: what is trained.
            numerics: the device and the precision of the training.
        """
        self.history: list[ProgressRow] = []
        self._feed, self._recipe, self._numerics = feed, recipe, numerics
        self._processes = ProcessGroup.current()
        self._loss_sum = torch.zeros((), device=numerics.device)
        self._losses = 0
        self._images_seen_before = 0.0
        self._validation_seconds = math.inf
        self._row_started = time.monotonic()

    def add_step(self, step: Step) -> None:
        """Takes note of a step of the optimizer."""
        self._last_step = step
        for loss in step.losses:
            self._loss_sum += loss
        self._losses += len(step.losses)

    def due(self) -> bool:
        """Whether it is time for a row by this process's clock.

        A row comes after ``SECONDS_BETWEEN_ROWS``, or later where its validation loss would take
        more than ``ROW_COST`` of the time. The quickest validation so far decides, because slower
        ones were disturbed by something else.
        """
        pause = SECONDS_BETWEEN_ROWS
        if not math.isinf(self._validation_seconds):
            pause = max(pause, self._validation_seconds / ROW_COST)
        return time.monotonic() - self._row_started >= pause

    def add_row(self, model: nn.Module, budget: Budget) -> ProgressRow:
        """Adds a row about the steps since the previous one; all processes must call it together.

        Args:
            model: the averaged network, which is validated.
            budget: what the training has spent so far.

        Raises:
            TrainingError: if the loss is not finite any more.
        """
        loss_sum, losses = self._processes.total(float(self._loss_sum), self._losses)
        train_loss = loss_sum / losses
        validation = self._validate(model)
        if not math.isfinite(train_loss + validation):
            raise TrainingError(
                f"the loss became {train_loss} after {budget.images_seen:.0f} images; try a lower "
                "schedule.learning_rate or --precision float32."
            )
        now, seconds = time.monotonic(), budget.seconds
        images = budget.images_seen - self._images_seen_before
        row = ProgressRow(
            objective=self._recipe.objective.kind,
            epoch=budget.images_seen / self._feed.training_images,
            images_seen=budget.images_seen,
            budget_spent=budget.spent,
            crop_rows=self._last_step.crop[0],
            crop_columns=self._last_step.crop[1],
            learning_rate=self._last_step.learning_rate,
            train_loss=train_loss,
            validation_loss=validation,
            images_per_second=images / (now - self._row_started),
            seconds=seconds,
            seconds_left=seconds * (1 / budget.spent - 1),
        )
        self.history.append(row)
        self._loss_sum.zero_()
        self._losses, self._images_seen_before, self._row_started = 0, budget.images_seen, now
        return row

    def state(self) -> Checkpoint:
        """What ``restore`` needs; complete only directly after a row."""
        return Checkpoint({}, {"history": [dataclasses.asdict(row) for row in self.history]})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes on from a state."""
        self.history = [ProgressRow(**row) for row in checkpoint.facts["history"]]
        self._images_seen_before = checkpoint.facts["images_seen"]

    def _validate(self, model: nn.Module) -> float:
        """The validation loss; notes how long it took."""
        began = time.monotonic()
        loss = validation_loss(
            model,
            self._feed.held_out,
            self._recipe,
            self._numerics.precision,
            self._feed.textures,
        )
        self._validation_seconds = min(self._validation_seconds, time.monotonic() - began)
        return loss
