"""Reads the files of a stored version: those its manifest names, no larger than they may be."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from ssray.errors import ArtifactError
from ssray.models.limits import JSON_BYTES, plain_name, read_file, tensors_in
from ssray.storage.location import Location

FORMAT_VERSION = 11
"""The version of the file format that is written."""
READABLE = (2, 3, 4, 5, 6, 7, 8, 9, 10, FORMAT_VERSION)
"""The versions of the file format that can be read."""
MANIFEST = "manifest.json"

Record = TypeVar("Record", bound=BaseModel)


class Manifest(BaseModel):
    """The content of ``manifest.json``.

    Attributes:
        format_version: of the files.
        category: whose model it is.
        version: its name.
        sha256: the checksum of each other file, by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int
    category: str
    version: str
    sha256: dict[str, str]


class _Format(BaseModel):
    """What every manifest has, of whatever format."""

    format_version: int | None = None


def version_place(store: Location, category: str, version: str) -> Location:
    """The folder of a version.

    Raises:
        ArtifactError: if category or version is no plain name.
    """
    return store / plain_name(category, "category") / plain_name(version, "version")


def is_complete(place: Location) -> bool:
    """Tells whether a version's folder holds all of its files."""
    return (place / MANIFEST).exists()


class StoredFiles:
    """The files of a complete version in a format that can be read.

    Every method raises an ``ArtifactError`` for a file that is missing, was changed, is too large
    or says what this ssray can't understand.
    """

    def __init__(self, place: Location) -> None:
        """Reads the manifest of the version in the folder ``place``."""
        self._place = place
        self.manifest = self._read_manifest()

    def __contains__(self, name: str) -> bool:
        return name in self.manifest.sha256

    def read(self, name: str, most: int) -> bytes:
        """Reads a file of ``most`` bytes at most, and compares it with its checksum."""
        place = self._place / name
        try:
            content = read_file(place, most)
        except OSError:
            raise ArtifactError(
                f"{place}: listed in {MANIFEST} but missing. Restore it or train again."
            ) from None
        if hashlib.sha256(content).hexdigest() != self.manifest.sha256.get(name):
            raise ArtifactError(
                f"{place}: checksum differs from {MANIFEST}; the file was changed or cut "
                "short. Restore it or train again."
            )
        return content

    def record(self, kind: type[Record], name: str, most: int = JSON_BYTES) -> Record:
        """Reads a JSON file."""
        content = self.read(name, most)
        try:
            return kind.model_validate_json(content)
        except ValidationError as error:
            raise self.unreadable(name, reason(error)) from None

    def tensors(
        self, name: str, expected: Mapping[str, tuple[int, ...]] | None, most: int
    ) -> dict[str, Tensor]:
        """Reads a file of tensors that are those expected, as ``tensors_in`` does; None takes
        any.
        """
        content = self.read(name, most)
        try:
            return tensors_in(content, expected)
        except (ValueError, SafetensorError) as error:
            raise self.unreadable(name, str(error)) from None

    def unreadable(self, name: str, why: str) -> ArtifactError:
        """Makes the error for a file that is as it was written but can't be understood."""
        return ArtifactError(
            f"{self._place / name}: not of a model this ssray can read. Upgrade ssray or train "
            f"again. ({why})"
        )

    def _read_manifest(self) -> Manifest:
        place = self._place / MANIFEST
        if not place.exists():
            raise ArtifactError(
                f"{self._place}: no complete model here ({MANIFEST} is missing). Choose another "
                "version, or train again."
            )
        try:
            content = read_file(place, JSON_BYTES)
            written_as = _Format.model_validate_json(content).format_version
            if written_as not in READABLE:
                raise ArtifactError(
                    f"{self._place}: format version {written_as}, this ssray reads "
                    f"{', '.join(map(str, READABLE))}. Upgrade ssray or train again."
                )
            manifest = Manifest.model_validate_json(content)
        except (OSError, ValidationError) as error:
            why = reason(error) if isinstance(error, ValidationError) else str(error)
            raise ArtifactError(
                f"{place}: cannot be read as JSON. Restore it or train again. ({why})"
            ) from None
        for name in manifest.sha256:
            plain_name(name, f"file of {self._place}")
        return manifest


def reason(error: ValidationError) -> str:
    """The first thing that is wrong, in one line."""
    first = error.errors(include_url=False, include_input=False)[0]
    key = ".".join(map(str, first["loc"]))
    return f"{key}: {first['msg']}" if key else str(first["msg"])
