"""From a category's images to a complete model artifact: load, hold out, fit, calibrate.

One process's share of it; where ``torch.distributed`` is initialised every process calls
``build_model`` with the same arguments; rank 0 calibrates the network they all end with and
returns the artifact.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import ssray
from ssray.calibration.calibrate import calibrate, cross_fitted
from ssray.calibration.criterion import Criterion
from ssray.config import Compute, Recipe
from ssray.data.window import Decode
from ssray.errors import TrainingError
from ssray.method.autoencoder import Autoencoder
from ssray.models.artifact import ModelArtifact, TrainingFacts
from ssray.models.device import (
    PRECISION_NAMES,
    describe_hardware,
    kept_precision,
    peak_memory_gib,
    resolve_precision,
    use_cores,
)
from ssray.training.checkpoint import Checkpoint, CheckpointFile
from ssray.training.distributed import ProcessGroup
from ssray.training.fit import Checkpointing, fit
from ssray.training.growth import filling_growth, grown, most_growth
from ssray.training.images import Feed, Fold, cut_folds, load_feed, load_textures, stream_feed
from ssray.training.progress import ProgressRow
from ssray.training.trainer import Numerics

InWhole = Callable[[ProgressRow], ProgressRow]

_ROUNDING = 1e-9
_PACKAGES = ("numpy", "pillow", "pyarrow", "ray", "safetensors", "scipy", "torch")


@dataclass(frozen=True)
class Progress:
    """How far a training has got.

    Attributes:
        history: the epoch log; its last row is new.
        network: the averaged network as it is now.
        held_out: (M, H, W, 3) uint8 images it is not trained on.
        precision: of its forward pass.
    """

    history: Sequence[ProgressRow]
    network: nn.Module
    held_out: Tensor
    precision: torch.dtype


def build_model(
    uris: Sequence[str],
    category: str,
    version: str,
    recipe: Recipe,
    compute: Compute,
    device: torch.device,
    *,
    threads: int,
    data_fingerprint: str = "",
    checkpoints: CheckpointFile | None = None,
    decode: Decode | None = None,
    on_decoded: Callable[[int, int], None] = lambda done, count: None,
    on_row: Callable[[Progress], None] = lambda progress: None,
    criterion: Criterion | None = None,
) -> ModelArtifact | None:
    """Trains one category's model.

    Args:
        uris: defect-free training images.
        category: whose model it is.
        version: name of the new version.
        recipe: what to train.
        compute: precision, seed, worker count, time budget and how often to checkpoint.
        device: where this process trains.
        threads: CPU threads of this process.
        data_fingerprint: of the images, for the record.
        checkpoints: where a checkpoint to resume from may be and new ones go.
        decode: streams the images, of which ``compute.memory_gib`` holds a part; None decodes them
            all before the training begins.
        on_decoded: called while images are decoded before the training begins, with how many are
            done, and how many there are.
        on_row: called with each new row of the epoch log.
        criterion: what the map's settings are chosen by; default: synthetic defects.

    Returns:
        The model; None in processes other than rank 0's.

    Raises:
        ArtifactError: if the checkpoint can't be used.
        ConfigError: if ``compute.memory_gib`` is too little.
        DataError: if no image can be decoded.
        TrainingError: if fewer than 4 can, or too few for the folds.
    """
    team = ProcessGroup.current()
    if decode:
        feed = stream_feed(
            uris, recipe, threads, compute.seed, compute.memory_gib, decode, on_decoded
        )
    else:
        feed = load_feed(uris, recipe, threads, compute.seed, on_decoded)
    textures = load_textures(recipe, threads)
    use_cores(threads)
    stored = checkpoints.read() if checkpoints else None
    before = _Before.read(stored, recipe) if stored else _Before()
    precision = _agreed(
        kept_precision(before.precision, device)
        if before.precision
        else resolve_precision(compute.precision, device, recipe.network),
        team,
    )
    parts_a_step = max((compute.workers or team.size) * compute.accumulate, team.size)
    growth = before.growth or _growth(recipe, compute, feed, device, precision, parts_a_step, team)
    trained = grown(recipe, growth)
    parts = ensemble_parts(trained)
    splits: list[Feed | Fold] = [feed, *cut_folds(feed, recipe.decision.folds)]
    fits = [(part, split) for split in splits for part in parts]
    networks = [network.to(device) for network in before.networks]
    history = [*before.history]
    for number, (part, split) in list(enumerate(fits))[len(networks) :]:
        unseen = split.held_out
        finished = _Before(
            PRECISION_NAMES[precision], growth, networks, tuple(history), before.resumed
        )
        in_whole = functools.partial(
            _in_whole, before=history[-1] if history else None, number=number, parts=len(fits)
        )
        if stored:
            history.extend(in_whole(ProgressRow(**row)) for row in stored.facts["history"])

        def add_row(
            epoch: ProgressRow,
            network: nn.Module,
            whole: InWhole = in_whole,
            unseen: Tensor = unseen,
        ) -> None:
            history.append(whole(epoch))
            on_row(Progress(history, network, unseen, precision))

        def keep(checkpoint: Checkpoint, finished: _Before = finished) -> None:
            if checkpoints and team.rank == 0:
                checkpoints.write(finished.added_to(checkpoint))

        try:
            fitted = fit(
                Feed(split.training, unseen, textures=textures),
                part,
                Numerics(device, precision, compute.compile, parts_a_step),
                seed=compute.seed,
                max_minutes=compute.max_minutes and compute.max_minutes / len(parts),
                checkpointing=Checkpointing(
                    stored, compute.checkpoint_minutes if checkpoints else math.inf, keep
                ),
                on_row=add_row,
            )
        except torch.cuda.OutOfMemoryError as error:
            raise TrainingError(
                f"the GPU's memory holds no step of {trained.schedule.batch} images "
                f"({str(error).partition('. ')[0]}). Use a smaller --images-per-step, or a larger "
                "--accumulate, which takes a step in more parts."
            ) from error
        stored = None
        networks = [*networks, fitted.model]
    trained_on, skipped = feed.counted()
    if team.rank:
        return None
    model, *others = (networks[i : i + len(parts)] for i in range(0, len(fits), len(parts)))
    calibration, average_map = calibrate(
        model, feed.held_out, feed.sample, recipe, precision, compute.seed, criterion
    )
    if others:
        left_out = [split.held_out for split in splits[1:]]
        calibration = cross_fitted(calibration, list(zip(others, left_out, strict=True)), precision)
    facts = TrainingFacts(
        data_fingerprint=data_fingerprint,
        training_key=training_key(recipe, compute, data_fingerprint, criterion),
        training_images=trained_on,
        held_out_images=len(feed.held_out),
        skipped_images=skipped,
        input_shape=feed.shape,
        images_seen=history[-1].images_seen,
        seconds=history[-1].seconds,
        validation_loss=_validation_loss(history, len(fits)),
        max_minutes=compute.max_minutes,
        resumed=before.resumed,
        device=str(device),
        precision=PRECISION_NAMES[precision],
        images_per_step=trained.schedule.batch,
        workers=team.size,
        threads=threads,
        parts=parts_a_step,
        compiled=compute.compile,
        streamed=decode is not None,
        memory_gib=compute.memory_gib,
        peak_memory_gib=peak_memory_gib(device),
        seed=compute.seed,
        ssray_version=ssray.__version__,
        torch_version=torch.__version__,
        packages=_package_versions(),
        hardware=describe_hardware(device),
    )
    return ModelArtifact(
        category=category,
        version=version,
        recipe=recipe,
        calibration=calibration,
        facts=facts,
        weights=tuple(_on_cpu(network) for network in model),
        average_map=average_map,
        history=[dataclasses.asdict(row) for row in history],
    )


def training_key(
    recipe: Recipe, compute: Compute, data_fingerprint: str, criterion: Criterion | None = None
) -> str:
    """The same for trainings of which all is the same that decides a model and was stated.

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


