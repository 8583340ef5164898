"""Properties of the corruptions that the method relies on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ssray.config import Corruption, Mix, Patches, Shape
from ssray.method.corruption import KINDS, corrupt
from ssray.method.noise import smooth_noise
from ssray.method.shapes import patch_masks

SIDE = 64.0
PIXELS = 1.0
"""As a side of which lengths are shares: makes the lengths pixels."""
CPU = torch.device("cpu")
NOTHING = dict.fromkeys(KINDS, 0.0)
ANY_SHAPE: tuple[Shape, ...] = ("disk", "rectangle", "blob", "stroke")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def only(kind: str, **settings: object) -> Corruption:
    return Corruption.model_validate({"mix": NOTHING | {kind: 1.0}} | settings)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(16, 3, 64, 64, generator=generator(1))


@pytest.fixture
def textures() -> torch.Tensor:
    return torch.randint(256, (2, 40, 90, 3), generator=generator(2), dtype=torch.uint8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", ANY_SHAPE)
def test_outside_the_mask_the_target_is_untouched(
    images: torch.Tensor, kind: str, shape: Shape
) -> None:
    settings = only(kind, patches={"shapes": (shape,)})
    found = corrupt(images, settings, SIDE, generator())
    outside = (found.mask == 0).expand_as(images)
    assert 0.1 < outside.float().mean() < 1
    assert torch.equal(found.images[outside], found.target[outside])
    if kind != "pattern":
        assert torch.equal(found.target, images)


@pytest.mark.parametrize("kind", KINDS)
def test_inside_the_mask_something_changes(images: torch.Tensor, kind: str) -> None:
    found = corrupt(images, only(kind), SIDE, generator())
    inside = (found.mask > 0.15).expand_as(images)
    assert inside.any()
    assert (found.images - found.target)[inside].abs().mean() > 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_output_stays_in_range_and_mask_is_a_mask(images: torch.Tensor, kind: str) -> None:
    found = corrupt(
        images, only(kind, patches={"shapes": ANY_SHAPE}, rotated=0.3), SIDE, generator()
    )
    assert found.images.shape == found.target.shape == images.shape
    assert found.mask.shape == (16, 1, 64, 64)
    for values in (found.images, found.target, found.mask):
        assert values.dtype == torch.float32
        assert 0 <= values.min() <= values.max() <= 1
    assert (found.mask.amax(dim=(1, 2, 3)) > 0).float().mean() > 0.7


def test_the_formula_holds(images: torch.Tensor) -> None:
    """With a known content, zeros, x_hat = m * y + (1 - m) * x is (1 - m) * x."""
    found = corrupt(images, only("cut_out"), SIDE, generator())
    torch.testing.assert_close(found.images, (1 - found.mask) * images)


def test_swapped_content_is_another_image_at_the_same_place() -> None:
    levels = torch.linspace(0.1, 0.8, 8).view(8, 1, 1, 1).expand(8, 1, 32, 32)
    found = corrupt(levels, only("swap"), SIDE, generator())
    inside = found.mask == 1
    assert inside.any()
    assert not torch.isclose(found.images[inside], levels[inside]).any()
    assert torch.isin(found.images[inside].mul(1e4).round(), levels.mul(1e4).round()).all()


def test_brightness_changes_by_what_was_asked(images: torch.Tensor) -> None:
    grey = torch.full_like(images, 0.5)
    found = corrupt(grey, only("brightness", brightness=(0.1, 0.2)), SIDE, generator())
    change = (found.images - grey).abs()[(found.mask == 1).expand_as(grey)]
    assert 0.1 - 1e-5 <= change.min() <= change.max() <= 0.2 + 1e-5


def test_occlusion_from_textures_shows_the_texture() -> None:
    texture = torch.full((1, 8, 8, 3), 200, dtype=torch.uint8)
    settings = only("occlusion", foreign=["textures"], textures="somewhere")
    black = torch.zeros(4, 3, 32, 32)
    found = corrupt(black, settings, SIDE, generator(), texture)
    inside = (found.mask == 1).expand_as(black)
    assert inside.any()
    torch.testing.assert_close(found.images[inside], torch.full_like(black, 200 / 255)[inside])
    with pytest.raises(ValueError, match="needs textures"):
        corrupt(black, settings, SIDE, generator())


def test_textures_smaller_than_the_image_are_repeated(textures: torch.Tensor) -> None:
    settings = only("occlusion", foreign=["textures"], textures="somewhere")
    found = corrupt(torch.zeros(4, 3, 64, 64), settings, SIDE, generator(), textures)
    assert found.images.shape == (4, 3, 64, 64)


def test_noise_of_a_pattern_stays_in_the_target() -> None:
    grey = torch.full((32, 3, 64, 64), 0.5)
    found = corrupt(grey, only("pattern", noise=0.1), SIDE, generator())
    outside = (found.mask == 0).expand_as(grey)
    assert torch.equal(found.images[outside], found.target[outside])
    spread = (found.target - grey).flatten(1).std(dim=1)
    assert spread.max() <= 0.11
    assert 0.03 < spread.mean() < 0.07  # uniform between 0 and 0.1


def test_a_pattern_is_as_opaque_as_asked_and_its_mask_does_not_fade_with_it() -> None:
    black, white = torch.zeros(32, 3, 64, 64), torch.full((1, 8, 8, 3), 255, dtype=torch.uint8)
    settings = only(
        "pattern", opacity=(0.3, 0.6), noise=0, foreign=["textures"], textures="somewhere"
    )
    found = corrupt(black, settings, SIDE, generator(), white)
    opacity = found.images.amax(dim=(1, 2, 3))[found.mask.amax(dim=(1, 2, 3)) == 1]
    assert 0.3 - 1e-6 <= opacity.min() < 0.4
    assert 0.5 < opacity.max() <= 0.6 + 1e-6


def test_turned_images_turn_about_their_centre() -> None:
    rows, columns = torch.meshgrid(torch.arange(65.0), torch.arange(65.0), indexing="ij")
    spot = ((rows - 32).square() + (columns - 52).square() < 9).float().expand(8, 1, 65, 65)
    settings = only("elastic", rotated=1.0, rotation=(20.0, 20.0), displacement=(1e-5, 1e-5))
    found = corrupt(spot, settings, SIDE, generator())
    assert (found.mask == 1).all()
    assert torch.equal(found.target, spot)
    weights = found.images[:, 0]
    total = weights.sum(dim=(1, 2))
    down = (weights * (rows - 32)).sum(dim=(1, 2)) / total
    across = (weights * (columns - 32)).sum(dim=(1, 2)) / total
    angle = torch.rad2deg(torch.atan2(down, across))
    torch.testing.assert_close(angle.abs(), torch.full((8,), 20.0), atol=0.5, rtol=0)
    torch.testing.assert_close(torch.hypot(down, across), torch.full((8,), 20.0), atol=0.3, rtol=0)
    assert len(angle.sign().unique()) == 2


def test_a_mix_draws_kinds_by_weight() -> None:
    half = torch.full((400, 1, 8, 8), 0.5)
    mix = NOTHING | {"cut_out": 3.0, "brightness": 1.0}
    settings = Corruption.model_validate(
        {"mix": mix, "brightness": (0.3, 0.3), "patches": {"radius": (4.0, 4.0), "fade": 0.1}}
    )
    found = corrupt(half, settings, SIDE, generator())
    reached = (found.mask.amax(dim=(1, 2, 3)) == 1).nonzero().flatten()
    darkest = found.images[reached].amin(dim=(1, 2, 3))
    assert (darkest == 0).float().mean() == pytest.approx(0.75, abs=0.07)


@pytest.mark.parametrize("kind", [*KINDS, "mix"])
def test_same_generator_state_gives_the_same_corruption(images: torch.Tensor, kind: str) -> None:
    settings = mixed() if kind == "mix" else only(kind)
    first, second = (corrupt(images, settings, SIDE, generator(3)) for _ in range(2))
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.target, second.target)
    assert torch.equal(first.mask, second.mask)
    assert not torch.equal(first.mask, corrupt(images, settings, SIDE, generator(4)).mask)


def mixed() -> Corruption:
    return Corruption(
        mix=Mix(**dict.fromkeys(KINDS, 1.0)),
        patches=Patches(shapes=ANY_SHAPE),
        rotated=0.3,
    )


def test_another_process_with_other_threads_draws_the_same(
    images: torch.Tensor, tmp_path: Path
) -> None:
    code = (
        "import sys, torch; torch.set_num_threads(2);"
        "from tests.unit.method.test_corruption import *;"
        "x = torch.rand(16, 3, 64, 64, generator=generator(1));"
        "torch.save(vars(corrupt(x, mixed(), SIDE, generator(3))), sys.argv[1])"
    )
    assert torch.get_num_threads() == 1
    expected = corrupt(images, mixed(), SIDE, generator(3))
    file = tmp_path / "there"
    subprocess.run([sys.executable, "-c", code, file], check=True)
    for name, tensor in torch.load(file).items():
        torch.testing.assert_close(tensor, getattr(expected, name), rtol=0, atol=1e-5)


def test_elastic_corruption_keeps_the_patch_histogram_and_cut_out_does_not() -> None:
    rows = torch.linspace(0, 12, 96).sin()[:, None] * torch.linspace(0, 9, 96).cos()[None]
    image = (0.5 + 0.5 * rows).expand(8, 3, 96, 96)

    def distance(kind: str) -> float:
        settings = only(
            kind, patches={"radius": (16, 32)}, displacement=(1.5, 10), smoothness=(4, 16)
        )
        found = corrupt(image, settings, PIXELS, generator())
        inside = (found.mask > 0.5).expand_as(image)
        before, after = (
            torch.histc(values[inside], 16, 0, 1) / inside.sum() for values in (image, found.images)
        )
        return float((before - after).abs().sum() / 2)

    assert distance("elastic") < 0.15
    assert distance("cut_out") > 0.5


def test_mask_border_fades_smoothly() -> None:
    settings = Patches(count=1, radius=(20.0, 20.0), fade=0.5, outline=0.0)
    mask = patch_masks(8, 64, 64, settings, PIXELS, generator(), CPU)
    steps = torch.cat([mask.diff(dim=2).flatten(), mask.diff(dim=3).flatten()]).abs()
    # A smoothstep over 10 pixels rises by at most 1.5 / 10 between neighbours.
    assert steps.max() <= 0.151


def inner(mask: torch.Tensor) -> torch.Tensor:
    """Masks that don't touch the border."""
    edges = torch.cat([mask[..., 0, :], mask[..., -1, :], mask[..., 0], mask[..., -1]], dim=2)
    kept = mask[edges.amax(dim=(1, 2)) == 0]
    assert len(kept) > 10
    return kept


