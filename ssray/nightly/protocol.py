"""How a night is scored once and seen only when it is whole, whoever does the work.

A night is claimed by a lease and written down, its images are listed into batches, batches are
scored and kept, and at the end joined into the files that the marker makes visible. Whatever is
killed on the way, the same request goes on where it was. ``Stages`` is who does the work;
``ssray.cluster.nightly`` has it done on Ray.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import ssray
from ssray.config import Compute, Heatmaps
from ssray.errors import ArtifactError, ConfigError, ConflictError, DataError, ScoringError
from ssray.models.artifact import load_facts
from ssray.models.store import published
from ssray.nightly import BATCH
from ssray.nightly.night_log import (
    MARKER,
    Completed,
    Night,
    Part,
    Places,
    StoredBatch,
    begin,
    check_same,
    list_batches,
    publish,
    shares,
)
from ssray.nightly.plan import Manifest, batch_sizes, read_manifest, write_manifest
from ssray.nightly.sources import CategoryRule
from ssray.nightly.summary import BatchFacts, summarise
from ssray.storage.lease import SILENCE_SECONDS, Lease
from ssray.storage.location import Location

OnState = Callable[[str], None]
OnScored = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class NightRequest:
    """What a user asked for.

    Attributes:
        images: where they are, as for ``ssray.nightly.sources.find``.
        rule: how their category follows from their path.
        allowed: where lists may name files, beside their own folder or bucket.
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
    allowed: Sequence[Location] = ()

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

    def night(self, compute: Compute) -> Night:
        """What is written down of the request.

        Raises:
            ArtifactError: if no model is in use.
        """
        versions = published(self.models)
        if not versions:
            raise ArtifactError(f"{self.models}: no models in use here. Train some first.")
        return Night(
            images=tuple(sorted(map(str, self.images))),
            category_pattern=self.rule.pattern,
            category=self.rule.fixed,
            allowed=tuple(sorted(map(str, self.allowed))),
            models=str(self.models),
            heatmaps=self.heatmaps,
            versions=versions,
            batch=self.batch,
            precision=compute.precision,
            backend=compute.backend,
            run="",
        )


@dataclass(frozen=True)
class NightOutcome:
    """How a night ended.

    Attributes:
        completed: what the marker says.
        new: whether anything was left to do.
    """

    completed: Completed
    new: bool


class Stages(Protocol):
    """Who scores batches and joins their rows. Both raise ``ScoringError`` if it can't be done."""

    def score(self, numbers: Sequence[int]) -> Iterator[BatchFacts]:
        """Scores batches by their numbers, in any order, and keeps their rows; yields what was
        counted in each.
        """

    def join(
        self, shares: Sequence[Sequence[StoredBatch]], holder: str
    ) -> Iterable[tuple[Part, list[BatchFacts]]]:
        """Joins each share into a file of the results, named by who holds the lease."""


OpenStages = Callable[[Places, Night], AbstractContextManager[Stages]]


def run_night(
    request: NightRequest,
    compute: Compute,
    open_stages: OpenStages,
    on_state: OnState = lambda state: None,
    on_scored: OnScored = lambda done, count: None,
) -> NightOutcome:
    """Scores every image of a night once; killed and started again, it goes on where it was.

    Args:
        request: what to score.
        compute: of the workers.
        open_stages: begins the work of a night, and ends it with the block.
        on_state: called with a few words on what goes on.
        on_scored: called with how many images have their row, and how many there are.

    Raises:
        ArtifactError: if there is no model, or one can't be used.
        ConfigError: if the night was begun with other arguments.
        ConflictError: if it is being scored elsewhere.
        DataError: if there are no images.
        ScoringError: if it could not be finished.
    """
    places, asked = request.places, request.night(compute)
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
        manifest = _listed(places, night, lease, on_state)
        for category in manifest.categories.keys() & night.versions.keys():
            load_facts(request.models, category, night.versions[category])
        with open_stages(places, night) as stages, _unless_taken_over(lease):
            there = {batch.number for batch in list_batches(places)}
            before = _score_missing(places, manifest, there, stages, on_scored)
            completed = _joined(request, places, lease, night, manifest, stages, begun, before)
        return NightOutcome(completed, new=True)


def _done_before(places: Places, asked: Night) -> NightOutcome | None:
    completed = places.completed()
    if completed is None:
        return None
    check_same(completed.night, asked, f"{places.results}: complete, scored")
    return NightOutcome(completed, new=False)


def _listed(places: Places, night: Night, lease: Lease, on_state: OnState) -> Manifest:
    """The night's images, listed now or by an earlier start."""
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
            [Location.parse(uri) for uri in night.allowed],
        )
    if not manifest.images:
        places.work.delete()
        found = json.dumps(manifest.passed_over) if manifest.passed_over else "nothing"
        raise DataError(f"{', '.join(night.images)}: no images. Found {found}.")
    return manifest


def _score_missing(
    places: Places, manifest: Manifest, there: set[int], stages: Stages, on_scored: OnScored
) -> int:
    """Scores the batches whose rows are not there yet; returns how many images had theirs."""
    sizes = batch_sizes(places.manifest, manifest)
    before = images = sum(sizes[number] for number in there)
    on_scored(images, manifest.images)
    pending = [number for number in range(manifest.batches) if number not in there]
    for facts in stages.score(pending):
        images += facts.images
        on_scored(images, manifest.images)
    return before


def _joined(
    request: NightRequest,
    places: Places,
    lease: Lease,
    night: Night,
    manifest: Manifest,
    stages: Stages,
    begun: float,
    before: int,
) -> Completed:
    """Joins all batches into the files of the results, and makes the night visible."""
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
    parts, counted = list[Part](), list[BatchFacts]()
    for part, facts in stages.join(shares(batches), lease.name):
        parts.append(part)
        counted += facts
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
def _unless_taken_over(lease: Lease) -> Iterator[None]:
    """Where work failed because another holder took over, that is what is told.

    Raises:
        ConflictError: in place of the block's ``ScoringError``, if the lease is someone else's.
    """
    try:
        yield
    except ScoringError:
        lease.confirm()
        raise
