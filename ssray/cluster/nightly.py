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
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import ray.data
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError

import ssray
from ssray.cluster.resources import (
    WorkerResources,
    check_capacity,
    may_grow,
    node_resources,
)
from ssray.cluster.session import one_line, ray_session
from ssray.config import Compute, Heatmaps
from ssray.errors import ArtifactError, ConfigError, ConflictError, DataError, ScoringError
from ssray.models.artifact import load_facts
from ssray.models.device import resolve_device, use_cores
from ssray.models.store import published
from ssray.nightly import BATCH
from ssray.nightly.batch import BatchScorer
from ssray.nightly.night_log import (
    MARKER,
    Completed,
    Night,
    Part,
    Places,
    begin,
    check_same,
    join,
    list_batches,
    publish,
    shares,
    write_batch,
)
from ssray.nightly.plan import (
    Manifest,
    batch_sizes,
    read_batch,
    read_manifest,
    write_manifest,
)
from ssray.nightly.quarantine import quarantined
from ssray.nightly.sources import CategoryRule
from ssray.nightly.summary import BatchFacts, summarise
from ssray.storage.fetch import persistently
from ssray.storage.lease import SILENCE_SECONDS, Lease
from ssray.storage.location import Location

SPARE_READERS = 2
"""Threads that fetch and decode, beyond the CPUs of an actor: fetching is mostly waiting."""
NO_PROGRESS_TIMEOUT_S = 6 * 3600
"""Only a batch that is done is progress: thousands of images of a compressed tar at some seconds
each are one, and a node may have to be waited for."""
_TASKS_AHEAD = 2


@dataclass(frozen=True, kw_only=True)
class NightRequest:
    """What a user asked for.

    Attributes:
        images: where they are, as for ``ssray.nightly.sources.find``.
        rule: how their category follows from their path.
        models: the store.
        out: for the results, of many nights.
        date: of the night, YYYY-MM-DD.
        heatmaps: of which images they are kept.
        batch: images that are kept together.
        max_actors: scoring actors at most; None takes one a GPU, or as the CPUs allow.
        min_actors: scoring actors at least.
        price_per_hour: of one actor's CPUs or GPU, in any currency.
        again: throws away what is there of this night.
    """

    images: Sequence[Location]
    rule: CategoryRule
    models: Location
    out: Location
    date: str
    heatmaps: Heatmaps = "flagged"
    batch: int = BATCH
    max_actors: int | None = None
    min_actors: int = 1
    price_per_hour: float | None = None
    again: bool = False

    def __post_init__(self) -> None:
        """Finds mistakes before any data is read.

        Raises:
            ConfigError: if places overlap, or there are to be more actors at least than at most.
        """
        names = sorted(f"{place}/" for place in self.images)
        for one, other in itertools.pairwise(names):
            if other.startswith(one):
                raise ConfigError(
                    f"--images {other.rstrip('/')} lies inside {one.rstrip('/')}: its images would "
                    "be scored twice. Give one of both."
                )
        if f"{self.out}/".startswith(tuple(names)):
            raise ConfigError(
                f"--out {self.out} lies inside --images, so that another night would score what "
                "this one writes. Choose a place outside."
            )
        if self.max_actors is not None and self.max_actors < self.min_actors:
            raise ConfigError(
                f"--min-workers {self.min_actors} is more than --workers {self.max_actors}."
            )

    @property
    def places(self) -> Places:
        """Where everything of the night is."""
        return Places(self.out, self.date)


@dataclass(frozen=True)
class NightOutcome:
    """How it ended.

    Attributes:
        completed: what the marker says.
        new: whether anything was left to do.
    """

    completed: Completed
    new: bool


def score_night(
    request: NightRequest,
    compute: Compute,
    on_state: Callable[[str], None] = lambda state: None,
    on_scored: Callable[[int, int], None] = lambda done, count: None,
) -> NightOutcome:
    """Scores every image of a night once; killed and started again, it goes on where it was.

    Args:
        request: what to score.
        compute: device, precision, and CPUs or GPUs of an actor.
        on_state: called with a few words on what goes on.
        on_scored: called with how many images have their row, and how many there are.

    Raises:
        ArtifactError: if there is no model, or one can't be used.
        ConfigError: if the night was begun with other arguments.
        ConflictError: if it is being scored elsewhere.
        DataError: if there are no images.
        ScoringError: if it could not be finished.
    """
    places = request.places
    asked = Night(
        images=tuple(sorted(map(str, request.images))),
        category_pattern=request.rule.pattern,
        category=request.rule.fixed,
        models=str(request.models),
        heatmaps=request.heatmaps,
        versions=published(request.models),
        batch=request.batch,
        precision=compute.precision,
        backend=compute.backend,
        run="",
    )
    if not asked.versions:
        raise ArtifactError(f"{request.models}: no models in use here. Train some first.")
    done = None if request.again else _done_before(places, asked)
    if done and not places.work.files():
        return done
    wait = functools.partial(on_state, f"{SILENCE_SECONDS:g} s to see if it is scored elsewhere")
    with Lease(places.lease, f"the night of {places.date}", wait) as lease:
        if request.again:
            places.work.delete()
            (places.results / MARKER).delete()
            places.results.delete()
        done = _done_before(places, asked)
        if done:
            places.work.delete()
            return done
        begun = time.monotonic()
        night = begin(places, asked.model_copy(update={"run": lease.name}), lease.write)
        places = dataclasses.replace(places, run=night.run)
        manifest = read_manifest(places.manifest)
        if manifest is None:
            on_state("listing images")
            manifest = write_manifest(
                places.manifest,
                [Location.parse(uri) for uri in night.images],
                CategoryRule(night.category_pattern, night.category),
                night.batch,
                lambda images: on_state(f"listing images: {images:,}"),
                lease.write,
            )
        if not manifest.images:
            places.work.delete()
            raise DataError(
                f"{', '.join(night.images)}: no images. Found {_words(manifest.passed_over)}."
            )
        for category in manifest.categories.keys() & night.versions.keys():
            load_facts(request.models, category, night.versions[category])
        with ray_session():
            return NightOutcome(
                _scored(request, places, lease, night, manifest, compute, begun, on_scored),
                new=True,
            )


