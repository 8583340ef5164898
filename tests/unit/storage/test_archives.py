"""Data sets in archives."""

from __future__ import annotations

import io
import tarfile
import threading
import zipfile
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from ssray.data.dataset import categories, index_dataset
from ssray.data.decode import read_image
from ssray.data.masks import read_masks
from ssray.errors import DataError, ImageError
from ssray.storage import archives
from ssray.storage.archives import SUFFIXES, members, read_file
from ssray.storage.archives.stored import StoredFile
from ssray.storage.fingerprint import fingerprint
from ssray.storage.location import Location

WRITING: dict[str, Literal["w:", "w:gz", "w:bz2", "w:xz"]] = {
    ".tar": "w:",
    ".tgz": "w:gz",
    ".tar.gz": "w:gz",
    ".tar.bz2": "w:bz2",
    ".tar.xz": "w:xz",
}


def packed(folder: Path, suffix: str, prefix: str = "") -> bytes:
    """An archive of all files below a folder."""
    buffer = io.BytesIO()
    files = [
        (f"{prefix}{path.relative_to(folder)}", path) for path in sorted(folder.rglob("*.png"))
    ]
    if suffix == ".zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as out:
            for name, path in files:
                out.write(path, name)
    else:
        with tarfile.open(fileobj=buffer, mode=WRITING[suffix]) as tar:
            for name, path in files:
                tar.add(path, name)
    return buffer.getvalue()


def assert_read_as_its_folder(root: Location, demo_root: Path, suffix: str, prefix: str) -> None:
    """An archive at ``root`` is indexed and read as the folder it was made of."""
    (root / f"weave{suffix}").write(packed(demo_root / "weave", suffix, prefix))
    assert categories(root) == ["weave"]
    inside = index_dataset(root).to_pylist()
    outside = index_dataset(Location.parse(demo_root), ["weave"]).to_pylist()
    assert len(inside) == len(outside) > 0
    for one, other in zip(inside, outside, strict=True):
        for name in ("category", "split", "split_type", "label", "size_bytes"):
            assert one[name] == other[name]
        np.testing.assert_array_equal(read_image(one["uri"]), read_image(other["uri"]))
        assert (one["mask_uris"] is None) == (other["mask_uris"] is None)
        if one["mask_uris"]:
            np.testing.assert_array_equal(
                read_masks(one["mask_uris"]), read_masks(other["mask_uris"])
            )
    assert fingerprint([r["uri"] for r in inside]) == fingerprint([r["uri"] for r in outside])


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("prefix", ["", "./", "weave/"])
def test_an_archive_is_indexed_and_read_as_its_folder_is(
    tmp_path: Path, demo_root: Path, suffix: str, prefix: str
) -> None:
    assert_read_as_its_folder(Location.parse(tmp_path / "root"), demo_root, suffix, prefix)


@pytest.mark.parametrize("suffix", [".tar", ".zip", ".tar.gz"])
def test_threads_may_read_one_archive(tmp_path: Path, demo_root: Path, suffix: str) -> None:
    (tmp_path / f"weave{suffix}").write_bytes(packed(demo_root / "weave", suffix))
    names = list(members(Location.parse(tmp_path / f"weave{suffix}")))
    wrong: list[str] = []

    def read_all() -> None:
        for name in names:
            content = read_file(f"{tmp_path}/weave{suffix}#{name}")
            if content != (demo_root / "weave" / name).read_bytes():
                wrong.append(name)

    readers = [threading.Thread(target=read_all) for _ in range(4)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert wrong == []


def read_all(root: Location) -> None:
    for row in index_dataset(root).to_pylist():
        read_image(row["uri"])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_damaged_is_named(tmp_path: Path, demo_root: Path, suffix: str) -> None:
    whole = packed(demo_root / "weave", suffix)
    place = tmp_path / f"weave{suffix}"
    place.write_bytes(whole[: len(whole) // 2])
    with pytest.raises((DataError, ImageError), match=f"weave{suffix}"):
        read_all(Location.parse(tmp_path))
    place.write_bytes(b"")
    archives._opened.cache_clear()
    with pytest.raises(DataError, match=rf"weave{suffix}: damaged, cut short or too large"):
        index_dataset(Location.parse(tmp_path))


def test_a_member_that_is_not_there_has_a_code(tmp_path: Path, demo_root: Path) -> None:
    (tmp_path / "weave.tar").write_bytes(packed(demo_root / "weave", ".tar"))
    with pytest.raises(ImageError) as refusal:
        read_image(f"{tmp_path}/weave.tar#train/good/none.png")
    assert refusal.value.code == "missing"


def test_a_compressed_tar_has_a_limit(
    tmp_path: Path, demo_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives.limits, "MAX_UNPACKED_BYTES", 1000)
    (tmp_path / "weave.tgz").write_bytes(packed(demo_root / "weave", ".tgz"))
    with pytest.raises(DataError, match=r"Store it as a plain \.tar"):
        index_dataset(Location.parse(tmp_path))


def test_a_file_may_be_called_like_a_member(tmp_path: Path) -> None:
    (tmp_path / "a#b.png").write_bytes(b"content")
    assert read_file(str(tmp_path / "a#b.png")) == b"content"


@pytest.mark.parametrize(("members", "kilobytes", "most"), [(1200, 50, 24), (12, 3000, 13)])
def test_small_members_of_a_tar_in_s3_are_listed_hundreds_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members: int, kilobytes: int, most: int
) -> None:
    """Of large ones no more is read than their headers."""
    place = tmp_path / "grid.tar"
    content = bytes(1024 * kilobytes)
    with tarfile.open(place, "w") as tar:
        for number in range(members):
            info = tarfile.TarInfo(f"{number}.png")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    reads: list[int] = []
    read_at = StoredFile.read_at

    def counted(self: StoredFile, size: int, offset: int) -> bytes:
        reads.append(size)
        return read_at(self, size, offset)

    monkeypatch.setattr(StoredFile, "in_s3", True)
    monkeypatch.setattr(StoredFile, "read_at", counted)
    found = [member.name for member in archives.listed(Location.parse(place))]
    assert found == [f"{number}.png" for number in range(members)]
    assert len(reads) <= most
    assert sum(reads) <= place.stat().st_size + (1 << 23)
    if kilobytes > 1000:
        assert sum(reads) <= members * (1 << 16) + (1 << 17)
