"""What reads whole objects from S3 fastest: pyarrow, boto3, or obstore, which ssray takes.

    python benchmarks/object_reads.py --root s3://BUCKET/PREFIX

writes objects of some sizes below ROOT and reads them by each client, in turn, with 1, 4 and 16
threads of one process. A row is the median over rounds of images a second, of its ratio to
pyarrow's in the same round, and of the process's CPU time an image. Most of the time is the
server's where that runs on the same core. At a proxy (as in ``tests/integration/storage``) one sees
that pyarrow makes two requests for 50 kB, three for 500 kB, nine for 2 MB, and the others one.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import boto3
import botocore.config
import numpy as np

from ssray.storage.location import Location

SIZES = {50_000: 120, 500_000: 60, 2_000_000: 30}
"""Bytes of an object, and how many objects of that size there are."""
THREADS = (1, 4, 16)

Read = Callable[[Location], bytes]


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True, help="s3://BUCKET/PREFIX")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    root = Location.parse(options.root)
    clients: dict[str, Read] = {"pyarrow": by_pyarrow, "boto3": by_boto3(), "ssray": Location.read}
    print("| bytes | threads | client | images/s | times pyarrow's | CPU ms an image |")
    print("|---|---|---|---|---|---|")
    generator = np.random.default_rng(0)
    for size, count in SIZES.items():
        places = [root / f"{size}/{number:04}.jpg" for number in range(count)]
        for place in places:
            place.write(generator.bytes(size))
        for threads in THREADS:
            rates: dict[str, list[float]] = {name: [] for name in clients}
            cpu: dict[str, list[float]] = {name: [] for name in clients}
            for turn in range(options.rounds):
                order = itertools.islice(itertools.cycle(clients), turn, turn + len(clients))
                for name in order:
                    seconds, spent = timed(clients[name], places, threads, size)
                    rates[name].append(count / seconds)
                    cpu[name].append(1000 * spent / count)
            for name in clients:
                ratios = [a / b for a, b in zip(rates[name], rates["pyarrow"], strict=True)]
                rate, ratio, spent = map(statistics.median, (rates[name], ratios, cpu[name]))
                print(f"| {size} | {threads} | {name} | {rate:.0f} | {ratio:.2f} | {spent:.2f} |")


def timed(read: Read, places: list[Location], threads: int, size: int) -> tuple[float, float]:
    """Seconds of wall-clock and of CPU time in which all are read, with open connections."""
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, places[:threads]))
        begun, spent = time.perf_counter(), time.process_time()
        found = list(pool.map(read, places))
        seconds = time.perf_counter() - begun, time.process_time() - spent
    assert all(len(content) == size for content in found)
    return seconds


def by_pyarrow(place: Location) -> bytes:
    """As ssray did before."""
    with place.filesystem.open_input_stream(place.path) as stream:
        content: bytes = stream.read()
    return content


def by_boto3() -> Read:
    """With one client for all threads."""
    config = botocore.config.Config(max_pool_connections=max(THREADS))
    client = boto3.session.Session().client("s3", config=config)

    def read(place: Location) -> bytes:
        bucket, _, key = place.path.partition("/")
        content: bytes = client.get_object(Bucket=bucket, Key=key)["Body"].read()
        return content

    return read


if __name__ == "__main__":
    main()
