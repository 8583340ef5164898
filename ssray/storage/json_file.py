"""Reads JSON files that an earlier run left behind, and validates them."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from ssray.errors import DataError, ImageError
from ssray.storage.location import Location

MAX_BYTES = 64 * 1024**2
"""The largest file that is read."""

_Model = TypeVar("_Model", bound=BaseModel)


def read_json(place: Location, kind: type[_Model], remedy: str) -> _Model | None:
    """Reads a JSON file; returns None if there is none.

    Args:
        place: the file.
        kind: the pydantic model that it holds.
        remedy: a sentence for the error message that says what to do if the file can't be used.

    Raises:
        DataError: if the file is damaged or too large, or another version of ssray wrote it.
    """
    try:
        found = place.read_tagged(most=MAX_BYTES)
    except ImageError as error:
        raise DataError(f"{error}. {remedy}") from None
    if found is None:
        return None
    try:
        return kind.model_validate_json(found.content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(
            f"{place}: damaged, or of another version of ssray "
            f"({where + ': ' if where else ''}{first['msg']}). {remedy}"
        ) from None
