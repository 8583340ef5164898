"""``ssray scores``: what the table of all nights holds, taken out, compacted, deleted."""

from __future__ import annotations

import click

from ssray.cli.printable import say

_SCORES = click.option(
    "--scores", required=True, metavar="URI", help="What ssray nightly wrote to: its --out."
)


@click.group(invoke_without_command=True)
@click.option("--scores", metavar="URI", help="What ssray nightly wrote to: its --out.")
@click.option("--date", metavar="YYYY-MM-DD", help="Of the night whose rows are wanted.")
@click.option(
    "--to",
    metavar="FILE",
    help="Write the night's rows there: .parquet with heatmaps, or .csv without.",
)
@click.pass_context
def scores(context: click.Context, scores: str | None, date: str | None, to: str | None) -> None:
    """List the nights of a table of scores, or take out the rows of one.

    The table is a Delta Lake table, which pandas, Polars, DuckDB, Spark and others read as it is.
    """
    if context.invoked_subcommand:
        if scores or date or to:
            raise click.UsageError("options go after the subcommand's name.")
        return
    if scores is None:
        raise click.UsageError("Missing option '--scores'.")
    if (date is None) != (to is None):
        raise click.UsageError("--date and --to go together.")
    from ssray.cli.terminal import show_nights
    from ssray.nightly.export import export_night, nights
    from ssray.nightly.table import ScoreTable
    from ssray.storage.location import Location

    table = ScoreTable(Location.parse(scores))
    if date is None or to is None:
        show_nights(nights(table))
    else:
        say(f"{to}: {export_night(table, date, Location.parse(to)):,} rows")


@scores.command()
@_SCORES
@click.option("--date", required=True, metavar="YYYY-MM-DD", help="Of the night.")
def compact(scores: str, date: str) -> None:
    """Join a night's small files to larger ones, which are read faster; no row changes."""
    from ssray.nightly.run import Places
    from ssray.nightly.table import ScoreTable
    from ssray.storage.lease import Lease
    from ssray.storage.location import Location

    places = Places(Location.parse(scores), date)
    with Lease(places.lease, f"the night of {date}"):
        before, after = ScoreTable(places.out).compact(date)
    say(f"{before:,} files became {after:,}" if before else "nothing to join")


@scores.command()
@_SCORES
@click.option("--before", required=True, metavar="YYYY-MM-DD", help="The first night to keep.")
@click.option("--yes", is_flag=True, help="Delete them; without, only say what would go.")
@click.option(
    "--vacuum",
    is_flag=True,
    help="Delete for good what no row counts of any more, of all nights: older versions of the "
    "table, which are the record of what was once decided, can't be read from then on.",
)
def delete(scores: str, before: str, yes: bool, vacuum: bool) -> None:
    """Take the nights before a date out of the table.

    Older versions of the table keep them, unless --vacuum deletes these, too.
    """
    from ssray.nightly.run import check_date
    from ssray.nightly.table import ScoreTable
    from ssray.storage.location import Location

    check_date("--before", before)
    table = ScoreTable(Location.parse(scores))
    rows = table.count_before(before)
    if not yes:
        say(f"{rows:,} rows would be deleted; --yes deletes them")
        return
    table.delete_before(before)
    say(f"{rows:,} rows deleted")
    if vacuum:
        say(f"{table.vacuum(0):,} files deleted for good")
