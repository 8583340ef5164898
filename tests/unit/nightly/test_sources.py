"""What a night has to score: found in folders, archives and lists, and kept in batches."""

from __future__ import annotations

import gzip
import io
import os
import random
import tarfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from ssray.errors import ConfigError, DataError
from ssray.nightly import sources as nightly_sources
from ssray.nightly.lists import Roots
from ssray.nightly.plan import (
    BATCHES_A_PART,
    read_batch,
    read_manifest,
    write_manifest,
)
from ssray.nightly.sources import UNMATCHED, CategoryRule, Source, find
from ssray.storage import archives, fetch
from ssray.storage.location import Location
from tests.helpers import breaking_off


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def write_tar(place: Path, names: list[str], mode: Literal["w", "w:gz"] = "w") -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(place, mode) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(name)
            tar.addfile(info, io.BytesIO(name.encode()))


def found(place: Path, rule: CategoryRule | None = None) -> tuple[list[Source], Counter[str]]:
    passed_over = Counter[str]()
    sources = list(find(Location.parse(place), rule or CategoryRule(), passed_over))
    return sources, passed_over


def test_folders_name_the_category_and_masks_are_passed_over(tmp_path: Path) -> None:
    write(
        tmp_path,
        *("grid/test/good/0.png", "grid/test/bent/1.PNG", "grid/ground_truth/bent/1_mask.png"),
        *("bolt/0.jpg", "bolt/notes.txt", "bolt/README", ".hidden/0.png", "loose.png"),
    )
    sources, passed_over = found(tmp_path)
    names = {source.uri.removeprefix(f"{tmp_path}/"): source.category for source in sources}
    assert names == {
        "bolt/0.jpg": "bolt",
        "grid/test/bent/1.PNG": "grid",
        "grid/test/good/0.png": "grid",
        "loose.png": UNMATCHED,
    }
    assert passed_over == {"ground_truth/": 1, ".txt": 1, "README": 1}
    assert [s.size for s in sources if s.uri.endswith("bolt/0.jpg")] == [len("bolt/0.jpg")]


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".zip"])
def test_archives_count_as_folders(tmp_path: Path, suffix: str) -> None:
    place = tmp_path / f"night/grid{suffix}"
    if suffix == ".zip":
        place.parent.mkdir()
        with zipfile.ZipFile(place, "w") as archive:
            for name in ("a/0.png", "list.txt"):
                archive.writestr(name, name)
    else:
        write_tar(place, ["a/0.png", "list.txt"], "w:gz" if suffix == ".tar.gz" else "w")
    for start in (tmp_path / "night", place):
        sources, passed_over = found(start)
        [source] = sources
        assert (source.uri, source.category) == (f"{place}#a/0.png", "grid")
        assert source.size == len("a/0.png")
        assert passed_over == {".txt": 1}
        if suffix == ".zip":
            assert source.offset is None
        else:
            content = place.read_bytes()
            unpacked = content if suffix == ".tar" else gzip.decompress(content)
            assert unpacked[source.offset :].startswith(b"a/0.png")


def test_a_folder_that_is_gone_is_a_row_of_its_category(tmp_path: Path) -> None:
    write(tmp_path, "bolt/0.png")
    (tmp_path / "grid").symlink_to("nowhere")
    assert [(s.category, s.error) for s in found(tmp_path)[0]] == [
        ("bolt", None),
        ("grid", "missing"),
    ]


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".zip"])
def test_a_damaged_archive_is_a_row_of_its_own(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"grid{suffix}").write_bytes(b"no archive" * 100)
    write(tmp_path, "bolt/0.png")
    sources, _ = found(tmp_path)
    assert [(source.category, source.error) for source in sources] == [
        ("bolt", None),
        ("grid", "bad_archive"),
    ]


