"""What each default around the network is worth: framing, size, light, linear autoencoder, map.

    make ablation DATA=ROOT

For each of the categories the default recipe is trained, as it is and with one change at a time,
all on equally many images, one thread a run. On the networks of the default, other ways to make
maps of the same reconstructions are compared, which need no training. Every finished run is a line
of ``benchmarks/ablation_defaults.jsonl`` and is not repeated; ``docs/ablation-defaults.md`` is
written after each. Test labels decide nothing but what the table shows.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from labelled import TestSet, difference_stack
from ledger import Ledger, Row, commit
from lighting import CHANGES, under_light
from torch import Tensor, nn

from ssray.calibration.calibrate import MAX_TRAINING, calibrate
from ssray.calibration.criterion import Criterion
from ssray.calibration.map_settings import GRIDS
from ssray.cluster.categories import survey_of
from ssray.config import Linear, MapGrid, Recipe, override
from ssray.data.dataset import index_dataset, training_uris
from ssray.data.pose import Framing
from ssray.errors import SsrayError
from ssray.method.inference import Reconstructor
from ssray.method.linear import MOST_IMAGES, LinearAutoencoder
from ssray.metrics.images import image_auroc
from ssray.recipes.request import RecipeRequest
from ssray.storage.location import Location
from ssray.training.fit import fit
from ssray.training.images import load_feed
from ssray.training.trainer import Numerics

LEDGER = Ledger(Path(__file__).with_name("ablation_defaults.jsonl"))
TABLE = Path(__file__).parents[1] / "docs/ablation-defaults.md"
CPU = torch.device("cpu")
PRECISION = torch.bfloat16
IMAGES = {"grid": 4000, "transistor": 10_000, "screw": 6000}
"""The categories, and how many images each run of one sees: some minutes of a core."""
SEEDS = (0, 1)
UNCHANGED = "the default"

TRAINED: dict[str, dict[str, tuple[str, ...]]] = {
    "grid": {
        UNCHANGED: (),
        "128 px": ("image_size=128", "schedule.images=16000"),
        "512 px, crops of 128 and 256 px": (
            "image_size=512",
            "schedule.crops=[0.25,0.5]",
            "schedule.images=1000",
        ),
        "light not levelled": ("light=null",),
        "light not varied": ("schedule.photometric=0",),
        "light varied by up to 20 %": ("schedule.photometric=0.2",),
    },
    "transistor": {
        UNCHANGED: (),
        "192 px": ("image_size=192", "schedule.images=4444"),
        "light not levelled": ("light=null",),
        "light not varied": ("schedule.photometric=0",),
        "light varied by up to 20 %": ("schedule.photometric=0.2",),
    },
    "screw": {
        UNCHANGED: (),
        "as photographed": ("alignment=null",),
        "128 px": ("image_size=128", "schedule.images=11865"),
        "256 px": ("image_size=256", "schedule.images=2966"),
        "light not levelled": ("light=null",),
        "light not varied": ("schedule.photometric=0",),
        "light varied by up to 10 %": ("schedule.photometric=0.1",),
    },
}
"""The changes to the default of each category that need a training, as ``--set`` assignments. At
another size a run sees as many pixels."""


@dataclass(frozen=True)
class Way:
    """A way to make maps with trained autoencoders.

    Attributes:
        name: for the table.
        settings: ``--set`` assignments.
        network: whether the network takes part.
        linear: whether the linear autoencoder does; None for as in the recipe.
        grid: the settings of the map that synthetic defects choose from.
        relit: whether it is also tried in other light, which takes nine times as long.
    """

    name: str
    settings: tuple[str, ...] = ()
    network: bool = True
    linear: bool | None = None
    grid: MapGrid = "plain"
    relit: bool = False


WAYS = (
    Way(UNCHANGED, relit=True),
    Way("network alone", linear=False, relit=True),
    Way("linear autoencoder alone", network=False, linear=True, relit=True),
    Way("both, their maximum", ("anomaly_map.join=max",), linear=True),
    Way("both, their mean", ("anomaly_map.join=mean",), linear=True),
    Way("relative", ("anomaly_map.relative=true",)),
    Way("not relative", ("anomaly_map.relative=false",)),
    Way("squared difference", ("anomaly_map.difference=squared",)),
    Way("SSIM", ("anomaly_map.difference=ssim",)),
    Way("chosen from the narrow grid", grid="narrow"),
    Way("chosen from the wide grid", grid="wide"),
)


@dataclass(frozen=True)
class Run:
    """One training of a category's default, or of a change to it."""

    root: str
    category: str
    variant: str
    recipe: Recipe
    seed: int
    commit: str = ""

    @property
    def title(self) -> str:
        """What is run, for people."""
        return f"{self.category}  {self.variant}, seed {self.seed}"

    @property
    def key(self) -> str:
        """The same for equal recipes."""
        decisive = self.recipe.model_dump_json(exclude={"name", "decision"})
        digest = hashlib.sha256(decisive.encode()).hexdigest()[:16]
        return f"{self.category}-{self.seed}-{digest}"


