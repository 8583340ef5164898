"""``ssray nightly`` and ``ssray heatmap``: a night's images to rows, and a row to a picture."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Any, get_args

import click

from ssray.cli.options import compute_from, compute_options, models_option, out_option
from ssray.cli.printable import say
from ssray.config import Heatmaps
from ssray.metrics.values import percent
from ssray.nightly import BATCH, CATEGORY_PATTERN, PATIENCE_SECONDS

INCOMPLETE = 3
"""The exit code of a night of which images are missing."""


@click.command()
@click.option(
    "--images",
    "places",
    required=True,
    multiple=True,
    metavar="URI",
    help="A folder or prefix, in which archives are read as they lie; an archive; or a .parquet or "
    ".csv list with a column uri, perhaps one category. Repeatable.",
)
@click.option(
    "--allow",
    "allowed",
    multiple=True,
    metavar="ROOT",
    help="Where a list may name files: a folder, bucket or prefix, beside the list's own folder "
    "or, in S3, its own bucket. Repeatable.",
)
@models_option
@out_option
@click.option(
    "--date",
    default=lambda: f"{datetime.now(UTC):%Y-%m-%d}",
    show_default="today, UTC",
    metavar="YYYY-MM-DD",
    help="Which night it is. Give it where the job may be started again after midnight.",
)
@click.option(
    "--category-pattern",
    "pattern",
    default=CATEGORY_PATTERN,
    show_default=True,
    metavar="REGEX",
    help="Where the path below URI names the category; an archive counts as a folder.",
)
@click.option("--category", metavar="C", help="Of all images, in place of a pattern.")
@click.option(
    "--heatmaps",
    type=click.Choice(get_args(Heatmaps)),
    default="flagged",
    show_default=True,
    help="Of which images to keep the heatmap.",
)
@click.option(
    "--workers",
    "max_actors",
    type=click.IntRange(min=1),
    metavar="N",
    help="Scoring actors at most.  [default: one a GPU, or one a CPU core; on a cluster, which may "
    "grow, as many as there are batches]",
)
@click.option(
    "--min-workers",
    "min_actors",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Scoring actors at least; more are started while there is work for them.",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=BATCH,
    show_default=True,
    metavar="N",
    help="Images whose rows are kept together; what a kill costs at most, for each actor.",
)
@click.option(
    "--max-error-share",
    "limit",
    type=click.FloatRange(0, 1),
    default=0.05,
    show_default=True,
    metavar="SHARE",
    help="Exit with code 1 if more of the images could not be scored.",
)
@click.option(
    "--price-per-hour",
    "price",
    type=click.FloatRange(min=0),
    metavar="X",
    help="Of a worker's CPUs or GPU; the summary then tells the cost of a million images, if the "
    "night had 10,000.",
)
@click.option(
    "--log",
    "log",
    metavar="FILE",
    help="Append a line of JSON for each event of the night, a batch that is done being one; - for "
    "the standard error stream.",
)
@click.option(
    "--again",
    is_flag=True,
    help="Score the whole night anew, in place of what there is, which an older version of the "
    "table keeps.",
)
@click.option("--retry-errors", is_flag=True, help="Score images anew whose row has an error.")
@click.option(
    "--patience",
    type=click.FloatRange(min=0),
    default=PATIENCE_SECONDS / 60,
    show_default=True,
    metavar="MINUTES",
    help="How long images are tried again that storage does not give. What is still missing then "
    "leaves the night incomplete, with exit code 3; the rest is committed.",
)
@click.option("--give-up", is_flag=True, help="Make rows with an error of what is still missing.")
@compute_options("cpus_per_worker", "gpus_per_worker", "device", "precision", "backend")
def nightly(
    places: tuple[str, ...],
    allowed: tuple[str, ...],
    store: str,
    out: str,
    date: str,
    pattern: str,
    category: str | None,
    heatmaps: Heatmaps,
    max_actors: int | None,
    min_actors: int,
    batch: int,
    limit: float,
    price: float | None,
    log: str | None,
    again: bool,
    retry_errors: bool,
    patience: float,
    give_up: bool,
    **compute: Any,
) -> None:
    """Score a night's images, each exactly once, whatever is killed on the way.

    DIR is a Delta Lake table with the rows of all nights. Those of a run are there with one commit,
    or not at all. The same command goes on where it was, and later scores what has arrived or was
    replaced since.
    """
    from ssray.cli.terminal import console, scoring_progress, show_night
    from ssray.cluster.nightly import score_night
    from ssray.nightly.night_events import log_to
    from ssray.nightly.protocol import NightRequest
    from ssray.nightly.sources import CategoryRule
    from ssray.storage.location import Location

    request = NightRequest(
        images=[Location.parse(place) for place in places],
        rule=CategoryRule(pattern, category),
        allowed=[Location.parse(root) for root in allowed],
        models=Location.parse(store),
        out=Location.parse(out),
        date=date,
        heatmaps=heatmaps,
        batch=batch,
        max_actors=max_actors,
        min_actors=min_actors,
        price_per_hour=price,
        again=again,
        retry_errors=retry_errors,
        patience=60 * patience,
        give_up=give_up,
    )
    with log_to(log), scoring_progress() as (state, scored):
        outcome = score_night(request, compute_from(compute), state, scored)
    show_night(outcome, request.places.out)
    share = outcome.error_share
    if share > limit:
        console.print(
            f"{percent(share)} of the images could not be scored, more than the "
            f"{100 * limit:g} % of --max-error-share."
        )
    if outcome.missing:
        console.print("The night is incomplete: the same command goes on with what is missing.")
        sys.exit(INCOMPLETE)
    sys.exit(1 if share > limit else 0)


@click.command()
@click.option(
    "--scores", required=True, metavar="URI", help="What ssray nightly wrote to: its --out."
)
@click.option(
    "--date", metavar="YYYY-MM-DD", help="Of the night.  [default: the last with the image]"
)
@click.option("--image", required=True, metavar="URI", help="As in the rows' column uri.")
@click.option("--out", required=True, metavar="FILE", help="The picture, a PNG.")
def heatmap(scores: str, date: str | None, image: str, out: str) -> None:
    """Draw a kept heatmap, over its image if that is still there."""
    from ssray.nightly.heatmap import as_listed, draw_heatmap
    from ssray.storage.location import Location

    say(str(draw_heatmap(Location.parse(scores), as_listed(image), Location.parse(out), date)))
