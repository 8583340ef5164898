"""What a sheet of upright parts shows."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from ssray.report.reconstructions import ALIGNED, alignment_sheet


@pytest.mark.parametrize("count", [2, 11, 30])
def test_upright_parts_lie_side_by_side_and_their_mean_last(count: int) -> None:
    levels = torch.arange(count, dtype=torch.uint8) * 6
    images = levels.view(-1, 1, 1, 1).expand(count, 20, 50, 3)
    sheet = np.asarray(Image.open(io.BytesIO(alignment_sheet(images))))
    shown = min(count, ALIGNED - 1)
    rows = -(-(shown + 1) // 3)
    assert sheet.shape == (rows * 24 - 4, 3 * 54 - 4, 3)
    tops, lefts = range(0, 24 * rows, 24), range(0, 162, 54)
    seen = [int(sheet[top + 10, left + 25, 0]) for top in tops for left in lefts]
    assert seen[:shown] == levels[:shown].tolist()
    assert seen[shown] == round(float(levels.float().mean()))
    assert seen[shown + 1 :] == [255] * (len(seen) - shown - 1)