def _done_before(places: Places, asked: Night) -> NightOutcome | None:
    completed = places.completed()
    if completed is None:
        return None
    check_same(completed.night, asked, f"{places.results}: complete, scored")
    return NightOutcome(completed, new=False)


def _scored(
    request: NightRequest,
    places: Places,
    lease: Lease,
    night: Night,
    manifest: Manifest,
    compute: Compute,
    begun: float,
    on_scored: Callable[[int, int], None],
) -> Completed:
    """Scores what is left, joins the batches, and makes the night visible."""
    there = {batch.number for batch in list_batches(places)}
    pending = [number for number in range(manifest.batches) if number not in there]
    pool = _Pool.of(request, compute, len(pending))
    sizes = batch_sizes(places.manifest, manifest)
    before = images = sum(sizes[number] for number in there)
    on_scored(images, manifest.images)
    with _errors_of_workers(lease):
        for facts in _score_batches(request.models, places, night, compute, pool, pending):
            images += facts.images
            on_scored(images, manifest.images)
    strays = places.results.files()  # listed before it is sure that no later holder wrote them
    completed = places.completed()
    lease.confirm()
    if completed:  # by a holder that was slow, not dead
        places.work.delete()
        return completed
    batches = list_batches(places)
    missing = set(range(manifest.batches)) - {batch.number for batch in batches}
    if missing:
        raise ScoringError(
            f"{len(missing)} of {manifest.batches} batches were not scored. The same command goes "
            "on with them."
        )
    for stray in strays:
        places.results.at(stray).delete()
    parts: list[Part] = []
    counted: list[BatchFacts] = []
    with _errors_of_workers(lease):
        tasks = [_join_on_cluster.remote(places, share, lease.name) for share in shares(batches)]
        for part, facts_of_part in ray.get(tasks):
            parts.append(part)
            counted += facts_of_part
    rows = sum(part.rows for part in parts)
    if rows != manifest.images:
        raise ScoringError(f"{rows} rows for {manifest.images} images; nothing was made visible.")
    completed = Completed(
        date=places.date,
        night=night,
        parts=parts,
        summary=summarise(
            counted,
            manifest.seconds,
            time.monotonic() - begun,
            manifest.images - before,
            manifest.passed_over,
            request.price_per_hour,
        ),
        ssray_version=ssray.__version__,
    )
    publish(places, completed, lease.write)
    with contextlib.suppress(ConflictError):  # then it is the other holder's to clean up
        lease.confirm()
        places.work.delete()
    return completed


@contextlib.contextmanager
def _errors_of_workers(lease: Lease) -> Iterator[None]:
    """What goes wrong on the cluster, in a line; unless another holder caused it."""
    try:
        yield
    except (RayError, ExecutionTimeoutError) as error:
        lease.confirm()
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


def _score_batches(
    models: Location,
    places: Places,
    night: Night,
    compute: Compute,
    pool: _Pool,
    pending: Sequence[int],
) -> Iterator[BatchFacts]:
    if not pending:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = NO_PROGRESS_TIMEOUT_S
    numbers = [pa.table({"batch": pa.array([number], pa.int64())}) for number in pending]
    counts = ray.data.from_arrow(numbers).map_batches(
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
            "places": places,
            "models": models,
            "night": night,
            "compute": compute,
            "worker": pool.each,
        },
    )
    for row in counts.iter_rows():
        yield BatchFacts.model_validate_json(row["facts"])


class _NightActor:
    """A ``BatchScorer`` that takes numbers of batches and writes their rows."""

    def __init__(
        self,
        places: Places,
        models: Location,
        night: Night,
        compute: Compute,
        worker: WorkerResources,
    ) -> None:
        threads = worker.threads()
        use_cores(threads)
        self._places = places
        self._wrote = 0.0
        self._score = BatchScorer(
            models,
            night.versions,
            resolve_device(worker.device),
            compute.precision,
            compute.backend,
            readers=threads + SPARE_READERS,
            heatmaps=night.heatmaps,
        )

    def __call__(self, numbers: pa.Table) -> pa.Table:
        facts = [self._done(number) for number in numbers["batch"].to_pylist()]
        return pa.table({"facts": [each.model_dump_json() for each in facts]})

    def _done(self, number: int) -> BatchFacts:
        begun = time.perf_counter()
        sources = persistently(lambda: read_batch(self._places.manifest, number))
        result = quarantined(self._score, sources, self._places.notes / f"{number:06}")
        scored = time.perf_counter()
        result.spent.seconds["write"] += self._wrote  # a file can't tell how long it took to write
        result.spent.worker_seconds = scored - begun + self._wrote
        facts = persistently(lambda: write_batch(self._places, number, result))
        self._wrote = time.perf_counter() - scored
        return facts


_join_on_cluster = ray.remote(num_cpus=1)(join)


def _words(passed_over: dict[str, int]) -> str:
    return json.dumps(passed_over) if passed_over else "nothing"
