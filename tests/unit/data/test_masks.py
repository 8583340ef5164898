"""Masks as annotation tools write them, and as people name them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import pyvips
from PIL import Image

from ssray.data.dataset import index_dataset
from ssray.data.masks import (
    common_level,
    decode_mask,
    mask_levels,
    read_mask,
    read_masks,
    same_aspect,
    with_mask_levels,
)
from ssray.errors import DataError, ImageError
from ssray.storage.fetch import Fetcher
from ssray.storage.location import Location

DEFECT = np.zeros((8, 10), bool)
DEFECT[2:5, 3:7] = True


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey(value: int, dtype: type = np.uint8) -> bytes:
    """A mask of 0 and a value."""
    return encoded(Image.fromarray(DEFECT.astype(dtype) * dtype(value)))


def painted(
    inside: tuple[int, ...], outside: tuple[int, ...], kind: str = "PNG", mode: str | None = None
) -> bytes:
    """A mask of two colours, that of the defect and that of the rest."""
    pixels = np.where(DEFECT[..., None], inside, outside).astype(np.uint8)
    return encoded(Image.fromarray(pixels, mode) if mode else Image.fromarray(pixels), kind)


def palette(*colours: tuple[int, int, int], indices: np.ndarray | None = None) -> bytes:
    """A palette image, of index 1 where the defect is and 0 elsewhere unless others are given."""
    image = Image.fromarray((DEFECT if indices is None else indices).astype(np.uint8), "P")
    image.putpalette([value for colour in colours for value in colour])
    return encoded(image)


def test_a_pixel_is_defective_above_half_of_the_range() -> None:
    eight = np.array([[0, 1, 127, 128, 255]], np.uint8)
    np.testing.assert_array_equal(decode_mask(encoded(Image.fromarray(eight))), eight > 127)
    sixteen = np.array([[0, 255, 32767, 32768, 65535]], np.uint16)
    for kind in ("PNG", "TIFF"):
        found = decode_mask(encoded(Image.fromarray(sixteen), kind))
        np.testing.assert_array_equal(found, sixteen > 32767)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(encoded(Image.fromarray(DEFECT)), id="bilevel"),
        pytest.param(encoded(Image.fromarray(DEFECT), "TIFF"), id="bilevel TIFF"),
        pytest.param(grey(255), id="grey"),
        pytest.param(encoded(Image.fromarray(DEFECT * np.uint8(255)), "GIF"), id="GIF"),
        pytest.param(painted((255, 0, 0), (0, 0, 0)), id="red"),
        pytest.param(palette((0, 0, 0), (128, 0, 0)), id="palette"),
        pytest.param(palette((0, 0, 0), (3, 2, 1)), id="dark palette"),
        pytest.param(palette((255, 255, 255), (9, 9, 9)), id="bright background"),
        pytest.param(palette((0, 0, 0), (255, 255, 255)), id="black and white"),
        pytest.param(palette((255, 255, 255), (0, 0, 0), indices=~DEFECT), id="white and black"),
        pytest.param(palette((7, 7, 7), (7, 7, 7)), id="one colour"),
        pytest.param(painted((255, 255, 255, 255), (255, 255, 255, 0)), id="white and alpha"),
        pytest.param(painted((0, 0, 0, 255), (0, 0, 0, 0)), id="black and alpha"),
        pytest.param(painted((0, 0, 9, 255), (0, 0, 0, 0)), id="dark on transparent black"),
        pytest.param(painted((255, 0, 0, 255), (255, 255, 255, 0)), id="red on transparent white"),
        pytest.param(painted((0, 0, 0, 255), (255, 255, 255, 0)), id="black on transparent white"),
        pytest.param(painted((255, 255, 255, 255), (0, 0, 0, 255)), id="opaque"),
        pytest.param(painted((255, 255, 255, 0), (0, 0, 0, 0)), id="never opaque"),
        pytest.param(painted((255, 255), (255, 0), mode="LA"), id="grey and alpha"),
        pytest.param(painted((0, 255), (0, 0), "TIFF", mode="LA"), id="black and alpha TIFF"),
        pytest.param(
            encoded(Image.fromarray(DEFECT * np.uint8(255)), transparency=0), id="transparent grey"
        ),
    ],
)
def test_a_mask_is_read_as_its_tool_wrote_it(content: bytes) -> None:
    np.testing.assert_array_equal(decode_mask(content), DEFECT)


def test_every_index_but_0_is_defective() -> None:
    indices = np.arange(80).reshape(8, 10)
    found = decode_mask(palette(*[(0, 0, 0)] * 80, indices=indices))
    np.testing.assert_array_equal(found, indices > 0)


def test_transparent_pixels_among_several_colours_are_not_defective() -> None:
    pixels = np.full((4, 4, 4), (255, 255, 255, 0), np.uint8)
    pixels[0], pixels[1] = (255, 255, 255, 255), (0, 0, 0, 255)
    found = decode_mask(encoded(Image.fromarray(pixels)))
    np.testing.assert_array_equal(found, np.arange(4)[:, None].repeat(4, 1) == 0)


@pytest.mark.parametrize("colour", [(255, 255, 255, 0), (0, 0, 0, 0), (0, 0, 0, 255)])
def test_a_mask_of_one_colour_that_shows_nothing_is_empty(colour: tuple[int, ...]) -> None:
    assert not decode_mask(painted(colour, colour)).any()


def deep(kind: str, *channels: np.ndarray) -> bytes:
    """A mask of 16 bits whose channels have these values, (H, W) each, with alpha last."""
    stacked = np.dstack(channels).astype(np.uint16)
    space = "grey16" if len(channels) < 3 else "rgb16"
    content: bytes = pyvips.Image.new_from_array(stacked, interpretation=space).write_to_buffer(
        kind
    )
    return content


WHOLE = np.full(DEFECT.shape, 65535)


@pytest.mark.parametrize("value", [1, 255, 32767, 65535])
@pytest.mark.parametrize(
    "channels",
    [
        pytest.param(lambda d: (d, d, d), id="white"),
        pytest.param(lambda d: (d, 0 * d, 0 * d), id="red"),
        pytest.param(lambda d: (d, d, d, WHOLE), id="white, opaque"),
        pytest.param(lambda d: (d, d, d, 0 * d + d.max()), id="white, alpha as high"),
        pytest.param(lambda d: (0 * d, 0 * d, 0 * d, d), id="alpha alone"),
        pytest.param(lambda d: (WHOLE, 0 * d, 0 * d, d), id="red and alpha"),
        pytest.param(lambda d: (d, WHOLE), id="grey, opaque"),
        pytest.param(lambda d: (0 * d, d), id="grey and alpha"),
    ],
)
def test_colours_of_sixteen_bits_are_read_by_what_their_values_mean(
    value: int, channels: Callable[[np.ndarray], tuple[np.ndarray, ...]], tmp_path: Path
) -> None:
    planes = channels(DEFECT * value)
    for kind in (".png", ".tif")[: 1 if len(planes) == 2 else 2]:  # Pillow opens no such TIFF
        place = tmp_path / f"0{kind}"
        place.write_bytes(deep(kind, *planes))
        level = common_level([str(place)])
        assert level == (None if value == 65535 else value)
        np.testing.assert_array_equal(read_mask(str(place), level), DEFECT)


def test_a_deep_mask_is_as_transparent_as_one_of_eight_bits() -> None:
    """White on black counts where it is opaque; what is painted below transparency does not."""
    white, alpha = DEFECT * 65535, WHOLE.copy()
    white[0], alpha[0] = 65535, 0
    np.testing.assert_array_equal(decode_mask(deep(".png", white, white, white, alpha)), DEFECT)


def test_a_deep_mask_is_turned_as_its_file_says() -> None:
    white = np.dstack([DEFECT * 65535] * 3).astype(np.uint16)
    image = pyvips.Image.new_from_array(white, interpretation="rgb16").copy()
    image.set_type(pyvips.GValue.gint_type, "orientation", 6)
    for kind in (".png", ".tif"):
        found = decode_mask(image.write_to_buffer(kind))
        np.testing.assert_array_equal(found, np.rot90(DEFECT, -1))


def test_a_mask_is_turned_as_its_file_says() -> None:
    exif = Image.Exif()
    exif[0x112] = 6  # shown turned by 90 degrees clockwise
    content = encoded(Image.fromarray(DEFECT * np.uint8(255)), exif=exif)
    np.testing.assert_array_equal(decode_mask(content), np.rot90(DEFECT, -1))


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "empty"),
        (b"no image", "unknown_format"),
        (grey(255)[:60], "truncated"),
        (encoded(Image.fromarray(DEFECT.astype(np.float32)), "TIFF"), "unsupported_mode"),
        (encoded(Image.fromarray(DEFECT * np.int32(70_000)), "TIFF"), "unsupported_mode"),
    ],
)
def test_a_mask_that_cannot_be_read_is_named_with_a_reason(
    content: bytes, code: str, tmp_path: Path
) -> None:
    (tmp_path / "000_mask.png").write_bytes(content)
    with pytest.raises(ImageError, match=r"000_mask\.png: ") as refusal:
        read_mask(str(tmp_path / "000_mask.png"))
    assert refusal.value.code == code


@pytest.mark.parametrize(
    ("masks", "level"),
    [
        ([grey(1), grey(1)], 1),
        ([grey(100), grey(100)], 100),
        ([grey(0), grey(127)], 127),
        ([grey(1, np.uint16), grey(1, np.uint16)], 1),
        ([grey(255, np.uint16)], 255),
        ([grey(32767, np.uint16)], 32767),
        ([palette((0, 0, 0), (9, 0, 0)), encoded(Image.fromarray(DEFECT)), grey(2)], 2),
        ([b"no image", grey(3)], 3),
        ([painted((0, 0, 0, 1), (0, 0, 0, 0))], 1),
        ([grey(1), grey(2)], 1),
        ([grey(3), grey(32)], 3),
        ([grey(1), grey(33)], None),
        ([grey(1), grey(255)], None),
        ([grey(128)], None),
        ([grey(32768, np.uint16)], None),
        ([encoded(Image.fromarray(np.array([[0, 1, 2]], np.uint8)))], 1),
        ([grey(0)], None),
        ([b"no image"], None),
        ([], None),
    ],
)
def test_two_values_are_taken_where_all_masks_agree(
    masks: list[bytes], level: int | None, tmp_path: Path
) -> None:
    places = [tmp_path / f"{number}.png" for number in range(len(masks))]
    for place, content in zip(places, masks, strict=True):
        place.write_bytes(content)
    assert common_level([str(place) for place in places]) == level


def test_the_first_mask_of_full_range_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "0.png").write_bytes(grey(255))
    read: list[str] = []

    def fetch(self: Fetcher, uri: str) -> bytes:
        read.append(uri)
        return Path(uri).read_bytes()

    monkeypatch.setattr(Fetcher, "__call__", fetch)
    assert common_level([str(tmp_path / f"{number}.png") for number in range(100)]) is None
    assert read == [str(tmp_path / "0.png")]


def test_a_level_is_what_masks_are_read_by() -> None:
    np.testing.assert_array_equal(decode_mask(grey(1), 1), DEFECT)
    np.testing.assert_array_equal(decode_mask(grey(300, np.uint16), 300), DEFECT)
    assert not decode_mask(grey(1)).any()
    np.testing.assert_array_equal(decode_mask(palette((0, 0, 0), (9, 9, 9)), 1), DEFECT)


@pytest.mark.parametrize(
    ("mask", "image", "same"),
    [
        ((64, 64), (64, 64), True),
        ((32, 32), (64, 64), True),
        ((128, 128), (64, 64), True),
        ((32, 64), (64, 64), False),
        ((64, 32), (64, 64), False),
        ((100, 200), (200, 100), False),
        ((90, 100), (64, 64), False),
        ((333, 500), (1000, 1501), True),
        ((1000, 1501), (333, 500), True),
        ((480, 640), (1024, 1280), False),
    ],
)
def test_the_aspect_is_that_of_the_image_to_within_a_pixel(
    mask: tuple[int, int], image: tuple[int, int], same: bool
) -> None:
    assert same_aspect(mask, image) is same


Part = Callable[[str, bytes], Path]


@pytest.fixture
def part(tmp_path: Path) -> Part:
    """Adds a file to a category with two training, two good and two bent images, and masks."""

    def add(name: str, content: bytes) -> Path:
        place = tmp_path / "nut" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        return place

    for kind in ("train/good", "test/good", "test/bent"):
        for number in range(2):
            add(f"{kind}/00{number}.png", grey(9))
    for number in range(2):
        add(f"ground_truth/bent/00{number}_mask.png", grey(255))
    return add


def test_a_mask_belongs_to_the_image_of_its_stem(part: Part, tmp_path: Path) -> None:
    part("ground_truth/bent/000_mask.png", b"").unlink()
    place = part("ground_truth/bent/000.bmp", encoded(Image.fromarray(DEFECT), "BMP"))
    rows = {row["uri"]: row for row in index_dataset(Location.parse(tmp_path)).to_pylist()}
    bent = rows[str(tmp_path / "nut/test/bent/000.png")]
    assert (bent["mask_uris"], bent["mask_conflict"]) == ([str(place)], None)
    good = rows[str(tmp_path / "nut/test/good/000.png")]
    assert (good["mask_uris"], good["mask_conflict"]) == (None, None)


@pytest.mark.parametrize("second", ["000_mask.tif", "000.png", "sub/000_mask.png"])
def test_two_masks_of_one_image_are_named_and_neither_is_taken(
    part: Part, tmp_path: Path, second: str
) -> None:
    place = part(f"ground_truth/bent/{second}", grey(255))
    rows = index_dataset(Location.parse(tmp_path)).to_pylist()
    twice, other = (row for row in rows if row["split_type"] == "bent")
    assert twice["mask_uris"] is None
    assert str(place) in twice["mask_conflict"]
    assert str(tmp_path / "nut/ground_truth/bent/000_mask.png") in twice["mask_conflict"]
    assert other["mask_uris"] == [str(tmp_path / "nut/ground_truth/bent/001_mask.png")]
    assert other["mask_conflict"] is None


def test_a_mask_may_lie_below_a_folder_with_a_newline_in_its_name(
    part: Part, tmp_path: Path
) -> None:
    for name in ("test/two\nlines/000.png", "ground_truth/two\nlines/000_mask.png"):
        place = part(name, encoded(Image.fromarray(DEFECT)))
    rows = index_dataset(Location.parse(tmp_path)).to_pylist()
    [uris] = [row["mask_uris"] for row in rows if row["split_type"] == "two\nlines"]
    assert uris == [str(place)]
    np.testing.assert_array_equal(read_masks(uris), DEFECT)


def test_the_levels_of_a_table_are_those_of_its_categories(part: Part, tmp_path: Path) -> None:
    for number in range(2):
        part(f"../bolt/test/bent/00{number}.png", grey(9))
        part(f"../bolt/ground_truth/bent/00{number}_mask.png", grey(1))
    table = with_mask_levels(index_dataset(Location.parse(tmp_path)))
    assert mask_levels(table) == {"bolt": 1}
    assert {row["mask_level"] for row in table.to_pylist() if row["category"] == "nut"} == {None}


def test_pairing_is_by_exact_stem(part: Part, tmp_path: Path) -> None:
    part("ground_truth/bent/001_mask.png", b"").rename(
        tmp_path / "nut/ground_truth/bent/0010_mask.png"
    )
    with pytest.raises(DataError, match=r"1 masks without an image, first 0010.*test/bent; add"):
        index_dataset(Location.parse(tmp_path))


def test_a_missing_mask_is_named(part: Part, tmp_path: Path) -> None:
    part("ground_truth/bent/001_mask.png", b"").unlink()
    with pytest.raises(DataError, match="1 of 2 images have no mask, first 001"):
        index_dataset(Location.parse(tmp_path))


def test_two_images_of_one_name_cannot_have_masks(part: Part, tmp_path: Path) -> None:
    part("test/bent/000.jpg", grey(9))
    with pytest.raises(DataError, match="two images share the name 000"):
        index_dataset(Location.parse(tmp_path))
