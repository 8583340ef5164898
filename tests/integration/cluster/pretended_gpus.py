"""Every job on a Ray with GPUs that no card stands behind; started by tests.

python -m tests.integration.cluster.pretended_gpus DATA OUT

Workers and actors reserve GPUs and compute on the CPU. Prints a line of JSON for each job: how many
GPUs were reserved at most at one time, and what came of the job.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ssray.cluster.environment import quiet_local_ray

quiet_local_ray()

import pyarrow.parquet as pq  # noqa: E402  Ray reads its settings when imported
import ray  # noqa: E402

from ssray.cluster.categories import evaluate_categories, train_categories  # noqa: E402
from ssray.cluster.evaluate import score  # noqa: E402
from ssray.cluster.nightly import score_night  # noqa: E402
from ssray.cluster.search import SweepRequest, sweep_categories  # noqa: E402
from ssray.cluster.session import ray_session  # noqa: E402
from ssray.cluster.train import train_category  # noqa: E402
from ssray.config import Compute, override  # noqa: E402
from ssray.data.dataset import index_images, training_uris  # noqa: E402
from ssray.models import artifact  # noqa: E402
from ssray.models import store as model_store  # noqa: E402
from ssray.nightly.protocol import NightRequest  # noqa: E402
from ssray.nightly.sources import CategoryRule  # noqa: E402
from ssray.nightly.table import ScoreTable  # noqa: E402
from ssray.recipes.compact import demo  # noqa: E402
from ssray.recipes.request import RecipeRequest  # noqa: E402
from ssray.storage.location import Location  # noqa: E402
from tests.helpers import TINY, TINY_FAMILY  # noqa: E402

CPUS, GPUS = 4, 2
REQUEST = RecipeRequest("demo", TINY_FAMILY)


def compute(**values: Any) -> Compute:
    """Reserves GPUs, computes on the CPU."""
    return Compute(**({"device": "cpu", "precision": "float32", "gpus_per_worker": 0.5} | values))


class Reserved:
    """Looks at what is reserved while a block runs."""

    def __init__(self) -> None:
        self.most = 0.0
        self._done = threading.Event()

    @contextmanager
    def watching(self) -> Iterator[None]:
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            yield
        finally:
            self._done.set()
            thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.most = max(self.most, GPUS - ray.available_resources().get("GPU", 0.0))


def main(data: str, out: str) -> None:
    root, place = Location.parse(data), Location.parse(out)
    store = place / "models"

    def trained() -> dict[str, Any]:
        failed = train_categories(root, [], REQUEST, compute(), store, force=True)
        versions = model_store.published(store)
        facts = [artifact.load_facts(store, *named) for named in versions.items()]
        return {
            "failed": [str(error) for error in failed.values()],
            "threads": [each.threads for each in facts],
            "devices": [each.device for each in facts],
        }

    def streamed_by_two_workers() -> dict[str, Any]:
        recipe = override(demo(), TINY)
        memory = 20 * 3 * recipe.image_size**2 / 1024**3
        trained = train_category(
            training_uris(root, "weave"),
            "weave",
            recipe,
            compute(workers=2, memory_gib=memory),
            place / "apart",
        )
        facts = artifact.load_facts(place / "apart", "weave", trained.version)
        return {"workers": facts.workers, "streamed": facts.streamed, "threads": facts.threads}

    def swept() -> dict[str, Any]:
        request = SweepRequest(recipe=REQUEST, space="small", trials=2, force=True)
        best, results = place / "best", place / "sweep"
        failed = sweep_categories(root, ["weave"], request, compute(), best, results)
        rows = pq.read_table(f"{results}/leaderboard.parquet").to_pylist()
        return {"failed": [str(error) for error in failed.values()], "trials": len(rows)}

    def evaluated() -> dict[str, Any]:
        metrics, _ = evaluate_categories(root, [], store, compute(), place / "evaluation")
        return {"images": sum(row["n_good"] + row["n_defect"] for row in metrics.to_pylist())}

    def scored() -> dict[str, Any]:
        images = index_images(root / "weave/train/good", "weave")
        versions = {"weave": model_store.published_version(store, "weave")}
        settings = compute(workers=2, gpus_per_worker=1)
        scores = score(images, store, versions, settings, place / "scores")
        return {"images": len(scores)}

    def night() -> dict[str, Any]:
        """By tasks that decode and actors with GPUs; the rows are those of actors alone."""
        request = NightRequest(
            images=[root / "weave/test", root / "weave/train"],
            rule=CategoryRule(fixed="weave"),
            models=store,
            out=place / "nights",
            date="2026-11-21",
            batch=4,
            min_actors=4,
        )
        outcome = score_night(request, compute())
        return {"images": outcome.images, "errors": dict(outcome.errors), "same": same(request)}

    def same(request: NightRequest) -> bool:
        alone = dataclasses.replace(request, out=place / "alone", min_actors=1)
        score_night(alone, Compute(device="cpu", precision="float32", gpus_per_worker=None))
        staged, whole = (
            ScoreTable(out).night(request.date).sort_by("uri").to_pylist()
            for out in (request.out, alone.out)
        )
        for row, other in zip(staged, whole, strict=True):
            for name, value in row.items():
                if isinstance(value, float):
                    assert math.isclose(value, other[name], rel_tol=1e-3, abs_tol=1e-6), name
                elif name not in ("heatmap", "boxes"):
                    assert value == other[name], name
        return True

    jobs = (trained, streamed_by_two_workers, swept, evaluated, scored, night)
    with ray_session(CPUS, GPUS):
        for job in jobs:
            print(json.dumps({"job": job.__name__} | outcome(job)), flush=True)


def outcome(job: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a job reserved, and what came of it or went wrong; the other jobs go on."""
    reserved = Reserved()
    try:
        with reserved.watching():
            result = job()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"most_gpus": reserved.most} | result


if __name__ == "__main__":
    main(*sys.argv[1:])
