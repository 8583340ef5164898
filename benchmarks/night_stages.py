"""How a night's stages share a cluster of CPU nodes and a GPU, all of them pretended.

    python benchmarks/night_stages.py [--cpu-nodes 1 2 4] [--seconds 40]

Nodes, CPUs and the GPU are only counted by Ray, on this machine. Decoding an image "computes" by
waiting for a stated time, and so does scoring it on the GPU. What is measured is what lies between:
how near images a second come to what the nodes could decode, or the GPU score, and how long the GPU
waits for input. The chain is that of ``ssray.cluster.night_stages``, with its two functions
replaced.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from ssray.cluster.environment import quiet_local_ray

quiet_local_ray()

import ray  # noqa: E402  Ray reads its settings when imported
from ray.cluster_utils import Cluster  # noqa: E402

from ssray.cluster import night_stages  # noqa: E402
from ssray.cluster.night_stages import _assignments, _Pool, _staged, _Work  # noqa: E402
from ssray.config import Compute  # noqa: E402
from ssray.nightly.plan import Planned  # noqa: E402
from ssray.nightly.protocol import Assignment, NightRequest  # noqa: E402
from ssray.nightly.run import Places  # noqa: E402
from ssray.nightly.sources import CategoryRule  # noqa: E402
from ssray.storage.location import Location  # noqa: E402

CPUS_OF_A_NODE = 4
BATCH = 256
DECODE_SECONDS, SCORE_SECONDS = 0.02, 0.0015
"""Of an image on a CPU, and on the GPU."""
IMAGE_BYTES = 512 * 160 * 3
STORE_BYTES = 1024**3


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cpu-nodes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--seconds", type=float, default=40.0, help="of each run, at the least")
    options = parser.parse_args()
    print("| CPU nodes | images/s | of what could be had | the GPU waits for input |")
    print("|---|---|---|---|")
    for nodes in options.cpu_nodes:
        decoded = nodes * CPUS_OF_A_NODE / DECODE_SECONDS
        most = min(decoded, 1 / SCORE_SECONDS)
        batches = int(options.seconds * most / BATCH)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        for _ in range(nodes):
            cluster.add_node(num_cpus=CPUS_OF_A_NODE, object_store_memory=STORE_BYTES)
        cluster.add_node(num_cpus=0, num_gpus=1, object_store_memory=STORE_BYTES)
        ray.init(address=cluster.address, log_to_driver=False)
        try:
            rate, idle = run(batches)
        finally:
            ray.shutdown()
            cluster.shutdown()
        print(f"| {nodes} | {rate:.0f} | {rate / most:.2f} | {100 * idle:.0f} % |", flush=True)


def run(batches: int) -> tuple[float, float]:
    """Images a second between the first and the last batch, and the share the GPU waits."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[Scoring.__module__])
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    place = Location.parse(tempfile.mkdtemp())
    request = NightRequest(
        images=[place / "images"],
        rule=CategoryRule(),
        models=place / "models",
        out=place / "out",
        date="2026-01-01",
    )
    compute = Compute(device="cpu", gpus_per_worker=1)
    work = _Work(request, compute, Places(place / "out", "2026-01-01"), run=None)  # type: ignore[arg-type]
    planned = Planned(BATCH, 0, 0)
    assigned = [Assignment(number, planned, (), BATCH) for number in range(batches)]
    blocks = [
        pa.table([[a.number], [[*a.planned]], [[]], [a.left]], schema=night_stages._BATCHES)
        for a in assigned
    ]
    night_stages._prepared_batches, night_stages._PreparedBatches = decoded, Scoring  # type: ignore[assignment,misc]
    pool = _Pool.of(request, compute, batches)
    parts = _staged(ray.data.from_arrow(blocks), pool, work)
    times = [json.loads(row["part"]) for row in parts.iter_rows()]
    times.sort()
    skipped = len(times) // 4  # while nodes and queues fill
    begun, ended = times[skipped][1], times[-1][1]
    busy = sum(end - start for start, end in times[skipped + 1 :])
    return (len(times) - skipped - 1) * BATCH / (ended - begun), 1 - busy / (ended - begun)


def decoded(batches: pa.Table, work: _Work) -> Iterator[pa.Table]:
    """Waits as long as decoding takes, and yields as many bytes."""
    for batch in _assignments(batches):
        time.sleep(DECODE_SECONDS * batch.left)
        images = pa.array([bytes(IMAGE_BYTES * batch.left)], pa.large_binary())
        head = json.dumps({"number": batch.number})
        yield pa.table([[head], images], schema=night_stages._PREPARED)


class Scoring:
    """Waits as long as scoring takes, a batch at a time."""

    def __init__(self, work: _Work, worker: Any) -> None:
        self._card = threading.Lock()

    def __call__(self, prepared: pa.Table) -> pa.Table:
        """Prepared batches to when each was begun and ended."""
        parts = []
        for images in prepared["images"]:
            count = len(images.as_buffer()) // IMAGE_BYTES
            with self._card:
                begun = time.time()
                time.sleep(SCORE_SECONDS * count)
                parts.append(json.dumps([begun, time.time()]))
        return pa.table({"part": parts})


if __name__ == "__main__":
    main()