def perform(run: Run) -> Row:
    """Trains, and measures the maps of the recipe; those of ``WAYS`` for the default as it is."""
    torch.set_num_threads(1)
    manifest = index_dataset(Location.parse(run.root), [run.category])
    train = manifest.filter(pc.equal(manifest["split"], "train"))
    feed = load_feed(train["uri"].to_pylist(), run.recipe, threads=1, seed=run.seed)
    fitted = fit(feed, run.recipe, Numerics(CPU, PRECISION), seed=run.seed)
    seen = feed.sample(MOST_IMAGES)
    linear = LinearAutoencoder.fitted(seen, run.recipe.linear or Linear()).eval()
    test_set = TestSet.read(manifest, Framing.of(run.recipe, feed.shape))
    ways = WAYS if run.variant == UNCHANGED else WAYS[:1]
    found = {
        way.name: judged(
            way, run, (fitted.model, linear), feed.held_out, feed.sample(MAX_TRAINING), test_set
        )
        for way in ways
    }
    return {
        "key": run.key,
        "commit": run.commit,
        "category": run.category,
        "seed": run.seed,
        "seconds": round(fitted.history[-1].seconds, 1),
        "ways": found,
    }


def judged(
    way: Way,
    run: Run,
    autoencoders: tuple[nn.Module, nn.Module],
    held_out: Tensor,
    training: Tensor,
    test_set: TestSet,
) -> dict[str, float]:
    """What the maps made in a way are worth on the test images.

    Args:
        way: how maps are made.
        run: the training that the network comes from.
        autoencoders: the network, and the linear autoencoder.
        held_out: (M, H, W, 3) uint8, images that neither was fitted to.
        training: (N, H, W, 3) uint8, images that both were fitted to.
        test_set: labelled images.
    """
    recipe = override(run.recipe, way.settings)
    takes_part = (way.network, bool(recipe.linear) if way.linear is None else way.linear)
    networks = [each for each, used in zip(autoencoders, takes_part, strict=True) if used]
    criterion = Criterion.alone(run.seed).model_copy(update={"grid": GRIDS[way.grid]})
    calibration, places = calibrate(
        Reconstructor(networks, PRECISION),
        *(held_out, training, recipe, run.seed),
        None if way.grid == "plain" else criterion,
    )
    maker = calibration.map_maker(places, CPU)
    difference = calibration.anomaly_map.difference
    maps = maker(difference_stack(networks, test_set.images, difference, PRECISION))
    scores = maker.scores(maps).numpy()
    image, pixel = test_set.figures(maps[:, 0].numpy(), scores)
    defective = scores[test_set.labels == 1]
    unseen = np.array(calibration.image_scores)
    labels = np.repeat([0, 1], [len(unseen), len(defective)])
    found = {
        "image_auroc": image,
        "pixel_auroc": pixel,
        "held_out": image_auroc(labels, np.concatenate([unseen, defective])),
        "false_alarms": float((scores[test_set.labels == 0] > calibration.image_threshold).mean()),
    }
    if way.relit:
        lit = under_light(networks, maker, test_set, PRECISION, CHANGES)
        found["other_light"] = min(lit.values())
    return found


