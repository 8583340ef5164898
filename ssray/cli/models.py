"""``ssray models``: what is in a model store, and which versions are in use."""

from __future__ import annotations

import json
import math
from typing import get_args

import click

from ssray.cli.options import models_option, out_option
from ssray.cli.printable import say
from ssray.config import ExportFormat
from ssray.errors import ArtifactError, SsrayError

category_option = click.option("--category", required=True, metavar="C", help="Whose models.")


@click.group()
def models() -> None:
    """Look into a model store, and choose which versions are in use."""


@models.command("list")
@models_option
@click.option("--category", metavar="C", help="List every version of this category.")
def list_models(store: str, category: str | None) -> None:
    """List the model in use of every category, or all versions of one."""
    from ssray.cli.terminal import console, versions_table
    from ssray.models.store import published, versions
    from ssray.storage.location import Location

    place = Location.parse(store)
    chosen = [category] if category else sorted(published(place))
    if not chosen:
        raise SsrayError(f"{place}: no models here. Train one with 'ssray train'.")
    rows = [
        (name, stored)
        for name in chosen
        for stored in versions(place, name)
        if category or stored.published
    ]
    console.print(versions_table(rows))


@models.command("show")
@models_option
@category_option
@click.option("--version", metavar="V", help="Default: the one in use.")
def show_model(store: str, category: str, version: str | None) -> None:
    """Print all that is known about a model, as JSON."""
    from ssray.models.artifact import load
    from ssray.models.store import published_version
    from ssray.storage.location import Location

    place = Location.parse(store)
    chosen = version or published_version(place, category)
    model = load(place, category, chosen)
    parts = {"origin": model.facts, "calibration": model.calibration, "recipe": model.recipe}
    shown = {name: part.model_dump(mode="json") for name, part in parts.items()}
    click.echo(json.dumps({"category": category, "version": chosen} | shown, indent=2))


@models.command("publish")
@models_option
@category_option
@click.option("--version", required=True, metavar="V", help="Which to put into use.")
def publish_model(store: str, category: str, version: str) -> None:
    """Put a version into use."""
    from ssray.models.artifact import load
    from ssray.models.store import in_use, publish
    from ssray.storage.location import Location

    place = Location.parse(store)
    before = in_use(place, category)
    load(place, category, version)
    publish(place, category, version, before)
    say(f"{category}: {version} is in use, before {before or 'none'}")


@models.command("rollback")
@models_option
@category_option
def roll_back(store: str, category: str) -> None:
    """Put the version into use that was before the present one."""
    from ssray.models.store import rollback
    from ssray.storage.location import Location

    say(f"{category}: {rollback(Location.parse(store), category)} is in use again")


@models.command("export")
@models_option
@category_option
@click.option("--version", metavar="V", help="Default: the one in use.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(get_args(ExportFormat)),
    required=True,
    help="torch (a .pt2 of torch.export), onnx (needs ssray[onnx]) or openvino.",
)
@out_option
def export_model(
    store: str, category: str, version: str | None, kind: ExportFormat, out: str
) -> None:
    """Write a model for another runtime: an image in, its anomaly map and score out."""
    from ssray.models.artifact import load
    from ssray.models.store import published_version
    from ssray.scoring.export import export
    from ssray.storage.location import Location

    place, target = Location.parse(store), Location.parse(out)
    version = version or published_version(place, category)
    off = export(load(place, category, version), kind, target)
    checked = "not compared, its runtime is not installed"
    if not math.isnan(off):
        checked = f"maps and scores equal ssray's to {max(off, 1e-9):.1g} of their thresholds"
    say(f"{category}: {version} as {kind} in {target}; {checked}")


@models.command("verify")
@models_option
@click.option("--category", "only", multiple=True, metavar="C", help="Repeatable; default: all.")
def verify(store: str, only: tuple[str, ...]) -> None:
    """Check every file of the versions in use against its checksum."""
    import torch

    from ssray.models.artifact import load
    from ssray.models.store import published, published_version
    from ssray.storage.location import Location

    place = Location.parse(store)
    chosen = list(only) or sorted(published(place))
    if not chosen:
        raise SsrayError(f"{place}: no models here. Train one with 'ssray train'.")
    damaged = []
    for category in chosen:
        try:
            version = published_version(place, category)
            load(place, category, version).build_all(torch.device("cpu"))
            say(f"{category}  {version}  intact")
        except ArtifactError as error:
            damaged.append(category)
            say(f"{category}  {error}")
    if damaged:
        raise ArtifactError(f"{len(damaged)} of {len(chosen)} models can't be used.")
