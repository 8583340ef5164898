"""Trains on a cluster of three nodes and kills one that trains; started by test_restart.py.

python -m tests.integration.cluster.lose_a_node DATA STORE RECIPE WORKERS
"""

from __future__ import annotations

import sys
from pathlib import Path

from ssray.cluster.environment import quiet_local_ray

quiet_local_ray()

import ray  # noqa: E402  Ray reads its settings when imported
from ray.cluster_utils import Cluster  # noqa: E402

from ssray.cluster.train import train_category  # noqa: E402
from ssray.config import Compute, Recipe  # noqa: E402
from ssray.storage.location import Location  # noqa: E402
from ssray.training.progress import ProgressRow  # noqa: E402


def main(data: str, store: str, recipe: str, workers: str) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=128 * 1024**2) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    killed: list[float] = []
    reasons: list[str] = []

    def on_row(epoch: ProgressRow) -> None:
        if not killed and epoch.budget_spent > 0.3 and list(Path(store).rglob("*.safetensors")):
            killed.append(epoch.images_seen)
            raylet = raylet_of_a_worker()
            [lost] = [n for n in nodes if n.all_processes["raylet"][0].process.pid == raylet]
            cluster.remove_node(lost, allow_graceful=False)

    trained = train_category(
        [str(path) for path in Path(data).iterdir()],
        "weave",
        Recipe.model_validate_json(Path(recipe).read_text()),
        Compute(
            precision="float32",
            workers=int(workers),
            min_workers=1 if int(workers) > 1 else None,
            cpus_per_worker=1,
            checkpoint_minutes=1 / 60,
        ),
        Location.parse(store),
        on_row=on_row,
        on_state=reasons.append,
    )
    print(f"nodes alive: {sum(node['Alive'] for node in ray.nodes())}")
    print(f"restarts: {len(reasons)}")
    print(f"version: {trained.version}")
    ray.shutdown()
    cluster.shutdown()


def raylet_of_a_worker() -> int:
    """The parent of a process that trains."""
    for place in Path("/proc").iterdir():
        try:
            if b"RayTrainWorker" in (place / "cmdline").read_bytes():
                return int((place / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    raise RuntimeError("no worker trains")


if __name__ == "__main__":
    main(*sys.argv[1:])
