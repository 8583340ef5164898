"""The model store: which versions of a category there are, and which one is in use.

``STORE/CATEGORY/published.json`` names the version in use and those that were before. It is
switched by a conditional write, so that of two publishers who saw the same state one wins and the
other is told. Versions themselves are never changed; ``ssray.models.artifact`` has their layout.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyarrow import fs
from pydantic import BaseModel, ConfigDict, ValidationError

from ssray.errors import ArtifactError, ConflictError
from ssray.models.artifact import TrainingFacts, is_complete, load, load_facts
from ssray.storage.location import Location

PUBLISHED = "published.json"
REMEMBERED = 50
"""How many versions back ``rollback`` can go."""


class Pointer(BaseModel):
    """What ``published.json`` holds.

    Attributes:
        version: in use.
        earlier: those in use before, the latest last.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    earlier: tuple[str, ...] = ()


@dataclass(frozen=True)
class StoredVersion:
    """A version of a category.

    Attributes:
        facts: None if it is incomplete or unreadable, which ``problem`` then says.
    """

    version: str
    published: bool
    facts: TrainingFacts | None
    problem: str | None


def published_version(store: Location, category: str) -> str:
    """The version in use.

    Raises:
        ArtifactError: if the category has none.
    """
    version = in_use(store, category)
    if version is None:
        known = ", ".join(sorted(published(store))) or "none"
        raise ArtifactError(
            f"{store}: no published model for '{category}'. Models here: {known}. "
            f"Train one with: ssray train --category {category} --models {store} --data ROOT"
        )
    return version


def in_use(store: Location, category: str) -> str | None:
    """The version in use; None if there is none."""
    pointer = _pointer(store, category)
    return pointer.version if pointer else None


def published(store: Location) -> dict[str, str]:
    """The published version of every category in the store; empty if there is no store."""
    pointers = {category: _pointer(store, category) for category in _folders(store)}
    return {category: pointer.version for category, pointer in pointers.items() if pointer}


def publish(store: Location, category: str, version: str, instead_of: str | None) -> None:
    """Puts a complete version into use.

    Args:
        store: the model store.
        category: whose model it is.
        version: complete, in the store.
        instead_of: the version in use when the decision was made; None if there was none.

    Raises:
        ArtifactError: if the version is incomplete.
        ConflictError: if another version has been published since.
    """
    place = store / category / version
    if not is_complete(place):
        raise ArtifactError(f"{place}: no complete model here, so it can't be published.")
    before = (store / category / PUBLISHED).read_tagged()
    pointer = _parsed(store, category, before.content) if before else None
    earlier = (*pointer.earlier, pointer.version) if pointer else ()
    try:
        if (pointer.version if pointer else None) != instead_of:
            raise ConflictError(f"expected {instead_of or 'none'} in use")
        if pointer and pointer.version == version:
            return
        _switch(store, category, Pointer(version=version, earlier=earlier), before and before.tag)
    except ConflictError:
        now = in_use(store, category)
        raise ConflictError(
            f"{category}: version {now or 'none'} was published meanwhile. "
            f"{version} is complete but not in use; to use it: ssray models publish "
            f"--models {store} --category {category} --version {version}"
        ) from None


def rollback(store: Location, category: str) -> str:
    """Puts the version into use that was before the present one; returns it.

    Raises:
        ArtifactError: if there was none, or it can no longer be read.
        ConflictError: if someone published meanwhile.
    """
    before = (store / category / PUBLISHED).read_tagged()
    pointer = _parsed(store, category, before.content) if before else None
    if before is None or pointer is None or not pointer.earlier:
        raise ArtifactError(f"{store / category}: no earlier version was in use.")
    *earlier, version = pointer.earlier
    load(store, category, version)
    _switch(store, category, Pointer(version=version, earlier=tuple(earlier)), before.tag)
    return version


def versions(store: Location, category: str) -> list[StoredVersion]:
    """Every version of a category, complete or not, the oldest first.

    Raises:
        ArtifactError: if there is none.
    """
    used = in_use(store, category)
    names = _folders(store / category)
    if not names:
        raise ArtifactError(f"{store / category}: no models here.")
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
    return [
        info.base_name
        for info in place.children()
        if info.type == fs.FileType.Directory and not info.base_name.startswith(".")
    ]


def _pointer(store: Location, category: str) -> Pointer | None:
    tagged = (store / category / PUBLISHED).read_tagged()
    return _parsed(store, category, tagged.content) if tagged else None


def _parsed(store: Location, category: str, content: bytes) -> Pointer:
    try:
        return Pointer.model_validate_json(content)
    except ValidationError as error:
        raise ArtifactError(
            f"{store / category / PUBLISHED}: names no version. Publish one with: ssray models "
            f"publish. ({error.error_count()} errors)"
        ) from None


def _switch(store: Location, category: str, pointer: Pointer, tag: str | None) -> None:
    kept = pointer.model_copy(update={"earlier": pointer.earlier[-REMEMBERED:]})
    content = kept.model_dump_json(indent=2).encode()
    (store / category / PUBLISHED).write_if(content, tag)