def test_mask_of_an_undistorted_disk_has_the_area_of_the_disk() -> None:
    settings = Patches(count=1, radius=(10.0, 10.0), fade=0.01, outline=0.0)
    kept = inner(patch_masks(64, 64, 64, settings, PIXELS, generator(), CPU))
    area = kept.sum(dim=(1, 2, 3))
    assert float(area.mean()) == pytest.approx(torch.pi * 100, rel=0.02)
    assert float(area.std()) < 0.05 * torch.pi * 100


@pytest.mark.parametrize("elongation", [(1.0, 1.0), (2.0, 2.0), (1.0, 3.0)])
def test_rectangles_have_the_area_of_their_square_and_are_as_long_as_set(
    elongation: tuple[float, float],
) -> None:
    settings = Patches(
        count=1,
        radius=(10.0, 10.0),
        fade=0.01,
        outline=0.0,
        shapes=("rectangle",),
        elongation=elongation,
    )
    kept = inner(patch_masks(128, 96, 96, settings, PIXELS, generator(), CPU))
    area = kept.sum(dim=(1, 2, 3))
    assert float(area.mean()) == pytest.approx(400, rel=0.02)
    assert float(area.std()) < 0.05 * 400
    rows, columns = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    weight = kept[:, 0] / area.view(-1, 1, 1)
    y, x = ((weight * axis).sum(dim=(1, 2), keepdim=True) for axis in (rows, columns))
    spread = (weight * ((rows - y).square() + (columns - x).square())).sum(dim=(1, 2))
    least, most = (400 / 12 * (e + 1 / e) for e in elongation)  # of sides a and b: (a^2 + b^2) / 12
    assert spread.min() > 0.95 * least
    assert 0.85 * most < spread.max() < 1.05 * most


