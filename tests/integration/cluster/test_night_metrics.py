"""What Prometheus would read of a night at the endpoint of a private Ray."""

from __future__ import annotations

import time
import urllib.request
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ssray.cluster.night_metrics import BATCH_SECONDS, METRICS, NO_MODEL, NightMetrics
from ssray.cluster.night_metrics import metrics_address as address_of_metrics
from ssray.nightly.summary import BatchFacts

NIGHT = "2031-01-17"
EXPORTED_AFTER = 120.0
"""Ray exports every ten seconds; a busy machine is late."""
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def batch(category: str, images: int, worker_seconds: float, **errors: int) -> BatchFacts:
    return BatchFacts(
        category=category,
        images=images,
        flagged=images // 8,
        errors=errors,
        retries=2,
        seconds={"fetch": 1.5, "decode": 4.25, "write": 0.0},
        worker_seconds=worker_seconds,
    )


def exposed(night: str) -> Samples:
    """What the endpoint has of a night: value by name and tags."""
    address = address_of_metrics()
    assert address is not None
    assert urlsplit(address).hostname == "127.0.0.1"
    with urllib.request.urlopen(address, timeout=60) as answer:  # with no token
        text = answer.read().decode()
    tags = {"le", "night"}.union(*(metric.tags for metric in METRICS))
    return {
        (
            sample.name,
            frozenset((k, v) for k, v in sample.labels.items() if k in tags),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels.get("night") == night and not sample.name.endswith("_created")
    }


def waited_for(name: str, value: float | None, **tags: str) -> Samples:
    """What there is once a metric has a value, or none."""
    deadline = time.monotonic() + EXPORTED_AFTER
    while True:
        found = exposed(NIGHT)
        if found.get((name, of(**tags))) == value or time.monotonic() > deadline:
            return found
        time.sleep(1)


def of(**tags: str) -> frozenset[tuple[str, str]]:
    return frozenset({"night": NIGHT, **tags}.items())


def test_prometheus_reads_each_metric_with_its_tags(ray_local: None) -> None:
    with NightMetrics(NIGHT, {"weave": "v1", "bolt": "v2"}) as metrics:
        metrics.assigned(7)
        metrics.batch_done(batch("weave", 16, 3.0, empty=2, truncated=1))
        metrics.batch_done(batch("weave", 8, 30.0, empty=1))
        metrics.batch_done(batch('no\n"model"', 4, 0.5, unknown_category=4))
        metrics.batch_done(batch("another", 4, 0.5, unknown_category=4))
        metrics.batch_postponed("bolt", 256)
        metrics.paused(True)
        found = waited_for("ray_ssray_night_paused", 1)

    def value(name: str, **tags: str) -> float | None:
        return found.get((f"ray_ssray_night_{name}", of(**tags)))

    assert value("images_total", category="weave") == 24
    assert value("images_total", category=NO_MODEL) == 8
    assert value("flagged_total", category="weave") == 3
    assert value("flagged_total", category=NO_MODEL) is None
    assert value("errors_total", category="weave", reason="empty") == 3
    assert value("errors_total", category="weave", reason="truncated") == 1
    assert value("errors_total", category=NO_MODEL, reason="unknown_category") == 8
    assert value("retries_total", category="weave") == 4
    assert value("postponed_images_total", category="bolt") == 256
    assert value("stage_seconds_total", category="weave", stage="decode") == 8.5
    assert value("stage_seconds_total", category="weave", stage="write") is None
    assert value("worker_seconds_total", category="weave") == 33.0
    assert value("batch_seconds_count", category="weave") == 2
    within = [value("batch_seconds_bucket", category="weave", le=f"{le}") for le in BATCH_SECONDS]
    assert within[:7] == [0, 0, 1, 1, 1, 2, 2]
    assert value("batches_left") == 3
    assert value("paused") == 1
    assert {name for name, _ in found} == {name for each in METRICS for name in each.exposed}


@pytest.mark.slow
def test_what_is_left_is_seen_while_nothing_happens_and_no_longer(ray_local: None) -> None:
    """Ray drops a gauge that was not set for 20 seconds."""
    with NightMetrics(NIGHT, {"weave": "v1"}) as metrics:
        metrics.assigned(5)
        waited_for("ray_ssray_night_batches_left", 5)
        time.sleep(30)
        found = exposed(NIGHT)
        assert found[("ray_ssray_night_batches_left", of())] == 5
        assert found[("ray_ssray_night_paused", of())] == 0
    found = waited_for("ray_ssray_night_batches_left", None)
    assert ("ray_ssray_night_batches_left", of()) not in found
