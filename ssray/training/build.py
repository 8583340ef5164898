"""Makes a complete model artifact of a category's images: load, hold out, fit, calibrate.

This is one process's share of the work. Where ``torch.distributed`` is initialised, every process
calls ``build_model`` with the same arguments. Rank 0 calibrates the network that they all end with
and returns the artifact.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import ssray
from ssray.calibration.calibrate import (
    MAX_TRAINING,
    Calibration,
    PlaceMaps,
    calibrate,
    cross_fitted,
    filling_up,
)
from ssray.calibration.criterion import Criterion
from ssray.config import Compute, Features, Recipe
from ssray.data.pretrained_weights import read_weights
from ssray.data.window import Decode
from ssray.errors import ConfigError
from ssray.method.feature_difference import FeatureDifference
from ssray.method.inference import Reconstructor
from ssray.method.neighbours import MOST_IMAGES, MemoryBank
from ssray.method.pretrained import FeatureNetwork
from ssray.models.artifact import ModelArtifact, TrainingFacts
from ssray.models.device import PRECISION_NAMES, describe_hardware, peak_memory_gib, use_cores
from ssray.models.limits import input_problem
from ssray.training.checkpoint import CheckpointFile
from ssray.training.distributed import ProcessGroup
from ssray.training.execution import Finished, Snapshot, fit_next
from ssray.training.images import Feed, load_feed, load_textures, stream_feed
from ssray.training.plan import Plan, plan_fits

_PACKAGES = ("numpy", "pillow", "pyarrow", "ray", "safetensors", "scipy", "torch")


@dataclass(frozen=True)
class BuildRequest:
    """Which model to build.

    Attributes:
        uris: defect-free training images.
        category: the category that the model is for.
        version: the name of the new version.
        recipe: what to train.
        compute: precision, seed, worker count, time budget and how often to checkpoint.
        data_fingerprint: a digest of the images, for the record.
        criterion: says how well a network does with some settings of the anomaly map, by which they
            are chosen; None chooses none, and judges the model by synthetic defects.
    """

    uris: Sequence[str]
    category: str
    version: str
    recipe: Recipe
    compute: Compute
    data_fingerprint: str = ""
    criterion: Criterion | None = None


@dataclass(frozen=True)
class Callbacks:
    """Who is told how far a training has got.

    Attributes:
        on_decoded: called while images are decoded before the training begins, with how many are
            done, and how many there are.
        on_row: called on every process with each new row of the epoch log.
    """

    on_decoded: Callable[[int, int], None] = lambda done, count: None
    on_row: Callable[[Snapshot], None] = lambda progress: None


_NOBODY = Callbacks()


def build_model(
    request: BuildRequest,
    device: torch.device,
    *,
    threads: int,
    checkpoints: CheckpointFile | None = None,
    decode: Decode | None = None,
    callbacks: Callbacks = _NOBODY,
) -> ModelArtifact | None:
    """Trains one category's model.

    Args:
        request: which model to build.
        device: where this process trains.
        threads: the number of CPU threads of this process.
        checkpoints: where a checkpoint to resume from may be and new ones go.
        decode: streams the images, of which ``compute.memory_gib`` holds a part; None decodes them
            all before the training begins.
        callbacks: who is told of the progress.

    Returns:
        The model; None in processes other than rank 0's.

    Raises:
        ArtifactError: if the checkpoint can't be used.
        ConfigError: if ``compute.memory_gib`` is too little, or the network's input too large.
        DataError: if no image can be decoded.
        TrainingError: if fewer than 4 images can be decoded or too few for the folds, if the loss
            is no longer finite, or if the GPU's memory is too small.
    """
    recipe = request.recipe
    features = _feature_network(recipe)
    feed = _feed(request, threads, decode, callbacks)
    if problem := input_problem(feed.shape):
        raise ConfigError(f"{problem}. Use a smaller --set image_size, or less oblong images.")
    use_cores(threads)
    stored = checkpoints.read() if checkpoints else None
    plan = plan_fits(recipe, request.compute, feed, device, stored)
    finished = Finished.read(stored, recipe, device) if stored else Finished()
    while len(finished.networks) < len(plan.fits):
        finished = fit_next(plan, finished, request.compute, checkpoints, stored, callbacks.on_row)
        stored = None
    counted = feed.counted()
    if ProcessGroup.current().rank:
        return None
    linear = plan.linear
    banks = _Banks(features, recipe.features, request.compute.seed, device)
    neighbours = banks.fitted(feed.sample(MOST_IMAGES))
    model = Reconstructor(
        [*finished.networks[: plan.networks], *([linear] if linear else [])],
        plan.numerics.precision,
        neighbours,
    )
    by_features = _feature_difference(features, recipe, model, feed)
    if by_features:
        model = dataclasses.replace(model, comparers={"features": by_features})
    calibration, places = _calibrated(request, plan, finished, feed, model, banks)
    return ModelArtifact(
        category=request.category,
        version=request.version,
        recipe=recipe,
        calibration=calibration,
        facts=_facts(request, plan, finished, feed, counted, threads),
        weights=tuple(_on_cpu(network) for network in finished.networks[: plan.networks]),
        linear=_on_cpu(linear) if linear else None,
        neighbours=neighbours.kept() if neighbours else None,
        by_features=by_features.kept() if by_features else None,
        places=places,
        history=[dataclasses.asdict(row) for row in finished.history],
    )


def training_key(
    recipe: Recipe, compute: Compute, data_fingerprint: str, criterion: Criterion | None = None
) -> str:
    """A name that is the same for trainings of which all that decides a model was stated alike.

    Precision, and how far steps grow, are left to the machine where nobody states them.
    """
    decisive: dict[str, Any] = {
        "recipe": recipe.model_dump(mode="json", exclude={"name"}),
        "seed": compute.seed,
        "max_minutes": compute.max_minutes,
        "data": data_fingerprint,
    }
    if compute.images_per_step:
        decisive["images_per_step"] = compute.images_per_step
    if criterion:
        decisive["criterion"] = criterion.model_dump(mode="json")
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:32]


def _feed(request: BuildRequest, threads: int, decode: Decode | None, callbacks: Callbacks) -> Feed:
    """Loads the images, or begins to stream them where there is something that decodes them."""
    recipe, compute = request.recipe, request.compute
    if decode:
        feed = stream_feed(
            request.uris,
            recipe,
            threads,
            compute.seed,
            compute.memory_gib,
            decode,
            callbacks.on_decoded,
        )
    else:
        feed = load_feed(request.uris, recipe, threads, compute.seed, callbacks.on_decoded)
    return dataclasses.replace(feed, textures=load_textures(recipe, threads))


def _feature_network(recipe: Recipe) -> FeatureNetwork | None:
    """The pretrained network that the recipe asks for, read before anything is trained.

    Raises:
        ConfigError: if it can't be had.
    """
    if recipe.features is None:
        return None
    wanted = recipe.features
    return FeatureNetwork.of(read_weights(wanted.weights, wanted.sha256), wanted.weights)


def _feature_difference(
    network: FeatureNetwork | None, recipe: Recipe, model: Reconstructor, feed: Feed
) -> FeatureDifference | None:
    """Fits the difference in features to training images, where the recipe compares by it."""
    if recipe.anomaly_map.difference != "features" or not (network and recipe.features):
        return None
    pairs = (
        (batch, reconstruction)
        for batch in model.batches(feed.sample(MAX_TRAINING))
        for reconstruction in model.reconstruct(batch)
    )
    network = network.to(model.device)
    fitted = FeatureDifference.fitted(network, pairs, recipe.features.image_size)
    return fitted.eval().to(model.device)


@dataclass(frozen=True)
class _Banks:
    """Fits memory banks, if there is a network for it.

    Attributes:
        network: makes the features; None if no bank is wanted.
        settings: of the bank.
        seed: of its random choices.
        device: where it computes.
    """

    network: FeatureNetwork | None
    settings: Features | None
    seed: int
    device: torch.device

    def fitted(self, images: Tensor) -> MemoryBank | None:
        """The bank of (N, H, W, 3) uint8 images, in eval mode on the device."""
        if self.network is None or self.settings is None:
            return None
        network = self.network.to(self.device)
        return MemoryBank.fitted(network, images, self.settings, self.seed).eval().to(self.device)


def _calibrated(
    request: BuildRequest,
    plan: Plan,
    finished: Finished,
    feed: Feed,
    model: Reconstructor,
    banks: _Banks,
) -> tuple[Calibration, PlaceMaps]:
    """The calibration of the model's networks, and what belongs to it at every place.

    Where there are folds, image scores come from the networks that were trained without them.
    """
    training, judged = feed.sample(MOST_IMAGES), None
    if model.neighbours and request.criterion is None:
        references = filling_up(len(feed.held_out), training[:MAX_TRAINING], neighbours=True)
        if references:
            others = banks.fitted(training[references:])
            judged = dataclasses.replace(model, neighbours=others)
    calibration, places = calibrate(
        model,
        feed.held_out,
        training[:MAX_TRAINING],
        request.recipe,
        request.compute.seed,
        request.criterion,
        judged,
    )
    folds, trained_on = [], []
    for number in range(plan.networks, len(plan.fits), plan.networks):
        fit = plan.fits[number]
        trained_on.append(fit.feed().sample(MOST_IMAGES))
        linear = plan.linear_of(fit)
        networks = [
            *finished.networks[number:][: plan.networks],
            *([linear] if linear else []),
        ]
        bank = banks.fitted(trained_on[-1])
        folds.append(dataclasses.replace(model, networks=networks, neighbours=bank))
    if folds:
        parts = zip(folds, plan.left_out(), trained_on, strict=True)
        calibration = cross_fitted(calibration, list(parts))
    return calibration, places


def _facts(
    request: BuildRequest,
    plan: Plan,
    finished: Finished,
    feed: Feed,
    counted: tuple[int, int],
    threads: int,
) -> TrainingFacts:
    """The record of how the model came to be.

    Args:
        request: which model was asked for.
        plan: how it was trained.
        finished: what came of it.
        feed: the images.
        counted: how many images there were to draw from, and how many could not be used.
        threads: the number of CPU threads.
    """
    compute, numerics, last = request.compute, plan.numerics, finished.history[-1]
    training_images, skipped = counted
    processes = ProcessGroup.current()
    return TrainingFacts(
        data_fingerprint=request.data_fingerprint,
        training_key=training_key(
            request.recipe, compute, request.data_fingerprint, request.criterion
        ),
        training_images=training_images,
        held_out_images=len(feed.held_out),
        skipped_images=skipped,
        input_shape=feed.shape,
        images_seen=last.images_seen,
        seconds=last.seconds,
        validation_loss=finished.validation_loss(len(plan.fits)),
        max_minutes=compute.max_minutes,
        resumed=finished.resumed,
        device=str(numerics.device),
        precision=PRECISION_NAMES[numerics.precision],
        images_per_step=plan.images_per_step,
        workers=processes.size,
        threads=threads,
        parts=numerics.count_parts(processes.size),
        compiled=numerics.compile,
        streamed=feed.streamed,
        memory_gib=compute.memory_gib,
        peak_memory_gib=peak_memory_gib(numerics.device),
        seed=compute.seed,
        ssray_version=ssray.__version__,
        torch_version=torch.__version__,
        packages=_package_versions(),
        hardware=describe_hardware(numerics.device),
    )


def _package_versions() -> dict[str, str]:
    """The versions of Python and of the packages that a model depends on, as far as they are there:
    a process that trains without Ray may lack it.
    """
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _on_cpu(network: nn.Module) -> dict[str, Tensor]:
    """A network's weights and buffers as contiguous tensors on the CPU."""
    return {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