def test_strokes_are_thin_and_blobs_cover_about_half_of_their_disk() -> None:
    def area(shape: Shape) -> float:
        settings = Patches(count=1, radius=(24.0, 24.0), outline=0.0, shapes=(shape,))
        return float(patch_masks(64, 128, 128, settings, PIXELS, generator(), CPU).sum()) / 64

    assert area("stroke") < 0.35 * area("disk")
    assert 0.2 * area("disk") < area("blob") < 0.6 * area("disk")


def test_a_stroke_covers_as_much_as_its_breadth_tells() -> None:
    def area(breadth: float) -> float:
        settings = Patches(
            count=1,
            radius=(40.0, 40.0),
            outline=0.0,
            shapes=("stroke",),
            stroke=(breadth, breadth),
        )
        return float(patch_masks(64, 128, 128, settings, PIXELS, generator(), CPU).sum()) / 64

    assert area(12.0) / area(4.0) == pytest.approx(3, rel=0.1)


@pytest.mark.parametrize("length", [2.0, 4.0, 16.0])
def test_noise_has_unit_mean_square_and_the_length_asked_for(length: float) -> None:
    noise = smooth_noise((32, 1, 128, 128), (length, length), generator(), CPU)
    torch.testing.assert_close(noise.square().mean(dim=(1, 2, 3)), torch.ones(32))

    def correlation(shift: int) -> float:
        return float((noise[..., shift:] * noise[..., : 128 - shift]).mean())

    if length >= 4:
        assert correlation(round(length / 4)) > 0.7
    assert abs(correlation(round(2 * length))) < 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_any_size_can_be_corrupted(kind: str) -> None:
    settings = only(kind, patches={"shapes": ANY_SHAPE}, rotated=0.5)
    found = corrupt(torch.rand(2, 1, 9, 24), settings, SIDE, generator())
    assert found.images.shape == (2, 1, 9, 24)
    assert found.mask.shape == (2, 1, 9, 24)
