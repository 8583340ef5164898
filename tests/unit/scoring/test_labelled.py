"""What a mask that can't be used costs: its image's figures of pixels, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ssray.cluster.score import _packed, _unpacked
from ssray.data.dataset import index_dataset
from ssray.data.masks import with_mask_levels
from ssray.data.pose import Framing
from ssray.metrics.pixels import PixelCounts
from ssray.models.artifact import ModelArtifact
from ssray.scoring.judge import Judge
from ssray.scoring.labelled import LabelledImage, judge_labelled, prepare_labelled
from ssray.storage.fetch import Fetcher
from ssray.storage.location import Location

SIDE = 64
DEFECT = np.zeros((SIDE, SIDE), np.uint8)
DEFECT[20:30, 30:40] = 255


def save(array: np.ndarray, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(place)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two good and three defective images of a category, with masks."""
    rng = np.random.default_rng(0)
    for kind, count in (("good", 2), ("spot", 3)):
        for number in range(count):
            image = rng.integers(90, 160, (SIDE, SIDE, 3), dtype=np.uint8)
            save(image, tmp_path / f"weave/test/{kind}/00{number}.png")
    for number in range(3):
        save(DEFECT, tmp_path / f"weave/ground_truth/spot/00{number}_mask.png")
    return tmp_path


def rows_of(root: Path) -> list[dict[str, Any]]:
    """The image table, defective images first."""
    rows: list[dict[str, Any]] = with_mask_levels(index_dataset(Location.parse(root))).to_pylist()
    return sorted(rows, key=lambda row: (-row["label"], row["uri"]))


def prepared(root: Path, framing: Framing) -> list[LabelledImage]:
    return [prepare_labelled(row, framing, Fetcher()) for row in rows_of(root)]


def shorter(root: Path) -> Path:
    place = root / "weave/ground_truth/spot/000_mask.png"
    save(DEFECT[:32], place)
    return place


def again(root: Path) -> Path:
    place = root / "weave/ground_truth/spot/000_mask.tif"
    save(DEFECT, place)
    return place


def empty(root: Path) -> Path:
    place = root / "weave/ground_truth/spot/000_mask.png"
    save(0 * DEFECT, place)
    return place


def broken(root: Path) -> Path:
    place = root / "weave/ground_truth/spot/000_mask.png"
    place.write_bytes(b"no image")
    return place


def on_good(root: Path) -> Path:
    place = root / "weave/ground_truth/good/000_mask.png"
    save(DEFECT, place)
    return place


MISTAKES = [
    (shorter, "mask_shape", "32 rows x 64 columns; expected .* 64 rows x 64 columns"),
    (again, "mask_twice", "000_mask.png and .*masks of one image"),
    (empty, "mask_empty", "no defective pixel in a defective image"),
    (broken, "mask_unknown_format", "none of BMP, GIF, JPEG"),
    (on_good, "mask_on_good", "100 defective pixels in an image that lies in 'good'"),
]


@pytest.mark.parametrize(("mistake", "code", "words"), MISTAKES, ids=[row[1] for row in MISTAKES])
def test_a_mask_that_cannot_be_used_costs_its_images_pixels_alone(
    root: Path, tiny_model: ModelArtifact, mistake: Any, code: str, words: str
) -> None:
    judge = Judge(tiny_model, torch.device("cpu"), "float32", "torch")
    sound = judge_labelled(judge, prepared(root, tiny_model.framing))
    place = mistake(root)
    images = prepared(root, tiny_model.framing)
    [lost] = [image for image in images if image.mask_error]
    assert lost.mask_error == code
    assert lost.mask_detail is not None
    assert str(place) in lost.mask_detail
    assert re.search(words, lost.mask_detail)
    assert lost.truth is None
    carried = [_unpacked(_packed(image), tiny_model.input_shape) for image in images]
    rows = judge_labelled(judge, carried)
    assert [row["score"] for row in rows] == [row["score"] for row in sound]
    assert [row["error"] for row in rows] == [None] * 5
    assert [row["mask_error"] for row in rows].count(code) == 1
    before, after = PixelCounts(), PixelCounts()
    before.merge_bytes(sound[0]["pixel_counts"])
    after.merge_bytes(rows[0]["pixel_counts"])
    defective = 0 if code == "mask_on_good" else 100
    assert before.defective_pixels - after.defective_pixels == defective
    assert before.good_pixels - after.good_pixels == SIDE**2 - defective


def test_an_empty_mask_of_a_good_image_is_no_mistake(root: Path) -> None:
    save(np.zeros((32, 32), np.uint8), root / "weave/ground_truth/good/000_mask.png")
    good = [image for image in prepared(root, Framing((SIDE, SIDE))) if not image.label]
    assert [image.mask_error for image in good] == [None, None]
    assert [None if i.truth is None else i.truth.shape for i in good] == [(32, 32), (64, 64)]


def test_masks_of_0_and_1_count_as_those_of_0_and_255(
    root: Path, tiny_model: ModelArtifact
) -> None:
    judge = Judge(tiny_model, torch.device("cpu"), "float32", "torch")
    before = judge_labelled(judge, prepared(root, tiny_model.framing))
    for number in range(3):
        save(DEFECT // 255, root / f"weave/ground_truth/spot/00{number}_mask.png")
    after = judge_labelled(judge, prepared(root, tiny_model.framing))
    assert [row["mask_error"] for row in after] == [None] * 5
    assert after[0]["pixel_counts"] == before[0]["pixel_counts"]
    save(DEFECT, root / "weave/ground_truth/spot/002_mask.png")
    codes = [row["mask_error"] for row in judge_labelled(judge, prepared(root, tiny_model.framing))]
    assert codes == ["mask_empty", "mask_empty", None, None, None], "they do not agree on 1"


def test_an_image_that_cannot_be_used_says_nothing_of_its_mask(root: Path) -> None:
    shorter(root)
    (root / "weave/test/spot/000.png").write_bytes(b"no image")
    image = prepared(root, Framing((SIDE, SIDE)))[0]
    assert (image.prepared.error, image.mask_error) == ("unknown_format", None)
