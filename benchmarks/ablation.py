"""What each part of the network and its training contributes: one change at a time, equal budgets.

    make ablation DATA=ROOT

trains every variant below on two categories of ``ROOT``, one thread a run and as many runs at
once as there are cores, and writes ``docs/ablation.md``. Each finished run is a line of
``benchmarks/ablation.jsonl``; what is there under the same recipe is not run again. What stands
around the network is compared by ``ablation_defaults.py``.

The network is judged alone, with the difference and the kernel that synthetic defects choose.
Settings of the map need no training of their own: they are compared on the baseline's networks.
Test labels decide nothing here but what the table shows. What criteria without labels make of each
run is stored for ``selection_study.py``.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import torch
from labelled import TestSet, difference_stack, judge
from ledger import Ledger, commit
from lighting import under_light
from selection_study import study
from torch import Tensor, nn

from ssray.calibration.calibrate import MAX_TRAINING, calibrate
from ssray.calibration.criterion import Criterion
from ssray.calibration.map_settings import NARROW
from ssray.config import ImageScore, MapSettings, Recipe, override
from ssray.data.dataset import index_dataset
from ssray.data.pose import Framing
from ssray.errors import SsrayError
from ssray.method.anomaly_map import MapMaker
from ssray.method.inference import Reconstructor
from ssray.recipes import compact
from ssray.storage.location import Location
from ssray.training.fit import fit
from ssray.training.images import load_feed
from ssray.training.plan import ensemble_parts
from ssray.training.trainer import Numerics

HEAD = """
# Ablation

What each part of the network and its training contributes; what stands around the network is in
[Ablation of the defaults](ablation-defaults.md). Made by `make ablation DATA=ROOT`, which
`benchmarks/ablation.py` explains; finished runs are kept in `benchmarks/ablation.jsonl` and not
repeated.

- Figures are AUROC in percent on MVTec AD (512 px). With more than one seed: mean ± standard
  deviation.
- A run sees as many images as any other of its category: budgets in images are not distorted by
  other load on the machine. They are short, so the table tells what helps early; what needs long
  training to pay off may rank lower here than it deserves.
- The network is judged alone, without the linear autoencoder, and its map is not relative. The
  difference and the kernel of each run were chosen on synthetic defects made from
  defect-free images; no test label takes part in a run. But the defaults were set
  with earlier tables of this kind in view: grid and transistor are development categories, and
  figures on other categories say more.
- "Other light" is the lowest image AUROC when brightness or contrast of the good test images,
  and not of the defective ones, is changed by 10 % up or down (`benchmarks/lighting.py`).
