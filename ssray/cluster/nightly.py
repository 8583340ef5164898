"""A night on Ray: ``ssray.nightly.protocol`` with the stages of ``ssray.cluster.night_stages``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ssray.cluster.night_metrics import NightMetrics
from ssray.cluster.night_stages import RayStages
from ssray.cluster.session import ray_session
from ssray.config import Compute
from ssray.nightly.protocol import NightOutcome, NightRequest, OnScored, OnState, Stages, run_night
from ssray.nightly.run import Places, Run


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
        with ray_session(), NightMetrics(places.date, run.night.versions) as metrics:
            yield RayStages(request, compute, places, run, metrics)

    return run_night(request, compute, on_ray, on_state, on_scored)
