"""What a night's summary says: counts, errors by reason, speed, and where the time went."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

from ssray.nightly.batch import STAGES, BatchResult


class BatchFacts(BaseModel):
    """What a batch's file says of itself, in its metadata."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    category: str
    images: int
    flagged: int
    errors: dict[str, int]
    retries: int
    seconds: dict[str, float]
    worker_seconds: float

    @classmethod
    def of(cls, result: BatchResult) -> BatchFacts:
        """Counts a batch's rows."""
        rows = result.rows
        reasons = Counter(reason for reason in rows["error"].to_pylist() if reason)
        return cls(
            category=rows["category"][0].as_py(),
            images=len(rows),
            flagged=sum(map(bool, rows["flagged"].to_pylist())),
            errors=dict(reasons),
            retries=result.retries,
            seconds=dict(result.spent.seconds),
            worker_seconds=result.spent.worker_seconds,
        )


class Summary(BaseModel):
    """How a night went.

    Attributes:
        images: rows, one an image.
        flagged: how many of them were.
        errors: by reason.
        categories: of each ``images``, ``flagged`` and ``errors``.
        retries: requests that were made again.
        seconds: where the time of all threads went, by stage.
        wall_seconds: of the start that completed the night; earlier ones are not known.
        images_per_second: of that start.
        worker_hours_per_million: for which the processes that scored would be at work on a million
            such images; starting them, and waiting for the last one, is not counted.
        cost_per_million: of these, if the price of an hour was given.
        passed_over: files that were neither images nor archives, by suffix.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int
    flagged: int
    errors: dict[str, int]
    categories: dict[str, dict[str, int]]
    retries: int
    seconds: dict[str, float]
    wall_seconds: float
    images_per_second: float
    worker_hours_per_million: float
    cost_per_million: float | None
    passed_over: dict[str, int]

    @property
    def error_share(self) -> float:
        """Of the images."""
        return sum(self.errors.values()) / self.images if self.images else 0.0


def summarise(
    facts: Iterable[BatchFacts],
    list_seconds: float,
    wall_seconds: float,
    scored_now: int,
    passed_over: dict[str, int],
    price_per_hour: float | None = None,
) -> Summary:
    """Adds up what the batches' files say."""
    categories: dict[str, Counter[str]] = {}
    errors, seconds = Counter[str](), defaultdict[str, float](float)
    retries, at_work = 0, 0.0
    for each in facts:
        counts = categories.setdefault(each.category, Counter())
        counts.update(images=each.images, flagged=each.flagged, errors=sum(each.errors.values()))
        errors.update(each.errors)
        retries += each.retries
        at_work += each.worker_seconds
        for stage, spent in each.seconds.items():
            seconds[stage] += spent
    images = sum(counts["images"] for counts in categories.values())
    speed = scored_now / wall_seconds if wall_seconds else 0.0
    hours = 1e6 * at_work / images / 3600 if images else 0.0
    return Summary(
        images=images,
        flagged=sum(counts["flagged"] for counts in categories.values()),
        errors=dict(errors.most_common()),
        categories={name: dict(counts) for name, counts in sorted(categories.items())},
        retries=retries,
        seconds={"list": list_seconds} | {stage: seconds[stage] for stage in STAGES},
        wall_seconds=wall_seconds,
        images_per_second=speed,
        worker_hours_per_million=hours,
        cost_per_million=None if price_per_hour is None else hours * price_per_hour,
        passed_over=passed_over,
    )