"""

LEDGER = Ledger(Path(__file__).with_name("ablation.jsonl"))
TABLE = Path(__file__).parents[1] / "docs/ablation.md"
CPU = torch.device("cpu")
PRECISION = torch.bfloat16
REFERENCES = 16

BASES: dict[str, Callable[[], Recipe]] = {
    "grid": compact.texture,
    "transistor": compact.object_,
}
"""The categories, and the recipe that is changed for each."""
BUDGETS = {
    "grid": ["linear=null", "image_size=128", "schedule.images=4000"],
    "transistor": ["linear=null", "schedule.images=10000"],
}
"""Leaves the network alone, and makes a run a few minutes long. At 128 px a network gets further in
them than at 256 px, where the seeds differed by 0.15 in image AUROC after 1,600 images; objects
take longer than textures."""
SEEDS = (0, 1)
SMOOTHINGS = ((0, 1), (1, 11), (2, 5), (2, 11), (2, 21), (3, 31))
POWERS = (0.0, 1.0, 4.0)
REDUCTIONS: tuple[tuple[ImageScore, float], ...] = (
    ("max", 1.0),
    ("topk", 0.001),
    ("topk", 0.02),
    ("sum", 1.0),
)
FIXED = MapSettings(difference="squared", kernel=11, repeats=2, image_score="topk")
"""What the comparisons of maps change one thing of."""

ALONE = "corruption.mix=" + json.dumps(
    dict.fromkeys(("elastic", "cut_out", "swap", "brightness", "occlusion", "pattern"), 0.0)
)


@dataclass(frozen=True)
class Variant:
    """A change to the baseline recipe, by ``--set`` assignments."""

    group: str
    name: str
    settings: tuple[str, ...] = ()


VARIANTS = [
    Variant("baseline", "baseline"),
    Variant("network", "Model I", ("network.blend=none",)),
    Variant("network", "Model II, per pixel", ("network.blend=pixel",)),
    Variant("network", "Model II, per channel", ("network.blend=channel",)),
    Variant("network", "Model II, per both", ("network.blend=both",)),
    Variant("network", "width 8", ("network.width=8",)),
    Variant("network", "width 32", ("network.width=32",)),
    Variant("objective", "(4) amplify", ("objective.kind=amplify",)),
    Variant("objective", "ensemble of (1) and (4)", ("objective.kind=ensemble",)),
    *(
        Variant("corruption", f"{kind} alone", (ALONE, f"corruption.mix.{kind}=1"))
        for kind in ("elastic", "cut_out", "swap", "brightness", "occlusion", "pattern")
    ),
    Variant(
        "corruption",
        "all mixed",
        (
            ALONE,
            "corruption.mix.elastic=3",
            *(f"corruption.mix.{kind}=1" for kind in ("cut_out", "swap", "brightness")),
            "corruption.mix.occlusion=3",
            "corruption.mix.pattern=3",
        ),
    ),
    Variant("training", "full size only", ("schedule.crops=[1]",)),
    Variant("training", "crops from half the side", ("schedule.crops=[0.5,1]",)),
    Variant("training", "crops from a quarter", ("schedule.crops=[0.25,0.5,1]",)),
    Variant(
        "further",
        "elastic and occlusion",
        (ALONE, "corruption.mix.elastic=1", "corruption.mix.occlusion=1"),
    ),
    Variant(
        "further",
        "elastic and pattern",
        (ALONE, "corruption.mix.elastic=1", "corruption.mix.pattern=1"),
    ),
    Variant(
        "further",
        "elastic, occlusion and pattern",
        (
            ALONE,
            *(f"corruption.mix.{kind}=1" for kind in ("elastic", "occlusion", "pattern")),
        ),
    ),
    Variant("further", "nothing turned", ("corruption.rotated=0",)),
    Variant(
        "further",
        "three in ten turned by up to 180 degrees",
        ("corruption.rotated=0.3", "corruption.rotation=[5,180]"),
    ),
    Variant("further", "disks only", ('corruption.patches.shapes=["disk"]',)),
    Variant(
        "further",
        "four shapes",
        ('corruption.patches.shapes=["disk","rectangle","blob","stroke"]',),
    ),
    Variant("further", "no photometric augmentation", ("schedule.photometric=0",)),
    Variant("further", "f = 5", ("network.kernel=5",)),
]
SECOND_SEED_WITHIN = 0.01
"""A variant closer than this to the baseline, in either AUROC, is run with a second seed."""


@dataclass(frozen=True)
class Run:
    """One training: a category, a variant's recipe and a seed."""

    root: str
    category: str
    variant: Variant
    recipe: Recipe
    seed: int
    commit: str = ""

    @property
    def title(self) -> str:
        """What is run, for people."""
        return f"{self.category}  {self.variant.name}, seed {self.seed}"

    @property
    def key(self) -> str:
        """The same for equal trainings, whatever the variant is called."""
        decisive = self.recipe.model_dump_json(exclude={"name", "decision", "anomaly_map"})
        digest = hashlib.sha256(decisive.encode()).hexdigest()[:16]
        return f"{self.category}-{self.seed}-{digest}"


def recipe_of(category: str, variant: Variant) -> Recipe:
    """The variant's recipe."""
    return override(BASES[category](), [*BUDGETS[category], *variant.settings])


