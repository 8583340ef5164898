"""Train a model for every category of a data set, as many at once as the cluster holds.

Run again, it skips what is complete and goes on with what was interrupted.

ray job submit --working-dir . -- python jobs/train_all.py --data ROOT --models STORE
"""

import sys
from pathlib import Path
from typing import Any

import click

from ssray.cli.options import (
    TRAINING,
    categories_option,
    compute_from,
    compute_options,
    data_option,
    events_option,
    models_option,
    recipe_options,
    run,
)
from ssray.cli.terminal import TrainingBoard, console
from ssray.recipes.request import RecipeRequest
from ssray.storage.location import Location


@click.command(help=__doc__)
@data_option
@models_option
@categories_option
@recipe_options
@click.option(
    "--at-once",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many categories to train at once; default: as many as the resources hold now.",
)
@events_option
@compute_options(*TRAINING)
def main(
    root: str,
    store: str,
    only: tuple[str, ...],
    recipe: RecipeRequest,
    at_once: int | None,
    events: Path | None,
    **compute: Any,
) -> None:
    from ssray.cluster.categories import train_categories

    with TrainingBoard() as board:
        failed = train_categories(
            Location.parse(root),
            only,
            recipe,
            compute_from(compute),
            Location.parse(store),
            at_once,
            events,
            board,
        )
    board.show_totals(len(failed))
    for category, error in failed.items():
        console.print(f"Failed {category}: {error}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    run(main)
