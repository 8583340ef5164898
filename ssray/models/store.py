"""Keeps track of the versions of each category's model, and of the one that is in use.

``STORE/CATEGORY/published.json`` names the version in use and those that were in use before. It is
written on the condition that it has not changed since it was read: of two processes that publish at
the same time one succeeds, and the other gets an error. ``ssray.models.artifact`` reads and writes
the versions themselves.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from pyarrow import fs
from pydantic import BaseModel, ConfigDict, ValidationError

from ssray.errors import ArtifactError, ConflictError, ImageError
from ssray.models.artifact import TrainingFacts, load, load_facts
from ssray.models.limits import JSON_BYTES, plain_name
from ssray.models.stored import is_complete, version_place
from ssray.storage.location import Location, Tagged

PUBLISHED = "published.json"
REMEMBERED = 50
"""How many earlier versions ``rollback`` can go back through."""
_REMEDY = "Delete it and publish a version with: ssray models publish."


class Pointer(BaseModel):
    """The content of ``published.json``.

    Attributes:
        version: the version in use.
        earlier: the versions that were in use before, the latest one last.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    earlier: tuple[str, ...] = ()


@dataclass(frozen=True)
class StoredVersion:
    """A version in the store, complete or not.

    Attributes:
        version: its name.
        published: whether it is in use.
        facts: how it was trained; None if it is incomplete or can't be read.
        problem: what is wrong with it; None if nothing is.
    """

    version: str
    published: bool
    facts: TrainingFacts | None
    problem: str | None


def published_version(store: Location, category: str) -> str:
    """Returns the version of a category that is in use.

    Raises:
        ArtifactError: if none is.
    """
    version = in_use(store, category)
    if version is None:
        known = sorted(published(store))
        if not store.exists():
            raise ArtifactError(f"{store}: no published model for '{category}', and no such store.")
        alike = difflib.get_close_matches(category, known, 1)
        remedy = (
            f"Did you mean '{alike[0]}'?"
            if alike
            else f"Train one with: ssray train --good FOLDER --name {category} --models {store}"
        )
        raise ArtifactError(
            f"{store}: no published model for '{category}'. "
            f"Models here: {', '.join(known) or 'none'}. {remedy}"
        )
    return version


def in_use(store: Location, category: str) -> str | None:
    """Returns the version of a category that is in use; None if none is."""
    pointer = _pointer(store, category)
    return pointer.version if pointer else None


def published(store: Location) -> dict[str, str]:
    """Returns the version in use of every category that has one; empty if there is no store.

    Raises:
        ArtifactError: if what names it can't be used.
        DataError: if there is no such bucket, or it may not be listed.
    """
    pointers = {category: _pointer(store, category) for category in _folders(store)}
    return {category: pointer.version for category, pointer in pointers.items() if pointer}


def publish(store: Location, category: str, version: str, instead_of: str | None) -> None:
    """Puts a version into use.

    Args:
        store: the model store.
        category: the category whose model it is.
        version: the version; all its files must be in the store.
        instead_of: the version that was in use when the decision to publish was made; None if none
            was.

    Raises:
        ArtifactError: if the version is incomplete.
        ConflictError: if another version has been published since the decision.
    """
    place = version_place(store, category, version)
    before = _tagged(store, category)
    if not is_complete(place):
        raise ArtifactError(f"{place}: no complete model here, so it can't be published.")
    pointer = _parsed(store, category, before.content) if before else None
    now = pointer.version if pointer else None
    if now != instead_of:
        raise _published_meanwhile(store, category, version, now)
    if now == version:
        return
    earlier = (*pointer.earlier, pointer.version) if pointer else ()
    try:
        _switch(store, category, Pointer(version=version, earlier=earlier), before and before.tag)
    except ConflictError:
        now = in_use(store, category)
        raise _published_meanwhile(store, category, version, now) from None


def _published_meanwhile(
    store: Location, category: str, version: str, now: str | None
) -> ConflictError:
    """Makes the error for a version that could not be published, as ``now`` came before it."""
    return ConflictError(
        f"{category}: version {now or 'none'} was published meanwhile. "
        f"{version} is complete but not in use; to use it: ssray models publish "
        f"--models {store} --category {category} --version {version}"
    )


def rollback(store: Location, category: str) -> str:
    """Puts the version back into use that was in use before the present one.

    Returns:
        The version that is in use now.

    Raises:
        ArtifactError: if there was no earlier version, or it can no longer be read.
        ConflictError: if another version was published meanwhile.
    """
    before = _tagged(store, category)
    pointer = _parsed(store, category, before.content) if before else None
    if before is None or pointer is None or not pointer.earlier:
        raise ArtifactError(
            f"{store / category}: no earlier version was in use. To use another one: ssray models "
            "publish."
        )
    *earlier, version = pointer.earlier
    load(store, category, version)
    _switch(store, category, Pointer(version=version, earlier=tuple(earlier)), before.tag)
    return version


def versions(store: Location, category: str) -> list[StoredVersion]:
    """Lists every version of a category, complete or not, the oldest one first.

    Raises:
        ArtifactError: if there is none.
    """
    used = in_use(store, category)
    names = _folders(store / category)
    if not names:
        raise ArtifactError(
            f"{store / category}: no models here. Check the store and the category, or train one."
        )
    found = []
    for name in names:
        facts, problem = None, None
        try:
            facts = load_facts(store, category, name)
        except ArtifactError as error:
            problem = str(error) if is_complete(store / category / name) else "not finished"
        found.append(StoredVersion(name, name == used, facts, problem))
    return found


def _folders(place: Location) -> list[str]:
    """Lists the names of the folders in a place, without hidden ones.

    Raises:
        DataError: if there is no such bucket, or it may not be listed.
    """
    found = place.children()
    if not found:
        place.check_bucket()
    return [
        info.base_name
        for info in found
        if info.type == fs.FileType.Directory and not info.base_name.startswith(".")
    ]


def _pointer(store: Location, category: str) -> Pointer | None:
    """Reads a category's ``published.json``; returns None if there is none."""
    tagged = _tagged(store, category)
    return _parsed(store, category, tagged.content) if tagged else None


def _tagged(store: Location, category: str) -> Tagged | None:
    """Reads a category's ``published.json`` as it is; returns None if there is none."""
    place = store / plain_name(category, "category") / PUBLISHED
    try:
        return place.read_tagged(most=JSON_BYTES)
    except ImageError as error:
        raise ArtifactError(f"{error}. {_REMEDY}") from None


def _parsed(store: Location, category: str, content: bytes) -> Pointer:
    try:
        pointer = Pointer.model_validate_json(content)
        for version in (pointer.version, *pointer.earlier):
            plain_name(version, f"version, in {store / category / PUBLISHED}")
        return pointer
    except ValidationError as error:
        raise ArtifactError(
            f"{store / category / PUBLISHED}: names no version. {_REMEDY} "
            f"({error.error_count()} errors)"
        ) from None


def _switch(store: Location, category: str, pointer: Pointer, tag: str | None) -> None:
    """Writes a category's ``published.json`` unless it was changed since ``tag`` was read."""
    kept = pointer.model_copy(update={"earlier": pointer.earlier[-REMEMBERED:]})
    content = kept.model_dump_json(indent=2).encode()
    (store / category / PUBLISHED).write_if(content, tag)
