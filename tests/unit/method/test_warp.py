"""Geometric warps: the ones that are known, there and back, masks, and who computes them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssray.method.warp import displace, inverse, rotate, rotations, transform, transform_masks


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blurred(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth images, so that sampling between pixels loses little."""
    coarse = torch.rand(count, 3, 5, 6, generator=generator(seed))
    return torch.nn.functional.interpolate(
        coarse, size=(height, width), mode="bicubic", align_corners=True
    ).clamp(0, 1)


@pytest.mark.parametrize("size", [(32, 32), (9, 24), (1, 5)])
def test_a_turn_by_nothing_is_the_identity(size: tuple[int, int]) -> None:
    images = torch.rand(4, 3, *size, generator=generator())
    torch.testing.assert_close(rotate(images, torch.zeros(4)), images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", [16, 33])
@pytest.mark.parametrize("quarters", [-1, 1, 2, 3])
def test_quarter_turns_are_torchs(side: int, quarters: int) -> None:
    images = torch.rand(2, 3, side, side, generator=generator())
    degrees = torch.full((2,), 90.0 * quarters)
    expected = images.rot90(quarters, dims=(2, 3))
    torch.testing.assert_close(rotate(images, degrees), expected, atol=1e-4, rtol=0)
    masks = images > 0.5
    found = transform_masks(masks, rotations(degrees, (side, side)))
    assert torch.equal(found, masks.rot90(quarters, dims=(2, 3)))


@settings(max_examples=30, deadline=None)
@given(degrees=st.floats(-180, 180), seed=st.integers(0, 1000))
def test_there_and_back_changes_little_inside(degrees: float, seed: int) -> None:
    images = blurred(2, 64, 80, seed)
    there = rotations(torch.tensor([degrees, -degrees]), (64, 80))
    back = transform(transform(images, there), inverse(there))
    down, across = torch.meshgrid(torch.arange(64.0), torch.arange(80.0), indexing="ij")
    inside = torch.hypot(down - 31.5, across - 39.5) < 30
    assert (back - images)[..., inside].abs().max() < 0.02


def test_each_image_has_its_own_matrix_and_no_influence_on_others() -> None:
    images = torch.rand(5, 3, 24, 31, generator=generator())
    matrices = rotations(torch.linspace(-170, 170, 5), (24, 31))
    matrices[:, :, 2] += torch.rand(5, 2, generator=generator(1))
    together = transform(images, matrices)
    masks = transform_masks(images > 0.5, matrices)
    for number in range(5):
        one = slice(number, number + 1)
        assert torch.equal(transform(images[one], matrices[one]), together[one])
        assert torch.equal(transform_masks(images[one] > 0.5, matrices[one]), masks[one])


def test_the_result_has_the_size_asked_for_and_repeats_the_border() -> None:
    images = torch.rand(1, 1, 4, 6, generator=generator())
    shift = torch.tensor([[[1.0, 0.0, 2.0], [0.0, 1.0, 3.0]]])
    found = transform(images, shift, (9, 10))
    expected = torch.nn.functional.pad(images, (2, 2, 3, 2), mode="replicate")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_masks_stay_boolean_and_outside_is_false() -> None:
    masks = torch.ones(2, 1, 100, 100, dtype=torch.bool)
    found = transform_masks(masks, rotations(torch.tensor([0.0, 45.0]), (100, 100)))
    assert found.dtype == torch.bool
    assert found[0].all()
    assert not found[1, 0, 0, 0] and found[1, 0, 50, 50]
    area = (found[1].sum() / 10_000).item()
    assert area == pytest.approx(2 * (2**0.5 - 1), abs=0.01)  # a square with its corners cut off


def test_a_displacement_by_whole_pixels_is_a_shift() -> None:
    images = torch.rand(1, 1, 16, 16, generator=generator())
    field = torch.zeros(1, 2, 16, 16)
    field[:, 0], field[:, 1] = 3, 2
    shifted = displace(images, field)
    torch.testing.assert_close(shifted[..., :-2, :-3], images[..., 2:, 3:], atol=1e-5, rtol=0)
    torch.testing.assert_close(shifted[..., -1, -1], images[..., -1, -1], atol=1e-5, rtol=0)


def test_no_displacement_is_the_identity() -> None:
    images = torch.rand(16, 3, 64, 48, generator=generator())
    found = displace(images, torch.zeros(16, 2, 64, 48))
    torch.testing.assert_close(found, images, atol=1e-5, rtol=0)


def test_the_number_of_threads_changes_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, torch; torch.set_num_threads(int(sys.argv[1]));"
        "from tests.unit.method.test_warp import everything; torch.save(everything(), sys.argv[2])"
    )
    for threads in ("1", "3"):
        command = [sys.executable, "-c", code, threads, str(tmp_path / threads)]
        subprocess.run(command, check=True)
    assert torch.equal(torch.load(tmp_path / "1"), torch.load(tmp_path / "3"))


def everything() -> Tensor:
    images = torch.rand(8, 3, 96, 96, generator=generator())
    field = 5 * torch.randn(8, 2, 96, 96, generator=generator(1))
    return rotate(displace(images, field), torch.linspace(-90, 90, 8))


WITHOUT = """
import sys
sys.modules["kornia"] = None
try:
    {code}
except ImportError as error:
    assert "kornia" in str(error), error
    print("needs it")
"""


@pytest.mark.parametrize(
    "code",
    [
        "import ssray.method.warp",
        "from ssray.method.corruption import corrupt",
        "from ssray.method.augmentation import random_light",
    ],
)
def test_warps_are_kornias(code: str) -> None:
    """The product's own code fails without the package: nothing stands in for it."""
    command = [sys.executable, "-c", WITHOUT.format(code=code)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout == "needs it\n"


def test_every_warp_reaches_kornia(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only imported: each function of ours hands its pixels to one of kornia's."""
    from ssray.method import warp

    reached: list[str] = []

    def counted(name: str) -> None:
        function = getattr(warp, name)
        assert function.__module__.startswith("kornia.")

        def counting(*args: object, **kwargs: object) -> object:
            reached.append(name)
            return function(*args, **kwargs)

        monkeypatch.setattr(warp, name, counting)

    for name in ("get_rotation_matrix2d", "invert_affine_transform", "remap", "warp_affine"):
        counted(name)
    images = torch.rand(2, 3, 8, 8, generator=generator())
    matrices = rotations(torch.tensor([10.0, 20.0]), (8, 8))
    transform(images, inverse(matrices))
    transform_masks(images > 0.5, matrices)
    displace(images, torch.ones(2, 2, 8, 8))
    assert reached == [
        *("get_rotation_matrix2d", "invert_affine_transform", "warp_affine"),
        *("warp_affine", "remap"),
    ]
