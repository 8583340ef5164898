"""Which networks a model needs, and how each of them is to be trained."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssray.config import Compute, Recipe
from ssray.method.linear import MOST_IMAGES, LinearAutoencoder
from ssray.models.device import PRECISION_NAMES, kept_precision, resolve_precision
from ssray.training.checkpoint import Checkpoint
from ssray.training.distributed import ProcessGroup
from ssray.training.folds import Fold, cut_folds
from ssray.training.growth import choose_growth, grown
from ssray.training.images import Feed
from ssray.training.trainer import Numerics


@dataclass(frozen=True)
class PlannedFit:
    """One network that is to be trained.

    Attributes:
        recipe: what to train; its objective is (1) or (4), no ensemble.
        split: which images to train on and which to hold out.
    """

    recipe: Recipe
    split: Feed | Fold

    def feed(self) -> Feed:
        """The images for the fit; those of a fold are copied now."""
        return self.split if isinstance(self.split, Feed) else self.split.cut()


@dataclass(frozen=True)
class Plan:
    """All networks that are trained for a model.

    Attributes:
        fits: in the order in which they are trained: first the networks of the model itself, then
            as many for each calibration fold, trained without the fold's images.
        networks: how many networks the model has: two for an ensemble, else one.
        numerics: how all of them are computed.
        growth: how many times the recipe's images a step takes.
    """

    fits: Sequence[PlannedFit]
    networks: int
    numerics: Numerics
    growth: float

    @property
    def images_per_step(self) -> int:
        """How many images a step takes over all processes."""
        return self.fits[0].recipe.schedule.batch

    @property
    def linear(self) -> LinearAutoencoder | None:
        """The model's linear autoencoder, in eval mode on the device; None if none is wanted.

        It is fitted in seconds: once, unless a window moves over the images.
        """
        split = self.fits[0].split
        if isinstance(split, Feed) and split.streamed:
            return self.linear_of(self.fits[0])
        return self._fitted_once

    @functools.cached_property
    def _fitted_once(self) -> LinearAutoencoder | None:
        return self.linear_of(self.fits[0])

    def linear_of(self, fit: PlannedFit) -> LinearAutoencoder | None:
        """Fits the linear autoencoder that goes with a network to the same images."""
        if fit.recipe.linear is None:
            return None
        images = fit.feed().sample(MOST_IMAGES)
        fitted = LinearAutoencoder.fitted(images, fit.recipe.linear)
        return fitted.eval().to(self.numerics.device)

    def left_out(self) -> list[Tensor]:
        """Each fold's images, (M, H, W, 3) uint8."""
        return [fit.split.held_out for fit in self.fits[self.networks :: self.networks]]

    def state(self) -> Checkpoint:
        """What ``plan_fits`` needs to decide in the same way when a training is resumed."""
        name = PRECISION_NAMES[self.numerics.precision]
        return Checkpoint({}, {"precision": name, "growth": self.growth})


def plan_fits(
    recipe: Recipe,
    compute: Compute,
    feed: Feed,
    device: torch.device,
    resume: Checkpoint | None = None,
) -> Plan:
    """Decides what to train; all processes that train together must call it together.

    Args:
        recipe: the recipe of the whole model.
        compute: precision, number of workers and images a step, where they are stated.
        feed: the images of the training.
        device: where this process trains.
        resume: the state that the training goes on from; it keeps what was decided before.

    Raises:
        ConfigError: if the device has no instructions for the precision that was asked for.
        TrainingError: if there are too few images for the recipe's folds, or not all in memory.
    """
    processes = ProcessGroup.current()
    precision = _agreed(
        kept_precision(resume.facts["precision"], device)
        if resume
        else resolve_precision(compute.precision, device, recipe.network),
        processes,
    )
    parts = max((compute.workers or processes.size) * compute.accumulate, processes.size)
    numerics = Numerics(device, precision, compute.compile, parts)
    if resume:
        growth = resume.facts.get("growth", 1.0)  # checkpoints of earlier versions know no other
    else:
        growth = choose_growth(recipe, compute, feed, numerics)
    recipes = ensemble_parts(grown(recipe, growth))
    splits: list[Feed | Fold] = [feed, *cut_folds(feed, recipe.decision.folds)]
    fits = [PlannedFit(part, split) for split in splits for part in recipes]
    return Plan(fits, len(recipes), numerics, growth)


def ensemble_parts(recipe: Recipe) -> list[Recipe]:
    """The recipe of each network of a model.

    That is the recipe itself, or for an ensemble one recipe for each objective with half the
    budget.
    """
    if recipe.objective.kind != "ensemble":
        return [recipe]
    whole = recipe.schedule
    half = whole.model_copy(
        update={
            "images": max(1, whole.images // 2),
            "epochs": whole.epochs and whole.epochs / 2,
        }
    )
    return [
        recipe.model_copy(
            update={
                "objective": recipe.objective.model_copy(update={"kind": kind}),
                "schedule": half,
            }
        )
        for kind in ("reconstruct", "amplify")
    ]


def _agreed(precision: torch.dtype, processes: ProcessGroup) -> torch.dtype:
    """Rank 0's choice for all processes, as two that time themselves may disagree."""
    known = list(PRECISION_NAMES)
    [chosen] = processes.first(known.index(precision))
    return known[int(chosen)]
