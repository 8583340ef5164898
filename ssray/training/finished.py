"""What has been trained of a model so far, where the model takes several fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ssray.config import Recipe
from ssray.method.autoencoder import Autoencoder
from ssray.training.checkpoint import Checkpoint, prefixed
from ssray.training.progress import ProgressRow

_ROUNDING = 1e-9


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
