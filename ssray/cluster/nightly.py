"""Ray Data over a night's batches: actors that fetch, decode, score and write, each batch once.

What flows through Ray is small: the number of a batch to an actor, and its counts back. An actor
reads its batch from the manifest, keeps some threads fetching and decoding ahead of the model, and
writes the batch's rows as one file. So no image ever waits in Ray's object store, memory is bounded
by what the actors hold, and whatever is killed costs no more than the batches under way.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import ray.data
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError

from ssray.cluster.resources import (
    WorkerResources,
    check_capacity,
    may_grow,
    node_resources,
)
from ssray.cluster.session import one_line, ray_session
from ssray.config import Compute
from ssray.errors import ScoringError
from ssray.models.device import resolve_device, use_cores
from ssray.nightly.batch import BatchScorer
from ssray.nightly.plan import Planned, read_batch
from ssray.nightly.protocol import (
    Assignment,
    NightOutcome,
    NightRequest,
    OnScored,
    OnState,
    Stages,
    run_night,
)
from ssray.nightly.quarantine import quarantined
from ssray.nightly.run import Night, Part, Places, Run, without_rows, write_part
from ssray.storage.fetch import persistently
from ssray.storage.location import Location

SPARE_READERS = 2
"""Threads that fetch and decode, beyond the CPUs of an actor: fetching is mostly waiting."""
NO_PROGRESS_TIMEOUT_S = 6 * 3600
"""Only a batch that is done is progress: thousands of images of a compressed tar at some seconds
each are one, and a node may have to be waited for."""
_TASKS_AHEAD = 2
_BATCHES = pa.schema(
    [
        ("number", pa.int64()),
        ("planned", pa.list_(pa.int64(), 3)),
        ("files", pa.list_(pa.string())),
    ]
)
"""What an actor gets: an ``Assignment``."""


def score_night(
    request: NightRequest,
    compute: Compute,
    on_state: OnState = lambda state: None,
    on_scored: OnScored = lambda done, count: None,
) -> NightOutcome:
    """Scores every image of a night once, on the Ray that is connected or on this machine's.

    Arguments, result and errors are those of ``ssray.nightly.protocol.run_night``.
    """

    @contextlib.contextmanager
    def on_ray(places: Places, run: Run) -> Iterator[Stages]:
        with ray_session():
            yield _RayStages(request, compute, places, run)

    return run_night(request, compute, on_ray, on_state, on_scored)


@dataclass(frozen=True)
class _RayStages:
    """A night's ``Stages`` on Ray."""

    request: NightRequest
    compute: Compute
    places: Places
    run: Run

    @property
    def device(self) -> str:
        return WorkerResources.of(self.compute).device

    def score(self, batches: Sequence[Assignment], give_up: bool) -> Iterator[Part]:
        if not batches:
            return
        pool = _Pool.of(self.request, self.compute, len(batches))
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_no_progress_timeout_s = NO_PROGRESS_TIMEOUT_S
        blocks = [
            pa.table([[each.number], [[*each.planned]], [[*each.files]]], schema=_BATCHES)
            for each in batches
        ]
        parts = ray.data.from_arrow(blocks).map_batches(
            _NightActor,
            batch_format="pyarrow",
            batch_size=1,  # where there are GPUs, Ray Data refuses to take blocks as they are
            num_cpus=pool.each.cpus,
            num_gpus=pool.each.gpus or None,
            compute=ray.data.ActorPoolStrategy(
                min_size=pool.min_actors,
                max_size=pool.max_actors,
                max_tasks_in_flight_per_actor=_TASKS_AHEAD,
            ),
            fn_constructor_kwargs={
                "places": self.places,
                "models": self.request.models,
                "night": self.run.night,
                "compute": self.compute,
                "worker": pool.each,
                "give_up": give_up,
            },
        )
        with _told_in_a_line():
            for row in parts.iter_rows():
                yield Part.model_validate_json(row["part"])


@contextlib.contextmanager
def _told_in_a_line() -> Iterator[None]:
    """Turns what goes wrong on the cluster into a ``ScoringError`` of one line."""
    try:
        yield
    except (RayError, ExecutionTimeoutError) as error:
        raise ScoringError(
            f"scoring failed: {one_line(error)} The same command goes on where it was."
        ) from error


@dataclass(frozen=True)
class _Pool:
    """How many actors there are, and what each one has."""

    min_actors: int
    max_actors: int
    each: WorkerResources

    @classmethod
    def of(cls, request: NightRequest, compute: Compute, batches: int) -> _Pool:
        """On CPUs actors of one thread each, which never wait for each other, unless told; with
        GPUs each has its share of the CPUs of its node.

        On this machine there are as many as fit, on a cluster, which may grow, one a batch.
        """
        each = WorkerResources.of(compute)
        if not each.gpus and not each.stated:
            each = dataclasses.replace(each, cpus=1)
        fit = sum(map(each.fitting, node_resources()))
        most = request.max_actors or (batches if may_grow() else fit)
        most = max(1, min(most, batches))
        check_capacity(min(request.min_actors, most), each.cpus, each.gpus)
        return cls(min(request.min_actors, most), most, each)


class _NightActor:
    """A ``BatchScorer`` that takes numbers of batches and writes their rows."""

    def __init__(
        self,
        places: Places,
        models: Location,
        night: Night,
        compute: Compute,
        worker: WorkerResources,
        give_up: bool,
    ) -> None:
        threads = worker.threads()
        use_cores(threads)
        self._places, self._device = places, worker.device
        self._wrote = 0.0
        scorer = BatchScorer(
            models,
            night.versions,
            resolve_device(worker.device),
            compute.precision,
            compute.backend,
            readers=threads + SPARE_READERS,
            heatmaps=night.heatmaps,
        )
        self._score = functools.partial(scorer, give_up=give_up)

    def __call__(self, batches: pa.Table) -> pa.Table:
        parts = [
            self._done(Assignment(row["number"], Planned(*row["planned"]), row["files"]))
            for row in batches.to_pylist()
        ]
        return pa.table({"part": [each.model_dump_json() for each in parts]})

    def _done(self, batch: Assignment) -> Part:
        begun = time.perf_counter()
        number, planned, files = batch
        sources = persistently(lambda: read_batch(self._places.manifest, number, planned))
        if files:
            sources = without_rows(self._places, sources, files)
        result = quarantined(self._score, sources, self._places.notes / f"{number:06}")
        scored = time.perf_counter()
        result.spent.seconds["write"] += self._wrote  # a file can't tell how long it took to write
        result.spent.worker_seconds = scored - begun + self._wrote
        part = persistently(lambda: write_part(self._places, number, files, result, self._device))
        self._wrote = time.perf_counter() - scored
        return part
