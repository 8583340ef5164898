"""Ray Train around ``build_model``: workers, DDP, and the way back for progress and errors."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray.train
import torch
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
from ray.util.queue import Queue

from ssray.calibration.calibrate import MAX_REFERENCES, MAX_TRAINING
from ssray.calibration.criterion import Criterion
from ssray.cluster.decode import RESERVED_CPUS, decode_on_cluster
from ssray.cluster.progress import forwarded
from ssray.cluster.rendezvous import torch_config
from ssray.cluster.resources import WorkerResources, check_capacity, training_workers
from ssray.cluster.session import one_line
from ssray.config import Compute, Recipe
from ssray.data.pose import Framing
from ssray.errors import ArtifactError, DataError, ImageError, SsrayError, TrainingError
from ssray.models.artifact import (
    ModelArtifact,
    load,
    new_version,
    save,
    write_epoch_log,
)
from ssray.models.device import resolve_device
from ssray.models.quality import refusal
from ssray.models.store import in_use, publish, versions
from ssray.models.stored import is_complete
from ssray.report.reconstructions import alignment_sheet, reconstruction_sheet
from ssray.storage.lease import SILENCE_SECONDS, Lease
from ssray.storage.location import Location
from ssray.training.build import BuildRequest, Callbacks, build_model, training_key
from ssray.training.checkpoint import CheckpointFile
from ssray.training.distributed import BACKENDS
from ssray.training.execution import Snapshot
from ssray.training.images import data_fingerprint, exceeds_memory
from ssray.training.progress import ProgressRow

TRAININGS = ".training"
"""Folder of a store for what trainings under way need."""
SHEETS = 10
"""How many reconstruction sheets a training leaves, besides the first."""
_DECODED_SECONDS = 5.0


@dataclass(frozen=True)
class Trained:
    """How a training ended.

    Attributes:
        version: complete, in the store.
        published: whether it is in use; a model that tells good from bad hardly better than
            guessing is not, ``ssray.models.quality.refusal`` says why.
        new: whether it was trained now; it was there before otherwise.
    """

    version: str
    published: bool
    new: bool


@dataclass(frozen=True)
class Trial:
    """What makes a training one of a search.

    Attributes:
        criterion: what its model is judged by, on the way and at the end.
        rungs: shares of the budget after which it is judged on the way.
        stop: a file that whoever wants the training to end writes.
    """

    criterion: Criterion
    rungs: Sequence[float]
    stop: Location


@dataclass(frozen=True)
class Rung:
    """How good the model of a trial would have been on the way.

    Attributes:
        share: of the budget that was spent at least.
        error: by the trial's criterion; None where nothing could be judged.
    """

    share: float
    error: float | None


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What every worker of a training gets to know.

    Attributes:
        request: which model to build.
        workers: how many workers there are.
        each: what each of them has.
        store: where the model goes.
        folder: a folder of this training alone, for checkpoints.
        streamed: whether the images exceed a worker's memory.
        instead_of: the version in use when the training began.
        trial: set if this is a trial of a search, whose model is not put into use.
        reports: gets ``(name, value)``: ``row`` with a row of the epoch log, ``state`` with a few
            words, ``rung`` with a ``Rung``.
    """

    request: BuildRequest
    workers: int
    each: WorkerResources
    store: Location
    folder: Location
    streamed: bool
    instead_of: str | None
    trial: Trial | None
    reports: Queue


