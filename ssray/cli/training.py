"""``ssray train`` and ``ssray sweep``: from good photographs to models in use."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

import click

from ssray.cli.options import (
    TRAINING,
    categories_option,
    compute_from,
    compute_options,
    data_option,
    events_option,
    force_option,
    good_name_option,
    models_option,
    out_option,
    recipe_options,
    settings_help,
)
from ssray.config import Basis, MapGrid
from ssray.recipes.compact import texture
from ssray.recipes.request import RecipeRequest


@click.command(
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
@good_name_option
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
@force_option
@compute_options(*TRAINING)
def train(
    root: str | None,
    only: tuple[str, ...],
    good_name: str,
    good: str | None,
    name: str | None,
    recipe: RecipeRequest,
    store: str,
    at_once: int | None,
    events: Path | None,
    force: bool,
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
                Location.parse(good),
                name,
                recipe,
                compute_from(compute),
                models,
                events,
                board,
                force,
            )
        console.print(
            f"Next: ssray score --images NEW --category {name} --models {store} --out DIR"
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
            force,
            good_name,
        )
    if len(only) == 1:
        for error in failed.values():
            raise error
    board.show_totals(failed)
    sys.exit(1 if failed else 0)


@click.command()
@data_option
@models_option
@out_option
@categories_option
@good_name_option
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
    help="What to choose of the anomaly map for every model: plain, nothing; nt, repetitions n and "
    "power t of the average map; narrow, difference and kernel; wide, all of these and the image "
    "score, 2,160 settings; auto, nt, but by labelled images wide. The plain map stays unless "
    "another is clearly better.",
)
@click.option(
    "--ensemble",
    is_flag=True,
    help="Try the best models in pairs, too. A pair takes twice as long to score, so it must be "
    "clearly better to be chosen.",
)
@force_option
@compute_options(*TRAINING)
def sweep(
    root: str,
    store: str,
    out: str,
    only: tuple[str, ...],
    good_name: str,
    recipe: RecipeRequest,
    space: str,
    trials: int,
    by: Basis,
    validation: str | None,
    grid: str,
    ensemble: bool,
    force: bool,
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
        force=force,
        good_name=good_name,
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
    board.show_totals(failed)
    console.print(f"Trials: {place / 'leaderboard.parquet'}")
    console.print(f"Page: {place / 'sweep.html'}")
    sys.exit(1 if failed else 0)