def perform(run: Run) -> dict[str, Any]:
    """Trains, calibrates without labels, and measures on the test set."""
    torch.set_num_threads(1)
    manifest = index_dataset(Location.parse(run.root), [run.category])
    train = manifest.filter(pc.equal(manifest["split"], "train"))
    feed = load_feed(train["uri"].to_pylist(), run.recipe, threads=1, seed=run.seed)
    training, held_out = feed.sample(MAX_TRAINING), feed.held_out
    numerics = Numerics(CPU, PRECISION)
    networks: list[nn.Module] = []
    validation, seconds = 0.0, 0.0
    for part in ensemble_parts(run.recipe):
        fitted = fit(feed, part, numerics, seed=run.seed)
        networks.append(fitted.model)
        validation, seconds = (
            fitted.history[-1].validation_loss,
            seconds + fitted.history[-1].seconds,
        )
    reconstructor = Reconstructor(networks, PRECISION)
    criterion = Criterion(seed=run.seed, grid=NARROW)
    calibration, places = calibrate(
        reconstructor, held_out, training, run.recipe, run.seed, criterion
    )
    test_set = TestSet.read(manifest, Framing.of(run.recipe, feed.shape))
    references = torch.cat([held_out, training])[:REFERENCES]
    image, pixel = judge(networks, calibration, places, test_set, PRECISION)
    maker = calibration.map_maker(places, CPU)
    result: dict[str, Any] = {
        "key": run.key,
        "commit": run.commit,
        "category": run.category,
        "seed": run.seed,
        "image_auroc": image,
        "pixel_auroc": pixel,
        "lighting": under_light(networks, maker, test_set, PRECISION),
        "validation_loss": validation,
        "seconds": round(seconds, 1),
        "chosen": calibration.anomaly_map.model_dump(),
        "criteria": study(networks, held_out, run.recipe, test_set, PRECISION),
    }
    if run.variant.group == "baseline":
        result["maps"] = [
            {"group": group, "name": name, "image_auroc": image, "pixel_auroc": pixel}
            for group, name, image, pixel in compare_maps(networks, references, test_set)
        ]
    return result


def compare_maps(
    networks: list[nn.Module], references: Tensor, test_set: TestSet
) -> Iterator[tuple[str, str, float, float]]:
    """Image and pixel AUROC for each of ``map_variants``."""
    for group, name, settings in map_variants():
        clean, stacks = (
            difference_stack(networks, images, settings.difference, PRECISION)
            for images in (references, test_set.images)
        )
        yield group, name, *test_set.judge(MapMaker.fitted(settings, clean), stacks)


def map_variants() -> Iterator[tuple[str, str, MapSettings]]:
    """Settings of the anomaly map that need no training of their own."""

    def changed(**values: Any) -> MapSettings:
        return MapSettings.model_validate(FIXED.model_dump() | values)

    for difference in ("squared", "ssim", "both"):
        yield "difference", difference, changed(difference=difference)
    for repeats, kernel in SMOOTHINGS:
        name = f"k = {kernel}, n = {repeats}" if repeats else "n = 0"
        yield "smoothing", name, changed(kernel=kernel, repeats=repeats)
    for power in POWERS:
        yield "average map", f"t = {power:g}", changed(average_power=power)
    for reduction, share in REDUCTIONS:
        name = f"highest {100 * share:g} %" if reduction == "topk" else reduction
        yield "image score", name, changed(image_score=reduction, top_fraction=share)


def complete(runs: list[Run], jobs: int) -> int:
    """Performs what is missing, and writes the table after each.

    Returns:
        How many runs failed.
    """
    failed = 0
    for _, row in LEDGER.complete(runs, perform, jobs):
        failed += not isinstance(row, dict)
        TABLE.write_text(table(LEDGER.rows()))
    return failed


def all_runs(root: str, seed: int) -> list[Run]:
    """Every variant on every category."""
    at = commit()
    return [
        Run(root, category, variant, recipe_of(category, variant), seed, at)
        for variant in VARIANTS
        for category in BASES
    ]


def close_to_baseline(runs: list[Run]) -> list[Run]:
    """Runs, and the baselines, whose difference from the baseline a second seed must confirm."""
    done = LEDGER.rows()
    runs = [run for run in runs if run.key in done]
    baseline = {run.category: done[run.key] for run in runs if run.variant.group == "baseline"}

    def is_close(run: Run) -> bool:
        found, base = done[run.key], baseline[run.category]
        return any(
            abs(found[metric] - base[metric]) < SECOND_SEED_WITHIN
            for metric in ("image_auroc", "pixel_auroc")
        )

    return [run for run in runs if is_close(run)]