def test_an_archive_that_ends_early_gives_what_it_has(tmp_path: Path) -> None:
    names = [f"{number:03}.png" for number in range(200)]
    random.seed(0)
    with tarfile.open(tmp_path / "grid.tar.gz", "w:gz") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 1000
            tar.addfile(info, io.BytesIO(random.randbytes(1000)))
    content = (tmp_path / "grid.tar.gz").read_bytes()
    (tmp_path / "grid.tar.gz").write_bytes(content[: len(content) // 2])
    sources, _ = found(tmp_path)
    assert 50 < len(sources) < 150
    assert [source.error for source in sources] == [None] * (len(sources) - 1) + ["bad_archive"]


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".zip"])
def test_hidden_members_and_masks_are_passed_over_in_archives(tmp_path: Path, suffix: str) -> None:
    names = ["./a/0.png", "/b/1.png", "c\\2.png", "a/ground_truth/bent/0_mask.png"]
    names += ["__MACOSX/a/._0.png", "a/.DS_Store", "a/.ipynb_checkpoints/0.png", "a/Thumbs.db"]
    if suffix == ".zip":
        with zipfile.ZipFile(tmp_path / "grid.zip", "w") as archive:
            for name in names:
                info = zipfile.ZipInfo()
                info.filename = name
                archive.writestr(info, name)
    else:
        write_tar(tmp_path / f"grid{suffix}", names, "w:gz" if suffix == ".tar.gz" else "w")
    sources, passed_over = found(tmp_path, CategoryRule(r"grid/(?P<category>\w)/"))
    assert [source.category for source in sources] == ["a", "b", "c"]
    assert passed_over == {"ground_truth/": 1}
    for source in sources:
        content = fetch.Fetcher()(source.uri, source.size, source.offset)
        assert content.decode().endswith(source.uri[-5:])


@pytest.mark.parametrize("name", ["0.png", "folder", "grid.tar", "grid.tar.gz", "grid.zip"])
def test_lost_links_and_pipes_are_rows_with_a_reason(tmp_path: Path, name: str) -> None:
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / name).symlink_to("nowhere")
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / name)
    sources, passed_over = found(tmp_path)
    rows = [(str(tmp_path / "gone" / name), "missing")]
    if name != "folder":  # a pipe is none, and not called like an image
        rows.append((str(tmp_path / "pipe" / name), "forbidden"))
    assert [(source.uri, source.error) for source in sources] == rows
    assert passed_over.total() == 2 - len(rows)


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".CSV", ".Parquet"])
def test_lists_name_images_and_perhaps_categories(tmp_path: Path, suffix: str) -> None:
    place = tmp_path / f"list{suffix}"
    uris = [str(tmp_path / "x/0.png"), f"file://{tmp_path}/y/1.png"]
    table = pa.table({"uri": uris, "category": ["grid", None]})
    if suffix.lower() == ".csv":
        pyarrow.csv.write_csv(table, place)
    else:
        pq.write_table(table, place)
    sources, _ = found(place, CategoryRule(r".*/(?P<category>\w)/"))
    assert sources == [Source(uris[0], "grid"), Source(uris[1], "y")]
    (tmp_path / "other.csv").write_text("path,category\n/0.png,grid\n")
    with pytest.raises(DataError, match="no column 'uri'; found path, category"):
        found(tmp_path / "other.csv")
    (tmp_path / "other.parquet").write_text("no table")
    with pytest.raises(DataError, match="not a table that can be read"):
        found(tmp_path / "other.parquet")
    with pytest.raises(DataError, match=r"none\.csv: no such list"):
        found(tmp_path / "none.csv")


@pytest.mark.parametrize(
    "table",
    [
        pa.table([pa.array(["0.png"]), pa.array(["1.png"])], names=["uri", "uri"]),
        pa.table({"uri": [{"path": "0.png"}]}),
        pa.table({"uri": [b"\xff\xfe.png"]}),
    ],
)
def test_a_table_that_is_no_list_is_told_in_a_line(tmp_path: Path, table: pa.Table) -> None:
    pq.write_table(table, tmp_path / "list.parquet")
    with pytest.raises(DataError, match="not a table that can be read") as refusal:
        found(tmp_path / "list.parquet")
    assert "\n" not in str(refusal.value)


def test_a_damaged_list_is_told_in_a_line(tmp_path: Path) -> None:
    pq.write_table(pa.table({"uri": [f"{n}.png" for n in range(500)]}), tmp_path / "list.parquet")
    whole = (tmp_path / "list.parquet").read_bytes()
    random.seed(0)
    for _ in range(100):
        damaged = bytearray(whole)
        for place in random.sample(range(len(whole)), 8):
            damaged[place] = random.randrange(256)
        (tmp_path / "list.parquet").write_bytes(damaged[: random.randrange(len(damaged))])
        with pytest.raises(DataError) as refusal:
            found(tmp_path / "list.parquet")
        assert "\n" not in str(refusal.value)