def train_category(
    uris: Sequence[str],
    category: str,
    recipe: Recipe,
    compute: Compute,
    store: Location,
    *,
    cores: int | None = None,
    on_row: Callable[[ProgressRow], None] = lambda epoch: None,
    on_state: Callable[[str], None] = lambda state: None,
    trial: Trial | None = None,
    on_rung: Callable[[Rung], None] = lambda rung: None,
) -> Trained:
    """Trains one category on the connected Ray and publishes the model, unless it is a trial or
    hardly better than guessing.

    A training is known by its images, recipe, seed and budget. One that is complete in the store
    is not repeated, and one that was interrupted goes on from its last checkpoint.

    Args:
        uris: defect-free training images, readable from every worker.
        category: its name in the store.
        recipe: what to train.
        compute: workers, device, precision, time budget, seed.
        store: where the model goes; with several nodes a place they share.
        cores: of the training, where ``compute`` does not state them; default: those of a node.
        on_row: called on the driver with each row of the epoch log.
        on_state: called with a few words on what goes on before the training begins, and when it
            goes on after workers were lost.
        trial: set for a training of a search.
        on_rung: called on the driver when the trial was judged on the way.

    Raises:
        ArtifactError: if the last checkpoint can't be used.
        ConfigError: if this machine can't hold the workers asked for, or they can't work together.
        ConflictError: if the same is being trained elsewhere; or if someone else published the
            category meanwhile, then the version is kept.
        DataError, TrainingError: as ``build_model``; or if workers were lost too often, or the
            trial was told to stop.
    """
    uris = sorted(uris)
    to_train_on = round(len(uris) * (1 - recipe.schedule.holdout))
    workers, each = training_workers(compute, recipe, to_train_on, cores)
    check_capacity(workers, each.cpus, each.gpus)
    seen = data_fingerprint(uris, recipe)
    key = training_key(recipe, compute, seen, trial.criterion if trial else None)
    done = _completed(store, category, key)
    if done:
        return done
    folder = store / TRAININGS / category / key
    on_wait = functools.partial(
        on_state, f"{SILENCE_SECONDS:g} s to see if it is trained elsewhere"
    )
    with Lease(folder / "lease", f"{category}: the same training", on_wait) as lease:
        done = _completed(store, category, key)
        if done:
            return done
        version = _version_to_make(store / category, folder, lease.taken_over)
        job = _Job(
            request=BuildRequest(
                uris,
                category,
                version,
                recipe,
                compute,
                data_fingerprint=seen,
                criterion=trial.criterion if trial else None,
            ),
            workers=workers,
            each=each,
            store=store,
            folder=folder,
            streamed=exceeds_memory(uris, recipe, compute.memory_gib, each.cpus),
            instead_of=in_use(store, category),
            trial=trial,
            reports=Queue(actor_options={"num_cpus": 0}),
        )
        _run(job, {"row": on_row, "state": on_state, "rung": on_rung})
        if not lease.lost:
            folder.delete()
    return Trained(version, published=in_use(store, category) == version, new=True)


def _completed(store: Location, category: str, key: str) -> Trained | None:
    """The complete version that this training made before; rather the one in use than another."""
    try:
        same = [v for v in versions(store, category) if v.facts and v.facts.training_key == key]
    except ArtifactError:  # there is none, or no longer
        return None
    if not same:
        return None
    best = max(same, key=lambda v: (v.published, v.version))
    return Trained(best.version, best.published, new=False)


def _version_to_make(models: Location, folder: Location, taken_over: bool) -> str:
    """The version that this training makes: that of an earlier start which ended in good order.

    Another name after one that did not, as whatever is left of it may still write to its own.
    """
    place = folder / "version.txt"
    earlier = place.read().decode() if place.exists() else None
    if earlier and not taken_over:
        return earlier
    if earlier and not is_complete(models / earlier):
        (models / earlier).delete()
    version = new_version()
    place.write(version.encode())
    return version


def _run(job: _Job, receivers: Mapping[str, Callable[[Any], None]]) -> None:
    """Trains with Ray Train, and hands on what the workers report."""
    try:
        with forwarded(job.reports, receivers):
            _run_until_done(job, receivers["state"])
    except SystemExit:  # Ray Train's answer to Ctrl-C, after it has ended the workers
        raise KeyboardInterrupt from None
    finally:
        job.reports.shutdown()


def _run_until_done(job: _Job, on_state: Callable[[str], None]) -> None:
    """Starts Ray Train again when workers are lost.

    Ray Train's own ``FailureConfig`` would repeat a training that ended with a user's mistake, too.
    """
    category, restarts = job.request.category, job.request.compute.restarts
    for attempt in itertools.count():
        try:
            _trainer(job, attempt).fit()
            return
        except TrainingFailedError as failure:
            ours = _own_error(failure, category)
            if ours:
                raise ours from failure
            reason = _reason(failure)
            if attempt == restarts:
                raise TrainingError(
                    f"{category}: lost workers {attempt + 1} times, the last time by: {reason} "
                    "The same command goes on from the last checkpoint."
                ) from failure
            on_state(f"goes on after: {reason}")


def _trainer(job: _Job, attempt: int) -> TorchTrainer:
    least, each = job.request.compute.min_workers, job.each
    cpus: float = each.cpus
    if job.streamed:
        cpus = each.cpus - RESERVED_CPUS
        cpus = min(1, cpus) if each.gpus else cpus
    return TorchTrainer(
        _train_on_worker,
        train_loop_config={"job": job},
        torch_config=torch_config(BACKENDS[each.device]),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(least, job.workers) if least else job.workers,
            use_gpu=each.gpus > 0,  # to Ray: whether it reserves some
            resources_per_worker={"CPU": cpus, "GPU": each.gpus},
        ),
        run_config=ray.train.RunConfig(
            name=f"ray-{attempt}",
            storage_path=job.folder.path,
            storage_filesystem=job.store.filesystem,
        ),
    )


def _train_on_worker(config: dict[str, _Job]) -> None:
    _Worker(config["job"]).run()


