"""How much of an evaluation its metrics take.

    python benchmarks/metrics_share.py --data ROOT --category C --models STORE

times ``ssray evaluate`` after a first run that keeps the maps, and then, on these, what an
evaluation does with maps beyond making them: counting, storing the counts, merging them and
working out the figures.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from labelled import category_parser

from ssray.cluster.categories import evaluate_categories
from ssray.cluster.session import ray_session
from ssray.config import Compute
from ssray.data.dataset import index_dataset
from ssray.data.masks import read_masks, with_mask_levels
from ssray.metrics.pixels import PixelCounts
from ssray.scoring.evaluation import Figures
from ssray.scoring.judge import SCORE_BATCH
from ssray.scoring.labelled import map_place
from ssray.scoring.outputs import PARTS
from ssray.scoring.results import collect
from ssray.storage.location import Location


def main() -> None:
    """Prints seconds and the share."""
    options = category_parser("How much of an evaluation its metrics take.").parse_args()
    root = Location.parse(options.data)
    store = Location.parse(options.models)
    with tempfile.TemporaryDirectory() as folder:
        out, kept = Location.parse(folder) / "out", Location.parse(folder) / "kept"
        with ray_session():
            evaluate_categories(root, [options.category], store, Compute(), kept, kept / "maps")
            started = time.perf_counter()
            evaluate_categories(root, [options.category], store, Compute(), out)
            whole = time.perf_counter() - started
        rows = [
            row
            for row in with_mask_levels(index_dataset(root, [options.category])).to_pylist()
            if row["split"] == "test"
        ]
        counting = 0.0
        for batch in batches(rows):
            pairs = []
            for row in batch:
                place = map_place(kept / "maps", options.category, row["split_type"], row["uri"])
                values = np.load(Path(place.path))
                mask = np.zeros(values.shape, bool)
                if row["mask_uris"]:
                    mask = read_masks(row["mask_uris"], row["mask_level"])
                pairs.append((values, mask))
            started = time.perf_counter()
            counts = PixelCounts()
            for values, mask in pairs:
                counts.add(values, mask)
            counts.to_bytes()
            counting += time.perf_counter() - started
        started = time.perf_counter()
        Figures.of(collect(out / PARTS), {})
        figures = time.perf_counter() - started
    print(
        f"{len(rows)} images: evaluation {whole:.1f} s; counting {counting:.2f} s of one core, "
        f"figures {figures:.2f} s, together {100 * (counting + figures) / whole:.1f} % of it"
    )


def batches(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """As scoring actors count them: batches of one type, of at most ``SCORE_BATCH`` images."""
    for _, members in itertools.groupby(rows, key=lambda row: row["split_type"]):
        of_type = list(members)
        for start in range(0, len(of_type), SCORE_BATCH):
            yield of_type[start : start + SCORE_BATCH]


if __name__ == "__main__":
    main()
