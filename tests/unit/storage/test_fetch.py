"""Files are read with retries, and no larger ones than memory can bear."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssray.errors import ImageError
from ssray.storage import fetch
from ssray.storage.fetch import Fetcher


@pytest.mark.parametrize("size", [None, 11])
def test_a_file_beyond_the_limit_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int | None
) -> None:
    monkeypatch.setattr(fetch, "MAX_FILE_BYTES", 10)
    place = tmp_path / "0.png"
    place.write_bytes(bytes(10))
    assert Fetcher()(str(place)) == bytes(10)
    place.write_bytes(bytes(11))
    with pytest.raises(ImageError, match="11 bytes; at most 10 are read") as error:
        Fetcher()(str(place), size)
    assert error.value.code == "too_large"
