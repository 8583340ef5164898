"""``python -m tests.fuzz --archives 1000 --images 10000``, or less of each."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from tests.fuzz.harness import fuzz


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--archives", type=int, default=0, metavar="COUNT")
    parser.add_argument("--images", type=int, default=0, metavar="COUNT")
    parser.add_argument("--seed", type=int, default=0, help="other inputs for another one")
    parser.add_argument(
        "--keep", type=Path, default=Path("fuzz-out"), help="a folder for inputs that do harm"
    )
    given = parser.parse_args()
    failed = False
    counts = {"archives": given.archives, "images": given.images}
    for kind, count in counts.items():
        if not count:
            continue
        module = importlib.import_module(f"tests.fuzz.{kind}")
        report = fuzz(
            module.__name__,
            module.inputs(given.seed, count),
            module.SECONDS,
            module.MEMORY_BYTES,
            given.keep.absolute() / kind,
        )
        print(
            f"{kind}, seed {given.seed}, within {module.SECONDS:g} s and "
            f"{module.MEMORY_BYTES / 2**30:g} GiB each: {report}"
        )
        failed = failed or bool(report.failures)
    sys.exit(failed)


if __name__ == "__main__":
    main()
