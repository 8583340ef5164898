"""What Prometheus reads of a night, from the endpoint that every node of Ray has.

The process that runs the night counts a batch when its counts arrive, once, whichever actor scored
it and however often. Ray puts ``ray_`` before the names and ``_total`` behind those of counters.
``night_dashboard.json``, beside this module, is a Grafana dashboard of all of them. The sum of a
histogram is a guess of Ray's, from the middles of its classes; exact seconds have counters.

Tags take few values: dates of nights, categories that have a model, stages and reason codes. All
other categories, which the paths of the images name, are counted as ``NO_MODEL``.
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import ray
from ray.util.metrics import Counter, Gauge, Histogram

from ssray.nightly.summary import BatchFacts

NO_MODEL = "(no model)"
"""The category of all images whose own has no model."""
BATCH_SECONDS = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4]
"""The upper bounds of the histogram's classes, in seconds."""
REFRESH_SECONDS = 5.0
"""Ray forgets a gauge that was not set for twice its report interval of ten seconds."""
_OF_CATEGORY = ("night", "category")


@dataclass(frozen=True)
class Described:
    """A metric's name, type and tags, and what it counts."""

    name: str
    kind: type[Counter | Gauge | Histogram]
    tags: tuple[str, ...]
    description: str

    @property
    def exposed(self) -> frozenset[str]:
        """The names under which Prometheus has it."""
        if self.kind is Histogram:
            return frozenset(f"ray_{self.name}_{end}" for end in ("bucket", "count", "sum"))
        return frozenset({f"ray_{self.name}{'_total' if self.kind is Counter else ''}"})


IMAGES = Described(
    "ssray_night_images", Counter, _OF_CATEGORY, "Images that have a row, with or without a score"
)
FLAGGED = Described("ssray_night_flagged", Counter, _OF_CATEGORY, "Images that were flagged")
ERRORS = Described(
    "ssray_night_errors",
    Counter,
    (*_OF_CATEGORY, "reason"),
    "Images that could not be scored, by reason code",
)
RETRIES = Described(
    "ssray_night_retries", Counter, _OF_CATEGORY, "Requests to the storage that were made again"
)
POSTPONED = Described(
    "ssray_night_postponed_images",
    Counter,
    _OF_CATEGORY,
    "Images of batches that were put off, each time that they were",
)
STAGE_SECONDS = Described(
    "ssray_night_stage_seconds",
    Counter,
    (*_OF_CATEGORY, "stage"),
    "Seconds of each stage, added up over all threads",
)
WORKER_SECONDS = Described(
    "ssray_night_worker_seconds",
    Counter,
    _OF_CATEGORY,
    "Seconds that actors worked on batches; its rate is how many are at work",
)
BATCH = Described(
    "ssray_night_batch_seconds", Histogram, _OF_CATEGORY, "Seconds that an actor needed for a batch"
)
BATCHES_LEFT = Described(
    "ssray_night_batches_left", Gauge, ("night",), "Batches that wait or are under way"
)
PAUSED = Described(
    "ssray_night_paused", Gauge, ("night",), "1 while the night waits for its storage, else 0"
)
METRICS = (
    *(IMAGES, FLAGGED, ERRORS, RETRIES, POSTPONED),
    *(STAGE_SECONDS, WORKER_SECONDS, BATCH, BATCHES_LEFT, PAUSED),
)
"""All metrics of a night."""


class NightMetrics:
    """Counts a night's batches, one for each start of a night while Ray is connected.

    A context manager: in its block the gauges have their values, soon after it they are gone.
    """

    def __init__(self, night: str, categories: Collection[str]) -> None:
        """Makes the metrics.

        Args:
            night: its date.
            categories: those that have a model.
        """
        self._night, self._categories = night, frozenset(categories)
        self._left, self._paused = 0, False
        self._counters = {each: _made(each) for each in METRICS if each.kind is Counter}
        self._batch_seconds = _made(BATCH)
        self._left_gauge, self._paused_gauge = _made(BATCHES_LEFT), _made(PAUSED)
        self._ended = threading.Event()
        self._refresher = threading.Thread(target=self._refresh, name="night metrics", daemon=True)

    def __enter__(self) -> Self:
        self._refresher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._refresher.join()

    def assigned(self, batches: int) -> None:
        """Says how many batches are left to score now."""
        self._left = batches

    def batch_done(self, facts: BatchFacts) -> None:
        """Counts a batch whose rows are kept."""
        category = facts.category
        self._add(IMAGES, facts.images, category)
        self._add(FLAGGED, facts.flagged, category)
        self._add(RETRIES, facts.retries, category)
        self._add(WORKER_SECONDS, facts.worker_seconds, category)
        for reason, count in facts.errors.items():
            self._add(ERRORS, count, category, reason=reason)
        for stage, seconds in facts.seconds.items():
            self._add(STAGE_SECONDS, seconds, category, stage=stage)
        self._batch_seconds.observe(facts.worker_seconds, self._tags(category))
        self._left -= 1

    def batch_postponed(self, category: str | None, images: int) -> None:
        """Counts a batch that is put off; it stays among those that are left."""
        self._add(POSTPONED, images, category)

    def paused(self, yes: bool) -> None:
        """Says whether the night waits for its storage."""
        self._paused = yes

    def _refresh(self) -> None:
        """Sets the gauges again and again."""
        while True:
            self._left_gauge.set(self._left, {"night": self._night})
            self._paused_gauge.set(int(self._paused), {"night": self._night})
            if self._ended.wait(REFRESH_SECONDS):
                return

    def _add(self, metric: Described, value: float, category: str | None, **more: str) -> None:
        if value > 0:  # Ray refuses to add nothing
            self._counters[metric].inc(value, self._tags(category) | more)

    def _tags(self, category: str | None) -> dict[str, str]:
        known = category if category and category in self._categories else NO_MODEL
        return {"night": self._night, "category": known}


def metrics_address() -> str | None:
    """The endpoint that has this process's metrics, as a URL; None where Ray keeps no metrics."""
    here = ray.get_runtime_context().get_node_id()
    [node] = [each for each in ray.nodes() if each["NodeID"] == here]
    host, port = node["NodeManagerAddress"], node["MetricsExportPort"]
    if port <= 0:
        return None
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"


def _made(described: Described) -> Counter | Gauge | Histogram:
    options = {"boundaries": BATCH_SECONDS} if described.kind is Histogram else {}
    return described.kind(
        described.name,
        description=described.description,
        tag_keys=described.tags,
        **options,
    )
