"""Sums up how a night went: counts, errors by reason, speed, and how long each stage took."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

from ssray.nightly.batch import BatchResult
from ssray.nightly.preparing import STAGES

ENOUGH_IMAGES = 10_000
"""From how many images on a night tells what a million would take: loading models and starting
weigh more, the fewer there are."""


class BatchFacts(BaseModel):
    """Counts of a batch, which the metadata of its file holds.

    Attributes:
        category: the category of its images.
        images: how many images it has.
        flagged: how many of them were flagged.
        errors: how many could not be scored, by reason.
        retries: how many requests failed and were made again.
        seconds: the wall-clock seconds of each stage, added up over all threads.
        worker_seconds: the wall-clock seconds that the process worked on the batch.
    """

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
        """Counts the rows of a batch."""
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
        images: how many images there were, each with one row.
        flagged: how many of them were flagged.
        errors: how many could not be scored, by reason.
        categories: the counts ``images``, ``flagged`` and ``errors`` of each category.
        retries: how many requests failed and were made again.
        seconds: the wall-clock seconds of each stage, added up over all threads.
        wall_seconds: how long the start that completed the night took; those before, which were
            interrupted, are not counted.
        images_per_second: how many images that start scored in a second.
        worker_hours_per_million: how many hours one process would work on a million such images,
            without the time for starting it and for waiting on others; None for fewer than
            ``ENOUGH_IMAGES``.
        cost_per_million: what these hours would cost, if there are any and the price of an hour
            was given.
        passed_over: how many files were neither images nor archives, by their suffix.
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
    worker_hours_per_million: float | None
    cost_per_million: float | None
    passed_over: dict[str, int]

    @property
    def error_share(self) -> float:
        """The share of the images that could not be scored."""
        return sum(self.errors.values()) / self.images if self.images else 0.0

    @property
    def stage_shares(self) -> dict[str, float]:
        """The share that each stage has of the time of all threads that worked on batches, which
        the listing is no part of; empty if none did.
        """
        spent = {stage: self.seconds[stage] for stage in STAGES if stage in self.seconds}
        whole = sum(spent.values())
        return {stage: seconds / whole for stage, seconds in spent.items()} if whole else {}


def summarise(
    facts: Iterable[BatchFacts],
    list_seconds: float,
    wall_seconds: float,
    scored_now: int,
    passed_over: dict[str, int],
    price_per_hour: float | None = None,
) -> Summary:
    """Adds up the counts of all batches.

    Args:
        facts: the counts of each batch.
        list_seconds: how long the listing of the images took.
        wall_seconds: how long the start that completed the night took.
        scored_now: how many images that start scored.
        passed_over: how many files were not scored, by their suffix.
        price_per_hour: the price of an hour of one process, if it is known.
    """
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
    hours = 1e6 * at_work / images / 3600 if images >= ENOUGH_IMAGES else None
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
        cost_per_million=(
            None if hours is None or price_per_hour is None else hours * price_per_hour
        ),
        passed_over=passed_over,
    )
