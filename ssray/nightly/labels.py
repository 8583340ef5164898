"""Reads labels that came after the night: which images are good, and which have a defect."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ssray.errors import DataError
from ssray.metrics.labels import DEFECT, GOOD
from ssray.nightly.lists import Roots, is_list
from ssray.nightly.user_table import UNREADABLE, column_names, text_rows
from ssray.storage.location import Location

WORDS = {
    **dict.fromkeys(("0", "good", "ok", "false"), GOOD),
    **dict.fromkeys(("1", "defect", "ng", "true"), DEFECT),
}
"""What each word says of an image. Upper case and spaces around a word make no difference."""
_COLUMNS = ["uri", "label"]
_NAMED = 5
"""How many contradictions a message names."""


@dataclass(frozen=True)
class Labels:
    """What a table of labels says.

    Attributes:
        of: ``GOOD`` or ``DEFECT`` for each image, by its URI.
        repeated: how many rows said again what an earlier one had said.
        masks: whether the table has a column ``mask``, which nobody reads.
    """

    of: dict[str, int]
    repeated: int
    masks: bool


def read_labels(place: Location) -> Labels:
    """Reads a CSV or Parquet table with the columns ``uri`` and ``label``.

    A relative ``uri`` is below the table's folder, as in a list of a night's images. Rows are
    numbered from 1 on, without the header.

    Raises:
        DataError: if there is no such table, a row has no uri or a label that is none of ``WORDS``,
            two rows of an image contradict each other, or there are no labels.
    """
    names = _names(place)
    base = Roots.of(place, ())
    found: dict[str, tuple[int, int]] = {}
    contradictions: list[str] = []
    rows = 0
    for rows, (name, word) in enumerate(_rows(place), 1):
        if not name:
            raise DataError(f"{place}, row {rows}: no uri. Name the image, or remove the row.")
        label = WORDS.get((word or "").strip().lower())
        if label is None:
            raise DataError(
                f"{place}, row {rows}, {name}: label {word or ''!r}. Expected one of "
                f"{_words(GOOD)} for a good image, or of {_words(DEFECT)} for one with a defect."
            )
        uri = base.absolute(name)
        earlier, row = found.setdefault(uri, (label, rows))
        if earlier != label:
            contradictions.append(f"{uri} (rows {row} and {rows})")
    if contradictions:
        more = len(contradictions) - _NAMED
        named = ", ".join(contradictions[:_NAMED]) + (f" and {more} more" if more > 0 else "")
        raise DataError(
            f"{place}: rows that contradict each other, one good, one defect: {named}. "
            "Expected one label for each image. Remove the wrong rows."
        )
    if not found:
        raise DataError(f"{place}: no rows. Expected a label for at least one image.")
    labels = {uri: label for uri, (label, _) in found.items()}
    return Labels(labels, rows - len(labels), "mask" in names)


def _names(place: Location) -> list[str]:
    """The names of a table's columns.

    Raises:
        DataError: if there is no such table, or a column is missing.
    """
    if not place.exists():
        raise DataError(f"{place}: no such table of labels. Check the path.")
    if not is_list(place):
        raise DataError(f"{place}: expected a .csv or .parquet file with columns uri and label.")
    try:
        names = column_names(place)
    except UNREADABLE as error:
        raise _unreadable(place, error) from None
    for column in _COLUMNS:
        if names.count(column) != 1:
            raise DataError(
                f"{place}: {names.count(column) or 'no'} columns {column!r}; found "
                f"{', '.join(names)}. Expected one column uri and one label, comma-separated in "
                "a CSV."
            )
    return names


def _rows(place: Location) -> Iterator[tuple[str | None, ...]]:
    """Yields what each row names and says, in the table's order.

    Raises:
        DataError: if the table is damaged.
    """
    try:
        yield from text_rows(place, _COLUMNS)
    except UNREADABLE as error:
        raise _unreadable(place, error) from None


def _unreadable(place: Location, error: Exception) -> DataError:
    reason = " ".join(str(error).split())
    return DataError(
        f"{place}: not a table that can be read. Expected CSV or Parquet with columns uri and "
        f"label, in UTF-8. ({reason})"
    )


def _words(label: int) -> str:
    return ", ".join(word for word, meaning in WORDS.items() if meaning == label)
