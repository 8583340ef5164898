"""What an earlier run left behind is read, or said to be of no use."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from ssray.errors import DataError
from ssray.storage.json_file import MAX_BYTES, read_json
from ssray.storage.location import Location


class State(BaseModel):
    """How far a run has come."""

    images: int


def read(place: Path) -> State | None:
    return read_json(Location.parse(place), State, "Begin anew.")


def test_what_is_there_is_read(tmp_path: Path) -> None:
    place = tmp_path / "state.json"
    assert read(place) is None
    place.write_text('{"images": 3}')
    assert read(place) == State(images=3)


def test_what_is_of_no_use_is_told_in_a_line(tmp_path: Path) -> None:
    place = tmp_path / "state.json"
    place.write_text('{"images": "many"}')
    with pytest.raises(DataError, match=r"state\.json: damaged.*\(images: .*\)\. Begin anew\.$"):
        read(place)
    with place.open("wb") as grown:
        grown.truncate(MAX_BYTES + 1)  # takes no room on the disk
    with pytest.raises(DataError, match=r"state\.json: 67,108,865 bytes; .* Begin anew\.$"):
        read(place)
