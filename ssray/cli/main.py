"""``ssray``: the command line. Each command parses, calls one function and reports.

What a command needs is imported when it runs: help comes at once, without torch or Ray.
"""

from __future__ import annotations

from pathlib import Path

import click

import ssray
from ssray.cli.models import models
from ssray.cli.nightly import heatmap, nightly
from ssray.cli.options import (
    compute_from,
    compute_options,
    run,
)
from ssray.cli.scores import scores
from ssray.cli.scoring import diagnose, evaluate, score
from ssray.cli.training import sweep, train
from ssray.errors import TrainingError
from ssray.recipes.request import RecipeRequest

DEMO_TRAINING = ("schedule.images=2000",)
"""How long each category is trained: on a slow day it takes longer, and is as good."""
DEMO_MINUTES = 3.0
"""The most minutes of a training, so that the demo ends on any machine."""
DEMO_IMAGES = 80


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(ssray.__version__, prog_name="ssray")
def cli() -> None:
    """Visual anomaly detection for industry: train on good parts, find what is not."""


@cli.command()
@click.option("--out", default="demo-out", show_default=True, help="Folder for everything.")
@compute_options("seed")
def demo(out: str, seed: int) -> None:
    """Generate a data set, train on it, evaluate, and write a report to open.

    Takes about five minutes on two cores; needs no download, no server and no GPU.
    """
    from ssray.cli.terminal import TrainingBoard, show_evaluation
    from ssray.cluster.categories import evaluate_categories, train_categories
    from ssray.cluster.session import ray_session
    from ssray.data.demo.dataset import write_demo_data
    from ssray.storage.location import Location

    names = write_demo_data(Path(out) / "data", images=DEMO_IMAGES, seed=seed)
    place = Location.parse(out)
    root, store = place / "data", place / "models"
    compute = compute_from({"max_minutes": DEMO_MINUTES, "seed": seed})
    with ray_session():
        with TrainingBoard() as board:
            failed = train_categories(
                root, names, RecipeRequest("demo", DEMO_TRAINING), compute, store, progress=board
            )
        board.show_totals(failed)
        if failed:
            raise TrainingError(f"no model for {', '.join(failed)}; the reasons are above.")
        metrics, scores = evaluate_categories(root, names, store, compute, place)
    show_evaluation(metrics, scores, place)


@cli.command("demo-data")
@click.option("--out", required=True, metavar="DIR", help="Folder to create.")
@click.option("--categories", "count", default=3, show_default=True, help="How many products.")
@click.option("--images", default=60, show_default=True, help="Training images of each.")
@click.option("--size", default=128, show_default=True, help="Width of the images in pixels.")
@compute_options("seed")
def demo_data(out: str, count: int, images: int, size: int, seed: int) -> None:
    """Write the generated data set alone, in the layout of MVTec AD.

    A generated data set that is there with other arguments is replaced; anything else is
    left alone and named.
    """
    from ssray.cli.terminal import console
    from ssray.data.demo.dataset import write_demo_data

    names = write_demo_data(Path(out), categories=count, images=images, seed=seed, size=size)
    console.print(f"{len(names)} categories in {out}: {', '.join(names)}")


for command in (train, sweep, evaluate, score, diagnose, models, nightly, scores, heatmap):
    cli.add_command(command)


def main() -> None:
    """Runs the command line; the entry point of the program ``ssray``."""
    run(cli)


if __name__ == "__main__":
    main()