def all_runs(root: str, seed: int) -> list[Run]:
    """Every change to every category's default; the default itself comes first."""
    at, place, runs = commit(), Location.parse(root), []
    for category, changes in TRAINED.items():
        uris = training_uris(place, category)
        surveyed = functools.cache(functools.partial(survey_of, uris))
        budget = f"schedule.images={IMAGES[category]}"
        for name, settings in changes.items():
            recipe = RecipeRequest("compact", (budget, *settings)).resolve(category, surveyed)
            runs.append(Run(root, category, name, recipe, seed, at))
    return runs


HEAD = """
# Ablation of the defaults

What each default around the network is worth: framing, size, light, the linear autoencoder, the
map. Made by `make ablation DATA=ROOT`, which `benchmarks/ablation_defaults.py` explains; finished
runs are kept in `benchmarks/ablation_defaults.jsonl`.

- AUROC in per cent on MVTec AD (512 px), means over the seeds. *Held-out*: the defects against good
  images that the training did not see, in place of the good test images. *Other light*: the lowest
  image AUROC when only the good test images are lit otherwise, by 20 %
  (`benchmarks/lighting.py`). *False alarms*: at 5 % asked for.
- All runs of a category see equally many images, at another size as many pixels: a few minutes'
  worth of one core, far fewer than the 15 minutes of [Measured](measured.md). The three are
  development categories: the defaults were set with such figures in view.
"""


def page(runs: Sequence[Run], rows: dict[str, Row]) -> str:
    """``docs/ablation-defaults.md``."""
    done = [run for run in runs if run.key in rows]
    commits = ", ".join(f"`{name}`" for name in sorted({rows[run.key]["commit"] for run in done}))
    lines = [HEAD.strip(), f"- Commits of the runs: {commits}.", ""]
    for category in dict.fromkeys(run.category for run in done):
        of_it = [run for run in done if run.category == category]
        lines += [f"## {category}, {IMAGES[category]:,} images", ""]
        lines += [
            "| | image | held-out | pixel | other light | false alarms | seeds |",
            "|---|---|---|---|---|---|---|",
        ]
        for name in dict.fromkeys(run.variant for run in of_it):
            trained = [rows[run.key]["ways"] for run in of_it if run.variant == name]
            lines.append(_line(name, [ways[UNCHANGED] for ways in trained]))
        lines += ["", "Other maps of the default's autoencoders:", ""]
        lines += [
            "| | image | held-out | pixel | other light | false alarms | seeds |",
            "|---|---|---|---|---|---|---|",
        ]
        compared = [rows[run.key]["ways"] for run in of_it if run.variant == UNCHANGED]
        for way in WAYS:
            lines.append(_line(way.name, [ways[way.name] for ways in compared]))
        lines.append("")
    return "\n".join(lines)


def _line(name: str, found: Sequence[dict[str, float]]) -> str:
    keys = ("image_auroc", "held_out", "pixel_auroc", "other_light", "false_alarms")
    cells = [_mean([each[key] for each in found if key in each]) for key in keys]
    return f"| {name} | {' | '.join(cells)} | {len(found)} |"


def _mean(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = f"{100 * statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.1f}"


def main() -> None:
    """Runs what is missing and writes the page."""
    parser = argparse.ArgumentParser(description="What each default around the network is worth.")
    parser.add_argument("--data", required=True, help="folder above the categories")
    parser.add_argument("--category", action="append", help="repeatable; default: all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at once")
    options = parser.parse_args()
    try:
        first = all_runs(options.data, SEEDS[0])
    except SsrayError as error:
        parser.error(str(error))
    runs: list[Run] = [replace(run, seed=seed) for seed in SEEDS for run in first]
    wanted: list[Any] = [
        run for run in runs if not options.category or run.category in options.category
    ]
    failed = 0
    for _, row in LEDGER.complete(wanted, perform, options.jobs):
        failed += not isinstance(row, dict)
        TABLE.write_text(page(runs, LEDGER.rows()))
    TABLE.write_text(page(runs, LEDGER.rows()))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
