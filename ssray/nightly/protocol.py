"""How a night is scored, each image once, and seen only when it is whole, whoever does the work.

A night has runs. Each lists the images that have no row yet, or another content than the one that
was scored, has them scored in batches, and commits all rows at once (``ssray.nightly.table``).
Whatever is killed on the way, the same request goes on where it was. ``Stages`` is who does the
work; ``ssray.cluster.nightly`` has it done on Ray.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import ssray
from ssray.config import Compute, Heatmaps
from ssray.errors import ArtifactError, ConfigError, DataError, ScoringError
from ssray.models.artifact import load
from ssray.models.store import published
from ssray.nightly import BATCH, PATIENCE_SECONDS
from ssray.nightly.night_events import NightEvents
from ssray.nightly.plan import Manifest, Planned, write_manifest
from ssray.nightly.run import (
    Committed,
    Night,
    Part,
    Places,
    Run,
    after_commit,
    before_commit,
    begin,
    clear_up,
    list_parts,
)
from ssray.nightly.seen import COLUMNS, Seen
from ssray.nightly.sources import CategoryRule
from ssray.nightly.summary import summarise
from ssray.nightly.table import How, ScoreTable
from ssray.storage.lease import SILENCE_SECONDS, Lease
from ssray.storage.location import Location

OnState = Callable[[str], None]
OnScored = Callable[[int, int], None]

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 10.0, 300.0
"""How long a night waits for a storage that fails, the first time and at most."""
MOST_FAILED_BATCHES = 3
"""How many batches in a row may get no answer from storage before a night waits."""
MOST_RUNS = 3
"""How many runs one start makes, where images arrive or change while it scores."""
_MENDED = ("model_unusable", "unknown_category")
"""Errors of rows that are made again once their category has a model that can be used."""
_REPLACED = "changed"
"""Why an image is postponed that was replaced after it was listed: it has to be listed anew."""


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
        again: scores everything anew, in place of what there is of this night.
        retry_errors: scores images anew whose row has an error.
        patience: for how many seconds images are tried again that storage does not give, from the
            last time that it gave any.
        give_up: makes rows with an error of what is then still missing.
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
    retry_errors: bool = False
    patience: float = PATIENCE_SECONDS
    give_up: bool = False
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
            ssray_version=ssray.__version__,
        )


@dataclass(frozen=True)
class NightOutcome:
    """How a night ended.

    Attributes:
        date: of the night.
        committed: how the last run went that was committed.
        new: whether anything was left to do.
        images: how many images have a row.
        errors: how many of these rows have an error, by reason.
        missing: how many images have no row, as storage did not give them, by reason.
    """

    date: str
    committed: Committed | None
    new: bool
    images: int
    errors: Mapping[str, int]
    missing: Mapping[str, int] = field(default_factory=dict)

    @property
    def error_share(self) -> float:
        """The share of the rows that have an error."""
        return sum(self.errors.values()) / self.images if self.images else 0.0


class Assignment(NamedTuple):
    """A batch that is to be scored.

    Attributes:
        number: its number.
        planned: what the manifest says of it.
        files: the files of rows that it has already, by their paths below the table.
        left: how many of its images have no row yet.
    """

    number: int
    planned: Planned
    files: Sequence[str]
    left: int

    def postponed(self, device: str) -> Part:
        """What comes of it where storage does not even give the list of its images."""
        return Part(
            batch=self.number,
            category=None,
            after=tuple(self.files),
            device=device,
            postponed={"unreadable": self.left},
        )


class Stages(Protocol):
    """Who scores batches."""

    @property
    def device(self) -> str:
        """Where the models run."""

    def score(self, batches: Sequence[Assignment], give_up: bool) -> Generator[Part, None, None]:
        """Scores batches, in any order, and keeps their rows.

        Args:
            batches: the batches.
            give_up: as for ``ssray.nightly.batch.BatchScorer``.

        Yields:
            What came of each batch.

        Raises:
            ScoringError: if it can't be done.
        """

    def paused(self, yes: bool) -> None:
        """Is told that the night waits for its storage, or goes on."""


OpenStages = Callable[[Places, Run], AbstractContextManager[Stages]]


def run_night(
    request: NightRequest,
    compute: Compute,
    open_stages: OpenStages,
    on_state: OnState = lambda state: None,
    on_scored: OnScored = lambda done, count: None,
) -> NightOutcome:
    """Scores every image of a night once; killed and started again, it goes on where it was.

    Images that have arrived since the night was committed are scored and committed, too, and so are
    those whose content is another now.

    Args:
        request: what to score.
        compute: of the workers.
        open_stages: begins the work of a run, and ends it with the block.
        on_state: called with a few words on what goes on.
        on_scored: called with how many images of the run have their row, and how many there are.

    Raises:
        ArtifactError: if there is no model.
        ConfigError: if the night was begun with other arguments.
        ConflictError: if it is being scored elsewhere, or was committed elsewhere meanwhile.
        DataError: if there are no images.
        ScoringError: if it could not be finished.
    """
    places, table, asked = request.places, ScoreTable(request.out), request.night(compute)
    wait = functools.partial(on_state, f"{SILENCE_SECONDS:g} s to see if it is scored elsewhere")
    with (
        _failures_of_storage_told(places),
        Lease(places.lease, f"the night of {places.date}", wait) as lease,
    ):
        clear_up(places, table, table.number(places.date))
        committed, missing = None, Counter[str]()
        for runs_left in reversed(range(MOST_RUNS)):
            again = request.again and runs_left == MOST_RUNS - 1
            before = table.number(places.date)
            run, manifest = begin(places, secrets.token_hex(8), asked, before, again, lease.write)
            went_on, own = manifest is not None, places.of(run.name)
            with NightEvents(places.date, run.name) as events:
                events.begun(run.night.images, run.night.versions)
                manifest = manifest or _listed(own, run, table, request, lease, on_state)
                events.listed(
                    manifest.images,
                    len(manifest.batches),
                    len(manifest.categories),
                    sum(manifest.passed_over.values()),
                    manifest.seconds,
                )
                if not manifest.images:
                    own.work.delete()
                    if run.redo:  # else a later start would put its rows in place of all
                        lease.confirm()
                        own.begun.delete()
                    if run.redo or not before:
                        raise _no_images(asked, manifest)
                    missing.clear()  # what was replaced is gone
                    break
                job = _Job(request, own, run, manifest, table, events, on_state, on_scored)
                with open_stages(own, run) as stages:
                    done, missing = job.done(stages, last=not runs_left)
                committed = done or committed
                if done is None:  # nothing to go on with: the next run lists what there is by then
                    lease.confirm()
                    own.manifest.delete()
            if not (went_on or missing[_REPLACED]):
                break
        new = committed is not None
        committed = committed or places.committed()
        errors = _errors(table, places.date)
        return NightOutcome(places.date, committed, new, table.count(places.date), errors, missing)


@contextlib.contextmanager
def _unless_committed_elsewhere(table: ScoreTable, run: Run, date: str) -> Iterator[None]:
    """Where work failed after another process committed in its place, that is what is told.

    Raises:
        ConflictError: in place of what the block raises, which may miss its files.
    """
    try:
        yield
    except (ScoringError, OSError):
        if table.number(date) >= run.number:
            raise table.conflict(date) from None
        raise


@contextlib.contextmanager
def _failures_of_storage_told(places: Places) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ScoringError(
            f"{places.out}: the storage failed ({error}). The same command goes on where it was."
        ) from error


def _no_images(asked: Night, manifest: Manifest) -> DataError:
    found = json.dumps(manifest.passed_over) if manifest.passed_over else "nothing"
    return DataError(f"{', '.join(asked.images)}: no images. Found {found}.")


def _errors(table: ScoreTable, date: str) -> dict[str, int]:
    """How many rows of a night have an error, by reason, the most frequent first."""
    errors = Counter[str]()
    for batch in table.batches(["error"], date):
        for counted in batch.column("error").value_counts().to_pylist():
            if counted["values"] is not None:
                errors[counted["values"]] += counted["counts"]
    return dict(errors.most_common())


def _listed(
    places: Places,
    run: Run,
    table: ScoreTable,
    request: NightRequest,
    lease: Lease,
    on_state: OnState,
) -> Manifest:
    """Lists the images that a run has to score."""
    on_state("listing images")
    seen = None
    if not run.redo and run.number > 1:
        wanted = functools.partial(_to_be_made_again, request, run.night.versions)
        seen = Seen.of(table.batches(COLUMNS, places.date), functools.cache(wanted))
    return write_manifest(
        places.manifest,
        [Location.parse(uri) for uri in run.night.images],
        CategoryRule(run.night.category_pattern, run.night.category),
        run.night.batch,
        lambda images: on_state(f"listing images: {images:,}"),
        lease.write,
        [Location.parse(uri) for uri in run.night.allowed],
        seen,
    )


def _to_be_made_again(
    request: NightRequest, versions: Mapping[str, str], category: str, error: str
) -> bool:
    if request.retry_errors:
        return True
    if error not in _MENDED or category not in versions:
        return False
    try:
        load(request.models, category, versions[category])
    except ArtifactError:
        return False
    return True


class _Job:
    """The work of one run, from its list of images to its commit."""

    def __init__(
        self,
        request: NightRequest,
        places: Places,
        run: Run,
        manifest: Manifest,
        table: ScoreTable,
        events: NightEvents,
        on_state: OnState,
        on_scored: OnScored,
    ) -> None:
        self._places, self._events = places, events
        self._request, self._run, self._manifest, self._table = request, run, manifest, table
        self._on_state, self._on_scored = on_state, on_scored
        self._parts = defaultdict[int, list[Part]](list)
        self._rows = 0
        self._left = {number: batch.images for number, batch in enumerate(manifest.batches)}

    def done(self, stages: Stages, *, last: bool) -> tuple[Committed | None, Counter[str]]:
        """Scores and commits; returns how it went, and how many images are missing, by reason.

        Nothing is committed where no image has a row.

        Args:
            stages: who scores.
            last: whether no further run of this start lists what was replaced meanwhile.
        """
        begun = time.monotonic()
        with _unless_committed_elsewhere(self._table, self._run, self._places.date):
            device = stages.device
            for part in list_parts(self._places):
                if part.device == device:  # another may compute other scores
                    self._add(part)
            there = self._rows
            self._on_scored(there, self._manifest.images)
            missing = self._scored(stages, last=last)
        parts = self._accepted
        if not parts:
            return None, missing
        summary = summarise(
            (part.facts for part in parts if part.facts),
            self._manifest.seconds,
            time.monotonic() - begun,
            self._rows - there,
            self._manifest.passed_over,
            self._request.price_per_hour,
        )
        committed = Committed(
            date=self._places.date,
            run=self._run,
            summary=summary,
            states=self._manifest.states,
            missing=missing,
        )
        self._on_state("committing")
        others = before_commit(self._places, committed)
        self._table.commit(
            self._places.date,
            self._run.number,
            self._run.name,
            self._how,
            [part.file() for part in parts],
        )
        self._events.committed(self._rows, len(parts))
        after_commit(self._places, self._table, self._run, others)
        self._events.ended(summary)
        return committed, missing

    @property
    def _how(self) -> How:
        if self._run.redo:
            return "redo"
        states = self._manifest.states
        return "replace" if states.get("changed") or states.get("again") else "append"

    @property
    def _accepted(self) -> list[Part]:
        return [part for number in sorted(self._parts) for part in self._parts[number]]

    def _add(self, part: Part) -> None:
        """Counts the rows of a part, unless another process wrote such rows, too."""
        if part.rows and sorted(part.after) == sorted(self._files(part.batch)):
            self._parts[part.batch].append(part)
            self._left[part.batch] -= part.rows
            self._rows += part.rows

    def _files(self, batch: int) -> list[str]:
        return [part.path for part in self._parts[batch] if part.path]

    def _scored(self, stages: Stages, *, last: bool) -> Counter[str]:
        """Scores what has no row, again and again while storage fails."""
        pause, last_row = FIRST_PAUSE_SECONDS, time.monotonic()
        replaced = Counter[int]()
        while True:
            before = self._rows
            postponed = self._round(stages, replaced, give_up=False)
            left = sum(self._left.values()) - replaced.total()
            if not left:
                break
            if self._rows > before:
                pause, last_row = FIRST_PAUSE_SECONDS, time.monotonic()
            patience = last_row + self._request.patience - time.monotonic()
            if patience <= 0:
                break
            seconds = min(pause, patience)
            why = f"{left:,} images without an answer ({_counted(postponed)})"
            self._on_state(f"{why}; waiting {seconds:.0f} s, {patience / 60:.0f} minutes in all")
            self._events.paused(why)
            stages.paused(True)
            time.sleep(seconds)
            stages.paused(False)
            self._events.went_on(seconds)
            self._places.notes.delete()  # no image is to blame for batches that were broken off
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        if self._request.give_up:
            if last:
                replaced.clear()
            if sum(self._left.values()) > replaced.total():
                postponed = self._round(stages, replaced, give_up=True)
        missing = postponed + Counter({_REPLACED: replaced.total()} if replaced else {})
        if unseen := sum(self._left.values()) - missing.total():
            missing["unreadable"] += unseen  # of batches that were not begun again
        return missing

    def _round(self, stages: Stages, replaced: Counter[int], give_up: bool) -> Counter[str]:
        """Has batches scored of which images have no row; returns why there are still some.

        Args:
            stages: who does it.
            replaced: how many images of each batch were replaced since they were listed; counted
                on.
            give_up: as for ``Stages.score``.
        """
        batches = [
            Assignment(number, self._manifest.batches[number], self._files(number), left)
            for number, left in self._left.items()
            if left > replaced[number]
        ]
        postponed, failed = Counter[str](), 0
        with contextlib.closing(stages.score(batches, give_up)) as parts:
            for part in parts:
                self._count(part, postponed, replaced)
                failed = failed + 1 if _unanswered(part) else 0
                if failed >= MOST_FAILED_BATCHES:
                    return postponed
        expected = postponed.total() + replaced.total()
        if sum(self._left.values()) != expected:
            raise ScoringError(
                f"{sum(self._left.values())} images of {self._places.date} have no row, of which "
                f"{expected} could not be read. The same command goes on with them."
            )
        return postponed

    def _count(self, part: Part, postponed: Counter[str], replaced: Counter[int]) -> None:
        """Counts what came of a batch, on every counter."""
        self._add(part)
        if part.facts:
            self._events.batch_done(part.batch, part.facts)
        for reason, count in part.postponed.items():
            self._events.batch_postponed(part.batch, part.category, count, reason)
        self._on_scored(self._rows, self._manifest.images)
        replaced[part.batch] = part.postponed.get(_REPLACED, 0)
        postponed.update(part.postponed)
        del postponed[_REPLACED]
        if not part.rows:  # next time others come first
            self._left[part.batch] = self._left.pop(part.batch)


def _unanswered(part: Part) -> bool:
    """Whether storage gave nothing of a batch; what it refuses says nothing of other batches."""
    return not part.rows and "unreadable" in part.postponed


def _counted(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{reason}: {count:,}" for reason, count in sorted(reasons.items()))
