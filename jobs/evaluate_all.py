"""Evaluate the published models of a data set on its labelled test images.

ray job submit --working-dir . -- python jobs/evaluate_all.py --data ROOT --models STORE --out DIR
"""

from typing import Any

import click

from ssray.cli.options import (
    SCORING,
    categories_option,
    compute_from,
    compute_options,
    data_option,
    maps_option,
    models_option,
    out_option,
    run,
)
from ssray.cli.terminal import show_evaluation
from ssray.storage.location import Location


@click.command(help=__doc__)
@data_option
@models_option
@categories_option
@out_option
@maps_option
@compute_options(*SCORING)
def main(
    root: str, store: str, only: tuple[str, ...], out: str, maps: str | None, **compute: Any
) -> None:
    from ssray.cluster.categories import evaluate_categories

    place = Location.parse(out)
    metrics, scores = evaluate_categories(
        Location.parse(root),
        only,
        Location.parse(store),
        compute_from(compute),
        place,
        Location.parse(maps) if maps else None,
    )
    show_evaluation(metrics, scores, place)


if __name__ == "__main__":
    run(main)