def test_other_columns_of_a_list_do_no_harm(tmp_path: Path) -> None:
    lines = [f"{n}.png,{n if n < 200_000 else 'scratched'},grid" for n in range(200_100)]
    lines.append('last.png,"two\nlines",grid')
    (tmp_path / "list.csv").write_text("\n".join(["uri,note,category", *lines]))
    sources, _ = found(tmp_path / "list.csv")
    assert len(sources) == 200_101
    assert sources[-1] == Source(str(tmp_path / "last.png"), "grid")


def test_a_list_names_nothing_outside_of_its_roots(tmp_path: Path) -> None:
    write(tmp_path, "lists/in.png", "other/0.png", "secret/1.png", "secret.png", "lists/deep/2.png")
    inside = tmp_path / "lists"
    (inside / "link.png").symlink_to(tmp_path / "secret/1.png")
    (inside / "folder").symlink_to(tmp_path / "secret")
    (inside / "fine.png").symlink_to("in.png")
    os.mkfifo(inside / "pipe.png")
    allowed = ["in.png", "deep/2.png", "fine.png", "absent.png", "deep/../in.png"]
    allowed += [str(inside / "in.png"), f"file://{inside}/in.png", "grid.tar#../../1.png"]
    refused = ["link.png", "folder/1.png", "pipe.png", "deep", "../secret.png", "../lists.png"]
    refused += ["/etc/passwd", "/dev/zero", "~/x.png", str(tmp_path / "secret/1.png")]
    refused += ["file:///etc/passwd", f"file://{inside}/%2e%2e/secret.png", "http://h/0.png"]
    refused += ["../grid.tar#0.png", "folder/grid.zip#0.png", "s3://bucket/0.png", "a\0.png"]
    also = [str(tmp_path / "other/0.png"), "../other/0.png"]
    uris = pa.table({"uri": [*allowed, *refused, *also]})
    pq.write_table(uris, inside / "list.parquet")
    place, passed_over = Location.parse(inside / "list.parquet"), Counter[str]()
    errors = [source.error for source in find(place, CategoryRule(fixed="grid"), passed_over)]
    assert errors == [None] * len(allowed) + ["forbidden"] * (len(refused) + len(also))
    roots = [Location.parse(tmp_path / "other")]
    errors = [
        source.error for source in find(place, CategoryRule(fixed="grid"), passed_over, roots)
    ]
    assert errors == [None] * len(allowed) + ["forbidden"] * len(refused) + [None] * len(also)


def test_a_list_in_s3_names_what_lies_in_its_bucket() -> None:
    files = fs.LocalFileSystem()  # nothing is asked of it
    place = Location(files, "night/lists/a.csv", "s3://")
    roots = Roots.of(place, [Location(files, "other/images", "s3://")])
    assert roots.absolute("0.png") == "s3://night/lists/0.png"
    for uri in ("s3://night/0.png", "s3://night//0.png", "s3://other/images/0.png"):
        assert roots.error(uri) is None
    refused = ["s3://other/0.png", "s3://other/images2/0.png", "s3://nights/0.png", "/etc/passwd"]
    refused += ["s3://night/../other/0.png", "s3://other/images/../0.png", "s3:///other/0.png"]
    for uri in refused:
        assert roots.error(uri) == "forbidden"


