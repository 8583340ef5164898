"""What one training gains from many cores, measured on few.

    python benchmarks/many_cores.py [--recipe compact-object]

times a training's step in one process, in two side by side that exchange nothing, and in two that
exchange gradients over gloo; then the exchange alone between up to eight processes. From these it
computes how many times as many images a second a machine with C cores trains on as one with two,
each worker having two cores and a step of the recipe's (``ssray.cluster.resources``):

    (C / 2) * step / (step + exchange between C / 2 workers)

Nothing of the exchange is counted as hidden behind the backward pass, and eight processes that
share two cores exchange more slowly than eight that have sixteen. What this can't show is how far
cores share caches and memory: two processes side by side, against one, are what there is of it.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ssray.config import Recipe, override
from ssray.method.autoencoder import Autoencoder
from ssray.models.device import resolve_precision, use_cores
from ssray.recipes.request import RECIPES
from ssray.training.fit import TrainingRun
from ssray.training.growth import grown
from ssray.training.images import Feed
from ssray.training.trainer import Numerics

CPU = torch.device("cpu")
WARM, ROUNDS = 3, 15


def main() -> None:
    """Prints a line for each measurement, and the table that follows from them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="compact-object", choices=RECIPES)
    options = parser.parse_args()
    recipe = override(RECIPES[options.recipe](), ["schedule.crops=[1]"])
    cores = len(os.sched_getaffinity(0))
    whole = measured(recipe, processes=1, threads=min(2, cores), together=False)
    print(f"a step of one process with {min(2, cores)} threads: {1000 * whole:.1f} ms")
    one = measured(recipe, processes=1, threads=1, together=False)
    print(f"a step of one process with one thread: {1000 * one:.1f} ms")
    apart = measured(recipe, processes=2, threads=1, together=False)
    print(f"two such side by side: {1000 * apart:.1f} ms, {2 * one / apart:.2f} x the images")
    paired = measured(recipe, processes=2, threads=1, together=True)
    print(f"two that train together: {1000 * paired:.1f} ms, {2 * one / paired:.2f} x the images")
    for workers in (2, 4, 8):
        exchange = exchanged(recipe, workers)
        gain = workers * whole / (whole + exchange)
        print(
            f"{2 * workers} cores, {workers} workers: exchange {1000 * exchange:.1f} ms, "
            f"{gain:.2f} x the images of two cores"
        )


def measured(recipe: Recipe, processes: int, threads: int, together: bool) -> float:
    """Seconds of a step, the median, in the slower process."""
    return max(spawned(_time_steps, processes, recipe, threads, together))


def exchanged(recipe: Recipe, processes: int) -> float:
    """Seconds in which processes add up a network's gradients, the median."""
    return max(spawned(_time_exchange, processes, recipe))


def spawned(work: object, processes: int, *arguments: object) -> list[float]:
    """What each of some processes measures; they can reach each other."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_in_process, (work, processes, port, folder, *arguments), nprocs=processes)
        return [float(Path(folder, str(rank)).read_text()) for rank in range(processes)]


def _in_process(
    rank: int, work: object, processes: int, port: int, folder: str, *arguments: object
) -> None:
    assert callable(work)
    seconds = work(rank, processes, port, *arguments)
    Path(folder, str(rank)).write_text(str(seconds))


def _connect(rank: int, processes: int, port: int) -> None:
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=processes
    )


def _time_steps(
    rank: int, processes: int, port: int, recipe: Recipe, threads: int, together: bool
) -> float:
    use_cores(threads)
    precision = resolve_precision("auto", CPU, recipe.network)
    side = recipe.image_size
    images = torch.randint(256, (40, side, side, 3), dtype=torch.uint8)
    _connect(rank, processes, port)
    if together:
        recipe = grown(recipe, processes)
    else:
        dist.barrier()
        dist.destroy_process_group()
    run = TrainingRun(Feed(images[:32], images[32:]), recipe, Numerics(CPU, precision))
    return _median(run.step)


def _time_exchange(rank: int, processes: int, port: int, recipe: Recipe) -> float:
    use_cores(1)
    _connect(rank, processes, port)
    size = sum(p.numel() for p in Autoencoder(recipe.network).parameters())
    gradient = torch.ones(size)

    def exchange() -> None:
        dist.all_reduce(gradient)
        gradient.div_(processes)

    return _median(exchange)


def _median(work: object) -> float:
    assert callable(work)
    seconds = []
    for turn in range(WARM + ROUNDS):
        began = time.perf_counter()
        work()
        if turn >= WARM:
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
