"""The commands around the models of a store."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ssray.cli.main import cli
from ssray.errors import ArtifactError
from ssray.models import artifact
from ssray.models.artifact import ModelArtifact
from ssray.models.store import publish, published
from ssray.storage.location import Location

CATEGORY = "weave"


@pytest.fixture
def on_disk(tmp_path: Path, tiny_model: ModelArtifact) -> Path:
    """A store with one version, in use."""
    place = Location.parse(tmp_path / "models")
    artifact.save(tiny_model, place)
    publish(place, CATEGORY, "v1", None)
    return tmp_path / "models"


def models(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["models", *map(str, arguments)], standalone_mode=False)


def test_versions_are_listed_shown_published_and_taken_back(
    on_disk: Path, tiny_model: ModelArtifact
) -> None:
    place = Location.parse(on_disk)
    artifact.save(dataclasses.replace(tiny_model, version="v2"), place)
    chosen = ("--models", on_disk, "--category", CATEGORY)
    assert "v1 is in use again" not in models("publish", *chosen, "--version", "v2").output
    assert published(place) == {CATEGORY: "v2"}
    shown = json.loads(models("show", *chosen).output)
    assert (shown["version"], shown["origin"]["training_images"]) == ("v2", 6)
    assert json.loads(models("show", *chosen, "--version", "v1").output)["version"] == "v1"
    every = models("list", *chosen).output.splitlines()
    assert [line.split()[:3] for line in every[1:]] == [
        [CATEGORY, "v1", "complete"],
        [CATEGORY, "v2", "in"],
    ]
    assert len(models("list", "--models", on_disk).output.splitlines()) == 2
    assert "v1 is in use again" in models("rollback", *chosen).output
    assert published(place) == {CATEGORY: "v1"}
    assert "v1  intact" in models("verify", "--models", on_disk).output


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("weights.safetensors", lambda old: old[:-1], "checksum differs"),
        ("calibration.json", lambda old: old.replace(b"0", b"1", 1), "checksum differs"),
        ("training.json", None, "listed in manifest.json but missing"),
        (
            "manifest.json",
            lambda old: old.replace(b'"format_version": 11', b'"format_version": 12'),
            "format version 12, this ssray reads 2, 3, 4, 5, 6, 7, 8, 9, 10, 11",
        ),
        ("manifest.json", lambda old: old[:-10], "cannot be read as JSON"),
    ],
)
def test_verify_names_what_is_wrong(on_disk: Path, file: str, change: object, reason: str) -> None:
    place = on_disk / CATEGORY / "v1" / file
    content = place.read_bytes()
    place.unlink()
    if callable(change):
        place.write_bytes(change(content))
    result = models("verify", "--models", on_disk)
    assert reason in result.output
    assert isinstance(result.exception, ArtifactError)
    assert "1 of 1 models can't be used" in str(result.exception)
