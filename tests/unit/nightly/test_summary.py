"""What a night's summary says, and what it leaves out."""

from __future__ import annotations

import pytest

from ssray.nightly.summary import ENOUGH_IMAGES, BatchFacts, summarise

SECONDS = {"fetch": 12.0, "decode": 41.0, "model": 35.0, "pack": 2.0, "write": 10.0}


def batch(images: int, category: str = "weave") -> BatchFacts:
    return BatchFacts(
        category=category,
        images=images,
        flagged=2,
        errors={"empty": 1},
        retries=3,
        seconds=SECONDS,
        worker_seconds=36.0,
    )


def test_a_million_images_are_told_of_only_when_there_were_enough() -> None:
    few = summarise([batch(5000), batch(4999)], 1.0, 100.0, 9999, {}, price_per_hour=2.0)
    assert (few.worker_hours_per_million, few.cost_per_million) == (None, None)
    enough = summarise([batch(5000), batch(5000)], 1.0, 100.0, 10_000, {}, price_per_hour=2.0)
    assert enough.images == ENOUGH_IMAGES
    assert enough.worker_hours_per_million == pytest.approx(72 / 3600 * 100)
    assert enough.cost_per_million == pytest.approx(4.0)
    unpriced = summarise([batch(10_000)], 1.0, 100.0, 10_000, {})
    assert unpriced.cost_per_million is None


def test_counts_are_added_up_by_category_and_reason() -> None:
    summary = summarise([batch(8), batch(8), batch(8, "grid")], 1.0, 12.0, 24, {".txt": 1})
    assert summary.categories == {
        "grid": {"images": 8, "flagged": 2, "errors": 1},
        "weave": {"images": 16, "flagged": 4, "errors": 2},
    }
    assert (summary.images, summary.flagged, summary.retries) == (24, 6, 9)
    assert summary.errors == {"empty": 3}
    assert summary.error_share == 3 / 24
    assert summary.images_per_second == 2.0


def test_stages_share_the_time_of_the_workers_without_the_listing() -> None:
    summary = summarise([batch(8), batch(8)], 1000.0, 12.0, 16, {})
    assert summary.seconds == {"list": 1000.0} | {name: 2 * each for name, each in SECONDS.items()}
    assert summary.stage_shares == pytest.approx(
        {"fetch": 0.12, "decode": 0.41, "model": 0.35, "pack": 0.02, "write": 0.1}
    )
    assert summarise([], 1.0, 1.0, 0, {}).stage_shares == {}
