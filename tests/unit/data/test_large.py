"""Images that are decoded in strips: the same as in one piece."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from ssray.data import large
from ssray.data.decode import decode_image, resize
from ssray.data.large import decode_large
from ssray.errors import ImageError


def encoded(mode: str, kind: str) -> bytes:
    generator = np.random.default_rng(0)
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "I;16": ()}[mode]
    pixels = generator.integers(0, 2**16 if mode == "I;16" else 256, (301, 457, *channels))
    image = Image.fromarray(pixels.astype(np.uint16 if mode == "I;16" else np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("RGB", "PNG"), ("L", "PNG"), ("RGBA", "PNG"), ("I;16", "PNG"), ("RGB", "TIFF"),
     ("RGB", "JPEG"), ("L", "JPEG")],
)  # fmt: skip
def test_strips_give_what_one_piece_gives(
    monkeypatch: pytest.MonkeyPatch, mode: str, kind: str
) -> None:
    monkeypatch.setattr(large, "_STRIP_PIXELS", 457 * 37)
    content = encoded(mode, kind)
    decoded = decode_large(content, lambda _: (64, 97), None)
    assert decoded.shape == (301, 457)
    assert np.array_equal(decoded.image, resize(decode_image(content, None), (64, 97)))


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"no image", "unknown_format"),
        (encoded("RGB", "PNG")[:-5000], "truncated"),
        (encoded("RGB", "JPEG")[:-5000], "truncated"),
    ],
)
def test_what_can_t_be_decoded_has_a_reason(content: bytes, code: str) -> None:
    with pytest.raises(ImageError) as error:
        decode_large(content, lambda _: (64, 64))
    assert error.value.code == code


def test_the_limit_holds_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "MAX_LARGE_PIXELS", 301 * 457 - 1)
    with pytest.raises(ImageError, match=r"457 x 301 pixels; at most 137,556") as error:
        decode_large(encoded("RGB", "PNG"), lambda _: (64, 64))
    assert error.value.code == "too_large"
