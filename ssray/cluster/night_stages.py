"""Ray Data over a night's batches: each is fetched, decoded, scored and written once.

On CPUs an actor does all of it: some threads fetch and decode ahead of the model. What flows
through Ray is small, the number of a batch to an actor and its counts back, and no image ever waits
in the object store.

A GPU would wait for the few CPUs beside it. There, tasks on any node fetch and decode, and actors
with GPUs take the prepared images, score them and write their rows, one batch while the next one
is on the card. Both are made of the same parts: ``Preparer``, ``BatchScorer``, ``write_part``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import ray.data
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError

from ssray.cluster.night_metrics import NightMetrics, metrics_address
from ssray.cluster.prepared import PREPARED, packed, unpacked
from ssray.cluster.resources import WorkerResources, check_capacity, may_grow, node_resources
from ssray.cluster.session import one_line
from ssray.config import Compute
from ssray.data.pose import Framing
from ssray.errors import ArtifactError, ScoringError
from ssray.models.artifact import load_framing
from ssray.models.device import resolve_device, use_cores
from ssray.nightly.batch import BatchResult, BatchScorer
from ssray.nightly.night_events import NightEvents
from ssray.nightly.plan import Planned, read_batch
from ssray.nightly.preparing import Pair, Preparer, Spent
from ssray.nightly.protocol import Assignment, NightRequest
from ssray.nightly.quarantine import quarantined
from ssray.nightly.run import Part, Places, Run, without_rows, write_part
from ssray.nightly.sources import Source
from ssray.scoring.judge import Prepared
from ssray.storage.fetch import Fetcher, persistently
from ssray.storage.location import Location

_Result = TypeVar("_Result")
SPARE_READERS = 2
"""Threads that fetch and decode, beyond the CPUs of an actor: fetching is mostly waiting."""
NO_PROGRESS_TIMEOUT_S = 6 * 3600
"""Only a batch that is done is progress: thousands of images of a compressed tar at some seconds
each are one, and a node may have to be waited for."""
_TASKS_AHEAD = 2
MOST_PREPARED = 512
"""Images of a batch that pass through Ray's object store at once; of a larger one, as of a
compressed tar, the actor with the GPU does all."""
_BATCHES_AT_ONCE = 2
"""Batches that an actor with a GPU works on: one is on the card, one is packed and written."""
_BATCHES = pa.schema(
    [
        ("number", pa.int64()),
        ("planned", pa.list_(pa.int64(), 3)),
        ("files", pa.list_(pa.string())),
        ("left", pa.int64()),
    ]
)
"""``Assignment`` rows."""
_IMAGES = pa.schema([pa.field("source", pa.string(), metadata={"layout": "JSON"}), *PREPARED])
"""The prepared images of a batch."""
_PREPARED = pa.schema(
    [
        pa.field("head", pa.string(), metadata={"layout": "JSON"}),
        pa.field("images", pa.large_binary(), metadata={"layout": "Arrow stream of _IMAGES"}),
    ]
)
"""A batch on its way to an actor with a GPU: one row, as Ray Data divides and joins rows."""


@dataclass(frozen=True)
class _Work:
    """What every worker has to know."""

    request: NightRequest
    compute: Compute
    places: Places
    run: Run
    give_up: bool = False


class RayStages:
    """A night's ``Stages`` on the connected Ray, which its metrics count."""

    def __init__(
        self,
        request: NightRequest,
        compute: Compute,
        places: Places,
        run: Run,
        metrics: NightMetrics,
    ) -> None:
        self._work, self._metrics = _Work(request, compute, places, run), metrics
        self._events = NightEvents(places.date, run.name)

    @property
    def device(self) -> str:
        return WorkerResources.of(self._work.compute).device

    def paused(self, yes: bool) -> None:
        self._metrics.paused(yes)

    def score(self, batches: Sequence[Assignment], give_up: bool) -> Generator[Part, None, None]:
        if not batches:
            return
        work = dataclasses.replace(self._work, give_up=give_up)
        pool = _Pool.of(work.request, work.compute, len(batches))
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_no_progress_timeout_s = NO_PROGRESS_TIMEOUT_S
        blocks = [
            pa.table(
                [[each.number], [[*each.planned]], [[*each.files]], [each.left]], schema=_BATCHES
            )
            for each in batches
        ]
        assigned = ray.data.from_arrow(blocks)
        parts = (_staged if pool.each.gpus else _whole)(assigned, pool, work)
        self._events.scoring(len(batches), metrics_address())
        self._metrics.assigned(len(batches))
        with _told_in_a_line():
            for row in parts.iter_rows():
                part = Part.model_validate_json(row["part"])
                if part.facts:
                    self._metrics.batch_done(part.facts)
                if part.postponed:
                    self._metrics.batch_postponed(part.category, sum(part.postponed.values()))
                yield part


