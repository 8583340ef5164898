"""What training images show decides whether parts are aligned, and says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from ssray.cluster.categories import survey_of
from ssray.data.pose import Framing
from ssray.recipes.survey import Survey
from tests.unit.data.test_pose import bolt

COUNT = 16


def noisy(images: list[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    rng = np.random.default_rng(1)
    stack = np.stack(images).astype(np.float32)
    return (stack + rng.normal(0, 4, stack.shape)).clip(0, 255).astype(np.uint8)


def bolts(spread: float, angle: float = 360.0) -> npt.NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    poses = [
        (*(100 + rng.uniform(-spread, spread, 2)), rng.uniform(-angle / 2, angle / 2))
        for _ in range(COUNT)
    ]
    return noisy([bolt(2 * x, 2 * y, degrees, side=200) for x, y, degrees in poses])


def test_parts_at_any_angle_are_turned_upright() -> None:
    survey = Survey.of(bolts(20))
    assert survey.alignment is not None
    assert survey.alignment.turned
    assert not survey.texture
    left, top, right, bottom = survey.alignment.frame
    assert right - left == pytest.approx(190 / 400 + 0.08, abs=0.03)
    assert bottom - top == pytest.approx(70 / 400 + 0.08, abs=0.03)
    assert survey.aligned is not None
    assert survey.aligned > 0.8 > survey.alike + 0.3
    assert "16 training images show parts that cover" in survey.in_words()
    assert "located and turned upright" in survey.in_words()
    assert Framing.around(survey.alignment, 100).shape[1] > 140


def test_parts_that_only_move_are_not_turned() -> None:
    disks = []
    rng = np.random.default_rng(0)
    down, across = np.mgrid[:200, :200]
    for _ in range(COUNT):
        x, y = rng.uniform(60, 140, 2)
        off = np.hypot(across - x, down - y)
        disk = np.where(off < 40, 60 + off, 200)
        disks.append(np.repeat(disk[..., None], 3, axis=2).astype(np.uint8))
    survey = Survey.of(noisy(disks))
    assert survey.alignment is not None
    assert not survey.alignment.turned
    assert ": each is located, in a frame" in survey.in_words()


def test_parts_in_their_place_stay_as_they_are() -> None:
    survey = Survey.of(bolts(1, angle=2.0))
    assert survey.alignment is None
    assert not survey.texture
    assert survey.alike > 0.8
    assert "in their place" in survey.in_words()


def test_textures_stay_as_they_are() -> None:
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 64, 64, 3), np.uint8)
    survey = Survey.of(images)
    assert survey.texture
    assert survey.alignment is None
    assert "show a texture" in survey.in_words()


def test_one_image_counts_as_a_part_in_its_place() -> None:
    survey = Survey.of(bolts(20)[:1])
    assert not survey.texture
    assert survey.alignment is None


def test_parts_that_are_not_found_in_every_image_stay_as_they_are() -> None:
    images = bolts(20)
    images[:3] = 128
    assert Survey.of(images).alignment is None


@pytest.mark.parametrize("shape", [(90, 160), (90, 300), (24, 24)])
def test_photographs_of_any_aspect_and_size_are_surveyed(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    uris = []
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (*shape, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        uris.append(str(tmp_path / f"{number}.png"))
    seen = survey_of(uris)
    assert seen.images == 4
    assert seen.aspect == pytest.approx(shape[1] / shape[0], rel=0.02)
