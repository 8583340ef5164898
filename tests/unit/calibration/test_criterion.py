"""What models are compared by, without the test set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ssray.calibration.criterion import Criterion
from ssray.calibration.defect_images import LabelledImage
from ssray.calibration.map_settings import WIDE
from ssray.config import AnomalyMap, Network
from ssray.errors import DataError
from ssray.method.autoencoder import Autoencoder
from ssray.method.inference import Reconstructor

SIDE = 32


class Repairs(nn.Module):
    """Knows what defect-free images look like, and gives that back, mixed with its input."""

    def __init__(self, normal: Tensor, share: float) -> None:
        super().__init__()
        self.normal = nn.Parameter(normal.permute(2, 0, 1).float() / 255)
        self.share = share

    def forward(self, images: Tensor) -> Tensor:
        return torch.lerp(images, self.normal.expand_as(images), self.share)


@pytest.fixture
def normal() -> Tensor:
    rows = torch.arange(SIDE).view(SIDE, 1, 1).expand(SIDE, SIDE, 3)
    return ((rows * 23) % 200 + 20).to(torch.uint8)


@pytest.fixture
def references(normal: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(-3, 4, (8, SIDE, SIDE, 3), generator=generator)
    return (normal + noise).clamp(0, 255).to(torch.uint8)


def examined(
    criterion: Criterion, network: nn.Module, references: Tensor, mode: bool = False
) -> float:
    network.train(mode)
    found = criterion.examine(Reconstructor([network], torch.float32), references, AnomalyMap())
    assert found.selection.error is not None
    return found.selection.error


def test_synthetic_defects_prefer_the_network_that_repairs_them(
    normal: Tensor, references: Tensor
) -> None:
    criterion = Criterion(seed=0)
    repairs, copies = (
        examined(criterion, Repairs(normal, share), references) for share in (1.0, 1e-3)
    )
    assert repairs < 1e-4
    assert repairs < examined(criterion, Repairs(normal.flip(0), 1.0), references)
    assert repairs <= copies
    by_error = Criterion(by="reconstruction", seed=0)
    assert examined(by_error, Repairs(normal, 1.0), references) > examined(
        by_error, Repairs(normal, 1e-3), references
    ), "plain reconstruction error prefers the network that copies its input"


def test_every_setting_of_a_wide_grid_is_judged(normal: Tensor, references: Tensor) -> None:
    criterion = Criterion(seed=0, grid=WIDE)
    wanted = AnomalyMap(difference="squared")
    reconstructor = Reconstructor([Repairs(normal, 1.0).eval()], torch.float32)
    found = criterion.examine(reconstructor, references, wanted)
    kernels = {each.settings.kernel for each in found.judged}
    assert len(found.judged) == len(kernels) * 3 * 10 * 3, "the plain kernel is among the others"
    assert found.selection.tried == len(found.judged)


@pytest.fixture
def labelled(tmp_path: Path, references: Tensor) -> list[LabelledImage]:
    """Two good images, two with a bright square, with masks at another size, and a broken file."""
    rows = []
    for number, image in enumerate(references[:4].numpy()):
        place, mask_place = tmp_path / f"{number}.png", tmp_path / f"{number}_mask.png"
        defective = number >= 2
        pixels = image.copy()
        if defective:
            pixels[10:16, 15:22] = 255
            mask = np.zeros((2 * SIDE, 2 * SIDE), np.uint8)
            mask[20:32, 30:44] = 255
            Image.fromarray(mask).save(mask_place)
        Image.fromarray(pixels).save(place)
        mask_uris = (str(mask_place),) if defective else ()
        rows.append(LabelledImage(uri=str(place), defective=defective, mask_uris=mask_uris))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    return [*rows, LabelledImage(uri=str(broken), defective=True)]


def test_examining_a_network_leaves_it_as_it_was(normal: Tensor, references: Tensor) -> None:
    """Also one that is being trained: its running statistics and its mode."""
    torch.manual_seed(0)
    network = Autoencoder(Network(width=2)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    criterion = Criterion(seed=0)
    error = examined(criterion, network, references, mode=True)
    assert network.training
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert error == examined(criterion, network, references, mode=False)


def test_labelled_images_choose_with_their_masks_and_without(
    normal: Tensor, references: Tensor, labelled: list[LabelledImage], tmp_path: Path
) -> None:
    """A mask that can't be used, here of another aspect, is as good as none."""
    reconstructor = Reconstructor([Repairs(normal, 1.0).eval()], torch.float32)
    Image.new("L", (SIDE, 2 * SIDE), 255).save(tmp_path / "long.png")
    long = labelled[2].model_copy(update={"mask_uris": (str(tmp_path / "long.png"),)})
    for rows, masked in (
        (labelled, True),
        ([row.model_copy(update={"mask_uris": ()}) for row in labelled], False),
        ([*labelled[:2], long, *labelled[3:]], False),
    ):
        criterion = Criterion(by="labelled", seed=0, labelled=tuple(rows))
        found = criterion.examine(reconstructor, references, AnomalyMap())
        assert found.selection.basis == "labelled images"
        assert found.selection.defects == 2
        assert found.selection.image_auroc == 1
        for evidence in found.evidence.values():
            assert len(evidence.clean) == len(references) + 2
            assert evidence.truth.float().mean() == (pytest.approx(42 / SIDE**2) if masked else 0)
        assert (found.selection.pixel_auroc is not None) == masked


def test_a_validation_set_without_a_usable_defect_is_refused(
    references: Tensor, labelled: list[LabelledImage]
) -> None:
    rows = (labelled[0], labelled[-1])
    criterion = Criterion(by="labelled", seed=0, labelled=rows)
    with pytest.raises(DataError, match=r"no defective image.*broken\.png"):
        criterion.examine(Reconstructor([nn.Identity()], torch.float32), references, AnomalyMap())