def _whole(assigned: ray.data.Dataset, pool: _Pool, work: _Work) -> ray.data.Dataset:
    """Each batch by one actor."""
    return assigned.map_batches(
        _WholeBatches,
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=pool.each.cpus,
        compute=pool.strategy(_TASKS_AHEAD),
        fn_constructor_kwargs={"work": work, "worker": pool.each},
    )


def _staged(assigned: ray.data.Dataset, pool: _Pool, work: _Work) -> ray.data.Dataset:
    """Fetched and decoded by tasks, the rest by actors with GPUs."""
    prepared = assigned.map_batches(
        _prepared_batches,
        batch_format="pyarrow",
        batch_size=1,  # else one task would take several batches, one after the other
        num_cpus=1,
        fn_kwargs={"work": work},
    )
    return prepared.map_batches(
        _PreparedBatches,
        batch_format="pyarrow",
        batch_size=1,
        num_cpus=pool.each.cpus if pool.each.stated else 0,
        num_gpus=pool.each.gpus,
        compute=pool.strategy(2 * _BATCHES_AT_ONCE, _BATCHES_AT_ONCE),
        fn_constructor_kwargs={"work": work, "worker": pool.each},
    )


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

    def strategy(self, tasks_ahead: int, at_once: int = 1) -> ray.data.ActorPoolStrategy:
        """The actors as Ray Data takes them.

        Args:
            tasks_ahead: batches that each is given, of which the others wait.
            at_once: batches that each works on.
        """
        return ray.data.ActorPoolStrategy(
            min_size=self.min_actors,
            max_size=self.max_actors,
            max_tasks_in_flight_per_actor=tasks_ahead,
            max_concurrent_calls_per_actor=at_once,
        )


class _Actor:
    """Scores batches and writes their rows."""

    def __init__(self, work: _Work, worker: WorkerResources) -> None:
        threads = worker.threads()
        use_cores(threads)
        self.work, self._device = work, worker.device
        self._wrote = 0.0
        night = work.run.night
        self.scorer = BatchScorer(
            work.request.models,
            night.versions,
            resolve_device(worker.device),
            work.compute.precision,
            work.compute.backend,
            readers=threads + SPARE_READERS,
            heatmaps=night.heatmaps,
        )

    def written(
        self, number: int, category: str, files: Sequence[str], result: BatchResult, begun: float
    ) -> Part:
        """Writes the rows of a batch that was begun at a time of ``time.perf_counter``."""
        scored = time.perf_counter()
        result.spent.seconds["write"] += self._wrote  # a file can't tell how long it took to write
        result.spent.worker_seconds += scored - begun + self._wrote
        places, device = self.work.places, self._device
        part = persistently(lambda: write_part(places, number, category, files, result, device))
        self._wrote = time.perf_counter() - scored
        return part

    def whole(self, batch: Assignment) -> Part:
        """Does all that a batch takes."""
        begun = time.perf_counter()
        score = functools.partial(self.scorer, give_up=self.work.give_up)
        sources = _sources(self.work.places, batch)
        results = quarantined(score, sources, _notes(self.work.places, batch))
        result = BatchResult.joined(results)
        return self.written(batch.number, sources[0].category, batch.files, result, begun)


class _WholeBatches(_Actor):
    """Does all that a batch takes."""

    def __call__(self, batches: pa.Table) -> pa.Table:
        """``_BATCHES`` rows to parts."""
        return _parts(
            [
                _unless_storage_fails(
                    functools.partial(self.whole, batch), batch.postponed(self._device)
                )
                for batch in _assignments(batches)
            ]
        )


