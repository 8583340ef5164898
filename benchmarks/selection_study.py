"""Do criteria without test labels choose well? Every ablation run is judged by each, and measured.

    python benchmarks/selection_study.py

reads what ``make ablation`` stored: for each category the rank correlation (Spearman) over the runs
between a criterion and the test set's AUROC, and the regret of the one run and setting that it
chooses against the best of all runs and settings, which only the test labels tell. Beside it the
recipe as it is, with the settings that the criterion chose for it. Test labels choose nothing.
"""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from labelled import TestSet
from scipy.stats import spearmanr
from torch import Tensor, nn

from ssray.calibration.candidates import Candidate, judge
from ssray.calibration.criterion import Criterion
from ssray.calibration.defect_images import DefectImages
from ssray.calibration.evidence import gather_evidence
from ssray.calibration.map_settings import GRIDS, NARROW
from ssray.config import MapSettings, Recipe
from ssray.method.inference import Reconstructor

RESULTS = Path(__file__).with_name("ablation.jsonl")


def study(
    networks: Sequence[nn.Module],
    references: Tensor,
    recipe: Recipe,
    test_set: TestSet,
    precision: torch.dtype,
) -> dict[str, Any]:
    """What each criterion makes of a model, and what the test set does.

    Returns:
        ``best``: the highest image and pixel AUROC of any setting; for each criterion its
        ``error``, and the test AUROCs of the setting it chooses.
    """
    measured = _on_test_set(networks, references, recipe, test_set, precision)
    found: dict[str, Any] = {
        "best": {
            "image_auroc": max(each.image_auroc for each in measured.values()),
            "pixel_auroc": max(each.pixel_auroc for each in measured.values()),
        }
    }
    reconstructor = Reconstructor(networks, precision)
    for name, grid in GRIDS.items():
        criterion = Criterion(seed=0, grid=grid)
        examined = criterion.examine(reconstructor, references, recipe.anomaly_map)
        found[name] = _row(examined.selection.error, measured[examined.settings])
    by_error = Criterion(by="reconstruction", seed=0)
    examined = by_error.examine(reconstructor, references, recipe.anomaly_map)
    found["reconstruction"] = _row(examined.selection.error, measured[examined.settings])
    return found


def _row(error: float | None, measured: Candidate) -> dict[str, Any]:
    return {
        "error": error,
        "image_auroc": measured.image_auroc,
        "pixel_auroc": measured.pixel_auroc,
        "settings": measured.settings.model_dump(),
    }


def _on_test_set(
    networks: Sequence[nn.Module],
    references: Tensor,
    recipe: Recipe,
    test_set: TestSet,
    precision: torch.dtype,
) -> dict[MapSettings, Candidate]:
    """Every setting of both grids, measured on the test images at the network's resolution."""
    defective = torch.from_numpy(test_set.labels == 1)
    shape = test_set.images.shape[1:3]
    whole = [torch.from_numpy(mask)[None, None].float() for mask in test_set.masks]
    masks = torch.cat([F.interpolate(mask, shape) for mask in whole]) > 0
    good, bad = test_set.images[~defective], test_set.images[defective]
    wanted = recipe.anomaly_map
    kinds, source = NARROW.kinds(wanted), DefectImages(bad, masks[defective])
    reconstructor = Reconstructor(networks, precision)
    fitted_on = gather_evidence(reconstructor, references, kinds, None)
    evidence = {
        kind: dataclasses.replace(seen, fitted_on=fitted_on[kind].clean)
        for kind, seen in gather_evidence(reconstructor, good, kinds, source).items()
    }
    candidates = dict.fromkeys(
        setting for grid in GRIDS.values() for setting in grid.candidates(evidence, wanted)
    )
    return dict(zip(candidates, judge(evidence, list(candidates)), strict=True))


def summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A table a category: a criterion a line."""
    by_category = defaultdict(list)
    defaults = defaultdict(list)
    for row in rows:
        by_category[row["category"]].append(row["criteria"])
        if "maps" in row:  # the recipe as it is
            defaults[row["category"]].append(row["criteria"])
    lines = []
    for category, runs in by_category.items():
        best = {m: max(run["best"][m] for run in runs) for m in ("image_auroc", "pixel_auroc")}
        lines += [
            f"{category}, {len(runs)} runs; best of all runs and settings: image "
            f"{best['image_auroc']:.4f}, pixel {best['pixel_auroc']:.4f}",
            "| criterion | Spearman image | pixel | chosen image | pixel | regret image | pixel | "
            "default image | pixel |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for name in (*GRIDS, "reconstruction"):
            judged = [run[name] for run in runs if run[name]["error"] is not None]
            errors = -np.array([each["error"] for each in judged])
            chosen = judged[int(errors.argmax())]
            cells = [
                *(spearmanr(errors, [e[m] for e in judged]).statistic for m in best),
                *(chosen[m] for m in best),
                *(best[m] - chosen[m] for m in best),
                *(np.mean([run[name][m] for run in defaults[category]]) for m in best),
            ]
            lines.append(f"| {name} | " + " | ".join(f"{cell:.4f}" for cell in cells) + " |")
        lines.append("")
    return lines


def main() -> None:
    """Prints the tables."""
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    print("\n".join(summary(rows)))


if __name__ == "__main__":
    main()
