"""Synthetic defects laid into photographs: the same for models that see these differently."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ssray.calibration.criterion import Criterion
from ssray.calibration.defect_images import DefectImages, with_synthetic_defects
from ssray.config import Alignment, AnomalyMap, Network
from ssray.data.pose import Framing
from ssray.errors import DataError
from ssray.method.autoencoder import Autoencoder
from ssray.method.inference import Reconstructor

FRAME = Alignment(frame=(-0.4, -0.2, 0.4, 0.2))
SIZE = 48


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Striped bars at many angles on a light background."""
    folder = tmp_path_factory.mktemp("bars")
    down, across = np.mgrid[-1:1:128j, -1:1:128j]
    places = []
    for number in range(6):
        angle = number * math.pi / 3 + 0.2
        along = across * math.cos(angle) + down * math.sin(angle)
        beside = down * math.cos(angle) - across * math.sin(angle)
        bar = (np.abs(along) < 0.6) & (np.abs(beside) < 0.12 + 0.1 * (along > 0.3))
        level = np.where(bar, 90 + 60 * np.sin(20 * along), 220)
        place = folder / f"{number}.png"
        Image.fromarray(np.repeat(level[..., None], 3, axis=2).astype(np.uint8)).save(place)
        places.append(str(place))
    return tuple(places)


def seen(
    photographs: tuple[str, ...], framing: Framing, alignment: Alignment | None = None
) -> DefectImages:
    return with_synthetic_defects(photographs, SIZE, alignment, framing, 0)


def area(found: DefectImages) -> Tensor:
    """The share of its photograph that each defect covers."""
    return found.covered * found.truth.float().mean(dim=(1, 2, 3))


def test_a_defect_is_the_same_at_every_size(photographs: tuple[str, ...]) -> None:
    small, large = (seen(photographs, Framing((side, side))) for side in (32, 64))
    assert len(small.images) == len(large.images) > 48
    assert (small.covered, small.hidden) == (1, 0)
    torch.testing.assert_close(area(small), area(large), atol=0.01, rtol=0)
    shrunk = nn.functional.avg_pool2d(large.images.permute(0, 3, 1, 2).float(), 2)
    off = (shrunk - small.images.permute(0, 3, 1, 2)).abs().mean(dim=(1, 2, 3))
    assert off.max() < 8, "of 255: the same photograph, but for the filter that shrinks it"


def test_a_defect_is_the_same_in_an_aligned_frame_and_in_the_photograph(
    photographs: tuple[str, ...],
) -> None:
    upright = seen(photographs, Framing.around(FRAME, 64), FRAME)
    whole = seen(photographs, Framing((128, 128)), FRAME)
    assert len(upright.images) == len(whole.images) > 48
    assert upright.covered == pytest.approx(0.8 * 0.4)
    assert upright.hidden < 0.05
    assert whole.hidden == 0
    torch.testing.assert_close(area(upright), area(whole), atol=0.02, rtol=0)


def test_a_process_makes_them_once(photographs: tuple[str, ...]) -> None:
    framing = Framing((40, 40))
    assert seen(photographs, framing) is seen(photographs, framing)


def test_large_photographs_are_shrunk_before_and_show_the_same(
    photographs: tuple[str, ...], tmp_path: Path
) -> None:
    enlarged = []
    for uri in photographs:
        with Image.open(uri) as image:
            image.resize((512, 512), Image.Resampling.NEAREST).save(tmp_path / Path(uri).name)
        enlarged.append(str(tmp_path / Path(uri).name))
    one, other = (seen(tuple(uris), Framing((32, 32))) for uris in (photographs, enlarged))
    assert len(one.images) == len(other.images)
    assert (one.images.float() - other.images.float()).abs().mean() < 1


def test_photographs_that_cannot_be_used_are_said(tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(DataError, match="none of 1"):
        seen((str(broken),), Framing((32, 32)), FRAME)


def test_the_criterion_judges_each_model_in_its_own_frame(photographs: tuple[str, ...]) -> None:
    """What an aligned model does not see of a photograph counts for it, as on a test image."""
    criterion = Criterion(seed=0, photographs=photographs, image_size=SIZE, alignment=FRAME)
    reconstructor = Reconstructor([Autoencoder(Network(width=2)).eval()], torch.float32)
    framing = Framing.around(FRAME, SIZE)
    references = torch.from_numpy(
        np.stack([framing(np.asarray(Image.open(uri)))[0] for uri in photographs])
    )
    found = criterion.gather(reconstructor, references, AnomalyMap(), framing=framing)["both"]
    assert found.covered == pytest.approx(0.32)
    assert found.basis == "synthetic defects"
    assert len(found.clean) == len(photographs)
    whole = torch.zeros(6, 64, 64, 3, dtype=torch.uint8)
    other = criterion.gather(reconstructor, whole, AnomalyMap())["both"]
    assert other.covered == 1
    assert len(other.defects) == len(found.defects)