def test_a_category_of_digits_is_no_number(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("uri,category\n/a/0.png,007\n/a/1.png,\n")
    sources, _ = found(tmp_path / "list.csv", CategoryRule("/(?P<category>[^/]+)/"))
    assert [source.category for source in sources] == ["007", "a"]


def test_a_name_that_no_table_can_hold_is_a_row(tmp_path: Path) -> None:
    write(tmp_path, "bolt/0.png")
    bad = os.fsencode(tmp_path) + b"/bolt/Ger\xe4t.png"
    with open(bad, "wb") as file:
        file.write(b"x")
    with tarfile.open(
        tmp_path / "nut.tar", "w", encoding="latin-1", format=tarfile.GNU_FORMAT
    ) as t:
        t.addfile(tarfile.TarInfo("M\xe4rz.png"))
    sources, _ = found(tmp_path)
    assert [(source.uri.removeprefix(f"{tmp_path}/"), source.error) for source in sources] == [
        ("bolt/0.png", None),
        (r"bolt/Ger\xe4t.png", "bad_name"),
        (r"nut.tar#M\xe4rz.png", "bad_name"),
    ]
    folder = Location.parse(tmp_path / "manifest")
    assert write_manifest(folder, [Location.parse(tmp_path)], CategoryRule(), 2).images == 3


@pytest.mark.parametrize("size", range(0, 30, 3))
def test_an_archive_of_a_few_bytes_is_a_row(tmp_path: Path, size: int) -> None:
    write_tar(tmp_path / "grid.tar.gz", ["0.png"], "w:gz")
    content = (tmp_path / "grid.tar.gz").read_bytes()
    (tmp_path / "grid.tar.gz").write_bytes(content[:size])
    assert [source.error for source in found(tmp_path)[0]] == ["bad_archive"]


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".zip"])
def test_a_store_that_stumbles_over_an_archive_is_asked_again(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its members are not written off, unless it says that they may not be read."""
    names = [f"{number}.png" for number in range(5)]
    if suffix == ".zip":
        with zipfile.ZipFile(tmp_path / "grid.zip", "w") as archive:
            for name in names:
                archive.writestr(name, name)
    else:
        write_tar(tmp_path / f"grid{suffix}", names, "w:gz" if suffix == ".tar.gz" else "w")
    expected = [(source.uri, source.error) for source in found(tmp_path)[0]]
    assert len(expected) == len(names)
    failures: list[Exception] = [OSError("SLOW_DOWN"), OSError("reset")]
    stumbling = breaking_off(archives.listed, 3, failures)
    monkeypatch.setattr(fetch, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(nightly_sources, "listed", stumbling)
    assert [(source.uri, source.error) for source in found(tmp_path)[0]] == expected
    failures[:] = [OSError("ACCESS_DENIED")]
    assert [source.error for source in found(tmp_path)[0]] == [None, None, None, "forbidden"]
    failures[:] = [OSError("SLOW_DOWN")] * fetch.ATTEMPTS
    with pytest.raises(DataError, match=r"not read in 8 attempts .*Start again"):
        found(tmp_path)


def test_the_pattern_is_checked_before_anything_is_read() -> None:
    with pytest.raises(ConfigError, match=r"expected a group \(\?P<category>"):
        CategoryRule("line/.*")
    with pytest.raises(ConfigError, match="not a regular expression"):
        CategoryRule("(?P<category>")
    assert CategoryRule(fixed="bolt").of("anything/else") == "bolt"


def test_every_image_is_in_one_batch_of_one_category(tmp_path: Path) -> None:
    write(tmp_path / "images", *(f"bolt/{n:04}.png" for n in range(7)))
    write(tmp_path / "images", *(f"{c}/{n}.png" for c in ("grid", "nut") for n in range(70)))
    write_tar(tmp_path / "images/z.tgz", [f"{n}.png" for n in range(5)], "w:gz")
    folder = Location.parse(tmp_path / "manifest")
    assert read_manifest(folder) is None
    listed: list[int] = []
    manifest = write_manifest(
        folder, [Location.parse(tmp_path / "images")], CategoryRule(), 2, listed.append
    )
    assert read_manifest(folder) == manifest
    assert manifest.categories == {"bolt": 7, "grid": 70, "nut": 70, "z": 5}
    assert manifest.images == 152
    assert len(manifest.batches) == 4 + 35 + 35 + 1 > BATCHES_A_PART, (
        "the compressed archive is one"
    )
    batches = [read_batch(folder, *planned) for planned in enumerate(manifest.batches)]
    assert [planned.images for planned in manifest.batches] == [len(batch) for batch in batches]
    assert all(len({source.category for source in batch}) == 1 for batch in batches)
    uris = [source.uri for batch in batches for source in batch]
    assert len(set(uris)) == len(uris) == manifest.images
    assert listed == sorted(listed)
    assert listed[-1] == manifest.images
