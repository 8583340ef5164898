"""``ssray evaluate``, ``score`` and ``diagnose``: what models say of images, and of themselves."""

from __future__ import annotations

import sys
from typing import Any

import click

from ssray.cli.options import (
    SCORING,
    categories_option,
    compute_from,
    compute_options,
    data_option,
    good_name_option,
    maps_option,
    models_option,
    out_option,
)
from ssray.diagnosis import MIN_IMAGES
from ssray.errors import ConfigError, ScoringError


@click.command()
@data_option
@models_option
@categories_option
@good_name_option
@out_option
@maps_option
@compute_options(*SCORING)
def evaluate(
    root: str,
    store: str,
    only: tuple[str, ...],
    good_name: str,
    out: str,
    maps: str | None,
    **compute: Any,
) -> None:
    """Score the labelled test images; write metrics, scores and a report.

    Exits with code 1 if a mask can't be used: its image then counts for no figure of pixels.
    """
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
            good_name,
        )
    show_evaluation(metrics, scores, place)
    sys.exit(1 if len(scores) > scores["mask_error"].null_count else 0)


@click.command()
@click.option("--images", required=True, metavar="URI", help="An image, a folder or a prefix.")
@models_option
@click.option("--category", required=True, metavar="C", help="Whose model to use.")
@out_option
@compute_options(*SCORING)
def score(images: str, store: str, category: str, out: str, **compute: Any) -> None:
    """Score images without labels; write scores and a report of the most anomalous."""
    from ssray.cli.terminal import console, scoring_progress, show_flagged, show_unscored
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
    show_flagged(scores)
    console.print(f"{len(scores)} images: {place / 'scores.parquet'}")
    console.print(f"Report: {place / 'report.html'}")
    if scores["error"].null_count == 0:
        raise ScoringError(f"none of {len(scores)} images could be scored; the reasons are above.")


@click.command()
@data_option
@click.option("--category", required=True, metavar="C", help="Category to diagnose.")
@good_name_option
@models_option
@out_option
@click.option(
    "--images",
    type=click.IntRange(min=MIN_IMAGES),
    default=64,
    show_default=True,
    metavar="N",
    help="Training images that are compared and patched, and patches that are tried at each width.",
)
@compute_options("device", "precision", "seed")
def diagnose(
    root: str,
    category: str,
    good_name: str,
    store: str,
    out: str,
    images: int,
    **compute: Any,
) -> None:
    """Tell whether a category is a texture, which defects its model can repair, and whether its
    recipe corrupts no larger regions than the theory covers.

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
        good_name,
    )
    write_diagnosis(found, place)
    console.print(paragraph(found))
    console.print(f"Page: {place / 'diagnosis.html'}")
