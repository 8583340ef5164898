"""``ssray``: the command line. Each command parses, calls one function and reports.

What a command needs is imported when it runs: help comes at once, without torch or Ray.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

import click

import ssray
from ssray.cli.models import models
from ssray.cli.nightly import heatmap, nightly
from ssray.cli.options import (
    SCORING,
    TRAINING,
    categories_option,
    compute_from,
    compute_options,
    data_option,
    events_option,
    maps_option,
    models_option,
    out_option,
    recipe_options,
    run,
    settings_help,
)
from ssray.config import Basis, MapGrid
from ssray.diagnosis import MIN_IMAGES
from ssray.errors import ConfigError, TrainingError
from ssray.recipes.compact import texture
from ssray.recipes.request import RecipeRequest

DEMO_MINUTES = 1.0
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

    Takes about four minutes on two cores; needs no download, no server and no GPU.
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
                root, names, RecipeRequest("demo"), compute, store, progress=board
            )
        board.show_totals(len(failed))
        if failed:
            raise TrainingError(f"no model for {', '.join(failed)}; the reasons are above.")
        metrics, scores = evaluate_categories(root, names, store, compute, place)
    show_evaluation(metrics, scores, place)


@cli.command("demo-data")
@click.option("--out", required=True, metavar="DIR", help="Folder to create.")
@click.option("--categories", "count", default=3, show_default=True, help="How many products.")
@click.option("--images", default=60, show_default=True, help="Training images of each.")
@compute_options("seed")
def demo_data(out: str, count: int, images: int, seed: int) -> None:
    """Write the generated data set alone, in the layout of MVTec AD.

    A generated data set that is there with other arguments is replaced; anything else is
    left alone and named.
    """
    from ssray.cli.terminal import console
    from ssray.data.demo.dataset import write_demo_data

    names = write_demo_data(Path(out), categories=count, images=images, seed=seed)
    console.print(f"{len(names)} categories in {out}: {', '.join(names)}")


@cli.command(
    epilog="Settings for --set, with the defaults of 'compact-texture':\n\n\b\n"
    + "\n".join(settings_help(texture()))
)
@click.option(
    "--data", "root", metavar="ROOT", help="Folder or URI above categories in MVTec AD's layout."
)
@click.option(
    "--category",
    "only",
    multiple=True,
    metavar="C",
    help="Of --data: a category to train; repeatable; default: all.",
)
@click.option(
    "--good",
    metavar="FOLDER",
    help="In place of --data: a folder or URI of good photographs, at any depth.",
)
@click.option("--name", metavar="C", help="Of --good: what to call the category.")
@recipe_options
@models_option
@click.option(
    "--at-once",
    type=click.IntRange(min=1),
    metavar="N",
    help="Categories to train at once; default: as many as the resources hold now.",
)
@events_option
@compute_options(*TRAINING)
def train(
    root: str | None,
    only: tuple[str, ...],
    good: str | None,
    name: str | None,
    recipe: RecipeRequest,
    store: str,
    at_once: int | None,
    events: Path | None,
    **compute: Any,
) -> None:
    """Train on good photographs, and put the models into use.

    Either every image of a folder (--good FOLDER --name C), or one, several or all categories of a
    data set (--data ROOT). The same command skips what is complete and goes on with what was
    interrupted.
    """
    from ssray.cli.terminal import TrainingBoard, console
    from ssray.cluster.categories import train_categories, train_on_folder
    from ssray.storage.location import Location

    models = Location.parse(store)
    if good is not None and name is not None and root is None and not only:
        with TrainingBoard() as board:
            train_on_folder(
                Location.parse(good), name, recipe, compute_from(compute), models, events, board
            )
        return
    if root is None or good is not None or name is not None:
        raise click.UsageError(
            "expected either --good FOLDER with --name C, or --data ROOT, perhaps with --category."
        )
    with TrainingBoard() as board:
        failed = train_categories(
            Location.parse(root),
            only,
            recipe,
            compute_from(compute),
            models,
            at_once,
            events,
            board,
        )
    board.show_totals(len(failed))
    if len(only) == 1:
        for error in failed.values():
            raise error
    for category, error in failed.items():
        console.print(f"Failed {category}: {error}")
    sys.exit(1 if failed else 0)


@cli.command()
@data_option
@models_option
@out_option
@categories_option
@recipe_options
@click.option(
    "--space",
    default="default",
    show_default=True,
    metavar="small|default|FILE",
    help="What to vary: small has the objective's weight, the corruption mix and the learning "
    'rate; a file is JSON, {"network.kernel": [3, 5], "objective.corrupted_weight": '
    '{"low": 0.3, "high": 0.9}}.',
)
@click.option(
    "--trials",
    type=click.IntRange(min=2),
    default=12,
    show_default=True,
    metavar="N",
    help="Recipes to try for each category, the given one included.",
)
@click.option(
    "--select-by",
    "by",
    type=click.Choice(get_args(Basis)),
    default="synthetic",
    show_default=True,
    help="What chooses the best one: synthetic defects in held-out images, labelled images, or the "
    "plain reconstruction error.",
)
@click.option(
    "--validation",
    metavar="ROOT",
    help="Folder above the categories of labelled images in CATEGORY/test, apart from those the "
    "models are evaluated on; for --select-by labelled.",
)
@click.option(
    "--map-settings",
    "grid",
    type=click.Choice(["auto", *get_args(MapGrid)]),
    default="auto",
    show_default=True,
    help="What to choose of the anomaly map for every model: narrow, difference and kernel; wide, "
    "also repetitions, average map and image score, 2,160 settings; auto, wide for textures.",
)
@click.option(
    "--ensemble",
    is_flag=True,
    help="Try the best models in pairs, too. A pair takes twice as long to score, so it must be "
    "clearly better to be chosen.",
)
@compute_options(*TRAINING)
def sweep(
    root: str,
    store: str,
    out: str,
    only: tuple[str, ...],
    recipe: RecipeRequest,
    space: str,
    trials: int,
    by: Basis,
    validation: str | None,
    grid: str,
    ensemble: bool,
    **compute: Any,
) -> None:
    """Search the best recipe of each category, and publish its model.

    Each trial is a training with the budget of --max-minutes, which the worse two of three do not
    get to spend. Test images take no part. The same command goes on after an interruption.
    """
    from ssray.calibration.map_settings import GRIDS
    from ssray.cli.terminal import TrainingBoard, console
    from ssray.cluster.search import SweepRequest, sweep_categories
    from ssray.storage.location import Location

    request = SweepRequest(
        recipe=recipe,
        space=space,
        trials=trials,
        by=by,
        validation=Location.parse(validation) if validation else None,
        grid=GRIDS.get(grid),
        ensemble=ensemble,
    )
    place = Location.parse(out)
    with TrainingBoard() as board:
        failed = sweep_categories(
            Location.parse(root),
            only,
            request,
            compute_from(compute),
            Location.parse(store),
            place,
            board,
        )
    board.show_totals(len(failed))
    console.print(f"Trials: {place / 'leaderboard.parquet'}")
    console.print(f"Page: {place / 'sweep.html'}")
    for category, error in failed.items():
        console.print(f"Failed {category}: {error}")
    sys.exit(1 if failed else 0)


@cli.command()
@data_option
@models_option
@categories_option
@out_option
@maps_option
@compute_options(*SCORING)
def evaluate(
    root: str, store: str, only: tuple[str, ...], out: str, maps: str | None, **compute: Any
) -> None:
    """Score the labelled test images; write metrics, scores and a report."""
    from ssray.cli.terminal import scoring_progress, show_evaluation
    from ssray.cluster.categories import evaluate_categories
    from ssray.storage.location import Location

    place = Location.parse(out)
    with scoring_progress() as (_, scored):
        metrics, scores = evaluate_categories(
            Location.parse(root),
            list(only),
            Location.parse(store),
            compute_from(compute),
            place,
            Location.parse(maps) if maps else None,
            scored,
        )
    show_evaluation(metrics, scores, place)


@cli.command()
@click.option("--images", required=True, metavar="URI", help="An image, a folder or a prefix.")
@models_option
@click.option("--category", required=True, metavar="C", help="Whose model to use.")
@out_option
@compute_options(*SCORING)
def score(images: str, store: str, category: str, out: str, **compute: Any) -> None:
    """Score images without labels; write scores and a report of the most anomalous."""
    from ssray.cli.terminal import console, scoring_progress, show_unscored
    from ssray.cluster.evaluate import score as score_images
    from ssray.cluster.session import ray_session
    from ssray.data.dataset import index_images
    from ssray.models.store import published_version
    from ssray.storage.location import Location

    models, place = Location.parse(store), Location.parse(out)
    if f"{place}/".startswith(f"{Location.parse(images)}/"):
        raise ConfigError(
            f"--out {out} lies inside --images {images}, so that the next run would score its "
            "own pictures. Choose a folder outside."
        )
    versions = {category: published_version(models, category)}
    table = index_images(Location.parse(images), category)
    with ray_session(), scoring_progress() as (_, scored):
        scores = score_images(table, models, versions, compute_from(compute), place, scored)
    show_unscored(scores)
    console.print(f"{len(scores)} images: {place / 'scores.parquet'}")
    console.print(f"Report: {place / 'report.html'}")


@cli.command()
@data_option
@click.option("--category", required=True, metavar="C", help="Category to diagnose.")
@models_option
@out_option
@click.option(
    "--images",
    type=click.IntRange(min=MIN_IMAGES),
    default=64,
    show_default=True,
    metavar="N",
    help="Training images that the patch test takes, and patches it tries at each width.",
)
@compute_options("device", "precision", "seed")
def diagnose(root: str, category: str, store: str, out: str, images: int, **compute: Any) -> None:
    """Tell whether a category is a texture, and which defects its model can repair.

    Takes the defect-free training images alone; needs no labels and no Ray.
    """
    from ssray.cli.terminal import console, counting
    from ssray.diagnosis import measure
    from ssray.diagnosis.findings import paragraph
    from ssray.report.diagnosis import write_diagnosis
    from ssray.storage.location import Location

    place = Location.parse(out)
    found = measure.diagnose(
        Location.parse(root),
        category,
        Location.parse(store),
        images,
        compute_from(compute),
        counting,
    )
    write_diagnosis(found, place)
    console.print(paragraph(found))
    console.print(f"Page: {place / 'diagnosis.html'}")


cli.add_command(models)
cli.add_command(nightly)
cli.add_command(heatmap)


def main() -> None:
    """Entry point."""
    run(cli)


if __name__ == "__main__":
    main()
