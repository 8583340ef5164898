"""What a listing has: every file once, links to nothing, and nothing that programs left."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from ssray.errors import DataError
from ssray.storage.listing import is_hidden, walk
from ssray.storage.location import Location


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def listed(folder: Path) -> dict[str, str | None]:
    files = list(walk(Location.parse(folder)))
    assert len({file.path for file in files}) == len(files)
    return {file.path: file.error for file in files}


@pytest.mark.parametrize(
    "path",
    [
        *(".DS_Store", "a/._0.png", "a/.ipynb_checkpoints/0.png", ".Trash-0/a/0.png"),
        *("__MACOSX/a/0.png", "a/Thumbs.db", "THUMBS.DB", "a/desktop.ini", "a/@eaDir/0.png"),
        *("$RECYCLE.BIN/0.png", "System Volume Information/x"),
    ],
)
def test_what_programs_leave_is_hidden(path: str) -> None:
    assert is_hidden(path)


@pytest.mark.parametrize("path", ["a/0.png", "thumbs/0.png", "a.b/c.d.png", "macosx/0.png"])
def test_what_people_name_is_not_hidden(path: str) -> None:
    assert not is_hidden(path)


def test_hidden_files_are_left_out_but_a_hidden_root_is_not(tmp_path: Path) -> None:
    root = tmp_path / ".cache/__MACOSX"
    write(
        root, "a/0.png", ".git/0.png", "a/.0.png", "a/Thumbs.db", "__MACOSX/0.png", "@eaDir/1.png"
    )
    assert listed(root) == {"a/0.png": None}


def test_each_real_folder_is_visited_once(tmp_path: Path) -> None:
    write(tmp_path, "data/b/0.png", "data/c/1.png", "elsewhere/2.png")
    (tmp_path / "data/b/again").symlink_to(".")
    (tmp_path / "data/b/up").symlink_to("..")
    (tmp_path / "data/b/above").symlink_to(tmp_path)
    (tmp_path / "data/a").symlink_to("c")  # comes before the real folder, which counts
    (tmp_path / "elsewhere/again").symlink_to(".")
    assert listed(tmp_path / "data") == {
        "b/0.png": None,
        "b/above/elsewhere/2.png": None,
        "c/1.png": None,
    }


def test_links_to_folders_elsewhere_and_to_hidden_ones_are_followed_once(tmp_path: Path) -> None:
    write(tmp_path, "data/.store/0.png", "elsewhere/1.png")
    (tmp_path / "data/a").symlink_to(".store")
    (tmp_path / "data/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/c").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/d.png").symlink_to("b/1.png")
    assert listed(tmp_path / "data") == {"a/0.png": None, "b/1.png": None, "d.png": None}


def test_what_can_not_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    write(tmp_path, "0.png")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "one.png").symlink_to("other.png")
    (tmp_path / "other.png").symlink_to("one.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert listed(tmp_path) == {
        "0.png": None,
        "gone.png": "missing",
        "one.png": "missing",
        "other.png": "missing",
        "pipe.png": "forbidden",
    }


def test_a_pipe_is_refused_before_it_blocks(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for read in (Location.read, Location.open_file):
        with pytest.raises(PermissionError, match=r"pipe\.png: not a regular file"):
            read(Location.parse(tmp_path / "pipe.png"))


def test_folders_may_be_nested_deeper_than_calls_may(tmp_path: Path) -> None:
    depth, here = 1200, os.open(tmp_path, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("a", dir_fd=here)
        below = os.open("a", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("0.png", os.O_CREAT, dir_fd=here))
    os.close(here)
    try:
        assert listed(tmp_path) == {"a/" * depth + "0.png": None}
    finally:  # pytest would not get that deep
        subprocess.run(["rm", "-r", tmp_path / "a"], check=True)


def test_a_place_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such file, folder or prefix"):
        listed(tmp_path / "nowhere")
