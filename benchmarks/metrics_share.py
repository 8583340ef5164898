"""How much of an evaluation its metrics take.

    python benchmarks/metrics_share.py --data ROOT --category C --models STORE

runs ``ssray evaluate --maps``, then times on the kept maps alone what the evaluation does with them
beyond making them: counting, storing the counts, merging them and working out the figures.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from ssray.cluster.runtime import ray_session
from ssray.cluster.score import SCORE_BATCH, map_place
from ssray.cluster.workflow import evaluate_categories
from ssray.config import Compute
from ssray.data.decode import read_mask
from ssray.data.index import index_dataset
from ssray.data.storage import Location
from ssray.metrics.pixels import PixelCounts
from ssray.report.figures import Figures
from ssray.report.results import collect


def main() -> None:
    """Prints seconds and the share."""
    parser = argparse.ArgumentParser(description="How much of an evaluation its metrics take.")
    for name in ("data", "category", "models"):
        parser.add_argument(f"--{name}", required=True)
    options = parser.parse_args()
    root = Location.parse(options.data)
    with tempfile.TemporaryDirectory() as folder:
        out = Location.parse(folder)
        with ray_session():
            started = time.perf_counter()
            evaluate_categories(
                root,
                [options.category],
                Location.parse(options.models),
                Compute(),
                out,
                out / "maps",
            )
            whole = time.perf_counter() - started
        rows = [
            row
            for row in index_dataset(root, [options.category]).to_pylist()
            if row["split"] == "test"
        ]
        counting = 0.0
        for start in range(0, len(rows), SCORE_BATCH):
            counts = PixelCounts()
            for row in rows[start : start + SCORE_BATCH]:
                place = map_place(out / "maps", options.category, row["split_type"], row["uri"])
                values = np.load(Path(place.path))
                mask = (
                    read_mask(row["mask_uri"]) if row["mask_uri"] else np.zeros_like(values, bool)
                )
                started = time.perf_counter()
                counts.add(values, mask)
                counting += time.perf_counter() - started
            started = time.perf_counter()
            counts.to_bytes()
            counting += time.perf_counter() - started
        started = time.perf_counter()
        Figures.of(collect(out / "scored_parts"))
        figures = time.perf_counter() - started
    print(
        f"{len(rows)} images: evaluation {whole:.1f} s; counting {counting:.2f} s, figures "
        f"{figures:.2f} s, together {100 * (counting + figures) / whole:.1f} % of it"
    )


if __name__ == "__main__":
    main()
