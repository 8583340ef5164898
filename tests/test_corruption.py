"""Properties of the corruption that the method relies on."""

from __future__ import annotations

import pytest
import torch

from ssray.config import Corruption
from ssray.method.corruption import corrupt, faded_disks, smooth_noise, warp


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(16, 3, 64, 64, generator=generator(1))


def test_outside_the_mask_the_input_is_untouched(images: torch.Tensor) -> None:
    x_hat, mask = corrupt(images, Corruption(), generator())
    outside = (mask == 0).expand_as(images)
    assert 0.1 < outside.float().mean() < 1
    assert torch.equal(x_hat[outside], images[outside])


def test_inside_the_mask_something_changes(images: torch.Tensor) -> None:
    x_hat, mask = corrupt(images, Corruption(), generator())
    inside = (mask > 0.9).expand_as(images)
    assert inside.any()
    assert (x_hat - images)[inside].abs().mean() > 0.1


def test_output_stays_in_range_and_mask_is_a_mask(images: torch.Tensor) -> None:
    x_hat, mask = corrupt(images, Corruption(), generator())
    assert x_hat.shape == images.shape
    assert mask.shape == (16, 1, 64, 64)
    assert 0 <= x_hat.min() <= x_hat.max() <= 1
    assert 0 <= mask.min() <= mask.max() <= 1
    assert (mask.amax(dim=(1, 2, 3)) > 0).float().mean() > 0.8


def test_same_generator_state_gives_the_same_corruption(images: torch.Tensor) -> None:
    first, second = (corrupt(images, Corruption(), generator(3)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    other = corrupt(images, Corruption(), generator(4))
    assert not torch.equal(first[0], other[0])


def test_elastic_corruption_keeps_the_patch_histogram_and_cut_out_does_not() -> None:
    rows = torch.linspace(0, 12, 96).sin()[:, None] * torch.linspace(0, 9, 96).cos()[None]
    image = (0.5 + 0.5 * rows).expand(8, 3, 96, 96)
    x_hat, mask = corrupt(image, Corruption(radius=(16.0, 32.0)), generator())
    inside = (mask > 0.5).expand_as(image)

    def histogram(values: torch.Tensor) -> torch.Tensor:
        counts = torch.histc(values, 16, 0, 1)
        return counts / counts.sum()

    original = histogram(image[inside])
    elastic = (histogram(x_hat[inside]) - original).abs().sum() / 2
    cut_out = (histogram(torch.zeros_like(image)[inside]) - original).abs().sum() / 2
    assert elastic < 0.15
    assert cut_out > 0.8


def test_mask_border_fades_smoothly() -> None:
    settings = Corruption(disks=1, radius=(20.0, 20.0), fade=0.5, outline=0.0)
    mask = faded_disks(8, 64, 64, settings, generator())
    steps = torch.cat([mask.diff(dim=2).flatten(), mask.diff(dim=3).flatten()]).abs()
    # A smoothstep over 10 pixels rises by at most 1.5 / 10 between neighbours.
    assert steps.max() <= 0.151


def test_mask_of_an_undistorted_disk_has_the_area_of_the_disk() -> None:
    settings = Corruption(disks=1, radius=(10.0, 10.0), fade=0.01, outline=0.0)
    mask = faded_disks(64, 64, 64, settings, generator())
    inner = mask[(mask[:, :, 0].amax(2) + mask[:, :, -1].amax(2)).squeeze(1) == 0]
    inner = inner[(inner[..., 0].amax(2) + inner[..., -1].amax(2)).squeeze(1) == 0]
    assert len(inner) > 10
    torch.testing.assert_close(
        inner.sum(dim=(1, 2, 3)), torch.full((len(inner),), torch.pi * 100), rtol=0.03, atol=0
    )


def test_warp_by_whole_pixels_is_a_shift() -> None:
    image = torch.rand(1, 1, 16, 16, generator=generator())
    field = torch.zeros(1, 2, 16, 16)
    field[:, 0], field[:, 1] = 3, 2
    shifted = warp(image, field)
    torch.testing.assert_close(shifted[..., :-2, :-3], image[..., 2:, 3:], atol=1e-5, rtol=0)


def test_warp_without_displacement_is_the_identity(images: torch.Tensor) -> None:
    torch.testing.assert_close(warp(images, torch.zeros(16, 2, 64, 64)), images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("length", [4.0, 16.0])
def test_noise_has_unit_variance_and_the_length_asked_for(length: float) -> None:
    noise = smooth_noise(32, 1, 128, 128, (length, length), generator())
    assert noise.square().mean() == pytest.approx(1, abs=0.05)

    def correlation(shift: int) -> float:
        return float((noise[..., shift:] * noise[..., : 128 - shift]).mean())

    assert correlation(round(length / 4)) > 0.7
    assert abs(correlation(round(2 * length))) < 0.2


def test_images_of_any_size_can_be_corrupted() -> None:
    x_hat, mask = corrupt(torch.rand(2, 1, 8, 24), Corruption(), generator())
    assert x_hat.shape == (2, 1, 8, 24)
    assert mask.shape == (2, 1, 8, 24)
