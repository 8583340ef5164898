"""What a night's driver spends on each image: listing, the plan, and what has a row already.

    python benchmarks/night_driver.py --root s3://BUCKET/PREFIX --images 20000

writes so many objects of one byte below ROOT, if they aren't there, lists them as a night does,
writes the plan of it, and looks each of them up among as many rows. Printed are CPU and wall-clock
microseconds an image, and bytes an image of what is kept of rows.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pyarrow as pa

from ssray.nightly.plan import write_manifest
from ssray.nightly.seen import Seen
from ssray.nightly.sources import CategoryRule, Source, find
from ssray.storage.location import Location

CATEGORIES = 20
_Result = TypeVar("_Result")


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True, help="a folder or s3://BUCKET/PREFIX")
    parser.add_argument("--images", type=int, default=20_000)
    options = parser.parse_args()
    place = Location.parse(options.root) / f"images-{options.images}"
    names = [f"c{number % CATEGORIES}/{number:09}.png" for number in range(options.images)]
    if not (place / names[-1]).exists():
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda name: (place / name).write(b"x"), names))
    print("| what | CPU us an image | wall us an image |")
    print("|---|---|---|")
    sources = timed("listing", lambda: list(find(place, CategoryRule(), Counter())))
    plan = Location.parse(options.root) / "plan"
    timed(
        "listing and the plan",
        lambda: [write_manifest(plan, [place], CategoryRule(), 256)],
        sources,
    )
    rows = pa.record_batch(
        {
            "uri": [source.uri for source in sources],
            "category": [source.category for source in sources],
            "etag": [source.etag for source in sources],
            "error": pa.nulls(len(sources), pa.string()),
        }
    )
    [seen] = timed("reading rows", lambda: [Seen.of([rows], lambda *_: False)], sources)
    states = timed("looking images up", lambda: [seen.state(source) for source in sources])
    assert set(states) == {"known"}
    kept = seen.keys.nbytes + seen.tags.nbytes + seen.again.nbytes
    print(f"{kept / len(sources):.0f} bytes an image are kept of rows")


def timed(
    what: str, work: Callable[[], list[_Result]], of: Sequence[Source] | None = None
) -> list[_Result]:
    """Does some work, prints how long it took, and returns what it gave."""
    cpu, wall = time.process_time(), time.perf_counter()
    found = work()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    count = len(found if of is None else of)
    print(f"| {what} | {1e6 * cpu / count:.1f} | {1e6 * wall / count:.1f} |")
    return found


if __name__ == "__main__":
    main()
