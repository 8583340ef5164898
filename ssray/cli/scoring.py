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
from ssray.cli.two_uses import TwoUses
from ssray.diagnosis import MIN_IMAGES
from ssray.errors import ConfigError, ScoringError


@click.command(
    cls=TwoUses,
    uses={
        "a data set": ("root", "store", "only", "good_name", "maps", *SCORING),
        "past nights": ("scores", "labels", "spans"),
    },
)
@data_option
@models_option
@categories_option
@good_name_option
@maps_option
@compute_options(*SCORING)
@click.option(
    "--scores", required=True, metavar="TABLE", help="What ssray nightly wrote to, its --out."
)
@click.option(
    "--labels",
    required=True,
    metavar="FILE",
    help="A .csv or .parquet file with the columns uri, as in the rows of a night, and label: 0, "
    "good, ok or false; 1, defect, ng or true.",
)
@click.option(
    "--date",
    "spans",
    multiple=True,
    metavar="DATE[..DATE]",
    help="Which night, YYYY-MM-DD, or which from one to another. Repeatable; default: all.",
)
@out_option
def evaluate(out: str, scores: str | None, labels: str | None, **others: Any) -> None:
    """Tell how good models are, by labels: of a data set, or of past nights.

    With --data and --models the labelled test images are scored; DIR has metrics, scores and a
    report. The exit code is 1 if a mask can't be used: its image then counts for no figure of
    pixels.

    With --scores and --labels nothing is scored: labels that came later are joined to the rows of
    nights; DIR has the metrics of each category, night and model version.
    """
    if scores is not None and labels is not None:
        _evaluate_nights(out, scores, labels, others["spans"])
    else:
        del others["spans"]
        _evaluate_data_set(out, **others)


def _evaluate_data_set(
    out: str,
    root: str,
    store: str,
    only: tuple[str, ...],
    good_name: str,
    maps: str | None,
    **compute: Any,
) -> None:
    """Scores labelled test images, prints their figures and ends the program."""
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


def _evaluate_nights(out: str, scores: str, labels: str, spans: tuple[str, ...]) -> None:
    """Joins labels to nights and prints the figures."""
    from ssray.cli.labelled_nights import show_labelled_nights
    from ssray.nightly.evaluation import Span, evaluate_nights
    from ssray.storage.location import Location

    place = Location.parse(out)
    found = evaluate_nights(
        Location.parse(scores), [Span.parse(text) for text in spans], Location.parse(labels), place
    )
    show_labelled_nights(found, place)


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
