"""Parts are found wherever they lie, turned upright, and what is found goes back to its place."""

from __future__ import annotations

import io
import math

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw

from ssray.config import Alignment
from ssray.data import headers, large
from ssray.data.large import decode_framed
from ssray.data.pose import Framing, Placement, locate
from ssray.errors import ImageError

SIDE = 400
ALIGNMENT = Alignment(frame=(-0.36, -0.13, 0.26, 0.13))
FRAMING = Framing.around(ALIGNMENT, 120)
POSES = [(200.0, 200.0, 0), (170.0, 230.0, 30), (220.0, 180.0, 135), (190.0, 205.0, 260)]


def bolt(
    x: float, y: float, degrees: float, side: int = SIDE, background: float = 0.8
) -> npt.NDArray[np.uint8]:
    """A dark bolt on a light ground: its shaft 0.3 long to the left of its head, shares of the
    side; a mark on its head.
    """
    image = Image.new("RGB", (4 * side, 4 * side), (round(255 * background),) * 3)
    draw = ImageDraw.Draw(image)
    unit, angle = 4 * side / SIDE, math.radians(degrees)

    def polygon(left: float, top: float, right: float, bottom: float, grey: int) -> None:
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
        places = [
            (
                unit * (x + u * math.cos(angle) - v * math.sin(angle)),
                unit * (y + u * math.sin(angle) + v * math.cos(angle)),
            )
            for u, v in corners
        ]
        draw.polygon(places, fill=(grey,) * 3)

    polygon(-110, -12, 40, 12, 70)
    polygon(40, -35, 80, 35, 50)
    polygon(52, 2, 68, 18, 250)
    return np.asarray(image.resize((side, side), Image.Resampling.BOX))


@pytest.mark.parametrize(("x", "y", "degrees"), POSES)
def test_a_part_is_found_at_any_angle(x: float, y: float, degrees: float) -> None:
    reference = locate(bolt(200, 200, 0)).placement
    found = locate(bolt(x, y, degrees)).placement
    off = math.remainder(found.angle - reference.angle - math.radians(degrees), 2 * math.pi)
    assert abs(math.degrees(off)) < 0.7
    moved = (reference.x - 0.5, reference.y - 0.5)
    turned = math.radians(degrees)
    expected_x = x / SIDE + moved[0] * math.cos(turned) - moved[1] * math.sin(turned)
    expected_y = y / SIDE + moved[0] * math.sin(turned) + moved[1] * math.cos(turned)
    assert (found.x, found.y) == pytest.approx((expected_x, expected_y), abs=0.004)
    assert abs(math.degrees(reference.angle)) < 1, "its head lies on the right"


@pytest.mark.parametrize(("x", "y", "degrees"), POSES)
def test_upright_parts_fall_onto_each_other(x: float, y: float, degrees: float) -> None:
    reference, _ = FRAMING(bolt(200, 200, 0))
    image, _ = FRAMING(bolt(x, y, degrees))
    assert image.shape == (*FRAMING.shape, 3)
    assert np.abs(image.astype(float) - reference).mean() < 3


def test_the_size_of_the_photograph_does_not_matter() -> None:
    small, large = bolt(170, 230, 30), bolt(170, 230, 30, side=900)
    one, other = locate(small).placement, locate(large).placement
    assert (one.x, one.y, one.angle) == pytest.approx((other.x, other.y, other.angle), abs=0.01)
    difference = FRAMING(small)[0].astype(float) - FRAMING(large)[0]
    assert np.abs(difference).mean() < 3


def test_a_part_need_not_be_turned() -> None:
    moved = Framing((80, 80), Alignment(frame=(-0.4, -0.4, 0.4, 0.4), turned=False))
    reference, _ = moved(bolt(200, 200, 30))
    image, _ = moved(bolt(170, 230, 30))
    assert np.abs(image.astype(float) - reference).mean() < 3
    part = locate(bolt(200, 200, 90))
    left, top, right, bottom = part.extent(turned=False)
    assert bottom - top > 2 * (right - left), "as it lies in the photograph"
    left, top, right, bottom = part.extent(turned=True)
    assert right - left > 2 * (bottom - top)


def test_beyond_the_photograph_its_border_goes_on() -> None:
    image, _ = FRAMING(bolt(90, 200, 0)[:, 5:])
    assert abs(float(image[0, 0].mean()) - 204) < 3


