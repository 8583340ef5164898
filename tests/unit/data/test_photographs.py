"""What goes in is what was photographed: orientation, bits in use, scale, shape and limits."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from ssray.config import Alignment, Decoding
from ssray.data import headers, large
from ssray.data.decode import decode_image, decode_photograph, image_shape, resize, to_rgb
from ssray.data.large import decode_framed, decode_large
from ssray.data.loading import FirstLook, common_framing, load_image, load_images
from ssray.data.pose import Framing
from ssray.errors import DataError, ImageError
from ssray.scoring.model import _pixels

ORIENTATION = 0x112
GREY = np.random.default_rng(0).integers(0, 256, (40, 60), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
SEEN_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: np.swapaxes(stored, 0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(np.swapaxes(stored, 0, 1), 2),
    8: np.rot90,
}
"""What a viewer shows of stored pixels, by their EXIF orientation."""


def encoded(array: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def smooth(rows: int, columns: int) -> np.ndarray:
    """A photograph whose detail survives a JPEG: (rows, columns, 3) uint8."""
    y, x = np.mgrid[:rows, :columns] / 40
    planes = [120 + 90 * np.sin(x + k) * np.cos(y - k) for k in range(3)]
    return np.stack(planes, axis=2).astype(np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", SEEN_UPRIGHT)
def test_every_orientation_comes_out_upright(kind: str, orientation: int) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(COLOUR, kind, exif=turned(orientation), **options)
    expected = SEEN_UPRIGHT[orientation](COLOUR)
    photograph = decode_photograph(content)
    assert np.array_equal(photograph.pixels, expected)
    assert photograph.shape == image_shape(content) == expected.shape[:2]


@pytest.mark.parametrize("orientation", SEEN_UPRIGHT)
def test_a_jpeg_on_its_side_is_upright_at_every_scale(orientation: int) -> None:
    stored = smooth(480, 640)
    expected = SEEN_UPRIGHT[orientation](stored)
    content = encoded(stored, "JPEG", quality=95, exif=turned(orientation))
    shape = expected.shape[0] // 8, expected.shape[1] // 8
    photograph = decode_photograph(content, least=lambda _: shape)
    assert photograph.pixels.shape[:2] == shape
    assert photograph.shape == expected.shape[:2]
    assert np.abs(photograph.pixels - resize(expected, shape).astype(float)).mean() < 2


def with_xmp(array: np.ndarray, kind: str, orientation: int, exif: Image.Exif | None) -> bytes:
    """An image whose orientation stands in XMP, and perhaps also in EXIF."""
    packet = f'<rdf:Description tiff:Orientation="{orientation}"/>'
    options: dict[str, object] = {"xmp": packet.encode()}
    if kind == "PNG":
        text = PngInfo()
        text.add_itxt("XML:com.adobe.xmp", packet)
        options = {"pnginfo": text}
    if kind == "TIFF":
        options = {"tiffinfo": {700: packet.encode()} | (dict(exif) if exif else {})}
    elif exif:
        options["exif"] = exif
    if kind in ("WEBP", "JPEG"):
        options |= {"lossless": True} if kind == "WEBP" else {"quality": 95}
    return encoded(array, kind, **options)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", SEEN_UPRIGHT)
@pytest.mark.parametrize("exif", [None, Image.Exif(), turned(3)])
def test_an_orientation_in_xmp_counts_as_it_does_for_pillow(
    kind: str, orientation: int, exif: Image.Exif | None
) -> None:
    stored = smooth(24, 32)
    content = with_xmp(stored, kind, orientation, exif)
    by_pillow = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    photograph = decode_photograph(content)
    assert np.array_equal(photograph.pixels, np.asarray(by_pillow))
    expected = SEEN_UPRIGHT[3 if exif else orientation](stored)
    assert np.abs(photograph.pixels - expected.astype(float)).mean() < 4
    assert photograph.shape == image_shape(content) == expected.shape[:2]
    if kind != "TIFF":
        assert np.array_equal(
            decode_image(content, None), np.asarray(Image.open(io.BytesIO(content)))
        )


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("orientation", SEEN_UPRIGHT)
def test_deep_and_large_images_are_turned_by_xmp_too(
    monkeypatch: pytest.MonkeyPatch, kind: str, orientation: int
) -> None:
    expected = SEEN_UPRIGHT[orientation](smooth(24, 32))[..., 0]
    if kind != "JPEG":
        deep = with_xmp(smooth(24, 32)[..., 0].astype(np.uint16) << 4, kind, orientation, None)
        assert np.array_equal(decode_image(deep)[..., 0], expected)
    content = with_xmp(smooth(24, 32)[..., 0], kind, orientation, None)
    monkeypatch.setattr(headers, "MAX_PIXELS", 100)
    whole = large.decode_resized(content, expected.shape)
    assert whole.shape == expected.shape
    assert np.abs(whole.image[..., 0] - expected.astype(float)).mean() < 4


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", SEEN_UPRIGHT)
def test_deep_and_large_images_are_turned_as_others_are(
    monkeypatch: pytest.MonkeyPatch, kind: str, orientation: int
) -> None:
    expected = SEEN_UPRIGHT[orientation](GREY)
    deep = encoded(GREY.astype(np.uint16) << 4, kind, exif=turned(orientation))
    assert np.array_equal(decode_image(deep)[..., 0], expected)
    monkeypatch.setattr(headers, "MAX_PIXELS", 100)
    whole = large.decode_resized(encoded(GREY, kind, exif=turned(orientation)), expected.shape)
    assert whole.shape == expected.shape
    assert np.array_equal(whole.image[..., 0], expected)


def test_damaged_metadata_do_no_harm() -> None:
    content = encoded(COLOUR, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert np.array_equal(decode_image(content), COLOUR)


@pytest.mark.parametrize(("kind", "bits"), [("PNG", 8), ("PNG", 12), ("TIFF", 10), ("TIFF", 12)])
def test_the_bits_in_use_fill_the_range(tmp_path: Path, kind: str, bits: int) -> None:
    """As of a camera of 12 bits whose driver stores them at the lower end of 16."""
    uris = []
    for number in range(5):
        place = tmp_path / f"{number}.{kind.lower()}"
        values = GREY.astype(np.uint16) >> (0 if number == 2 else 2)  # most are dark
        place.write_bytes(encoded(values << (bits - 8), kind))
        uris.append(str(place))
    assert FirstLook.at(uris, threads=2).bits == bits
    framing = Framing((40, 60), decoding=Decoding(bits=bits))
    loaded = load_images(uris, framing, threads=2)
    assert np.array_equal(loaded.images[2, ..., 1], GREY)
    assert np.array_equal(loaded.images[0, ..., 1], GREY >> 2)


def test_colour_of_twelve_bits_keeps_its_levels() -> None:
    import pyvips

    deep = pyvips.Image.new_from_array(COLOUR.astype(np.uint16) << 4, interpretation="rgb16")
    for suffix in (".png", ".tif"):
        assert np.array_equal(decode_image(deep.write_to_buffer(suffix)), COLOUR)


def test_a_pil_image_is_turned_upright_too() -> None:
    content = encoded(COLOUR, exif=turned(6))
    assert np.array_equal(
        _pixels(Image.open(io.BytesIO(content)), Decoding()), np.rot90(COLOUR, -1)
    )
    assert np.array_equal(_pixels(Image.open(io.BytesIO(content)), None), COLOUR)


@pytest.mark.parametrize("array", [GREY, COLOUR, GREY.astype(np.uint16) << 4])
def test_an_image_that_pillow_has_opened_is_seen_as_its_file_is(array: np.ndarray) -> None:
    content = encoded(array)
    seen = to_rgb(Image.open(io.BytesIO(content)))
    assert np.array_equal(seen, decode_image(content))


def test_thirty_two_bits_are_read_as_those_in_use() -> None:
    assert np.array_equal(decode_image(encoded(GREY.astype(np.int32) << 4, "TIFF"))[..., 0], GREY)


def test_values_beyond_the_bits_in_use_are_white_and_noted() -> None:
    values = np.array([[16, 4095, 4096, 60000]], np.uint16)
    photograph = decode_photograph(encoded(values), Decoding(bits=12))
    assert photograph.pixels[0, :, 0].tolist() == [1, 255, 255, 255]
    assert photograph.notes == ("16_bit", "above_range")


def test_a_dark_image_of_a_deep_camera_stays_dark() -> None:
    dark = encoded(GREY.astype(np.uint16) // 4 << 4)
    assert np.array_equal(decode_image(dark, Decoding(bits=12))[..., 0], GREY // 4)


def test_models_of_earlier_versions_see_what_they_saw() -> None:
    content = encoded(COLOUR, "PNG", exif=turned(6))
    assert np.array_equal(decode_image(content, None), COLOUR)
    assert np.array_equal(decode_image(encoded(GREY.astype(np.uint16) << 8), None)[..., 0], GREY)
    assert decode_image(encoded(GREY.astype(np.uint16)), None).max() == 0
    jpeg = encoded(smooth(480, 640), "JPEG")
    assert decode_photograph(jpeg, None, lambda _: (60, 80)).pixels.shape == (480, 640, 3)


@pytest.mark.parametrize(
    ("least", "decoded"),
    [((61, 80), (120, 160)), ((60, 80), (60, 80)), ((300, 400), (480, 640))],
)
def test_a_jpeg_is_decoded_no_larger_than_needed_but_never_smaller(
    least: tuple[int, int], decoded: tuple[int, int]
) -> None:
    content = encoded(smooth(480, 640), "JPEG")
    assert decode_photograph(content, least=lambda _: least).pixels.shape[:2] == decoded


def test_what_is_needed_of_a_photograph_is_what_the_frame_shows_of_it() -> None:
    framing = Framing((64, 128), Alignment(frame=(-0.4, -0.2, 0.4, 0.2)))
    assert framing.least((1000, 2000)) == (160, 320)
    assert Framing((64, 128)).least((1000, 2000)) == (64, 128)
    far = Framing((64, 128), Alignment(frame=(-2, -1, 2, 1)))
    assert far.least((1000, 1000)) == (256, 256), "the part itself is searched in 256 pixels"


@pytest.mark.parametrize("array", [COLOUR, GREY, np.dstack([COLOUR, GREY])])
def test_a_png_is_the_same_by_either_library(array: np.ndarray) -> None:
    content = encoded(array)
    pillow = np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))[..., :3]
    assert np.array_equal(decode_image(content), pillow)
    resized = decode_photograph(content).resized((13, 17))
    assert np.array_equal(resized, resize(np.ascontiguousarray(pillow), (13, 17)))


@pytest.mark.parametrize("columns", [60, 58, 42])
def test_an_aspect_about_the_models_is_stretched_and_noted(columns: int) -> None:
    decoded = decode_framed(encoded(COLOUR[:, :columns]), Framing((20, 30)))
    assert decoded.image.shape == (20, 30, 3)
    assert ("stretched" in decoded.notes) == (columns < 58)


@pytest.mark.parametrize("shape", [(1, 1), (3000, 3), (60, 40)])
def test_another_shape_than_the_models_is_refused(shape: tuple[int, int]) -> None:
    content = encoded(np.resize(COLOUR, (*shape, 3)))
    with pytest.raises(ImageError, match="the model sees 60 x 40: expected this aspect") as error:
        decode_framed(content, Framing((40, 60)))
    assert error.value.code == "shape"


@pytest.mark.parametrize("portrait", [0, 3])
def test_photographs_of_a_turned_camera_are_counted_before_training(
    tmp_path: Path, portrait: int
) -> None:
    for number in range(10):
        shape = (80, 60, 3) if number < portrait else (60, 80, 3)
        pixels = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
        (tmp_path / f"{number}.png").write_bytes(encoded(pixels))
    (tmp_path / "broken.png").write_bytes(b"no image")
    uris = [str(place) for place in sorted(tmp_path.iterdir())]
    warning = FirstLook.at(uris, threads=1).too_different(64)
    if not portrait:
        assert warning is None
        return
    assert warning is not None
    assert warning.startswith(
        "Warning: 3 of 10 training images looked at, such as those of 60 x 80 px, differ too much "
        "in shape from most, of 80 x 60 px: they are left out"
    )
    loaded = load_images(uris, common_framing(uris, 64, None, threads=1), threads=1)
    assert [reason for _, reason in loaded.skipped].count("shape") == 3


def test_photographs_too_large_to_be_decoded_at_once_are_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "0.png").write_bytes(encoded(COLOUR, exif=turned(6)))
    uris = [str(tmp_path / "0.png")]
    monkeypatch.setattr(headers, "MAX_PIXELS", 100)
    assert FirstLook.at(uris, threads=1).shapes == [(60, 40)]
    framing = common_framing(uris, 16, None, threads=1)
    assert framing.shape == (20, 13)
    assert load_images(uris, framing, threads=1).images.shape == (1, 20, 13, 3)


def test_photographs_that_are_hardly_stretched_need_no_warning() -> None:
    assert FirstLook(None, [(60, 80), (60, 80), (60, 60), (600, 800)]).too_different(64) is None
    assert FirstLook(None, []).too_different(64) is None


def test_training_photographs_of_sixteen_to_nine_are_loaded(tmp_path: Path) -> None:
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (90, 160, 3), dtype=np.uint8)
        (tmp_path / f"{number}.png").write_bytes(encoded(pixels))
    uris = [str(place) for place in sorted(tmp_path.iterdir())]
    framing = common_framing(uris, 64, None, threads=1)
    assert framing.shape == (48, 85)
    assert load_images(uris, framing, threads=1).skipped == []


def test_a_video_behind_a_photograph_is_no_scan_of_it() -> None:
    content = encoded(smooth(2000, 2000), "JPEG") + b"\xff\xda" * 1000
    assert image_shape(content) == (2000, 2000)


def test_grey_of_twelve_bits_in_a_row_is_read() -> None:
    """As some cameras pack it in TIFFs."""
    values = np.array([[0x123, 0xABC, 0xFFF, 0x001]], np.uint16)
    packed = bytes.fromhex("123abcfff001")
    tags = [
        (256, 4),
        (257, 1),
        (258, 12),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, 1),
        (279, 6),
    ]
    tags.append((279, len(packed)))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    head = struct.pack("<2sHI", b"II", 42, 14) + packed
    content = head + struct.pack("<H", len(tags)) + entries + bytes(4)
    assert np.array_equal(decode_image(content)[..., 0], values >> 4)


def test_a_constant_image_is_noted_and_no_training_image(tmp_path: Path) -> None:
    place = tmp_path / "black.png"
    place.write_bytes(encoded(np.zeros((20, 20), np.uint8)))
    assert decode_framed(place.read_bytes(), Framing((8, 8))).notes == ("constant",)
    with pytest.raises(ImageError, match="all pixels are alike"):
        load_image(str(place), Framing((8, 8)))
    with pytest.raises(DataError, match=r"\{'constant': 2\}. Expected images of some content"):
        load_images([str(place)] * 2, Framing((8, 8)), threads=1)


def png_with(chunk: bytes, body: bytes) -> bytes:
    content, length = encoded(COLOUR), len(body).to_bytes(4, "big")
    sum_ = zlib.crc32(chunk + body).to_bytes(4, "big")
    return content[:33] + length + chunk + body + sum_ + content[33:]


def test_two_megabytes_of_text_are_no_damage() -> None:
    text = b"Comment\0\0" + zlib.compress(b"x" * 2_000_000)
    assert np.array_equal(decode_image(png_with(b"zTXt", text)), COLOUR)


def png_of(header: bytes) -> bytes:
    """A PNG whose header, of 13 bytes, says what its pixels do not."""
    sum_ = zlib.crc32(b"IHDR" + header).to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + header + sum_ + encoded(GREY)[33:]


@pytest.mark.parametrize("shape", [(2, 3_000_000), (99_000_000, 2)])
def test_long_sides_are_refused_before_anything_is_decoded(shape: tuple[int, int]) -> None:
    rows, columns = shape
    header = columns.to_bytes(4, "big") + rows.to_bytes(4, "big") + b"\x08\0\0\0\0"
    content = png_of(header)
    with pytest.raises(ImageError, match="sides up to 100,000 are accepted") as error:
        decode_framed(content, Framing((40, 60)))
    assert error.value.code == "too_large"


def test_interlaced_giants_are_refused() -> None:
    header = (30_000).to_bytes(4, "big") * 2 + b"\x08\0\0\0\1"
    content = png_of(header)
    with pytest.raises(ImageError, match="interlaced or progressive") as error:
        decode_framed(content, Framing((40, 40)))
    assert error.value.code == "too_large"


def test_a_jpeg_of_thousands_of_scans_is_refused() -> None:
    content = encoded(smooth(2000, 2000), "JPEG", progressive=True)
    scan = content[content.rindex(b"\xff\xda") : -2]
    with pytest.raises(ImageError, match="scans; at most 3,000,000,000 pixels times") as error:
        decode_image(content[:-2] + scan * 1000 + content[-2:])
    assert error.value.code == "too_large"


def test_the_content_never_chooses_a_decoder_outside_the_list() -> None:
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n"
    svg = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
    for content in (eps, svg, b"%PDF-1.4\n"):
        with pytest.raises(ImageError) as error:
            decode_image(content)
        assert error.value.code == "unknown_format"


def test_a_large_jpeg_is_shrunk_while_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = smooth(480, 640)
    content = encoded(stored, "JPEG", quality=95)
    monkeypatch.setattr(large, "_STRIP_PIXELS", 80 * 11)
    decoded = decode_large(content, lambda _: (60, 80))
    assert decoded.shape == (480, 640)
    assert np.abs(decoded.image - resize(stored, (60, 80)).astype(float)).mean() < 2
