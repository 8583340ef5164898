"""Carries out a plan: its fits, one after the other."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssray.config import Compute, Recipe
from ssray.errors import TrainingError
from ssray.method.autoencoder import Autoencoder
from ssray.method.inference import Reconstructor
from ssray.training.checkpoint import Checkpoint, CheckpointFile, prefixed
from ssray.training.distributed import ProcessGroup
from ssray.training.fit import Checkpointing, fit
from ssray.training.plan import Plan
from ssray.training.progress import ProgressRow

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Snapshot:
    """A training as it stands after a row of its epoch log.

    Attributes:
        history: the epoch log; its last row is new.
        network: the averaged network as it is now.
        held_out: (M, H, W, 3) uint8 images that the network is not trained on.
        precision: the data type of the network's inner layers in a forward pass.
        plan: what the training carries out.
        finished: the networks that it has trained to their end.
    """

    history: Sequence[ProgressRow]
    network: nn.Module
    held_out: Tensor
    precision: torch.dtype
    plan: Plan
    finished: Sequence[nn.Module]

    def model(self) -> Reconstructor:
        """What would be published now: the model's networks as far as there are any, and its linear
        autoencoder.
        """
        networks = [*self.finished, self.network][: self.plan.networks]
        linear = self.plan.linear
        return Reconstructor([*networks, linear] if linear else networks, self.precision)


@dataclass(frozen=True)
class Finished:
    """The fits of a plan that are done, which are its first ones.

    Attributes:
        networks: their networks in eval mode, on the device that trains.
        history: their rows of the epoch log, counted over all fits of the plan.
        resumed: how often the training went on from a checkpoint.
    """

    networks: Sequence[nn.Module] = ()
    history: Sequence[ProgressRow] = ()
    resumed: int = 0

    def in_whole(self, row: ProgressRow, fits: int) -> ProgressRow:
        """A row of the fit that comes next as a row of the log of all fits.

        Args:
            row: counts images, seconds and budget from the start of its own fit.
            fits: how many fits the plan has. They share the budget equally, and those still to come
                are taken to last as long as this one.
        """
        passes, images, seconds = (
            (self.history[-1].epoch, self.history[-1].images_seen, self.history[-1].seconds)
            if self.history
            else (0.0, 0.0, 0.0)
        )
        number = len(self.networks)
        still_to_come = (fits - number - 1) * (row.seconds + row.seconds_left)
        return dataclasses.replace(
            row,
            epoch=passes + row.epoch,
            images_seen=images + row.images_seen,
            budget_spent=(number + row.budget_spent) / fits,
            seconds=seconds + row.seconds,
            seconds_left=row.seconds_left + still_to_come,
        )

    def validation_loss(self, fits: int) -> float:
        """The loss at the end of the first fit, which is objective (1)'s where there is one.

        Args:
            fits: how many fits the plan has.
        """
        first = [row for row in self.history if row.budget_spent <= (1 + _ROUNDING) / fits]
        return first[-1].validation_loss

    def state(self) -> Checkpoint:
        """What ``read`` needs."""
        tensors = {
            name: tensor
            for number, network in enumerate(self.networks)
            for name, tensor in prefixed(f"finished.{number}", network.state_dict()).items()
        }
        facts = {
            "finished": len(self.networks),
            "finished_history": [dataclasses.asdict(row) for row in self.history],
            "resumed": self.resumed,
        }
        return Checkpoint(tensors, facts)

    @classmethod
    def read(cls, checkpoint: Checkpoint, recipe: Recipe, device: torch.device) -> Finished:
        """What was finished when a checkpoint was taken that the training now goes on from.

        Args:
            checkpoint: contains a ``state``.
            recipe: the recipe of the networks.
            device: where to put them.
        """
        facts = checkpoint.facts
        networks = []
        for number in range(facts["finished"]):
            network = Autoencoder(recipe.network)
            network.load_state_dict(checkpoint.below(f"finished.{number}"))
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            networks.append(network.eval().to(device))
        history = [ProgressRow(**row) for row in facts["finished_history"]]
        return cls(networks, history, facts["resumed"] + 1)


def fit_next(
    plan: Plan,
    finished: Finished,
    compute: Compute,
    checkpoints: CheckpointFile | None,
    resume: Checkpoint | None,
    on_row: Callable[[Snapshot], None],
) -> Finished:
    """Trains the network that comes next in the plan.

    Args:
        plan: all fits.
        finished: those that are done.
        compute: seed, time budget and how often to checkpoint.
        checkpoints: where checkpoints go, if anywhere.
        resume: the state to go on from, where this fit was interrupted.
        on_row: called on every process with each new row of the epoch log.

    Returns:
        ``finished`` with one more network.

    Raises:
        TrainingError: if the loss is no longer finite, or the GPU's memory is too small.
    """
    planned, fits = plan.fits[len(finished.networks)], len(plan.fits)
    feed = planned.feed()
    history = [*finished.history]
    if resume:
        before = [ProgressRow(**row) for row in resume.facts["history"]]
        history += [finished.in_whole(row, fits) for row in before]

    def add_row(row: ProgressRow, network: nn.Module) -> None:
        history.append(finished.in_whole(row, fits))
        precision = plan.numerics.precision
        on_row(Snapshot(history, network, feed.held_out, precision, plan, finished.networks))

    def keep(checkpoint: Checkpoint) -> None:
        if checkpoints and ProcessGroup.current().rank == 0:
            checkpoints.write(checkpoint | plan.state() | finished.state())

    try:
        fitted = fit(
            feed,
            planned.recipe,
            plan.numerics,
            seed=compute.seed,
            max_minutes=compute.max_minutes and compute.max_minutes / plan.networks,
            checkpointing=Checkpointing(
                resume, compute.checkpoint_minutes if checkpoints else math.inf, keep
            ),
            on_row=add_row,
        )
    except torch.cuda.OutOfMemoryError as error:
        raise TrainingError(
            f"the GPU's memory holds no step of {plan.images_per_step} images "
            f"({str(error).partition('. ')[0]}). Use a smaller --images-per-step, or a larger "
            "--accumulate, which takes a step in more parts."
        ) from error
    return Finished([*finished.networks, fitted.model], history, finished.resumed)
