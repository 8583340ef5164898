"""Ray Train around ``build_model``: workers, DDP, and the way back for progress and errors."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
from ray.util.queue import Empty, Queue
from torch import nn

from ssray.artifact import EpochLog, ModelArtifact, new_version, save
from ssray.building import build_model
from ssray.cluster.runtime import check_capacity, one_line, threads_per_worker, wants_gpu
from ssray.config import Compute, Recipe
from ssray.data.storage import Location
from ssray.device import resolve_device
from ssray.errors import DataError, ImageError, SsrayError, TrainingError
from ssray.model_store import publish, published
from ssray.training import Epoch

_POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What every worker is told."""

    uris: Sequence[str]
    category: str
    version: str
    recipe: Recipe
    compute: Compute
    use_gpu: bool
    threads: int
    store: Location
    instead_of: str | None
    progress: Queue


def train_category(
    uris: Sequence[str],
    category: str,
    recipe: Recipe,
    compute: Compute,
    store: Location,
    *,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> str:
    """Trains one category on the connected Ray and publishes the model.

    Args:
        uris: defect-free training images, readable from every worker.
        category: its name in the store.
        recipe: what to train.
        compute: workers, device, precision, time budget, seed.
        store: where the model goes; with several nodes a place they share.
        on_epoch: called on the driver with each row of the epoch log.

    Returns:
        The new version.

    Raises:
        ConfigError: if this machine can't hold the workers asked for.
        DataError, TrainingError: as ``build_model``.
        ConflictError: if someone else published the category meanwhile; the version is kept.
    """
    use_gpu = wants_gpu(compute)
    threads = threads_per_worker(compute, use_gpu)
    check_capacity(compute.workers, threads, compute.gpus_per_worker if use_gpu else 0)
    resources: dict[str, float] = {"CPU": threads}
    if use_gpu:
        resources["GPU"] = compute.gpus_per_worker
    version = new_version()
    progress = Queue(actor_options={"num_cpus": 0})
    job = _Job(
        uris=uris,
        category=category,
        version=version,
        recipe=recipe,
        compute=compute,
        use_gpu=use_gpu,
        threads=threads,
        store=store,
        instead_of=published(store).get(category),
        progress=progress,
    )
    trainer = TorchTrainer(
        _train_on_worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=compute.workers, use_gpu=use_gpu, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=f"{category}-{version}",
            storage_path=(store / ".ray").path,
            storage_filesystem=store.filesystem,
        ),
    )
    try:
        with _forwarded(progress, on_epoch):
            trainer.fit()
    except TrainingFailedError as failure:
        raise _cause(failure, category) from failure
    except SystemExit:  # Ray Train's answer to Ctrl-C, after it has ended the workers
        raise KeyboardInterrupt from None
    finally:
        progress.shutdown()
    return version


def _train_on_worker(config: dict[str, _Job]) -> None:
    job = config["job"]
    rank = ray.train.get_context().get_world_rank()
    log = EpochLog(job.store, job.category, job.version)

    def on_epoch(epoch: Epoch, network: nn.Module) -> None:
        if rank == 0:
            log.append(dataclasses.asdict(epoch))
            job.progress.put(epoch)

    device = ray.train.torch.get_device() if job.use_gpu else resolve_device("cpu")
    artifact: ModelArtifact = build_model(
        job.uris,
        job.category,
        job.version,
        job.recipe,
        job.compute,
        device,
        threads=job.threads,
        on_epoch=on_epoch,
    )
    if rank == 0:
        save(artifact, job.store)
        publish(job.store, job.category, job.version, job.instead_of)


@contextlib.contextmanager
def _forwarded(progress: Queue, on_epoch: Callable[[Epoch], None]) -> Iterator[None]:
    """Hands every row from the workers to ``on_epoch`` while the block runs, and at its end."""
    finished = threading.Event()

    def forward() -> None:
        while True:
            last_round = finished.is_set()
            with contextlib.suppress(Empty):
                while True:
                    on_epoch(progress.get(timeout=_POLL_SECONDS))
            if last_round:
                return

    thread = threading.Thread(target=forward, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def _cause(failure: TrainingFailedError, category: str) -> SsrayError:
    """The worker's own error where it is one of ours, so that users read one clear line."""
    causes = list(failure.worker_failures.values()) if isinstance(failure, WorkerGroupError) else []
    for cause in causes:
        ours: BaseException | None = cause
        while ours is not None and not isinstance(ours, SsrayError):
            ours = ours.__cause__ or getattr(ours, "cause", None)
        if isinstance(ours, SsrayError):
            kind = DataError if isinstance(ours, ImageError) else type(ours)
            return kind(f"{category}: {ours}")
    reason = one_line(causes[0] if causes else failure)
    return TrainingError(f"{category}: a worker failed: {reason}")