@dataclass(frozen=True)
class _Before:
    """What was done before the network in training: the ensemble's others, and the decisions.

    Attributes:
        precision: of all networks; empty where it is still to be chosen.
        growth: of their steps, likewise; 0 where it is still to be chosen.
        networks: those that are finished.
        history: their rows of the epoch log.
        resumed: how often the run went on from a checkpoint.
    """

    precision: str = ""
    growth: float = 0.0
    networks: Sequence[nn.Module] = ()
    history: Sequence[ProgressRow] = ()
    resumed: int = 0

    def added_to(self, checkpoint: Checkpoint) -> Checkpoint:
        tensors = {
            f"finished.{number}.{name}": tensor
            for number, network in enumerate(self.networks)
            for name, tensor in network.state_dict().items()
        }
        facts = {
            "precision": self.precision,
            "growth": self.growth,
            "finished": len(self.networks),
            "finished_history": [dataclasses.asdict(row) for row in self.history],
            "resumed": self.resumed,
        }
        return Checkpoint(checkpoint.tensors | tensors, checkpoint.facts | facts)

    @classmethod
    def read(cls, checkpoint: Checkpoint, recipe: Recipe) -> _Before:
        networks = []
        for number in range(checkpoint.facts["finished"]):
            network = Autoencoder(recipe.network)
            network.load_state_dict(checkpoint.below(f"finished.{number}"))
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            networks.append(network.eval())
        facts = checkpoint.facts
        history = [ProgressRow(**row) for row in facts["finished_history"]]
        growth = facts.get("growth", 1.0)  # checkpoints of earlier versions know no other
        return cls(facts["precision"], growth, networks, history, facts["resumed"] + 1)