class _PreparedBatches(_Actor):
    """Judges images that were prepared elsewhere; several threads of it run at once."""

    def __call__(self, prepared: pa.Table) -> pa.Table:
        """``_PREPARED`` rows to parts."""
        parts = []
        for head, images in zip(prepared["head"], prepared["images"], strict=True):
            known = json.loads(head.as_py())
            batch = _assignment(known)
            done = functools.partial(self._done, known, images, batch)
            parts.append(_unless_storage_fails(done, batch.postponed(self._device)))
        return _parts(parts)

    def _done(
        self, known: Mapping[str, Any], images: pa.LargeBinaryScalar, batch: Assignment
    ) -> Part:
        if known["whole"]:
            return self.whole(batch)
        if not images.is_valid:
            return batch.postponed(self._device)
        begun = time.perf_counter()
        rows = pa.ipc.open_stream(images.as_buffer()).read_all().to_pylist()
        sources = [Source(**json.loads(row["source"])) for row in rows]
        spent, category = Spent(known["seconds"], known["worker_seconds"]), sources[0].category
        shape = self.scorer.shape(category)
        pairs = ((source, unpacked(row, shape)) for source, row in zip(sources, rows, strict=True))
        found, postponed = self.scorer.rows(category, pairs, spent, self.work.give_up)
        result = BatchResult(found, spent, known["retries"], postponed)
        return self.written(batch.number, category, batch.files, result, begun)


def _prepared_batches(batches: pa.Table, work: _Work) -> Iterator[pa.Table]:
    """Fetches and decodes ``_BATCHES`` rows; yields the ``_PREPARED`` row of each, without images
    where storage did not give their list.
    """
    use_cores(1)
    prepare = Preparer(1 + SPARE_READERS)
    for batch in _assignments(batches):
        begun, spent, fetch = time.perf_counter(), Spent(), Fetcher()
        images, whole = None, batch.left > MOST_PREPARED
        if not whole:
            own = functools.partial(prepare, fetch=fetch, spent=spent)
            images = _unless_storage_fails(functools.partial(_images, work, batch, own), None)
        known = batch._asdict() | {
            "whole": whole,
            "seconds": spent.seconds,
            "worker_seconds": time.perf_counter() - begun,
            "retries": fetch.retries,
        }
        stored = pa.array([images], pa.large_binary())
        yield pa.table([[json.dumps(known)], stored], schema=_PREPARED)


def _images(
    work: _Work, batch: Assignment, prepare: Callable[[Sequence[Source], Framing], Iterator[Pair]]
) -> bytes:
    """The prepared images of a batch, an Arrow stream of ``_IMAGES``."""

    def pairs(sources: Sequence[Source]) -> list[Pair]:
        category = sources[0].category
        version = work.run.night.versions.get(category)
        framing = _framing(f"{work.request.models}", category, version)
        if framing is None:  # the actor says why
            unusable = Prepared.unusable("model_unusable", "its recipe could not be read")
            return [(source, unusable) for source in sources]
        return list(prepare(sources, framing))

    results = quarantined(pairs, _sources(work.places, batch), _notes(work.places, batch))
    rows = [
        {"source": json.dumps(dataclasses.asdict(source))} | packed(each)
        for result in results
        for source, each in result
    ]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, _IMAGES) as stream:
        stream.write_table(pa.Table.from_pylist(rows, schema=_IMAGES))
    content: bytes = sink.getvalue().to_pybytes()
    return content


@functools.lru_cache(maxsize=1024)
def _framing(store: str, category: str, version: str | None) -> Framing | None:
    if version is None:
        return None
    try:
        return load_framing(Location.parse(store), category, version)
    except ArtifactError:
        return None


def _unless_storage_fails(work: Callable[[], _Result], otherwise: _Result) -> _Result:
    """Does some work, or gives ``otherwise`` where a batch's list, notes or rows can't be read or
    written.
    """
    try:
        return work()
    except FileNotFoundError:  # another process has committed, and cleared up
        raise
    except OSError:
        return otherwise


def _assignments(batches: pa.Table) -> list[Assignment]:
    return [_assignment(row) for row in batches.to_pylist()]


def _assignment(row: Mapping[str, Any]) -> Assignment:
    return Assignment(row["number"], Planned(*row["planned"]), row["files"], row["left"])


def _sources(places: Places, batch: Assignment) -> list[Source]:
    """The images of a batch that have no row yet."""
    sources = persistently(lambda: read_batch(places.manifest, batch.number, batch.planned))
    return without_rows(places, sources, batch.files) if batch.files else sources


def _notes(places: Places, batch: Assignment) -> Location:
    return places.notes / f"{batch.number:06}"


def _parts(parts: Sequence[Part]) -> pa.Table:
    return pa.table({"part": [part.model_dump_json() for part in parts]})
