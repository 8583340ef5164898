"""Which version is in use, on a disk and on a real S3 server, and the commands around it."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from ssray.cli.main import cli
from ssray.config import Compute, Recipe
from ssray.errors import ArtifactError, ConflictError, SsrayError
from ssray.models import artifact
from ssray.models.artifact import ModelArtifact
from ssray.models.store import publish, published, published_version, rollback, versions
from ssray.storage.location import Location
from ssray.training.build import BuildRequest, build_model

CATEGORY = "weave"


@pytest.fixture(scope="module")
def model(demo_root: Path, tiny: Recipe) -> ModelArtifact:
    uris = sorted(str(path) for path in (demo_root / CATEGORY / "train/good").iterdir())
    device = torch.device("cpu")
    return build_model(BuildRequest(uris, CATEGORY, "v1", tiny, Compute()), device, threads=1)


@pytest.fixture(params=["disk", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, model: ModelArtifact) -> Location:
    """A store with three complete versions, none of them in use."""
    if request.param == "disk":
        place = Location.parse(tmp_path / "models")
    else:
        place = Location.parse(f"s3://{request.getfixturevalue('s3_server')}/{tmp_path.name}")
    for version in ("v1", "v2", "v3"):
        artifact.save(dataclasses.replace(model, version=version), place)
    return place


@pytest.fixture
def on_disk(tmp_path: Path, model: ModelArtifact) -> Path:
    """A store with one version, in use."""
    place = Location.parse(tmp_path / "models")
    artifact.save(model, place)
    publish(place, CATEGORY, "v1", None)
    return tmp_path / "models"


def models(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["models", *map(str, arguments)], standalone_mode=False)


def test_a_version_is_in_use_once_it_is_published(store: Location) -> None:
    assert published(store) == {}
    with pytest.raises(ArtifactError, match=rf"no published model for '{CATEGORY}'.*here: none"):
        published_version(store, CATEGORY)
    publish(store, CATEGORY, "v1", None)
    assert published(store) == {CATEGORY: "v1"}
    assert artifact.load(store, CATEGORY, published_version(store, CATEGORY)).version == "v1"


def test_rollback_goes_back_version_by_version(store: Location) -> None:
    for version, before in (("v1", None), ("v2", "v1"), ("v3", "v2")):
        publish(store, CATEGORY, version, before)
    assert rollback(store, CATEGORY) == "v2"
    assert rollback(store, CATEGORY) == "v1"
    with pytest.raises(ArtifactError, match="no earlier version was in use"):
        rollback(store, CATEGORY)
    publish(store, CATEGORY, "v3", "v1")
    assert rollback(store, CATEGORY) == "v1"


def test_who_saw_an_older_state_is_told(store: Location) -> None:
    publish(store, CATEGORY, "v1", None)
    with pytest.raises(
        ConflictError,
        match=rf"{CATEGORY}: version v1 was published meanwhile.*--version v2",
    ):
        publish(store, CATEGORY, "v2", None)
    assert published_version(store, CATEGORY) == "v1"


def test_of_racing_publishers_one_wins_and_the_others_are_told(store: Location) -> None:
    told: list[str] = []
    start = threading.Barrier(3)

    def race(version: str) -> None:
        start.wait()
        try:
            publish(store, CATEGORY, version, None)
        except ConflictError as error:
            told.append(str(error))

    racers = [threading.Thread(target=race, args=(f"v{number}",)) for number in (1, 2, 3)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    winner = published_version(store, CATEGORY)
    assert len(told) == 2
    assert all(f"version {winner} was published meanwhile" in message for message in told)


def test_an_incomplete_version_is_listed_but_never_published(store: Location) -> None:
    (store / CATEGORY / "v4" / "weights.safetensors").write(b"")
    with pytest.raises(ArtifactError, match=r"v4: no complete model here"):
        publish(store, CATEGORY, "v4", None)
    publish(store, CATEGORY, "v2", None)
    listed = [(v.version, v.published, v.problem) for v in versions(store, CATEGORY)]
    assert listed == [
        ("v1", False, None),
        ("v2", True, None),
        ("v3", False, None),
        ("v4", False, "not finished"),
    ]


def test_publishing_what_is_in_use_changes_nothing(store: Location) -> None:
    publish(store, CATEGORY, "v1", None)
    publish(store, CATEGORY, "v1", "v1")
    with pytest.raises(ArtifactError, match="no earlier version"):
        rollback(store, CATEGORY)


def test_the_commands(on_disk: Path, model: ModelArtifact) -> None:
    place = Location.parse(on_disk)
    artifact.save(dataclasses.replace(model, version="v2"), place)
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
            lambda old: old.replace(b'"format_version": 6', b'"format_version": 7'),
            "format version 7, this ssray reads 2, 3, 4, 5, 6",
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


def test_a_pointer_that_names_nothing_is_an_error(on_disk: Path) -> None:
    (on_disk / CATEGORY / "published.json").write_text("{}")
    with pytest.raises(SsrayError, match=r"published\.json: names no version"):
        published_version(Location.parse(on_disk), CATEGORY)