def _validation_loss(history: Sequence[ProgressRow], networks: int) -> float:
    """At the end of the first network's training: objective (1)'s, where there is one."""
    first = [row for row in history if row.budget_spent <= (1 + _ROUNDING) / networks]
    return first[-1].validation_loss


def _package_versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version()} | found


def ensemble_parts(recipe: Recipe) -> list[Recipe]:
    """The recipe of each network: itself, or for an ensemble one an objective, half the budget."""
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


def _in_whole(
    epoch: ProgressRow, before: ProgressRow | None, number: int, parts: int
) -> ProgressRow:
    """A network's epoch as a row of the log of all ``parts`` networks."""
    passes, images, seconds = (
        (before.epoch, before.images_seen, before.seconds) if before else (0.0, 0.0, 0.0)
    )
    still_to_come = (parts - number - 1) * (epoch.seconds + epoch.seconds_left)
    return dataclasses.replace(
        epoch,
        epoch=passes + epoch.epoch,
        images_seen=images + epoch.images_seen,
        budget_spent=(number + epoch.budget_spent) / parts,
        seconds=seconds + epoch.seconds,
        seconds_left=epoch.seconds_left + still_to_come,
    )


def _on_cpu(network: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}


def _growth(
    recipe: Recipe,
    compute: Compute,
    feed: Feed,
    device: torch.device,
    precision: torch.dtype,
    parts: int,
    team: ProcessGroup,
) -> float:
    """How many times the recipe's images a step takes; the same for all processes.

    As many as were stated. Else on a GPU as many as fill it; on CPUs, where nobody stated how many
    workers share a step, each of them gets a step of the recipe's.
    """
    if compute.images_per_step:
        return compute.images_per_step / recipe.schedule.batch
    most = most_growth(recipe, feed.training_images)
    if device.type != "cuda":
        return min(most, 1.0 if compute.workers else float(team.size))
    growth = float(
        filling_growth(
            recipe,
            feed.shape,
            device,
            precision,
            parts=parts,
            most=most,
            memory_share=min(1.0, compute.gpus_per_worker or 1.0),
            taken_bytes=feed.nbytes,
        )
    )
    return team.least(growth)


def _agreed(precision: torch.dtype, team: ProcessGroup) -> torch.dtype:
    """Rank 0's choice for all: two workers that time themselves may disagree."""
    known = list(PRECISION_NAMES)
    [chosen] = team.first(known.index(precision))
    return known[int(chosen)]