def table(done: dict[str, dict[str, Any]]) -> str:
    """``docs/ablation.md``."""
    commits = ", ".join(f"`{name}`" for name in sorted({row["commit"] for row in done.values()}))
    lines = [HEAD.strip(), f"- Commits of the runs: {commits}.", "", "## Trained variants", ""]
    for category in BASES:
        lines += [f"### {category}", "", _budget(category), ""]
        lines += [
            "| | variant | image AUROC | pixel AUROC | other light | seeds | chosen map |",
            "|---|---|---|---|---|---|---|",
        ]
        group = ""
        for variant in VARIANTS:
            recipe = recipe_of(category, variant)
            rows = [
                done[key]
                for key in (Run("", category, variant, recipe, seed).key for seed in SEEDS)
                if key in done
            ]
            same = recipe == recipe_of(category, VARIANTS[0]) and variant.group != "baseline"
            name = f"{variant.name} (the baseline)" if same else variant.name
            if rows:
                lines.append(
                    f"| {variant.group if variant.group != group else ''} | {name} | "
                    f"{_mean(rows, 'image_auroc')} | {_mean(rows, 'pixel_auroc')} | "
                    f"{_lowest(rows)} | {len(rows)} | "
                    f"{_chosen(rows[0]['chosen'])} |"
                )
                group = variant.group
        lines.append("")
    lines += ["## From difference to score, on the baselines' networks", ""]
    lines += [
        f"One setting at a time changed from {_chosen(FIXED.model_dump())}; means over the "
        "baselines' seeds.",
        "",
        "| | setting | " + " | ".join(f"{c} image | {c} pixel" for c in BASES) + " |",
        "|---|---|" + "---|---|" * len(BASES),
    ]
    found: dict[tuple[str, str], dict[str, list[dict[str, float]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for category in BASES:
        recipe = recipe_of(category, VARIANTS[0])
        for seed in SEEDS:
            key = Run("", category, VARIANTS[0], recipe, seed).key
            for row in done.get(key, {}).get("maps", []):
                found[row["group"], row["name"]][category].append(row)
    for (group, name), by_category in found.items():
        cells = [
            _mean(by_category[category], metric)
            for category in BASES
            for metric in ("image_auroc", "pixel_auroc")
        ]
        lines.append(f"| {group} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _budget(category: str) -> str:
    recipe = recipe_of(category, VARIANTS[0])
    return (
        f"{recipe.schedule.images:,} images of {recipe.image_size} px a run; baseline: recipe "
        f"`{recipe.name}`."
    )


def _chosen(settings: dict[str, Any]) -> str:
    parts = [settings["difference"], f"k {settings['kernel']}", f"n {settings['repeats']}"]
    if settings["average_power"]:
        parts.append(f"t {settings['average_power']:g}")
    score = settings["image_score"]
    parts.append(f"highest {100 * settings['top_fraction']:g} %" if score == "topk" else score)
    return ", ".join(parts)


def _mean(rows: list[dict[str, Any]], metric: str) -> str:
    values = [row[metric] for row in rows]
    if not values:
        return ""
    mean = f"{100 * statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.1f}"


def _lowest(rows: list[dict[str, Any]]) -> str:
    return f"{100 * statistics.mean(min(row['lighting'].values()) for row in rows):.1f}"


def main() -> None:
    """Runs what is missing and writes the table."""
    parser = argparse.ArgumentParser(description="What each part of the method contributes.")
    parser.add_argument("--data", required=True, help="folder above the categories")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at once")
    options = parser.parse_args()
    try:
        index_dataset(Location.parse(options.data), list(BASES))
    except SsrayError as error:
        parser.error(str(error))
    first = all_runs(options.data, SEEDS[0])
    failed = complete(first, options.jobs)
    second = [dataclasses.replace(run, seed=SEEDS[1]) for run in close_to_baseline(first)]
    failed += complete(second, options.jobs)
    TABLE.write_text(table(LEDGER.rows()))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
