"""Images that are decoded in strips: the same as in one piece, in a fraction of the memory."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssray.data import large
from ssray.data.decode import decode_image, resize
from ssray.data.large import decode_large
from ssray.errors import ImageError
from tests.helpers import large_png


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
    image, shape = decode_large(content, (64, 97))
    assert shape == (301, 457)
    assert np.array_equal(image, resize(decode_image(content), (64, 97)))


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
        decode_large(content, (64, 64))
    assert error.value.code == code


def test_the_limit_holds_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "MAX_LARGE_PIXELS", 301 * 457 - 1)
    with pytest.raises(ImageError, match=r"457 x 301 pixels; at most 137,556") as error:
        decode_large(encoded("RGB", "PNG"), (64, 64))
    assert error.value.code == "too_large"


@pytest.mark.slow
def test_memory_of_a_large_image(tmp_path: Path) -> None:
    """20,000 x 20,000 pixels, 1.2 GB, in less than 150 MB more than a small one takes."""
    place = tmp_path / "large.png"
    place.write_bytes(large_png(20_000))
    program = (
        "import resource, sys; from pathlib import Path; from ssray.data.large import decode_large;"
        "content = Path(sys.argv[1]).read_bytes();"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "before = peak(); image, shape = decode_large(content, (256, 256));"
        "assert shape == (20000, 20000); print(peak() - before)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(place)], capture_output=True, text=True, check=True
    )
    assert int(ran.stdout) < 150 * 1024, f"{int(ran.stdout) / 1024:.0f} MiB"
