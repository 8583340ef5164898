"""What people can look at while a training runs."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ssray.report.events import event_log
from ssray.report.heatmap import CONTOUR
from ssray.report.sheets import IMAGES, reconstruction_sheet
from ssray.training import Epoch


class Repair(nn.Conv2d):
    """Gives back upright stripes, whatever was painted on them."""

    def forward(self, x: Tensor) -> Tensor:
        return x.median(dim=2, keepdim=True).values.expand_as(x)


def cells(sheet: bytes, side: int) -> np.ndarray:
    """(rows, 3, side, side, 3) uint8."""
    picture = np.asarray(Image.open(io.BytesIO(sheet)))
    rows, columns = ((length + 4) // (side + 4) for length in picture.shape[:2])
    assert picture.shape == (rows * (side + 4) - 4, columns * (side + 4) - 4, 3)
    starts = [range(0, length, side + 4) for length in picture.shape[:2]]
    return np.array([[picture[y : y + side, x : x + side] for x in starts[1]] for y in starts[0]])


def test_a_sheet_shows_input_reconstruction_and_heatmap(stripes: Tensor) -> None:
    network = Repair(1, 1, 1)
    network.train()
    sheet = reconstruction_sheet(network, stripes, "squared", torch.float32)
    assert network.training
    found = cells(sheet, stripes.shape[1])
    clean, defective = found[:IMAGES], found[IMAGES:]
    assert len(defective) > 0
    np.testing.assert_array_equal(clean[:, 0], stripes[:IMAGES].numpy())
    np.testing.assert_array_equal(clean[:, 1], clean[:, 0])
    assert (defective[:, 0] != defective[:, 1]).any(axis=(1, 2, 3)).all()
    marked = (found[:, 2] == CONTOUR).all(axis=-1).any(axis=(1, 2))
    assert marked.tolist() == [False] * IMAGES + [True] * len(defective)
    assert sheet == reconstruction_sheet(network, stripes, "squared", torch.float32)


def test_events_hold_the_log(tmp_path: Path) -> None:
    row = Epoch(
        objective="reconstruct",
        epoch=1.5,
        images_seen=30.0,
        budget_spent=0.5,
        crop_rows=32,
        crop_columns=32,
        learning_rate=1e-3,
        train_loss=0.25,
        validation_loss=0.125,
        images_per_second=9.0,
        seconds=3.0,
        seconds_left=3.0,
    )
    with event_log(tmp_path / "grid") as log:
        log(row)
    [file] = (tmp_path / "grid").iterdir()
    content = file.read_bytes()
    for name in ("train_loss", "validation_loss", "images_per_second"):
        assert name.encode() in content
    assert np.float32(0.125).tobytes() in content
    with event_log(None) as log:
        log(row)
