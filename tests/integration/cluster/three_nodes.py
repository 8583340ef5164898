"""A Ray cluster of three nodes on this machine, of which one can be lost; started by tests.

python -m tests.integration.cluster.three_nodes NEEDLE

Prints its address. For each line on the standard input it kills the node on which a process with
NEEDLE in its command line runs, and adds another; at the end of the input it shuts down.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from ssray.cluster.environment import quiet_local_ray

quiet_local_ray()

from ray.cluster_utils import Cluster  # noqa: E402  Ray reads its settings when imported

STORE_BYTES = 128 * 1024**2


def main(needle: str) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES) for _ in range(2)]
    print(cluster.address, flush=True)
    for _ in sys.stdin:
        raylet = parent_of(needle)
        [lost] = [n for n in nodes if n.all_processes["raylet"][0].process.pid == raylet]
        cluster.remove_node(lost, allow_graceful=False)
        nodes.remove(lost)
        nodes.append(cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES))
        print("lost", flush=True)
    cluster.shutdown()


def parent_of(needle: str) -> int:
    """The parent of a process whose command line has the needle."""
    pid = next(processes(needle), None)
    if pid is None:
        raise RuntimeError(f"no process with {needle} in its command line")
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def processes(needle: str) -> Iterator[int]:
    """Processes with a needle in their command line, but for this one's callers."""
    for place in Path("/proc").iterdir():
        try:
            line = (place / "cmdline").read_bytes()
        except OSError:
            continue
        if line.startswith(b"ray::") and needle.encode() in line:
            yield int(place.name)


if __name__ == "__main__":
    main(sys.argv[1])
