"""``Trainer`` takes the steps of the optimizer, and averages the weights."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssray.config import Recipe
from ssray.method.augmentation import draw_crops, random_light
from ssray.method.autoencoder import Autoencoder
from ssray.method.corruption import corrupt
from ssray.method.inference import autocast
from ssray.training.averaging import PartStatistics, WeightAverage
from ssray.training.checkpoint import Checkpoint, prefixed
from ssray.training.distributed import ProcessGroup
from ssray.training.images import Feed
from ssray.training.loss import objective
from ssray.training.schedule import batch_size, crop_shape, learning_rate


@dataclass(frozen=True)
class Numerics:
    """How the steps of a training are computed.

    Attributes:
        device: where the network is trained.
        precision: float32, or bfloat16 for autocast with float32 weights.
        compile: whether the network runs through ``torch.compile``, once for each crop size.
        parts: in how many parts each step's batch goes through the network, shared out over the
            processes; None means one part for each process. The result depends on the number of
            parts but, except for rounding and image windows, not on how many processes share them.
    """

    device: torch.device
    precision: torch.dtype
    compile: bool = False
    parts: int | None = None

    def count_parts(self, processes: int) -> int:
        """In how many parts a step is taken where so many processes train together.

        Raises:
            ValueError: if there are fewer parts than processes.
        """
        parts = processes if self.parts is None else self.parts
        if parts < processes:
            raise ValueError(f"{parts} parts for {processes} processes; at least one each")
        return parts


@dataclass(frozen=True)
class Step:
    """What a step of the optimizer did.

    Attributes:
        crop: the rows and columns of the crops that it was taken with.
        learning_rate: the learning rate that it was taken with.
        images: how many images it saw over all processes. A crop counts as the share of an image
            that it covers.
        losses: the losses of this process's parts of the batch, scalars on the device.
    """

    crop: tuple[int, int]
    learning_rate: float
    images: float
    losses: Sequence[Tensor]


class Trainer:
    """One network in training, with its optimizer and random generators.

    A step's batch comes in parts. Each is drawn by its own generator and normalised by its own
    statistics, because SyncBatchNorm does not work on CPUs and waits in every layer. The running
    statistics that the trained network will use are the mean of what each part alone would have
    made of them. So all processes hold one and the same network at any time, and it does not
    matter which of them trained on which part.

    Attributes:
        average: the network with averaged weights, which is the result of the training.
    """

    def __init__(self, feed: Feed, recipe: Recipe, numerics: Numerics, seed: int) -> None:
        """Draws the initial weights.

        Args:
            feed: the images, those to train on and the textures on the device.
            recipe: what to train; its objective is (1) or (4), no ensemble.
            numerics: how to compute a step.
            seed: fixes the initial weights and, with a part's number, what is drawn for the part.

        Raises:
            ValueError: if there are fewer parts than processes.
        """
        self._feed, self._recipe, self._numerics, self._seed = feed, recipe, numerics, seed
        self._processes = ProcessGroup.current()
        self._parts = numerics.count_parts(self._processes.size)

        torch.manual_seed(seed)  # initial weights are drawn from torch's global generator
        self._model = Autoencoder(recipe.network)
        self._model.to(numerics.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = WeightAverage(self._model, recipe.schedule.averaging)
        self._network: nn.Module = self._model
        if self._processes.size > 1:
            self._network = DistributedDataParallel(
                self._model, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        self._network.train()
        self._optimizer = torch.optim.Adam(
            self._network.parameters(), lr=recipe.schedule.learning_rate, fused=True
        )
        self._generators = [
            torch.Generator().manual_seed(_seed_of(seed, part))
            for part in self._processes.share(self._parts)
        ]

    def compile(self) -> None:
        """Compiles the network that is trained; the averaged one stays as it is."""
        self._model.compile(dynamic=False)

    def step(self, spent: float, images_seen: float) -> Step:
        """Takes one step of the optimizer; all processes must call it together.

        Args:
            spent: the share of the budget that is gone, in [0, 1], which decides the learning rate
                and the size of the crops.
            images_seen: how many images all processes have seen so far.
        """
        schedule, shape = self._recipe.schedule, self._feed.shape
        crop = crop_shape(spent, schedule, shape)
        batch = batch_size(crop, shape, schedule, self._parts)
        rate = learning_rate(spent, schedule)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        images = self._feed.images_after(images_seen / self._processes.size)

        self._optimizer.zero_grad(set_to_none=True)
        statistics = PartStatistics(self._model, self._parts)
        losses = []
        for generator in self._generators:
            last = generator is self._generators[-1]
            with self._gradients_exchanged(last), statistics.part():
                loss = self._loss(images, batch, crop, generator)
                # DDP takes the mean over processes, however many parts each has.
                (loss * self._processes.size / self._parts).backward()
            losses.append(loss.detach())
        statistics.join(self._processes)
        self._optimizer.step()
        self.average.update()
        seen = self._parts * batch * math.prod(crop) / math.prod(shape)
        return Step(crop, rate, seen, losses)

    def state(self) -> Checkpoint:
        """What ``restore`` needs; all processes must ask for it together."""
        moments = {
            f"optimizer.{number}.{name}": tensor
            for number, state in self._optimizer.state_dict()["state"].items()
            for name, tensor in state.items()
        }
        generators = self._processes.gather([g.get_state() for g in self._generators], self._parts)
        tensors = {
            **prefixed("network", self._model.state_dict()),
            **prefixed("average", self.average.model.state_dict()),
            **prefixed("generator", {str(part): g for part, g in enumerate(generators)}),
            **moments,
        }
        return Checkpoint(tensors, {"averaged_steps": self.average.steps})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes on from a state."""
        self._model.load_state_dict(checkpoint.below("network"))
        self.average.model.load_state_dict(checkpoint.below("average"))
        self.average.steps = checkpoint.facts["averaged_steps"]
        self._restore_optimizer(checkpoint.below("optimizer"))
        generators = checkpoint.below("generator")
        for part, generator in zip(
            self._processes.share(self._parts), self._generators, strict=True
        ):
            if len(generators) == self._parts:
                generator.set_state(generators[str(part)])
            else:  # other parts than before: new draws, not those of the start once more
                seen = round(checkpoint.facts["images_seen"])
                generator.manual_seed(_seed_of(self._seed, part, seen))

    def _restore_optimizer(self, moments: dict[str, Tensor]) -> None:
        """Puts the moments back, which are named ``NUMBER_OF_THE_WEIGHT.NAME``."""
        state: dict[int, dict[str, Tensor]] = defaultdict(dict)
        weights = list(self._model.parameters())
        for key, tensor in moments.items():
            number, name = key.split(".")
            if name != "step":  # fused Adam takes the memory layout of moments for the weights'
                tensor = torch.empty_like(weights[int(number)]).copy_(tensor)
            state[int(number)][name] = tensor
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})

    def _loss(
        self, images: Tensor, batch: int, crop: tuple[int, int], generator: torch.Generator
    ) -> Tensor:
        """The objective of crops that are drawn and corrupted now."""
        schedule, side = self._recipe.schedule, min(images.shape[1:3])
        crops = draw_crops(images, batch, crop, schedule.augmentation, generator)
        if schedule.photometric:
            crops = random_light(crops, schedule.photometric, generator)
        corrupted = corrupt(crops, self._recipe.corruption, side, generator, self._feed.textures)
        with autocast(self._numerics.device, self._numerics.precision):
            reconstruction = self._network(corrupted.images)
        return objective(reconstruction, corrupted, self._recipe.objective)

    def _gradients_exchanged(self, now: bool) -> AbstractContextManager[None]:
        """Lets a block's backward pass exchange gradients now, or add them up until one does."""
        if now or not isinstance(self._network, DistributedDataParallel):
            return nullcontext()
        waiting: AbstractContextManager[None] = self._network.no_sync()
        return waiting


def _seed_of(seed: int, part: int, images_seen: int = 0) -> int:
    """The seed of a part's generator, after so many images where it is seeded anew."""
    return seed * 1_000_003 + part + (images_seen << 32)