def test_uneven_light_is_no_part() -> None:
    ramp = np.linspace(0.75, 1.25, SIDE)[None, :, None] * np.linspace(0.9, 1.1, SIDE)[:, None, None]
    lit = (bolt(170, 230, 30, background=0.6) * ramp).clip(0, 255).astype(np.uint8)
    found, expected = locate(lit).placement, locate(bolt(170, 230, 30, background=0.6)).placement
    assert (found.x, found.y) == pytest.approx((expected.x, expected.y), abs=0.005)
    assert found.angle == pytest.approx(expected.angle, abs=math.radians(1))


def test_what_is_found_goes_back_to_its_place() -> None:
    for x, y, degrees in POSES:
        photograph = bolt(x, y, degrees)
        image, placement = FRAMING(photograph)
        anomaly_map = (image[..., 0] > 225).astype(np.float32)
        back = FRAMING.laid_back(anomaly_map, placement, photograph.shape[:2])
        down, across = (axis.mean() for axis in np.nonzero(back > 0.5))
        scale = SIDE / back.shape[0]
        turned = math.radians(degrees)
        mark_x = x + 60 * math.cos(turned) - 10 * math.sin(turned)
        mark_y = y + 60 * math.sin(turned) + 10 * math.cos(turned)
        assert (scale * (across + 0.5), scale * (down + 0.5)) == pytest.approx(
            (mark_x, mark_y), abs=3
        )
        assert back.max() <= anomaly_map.max()
        assert back.flags.writeable, "as torch wants it"


def test_masks_go_the_way_of_their_images() -> None:
    photograph = bolt(170, 230, 30)
    placement = locate(photograph).placement
    truth = photograph[..., 0] < 140
    seen = FRAMING.mask(truth, placement)
    image = FRAMING.cut(photograph, placement)[..., 0]
    assert seen.shape == FRAMING.shape
    assert (seen == (image < 140)).mean() > 0.97
    whole = Framing((40, 20))
    assert whole.mask(np.eye(80, dtype=bool), None).shape == (40, 20)


def test_where_nothing_is_aligned_a_map_stays_as_it_is() -> None:
    framing = Framing((40, 40))
    image, placement = framing(bolt(200, 200, 0))
    assert image.shape == (40, 40, 3)
    assert placement is None
    anomaly_map = np.random.default_rng(0).random((40, 40), np.float32)
    assert framing.laid_back(anomaly_map, placement, (400, 400)) is anomaly_map


def test_a_frame_outside_of_the_map_is_zero() -> None:
    everywhere = np.ones(FRAMING.shape, np.float32)
    back = FRAMING.laid_back(everywhere, Placement(0.5, 0.5, 0.5), (SIDE, SIDE))
    assert back[0, 0] == 0
    assert back[back.shape[0] // 2, back.shape[1] // 2] == pytest.approx(1)
    frame = (0.62 * 0.26) * SIDE**2
    assert (back > 0.5).mean() * SIDE**2 == pytest.approx(frame, rel=0.05)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.full((SIDE, SIDE, 3), 128, np.uint8), "covers 0.0% of the image"),
        (np.random.default_rng(0).integers(118, 138, (SIDE, SIDE, 3), np.uint8), "part_not_found"),
        (np.full((1, 1, 3), 9, np.uint8), "part_not_found"),
    ],
)
def test_where_there_is_no_part_the_reason_is_told(
    image: npt.NDArray[np.uint8], reason: str
) -> None:
    with pytest.raises(ImageError) as error:
        locate(image)
    assert error.value.code == "part_not_found"
    assert reason in f"{error.value.code}: {error.value}"


def test_a_crowd_of_pixels_is_no_part() -> None:
    image = bolt(200, 200, 0).copy()
    image[::7, ::5] = 255 - image[::7, ::5]
    found = locate(image).placement
    assert abs(math.degrees(math.remainder(found.angle, math.pi))) < 10


def test_a_part_in_an_image_too_large_to_decode_at_once_is_found_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    photograph = bolt(170, 230, 30, side=600)
    buffer = io.BytesIO()
    Image.fromarray(photograph).save(buffer, "PNG")
    whole = decode_framed(buffer.getvalue(), FRAMING)
    monkeypatch.setattr(headers, "MAX_PIXELS", 600 * 599)
    monkeypatch.setattr(large, "LARGE_SIDE", 450)
    shrunk = decode_framed(buffer.getvalue(), FRAMING)
    assert shrunk.shape == whole.shape == (600, 600)
    assert whole.placement is not None
    assert shrunk.placement is not None
    for name in ("x", "y", "angle"):
        expected = getattr(whole.placement, name)
        assert getattr(shrunk.placement, name) == pytest.approx(expected, abs=0.01)
    assert np.abs(shrunk.image.astype(float) - whole.image).mean() < 2
