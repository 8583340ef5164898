"""Which version is in use: on a disk here; tests/integration/models repeats it on an S3 server."""

from __future__ import annotations

import dataclasses
import threading

import pytest

from ssray.errors import ArtifactError, ConflictError, SsrayError
from ssray.models import artifact
from ssray.models.artifact import ModelArtifact
from ssray.models.store import publish, published, published_version, rollback, versions
from ssray.storage.location import Location

CATEGORY = "weave"


@pytest.fixture
def store(place: Location, tiny_model: ModelArtifact) -> Location:
    """A store with three complete versions, none of them in use."""
    for version in ("v1", "v2", "v3"):
        artifact.save(dataclasses.replace(tiny_model, version=version), place)
    return place


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


def test_a_pointer_that_names_nothing_is_an_error(store: Location) -> None:
    (store / CATEGORY / "published.json").write(b"{}")
    with pytest.raises(SsrayError, match=r"published\.json: names no version"):
        published_version(store, CATEGORY)
