"""Manifest, decoding and storage, on files as cameras and people leave them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import fs

from ssray.data.dataset import categories, index_dataset, index_images
from ssray.data.decode import decode_image, network_shape, read_image, resize
from ssray.data.loading import common_framing, load_images
from ssray.data.pose import Framing
from ssray.errors import DataError, ImageError
from ssray.storage.location import Location


def encoded(array: np.ndarray, kind: str = "PNG", mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(buffer, format=kind)
    return buffer.getvalue()


RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
GREY = RGB[..., 0]


def test_colour_is_kept() -> None:
    np.testing.assert_array_equal(decode_image(encoded(RGB)), RGB)


def test_grey_is_repeated() -> None:
    np.testing.assert_array_equal(decode_image(encoded(GREY)), np.dstack([GREY] * 3))


def test_alpha_is_dropped_not_blended() -> None:
    alpha = np.dstack([RGB, np.zeros((6, 8), np.uint8)])
    np.testing.assert_array_equal(decode_image(encoded(alpha)), RGB)
    grey_alpha = np.dstack([GREY, np.full((6, 8), 7, np.uint8)])
    np.testing.assert_array_equal(decode_image(encoded(grey_alpha))[..., 0], GREY)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_become_the_upper_eight(kind: str) -> None:
    deep = GREY.astype(np.uint16) * 256 + 91
    np.testing.assert_array_equal(decode_image(encoded(deep, kind))[..., 1], GREY)


@pytest.mark.parametrize(("kind", "mode"), [("JPEG", "CMYK"), ("BMP", None), ("GIF", "P"),
                                            ("WEBP", None), ("TIFF", "1")])  # fmt: skip
def test_other_formats_become_colour(kind: str, mode: str | None) -> None:
    image = decode_image(encoded(RGB, kind, mode))
    assert image.shape == (6, 8, 3)
    assert image.dtype == np.uint8


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "empty"),
        (b"not an image", "unknown_format"),
        (encoded(np.zeros((64, 64, 3), np.uint8) + RGB[0, 0])[:80], "truncated"),
        (encoded(RGB.astype(np.float32)[..., 0], "TIFF"), "unsupported_mode"),
        (encoded(-GREY.astype(np.int32), "TIFF"), "unsupported_mode"),
    ],
)
def test_refusals_name_a_reason(content: bytes, code: str) -> None:
    with pytest.raises(ImageError) as refusal:
        decode_image(content)
    assert refusal.value.code == code


def test_huge_images_are_refused_before_they_are_decoded() -> None:
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, format="PNG")
    with pytest.raises(ImageError, match=r"20000 x 20000|400000000 pixels") as refusal:
        decode_image(buffer.getvalue())
    assert refusal.value.code == "too_large"


def test_a_missing_file_has_a_code(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as refusal:
        read_image(str(tmp_path / "gone.png"))
    assert refusal.value.code == "missing"


def test_network_shape_keeps_the_aspect_and_the_area() -> None:
    assert network_shape(600, 600, 256) == (256, 256)
    assert network_shape(450, 800, 240) == (180, 320)
    assert network_shape(453, 800, 240) == (181, 319)
    assert network_shape(500, 1260, 256) == (161, 406)
    assert network_shape(3000, 10, 256) == (4434, 15)
    assert network_shape(30000, 10, 64) == (3505, 8)


def test_resize_averages_when_it_shrinks() -> None:
    board = np.zeros((64, 64, 3), np.uint8)
    board[::2, ::2] = board[1::2, 1::2] = 200
    assert np.abs(resize(board, (16, 16)).astype(int) - 100).max() <= 2


def write(path: Path, array: np.ndarray = RGB) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    for name in ("000.png", "001.jpg"):
        write(tmp_path / "nut/train/good" / name)
    write(tmp_path / "nut/test/good/000.png")
    for name in ("000", "001"):
        write(tmp_path / f"nut/test/bent/{name}.png")
        write(tmp_path / f"nut/ground_truth/bent/{name}_mask.png", GREY)
    (tmp_path / "nut/train/good/Thumbs.db").write_bytes(b"x")
    (tmp_path / "notes").mkdir()
    return tmp_path


def test_manifest_of_a_data_set(dataset: Path) -> None:
    root = Location.parse(dataset)
    assert categories(root) == ["nut"]
    rows = index_dataset(root).to_pylist()
    assert [(r["split"], r["split_type"], r["label"]) for r in rows] == [
        ("train", "good", 0),
        ("train", "good", 0),
        ("test", "bent", 1),
        ("test", "bent", 1),
        ("test", "good", 0),
    ]
    assert rows[2]["mask_uris"] == [str(dataset / "nut/ground_truth/bent/000_mask.png")]
    assert rows[4]["mask_uris"] is None
    assert all(row["size_bytes"] > 0 for row in rows)


def test_defects_without_any_masks_are_allowed(dataset: Path) -> None:
    for mask in (dataset / "nut/ground_truth/bent").iterdir():
        mask.unlink()
    rows = index_dataset(Location.parse(dataset)).to_pylist()
    assert [row["mask_uris"] for row in rows if row["label"] == 1] == [None, None]


def test_masks_in_a_folder_that_has_no_images_are_refused(dataset: Path) -> None:
    (dataset / "nut/ground_truth/bent").rename(dataset / "nut/ground_truth/Bent")
    with pytest.raises(DataError, match=r"ground_truth/Bent: masks without images.*bent, good"):
        index_dataset(Location.parse(dataset))


def test_defects_among_training_images_are_refused(dataset: Path) -> None:
    write(dataset / "nut/train/bent/000.png")
    with pytest.raises(DataError, match="must be defect-free"):
        index_dataset(Location.parse(dataset))


def test_an_unknown_category_is_answered_with_the_known(dataset: Path) -> None:
    with pytest.raises(DataError, match=r"no category bolt\. Found: nut"):
        index_dataset(Location.parse(dataset), ["bolt"])


def test_a_folder_without_categories(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no category found"):
        categories(Location.parse(tmp_path))
    with pytest.raises(DataError, match="no such folder"):
        categories(Location.parse(tmp_path / "nowhere"))


def test_unlabelled_images(dataset: Path) -> None:
    rows = index_images(Location.parse(dataset / "nut/test"), "nut").to_pylist()
    assert len(rows) == 3
    assert {row["label"] for row in rows} == {None}
    one = index_images(Location.parse(dataset / "nut/test/good/000.png"), "nut")
    assert one["uri"].to_pylist() == [str(dataset / "nut/test/good/000.png")]
    with pytest.raises(DataError, match="no such file or folder"):
        index_images(Location.parse(dataset / "nope"), "nut")
    with pytest.raises(DataError, match="0 files, none with an image's extension"):
        index_images(Location.parse(dataset / "notes"), "nut")


def test_loading_skips_what_is_broken_and_agrees_on_a_shape(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / f"{i}.png", np.resize(RGB, (60, 80, 3)))
    write(tmp_path / "odd.png", np.resize(RGB, (50, 50, 3)))
    (tmp_path / "broken.png").write_bytes(b"oops")
    uris = sorted(str(path) for path in tmp_path.iterdir())
    loaded = load_images(uris, common_framing(uris, 28, None, 1), threads=2)
    assert loaded.images.shape == (4, 24, 32, 3)
    assert loaded.skipped == [(str(tmp_path / "broken.png"), "unknown_format")]
    with pytest.raises(DataError, match="none of 1 images"):
        load_images([str(tmp_path / "broken.png")], Framing((8, 8)), threads=1)


def test_locations(tmp_path: Path) -> None:
    place = Location.parse(tmp_path) / "a" / "b.txt"
    place.write(b"one")
    place.write(b"two")
    assert place.read() == b"two"
    assert [info.base_name for info in (Location.parse(tmp_path) / "a").children()] == ["b.txt"]
    assert Location.parse(f"file://{tmp_path}").is_dir()
    assert not (Location.parse(tmp_path) / "c").exists()
    assert (Location.parse(tmp_path) / "c").files() == []
    bucket = Location(fs.LocalFileSystem(), "bucket/prefix", "s3://") / "x.png"
    assert bucket.uri == "s3://bucket/prefix/x.png"
    assert bucket.path == "bucket/prefix/x.png"


def test_an_empty_file_keeps_its_place_in_the_manifest(dataset: Path) -> None:
    (dataset / "nut/test/good/001.png").write_bytes(b"")
    rows = index_dataset(Location.parse(dataset)).to_pylist()
    assert rows[-1]["uri"].endswith("good/001.png")
    assert rows[-1]["size_bytes"] == 0