class _Worker:
    """One process of a training; the first of them also reports and publishes."""

    def __init__(self, job: _Job) -> None:
        self._job = job
        self._is_first = ray.train.get_context().get_world_rank() == 0
        self._model_folder = job.store / job.request.category / job.request.version
        self._reported = time.monotonic()

    def run(self) -> None:
        """Trains the model, unless an earlier start did; puts it into use unless it is refused."""
        job, request = self._job, self._job.request
        model = None if is_complete(self._model_folder) else self._build()
        if self._is_first and not job.trial:
            model = model or load(job.store, request.category, request.version)
            if refusal(model) is None:
                publish(job.store, request.category, request.version, job.instead_of)

    def _build(self) -> ModelArtifact | None:
        """Trains the model and stores it; None in processes other than the first."""
        job = self._job
        model = build_model(
            job.request,
            self._device(),
            threads=job.each.threads(),
            checkpoints=CheckpointFile(job.folder),
            decode=decode_on_cluster if job.streamed else None,
            callbacks=Callbacks(self._on_decoded, self._on_row) if self._is_first else Callbacks(),
        )
        if model:
            save(model, job.store)
        return model

    def _device(self) -> torch.device:
        device = resolve_device(self._job.each.device)
        if device.type == "cuda":  # this worker's, if it sees those of others, too
            device = ray.train.torch.get_device()
        return device

    def _on_decoded(self, done: int, count: int) -> None:
        if time.monotonic() - self._reported >= _DECODED_SECONDS:
            self._reported = time.monotonic()
            self._job.reports.put(("state", f"reading images: {done} of {count}"))

    def _on_row(self, snapshot: Snapshot) -> None:
        job, request = self._job, self._job.request
        if job.trial:
            self._judge(job.trial, snapshot)
        rows = [dataclasses.asdict(row) for row in snapshot.history]
        write_epoch_log(job.store, request.category, request.version, rows)
        if _sheet_due(snapshot.history):
            self._write_sheet(snapshot)
        job.reports.put(("row", snapshot.history[-1]))

    def _judge(self, trial: Trial, snapshot: Snapshot) -> None:
        """Reports how good the model of a trial would be, where the last row reached a rung.

        Raises:
            TrainingError: if whoever began the trial wants it to end.
        """
        if trial.stop.exists():
            raise TrainingError("told to stop")
        for rung in _rungs_reached(trial, snapshot, self._job.request.recipe):
            self._job.reports.put(("rung", rung))

    def _write_sheet(self, snapshot: Snapshot) -> None:
        sheet = reconstruction_sheet(
            snapshot.network,
            snapshot.held_out,
            self._job.request.recipe.anomaly_map.difference or "squared",
            snapshot.precision,
        )
        name = f"{round(100 * snapshot.history[-1].budget_spent):03}.png"
        (self._model_folder / "sheets" / name).write(sheet)
        if self._job.request.recipe.alignment and len(snapshot.history) == 1:
            (self._model_folder / "aligned.png").write(alignment_sheet(snapshot.held_out))


def _rungs_reached(trial: Trial, progress: Snapshot, recipe: Recipe) -> Iterator[Rung]:
    """Judges the model as it would be if the last row, the first beyond a rung, were the end."""
    before, now = [0.0, *(row.budget_spent for row in progress.history)][-2:]
    reached = [share for share in trial.rungs if before < share <= now < 1]
    if reached:
        feed, wanted = progress.plan.fits[0].feed(), recipe.anomaly_map
        found = trial.criterion.examine(
            progress.model(),
            feed.held_out[:MAX_REFERENCES],
            wanted,
            training=feed.sample(MAX_TRAINING) if wanted.relative else None,
            framing=Framing.of(recipe, feed.shape),
        )
        yield Rung(reached[-1], found.selection.error)


def _sheet_due(history: Sequence[ProgressRow]) -> bool:
    """Whether the last row begins another of the ``SHEETS`` parts of the budget, or ends it."""
    parts = [int(SHEETS * epoch.budget_spent) for epoch in history[-2:]]
    return len(parts) == 1 or parts[0] < parts[1]


def _own_error(failure: TrainingFailedError, category: str) -> SsrayError | None:
    """The worker's own error where it is one of ours, so that users read one clear line."""
    for cause in _worker_failures(failure):
        ours: BaseException | None = cause
        while ours is not None and not isinstance(ours, SsrayError):
            ours = ours.__cause__ or getattr(ours, "cause", None)
        if isinstance(ours, SsrayError):
            kind = DataError if isinstance(ours, ImageError) else type(ours)
            return kind(str(ours) if str(ours).startswith(category) else f"{category}: {ours}")
    return None


def _reason(failure: TrainingFailedError) -> str:
    return one_line((_worker_failures(failure) or [failure])[0])


def _worker_failures(failure: TrainingFailedError) -> list[Exception]:
    return list(failure.worker_failures.values()) if isinstance(failure, WorkerGroupError) else []
