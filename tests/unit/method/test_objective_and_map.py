"""Equations (1) to (4), (13), (14) and SSIM against calculations written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from ssray.config import AnomalyMap, MapSettings
from ssray.method.anomaly_map import (
    SPREAD,
    USUAL_SPREADS,
    AverageMap,
    Joining,
    MapMaker,
    combine,
    common_scale,
    difference_maps,
    image_scores,
    scaled,
    smooth,
    usual_level,
    weighted,
)
from ssray.method.objective import amplification_objective, reconstruction_objective
from ssray.method.ssim import ssim_map


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_objective_is_equation_1(lam: float) -> None:
    rng = np.random.default_rng(0)
    x, f = rng.random((2, 3, 5, 4)), rng.random((2, 3, 5, 4))
    m = rng.random((2, 1, 5, 4))
    clean = corrupted = norm_clean = norm_corrupted = 0.0
    for b, c, i, j in np.ndindex(x.shape):
        weight = m[b, 0, i, j]
        clean += ((1 - weight) * (f[b, c, i, j] - x[b, c, i, j])) ** 2
        corrupted += (weight * (f[b, c, i, j] - x[b, c, i, j])) ** 2
        norm_clean += 1 - weight
        norm_corrupted += weight
    expected = (1 - lam) / norm_clean * clean + lam / norm_corrupted * corrupted
    tensors = [torch.from_numpy(each).float() for each in (f, x, m)]
    found = reconstruction_objective(tensors[0], tensors[1], tensors[2], lam)
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_objective_with_nothing_or_everything_masked_is_finite(value: float) -> None:
    x = torch.rand(1, 3, 4, 4)
    loss = reconstruction_objective(x * 0, x, torch.full((1, 1, 4, 4), value), 0.5)
    assert float(loss) == pytest.approx(0.5 * float(x.square().mean()), rel=1e-4)


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_objective_is_equation_4(lam: float) -> None:
    rng = np.random.default_rng(0)
    x, f, x_hat = (rng.random((2, 3, 5, 4)) for _ in range(3))
    m = rng.random((2, 1, 5, 4))
    clean, amplified, norm_clean, norm_amplified = 0.0, 0.0, 0.0, 0.0
    for b, c, i, j in np.ndindex(x.shape):
        at = (b, c, i, j)
        kept = 1 - m[b, 0, i, j]
        changed = abs(x[at] - x_hat[at])
        clean += float((kept * (f[at] - x[at])) ** 2)
        amplified += float((changed * (f[at] - x[at])) ** 2)
        norm_clean += kept
        norm_amplified += float(changed)
    expected = (1 - lam) / norm_clean * clean - lam / norm_amplified * amplified
    tensors = [torch.from_numpy(each).float() for each in (f, x, x_hat, m)]
    found = amplification_objective(tensors[0], tensors[1], tensors[2], tensors[3], lam)
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("objective", ["reconstruct", "amplify"])
def test_images_masked_as_a_whole_do_not_drown_patches(objective: str) -> None:
    """Half of the batch is turned: patch pixels weigh half of what they weigh on their own."""
    f, x, x_hat = torch.rand(3, 2, 1, 32, 32)
    mask = torch.zeros(2, 1, 32, 32)
    mask[0, :, :4, :4] = 1
    mask[1] = 1

    def gradient(images: slice) -> torch.Tensor:
        reconstruction = f[images].clone().requires_grad_()
        settings = (x[images], x_hat[images], mask[images], 1.0)
        if objective == "amplify":
            amplification_objective(reconstruction, *settings).backward()
        else:
            reconstruction_objective(reconstruction, x[images], mask[images], 1.0).backward()
        assert reconstruction.grad is not None
        gradient: torch.Tensor = reconstruction.grad[0, :, :4, :4]
        return gradient

    torch.testing.assert_close(gradient(slice(0, 2)), gradient(slice(0, 1)) / 2)


def test_amplification_leaves_pixels_that_did_not_change_alone() -> None:
    """Masked but unchanged pixels get no gradient: there is nothing to amplify."""
    x = torch.rand(1, 1, 4, 4)
    x_hat = x.clone()
    x_hat[..., 0] += 0.5
    f = torch.rand(1, 1, 4, 4, requires_grad=True)
    amplification_objective(f, x, x_hat, torch.ones(1, 1, 4, 4), 0.5).backward()
    assert f.grad is not None
    assert (f.grad[..., 1:] == 0).all()
    assert (f.grad[..., 0] != 0).all()


def test_amplification_of_an_unchanged_image_is_finite() -> None:
    x = torch.rand(1, 1, 4, 4)
    loss = amplification_objective(x * 0, x, x, torch.zeros(1, 1, 4, 4), 0.5)
    assert float(loss) == pytest.approx(0.5 * float(x.square().mean()), rel=1e-4)


def test_squared_difference_is_the_mean_square_over_channels() -> None:
    x, y = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    expected = ((x - y) ** 2).sum(1, keepdim=True) / 3
    torch.testing.assert_close(difference_maps(x, [y], "squared"), expected)


@pytest.mark.parametrize("noise", [0.02, 0.3])
def test_ssim_is_that_of_scikit_image(noise: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.random((3, 40, 36)).astype(np.float32)
    y = np.clip(x + noise * rng.standard_normal(x.shape), 0, 1).astype(np.float32)
    _, expected = structural_similarity(
        x, y, channel_axis=0, data_range=1.0, gaussian_weights=True, use_sample_covariance=False,
        full=True,
    )  # fmt: skip
    found = ssim_map(torch.from_numpy(x)[None], torch.from_numpy(y)[None])[0].numpy()
    inside = (slice(None), slice(5, -5), slice(5, -5))  # borders are treated differently
    np.testing.assert_allclose(found[inside], expected[inside], atol=2e-5)


def test_ssim_near_the_border_weighs_the_pixels_that_exist() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.random((2, 12, 13))
    offsets = np.arange(-5, 6)
    gauss = np.exp(-0.5 * (offsets / 1.5) ** 2)
    expected = np.empty_like(x)
    for i, j in np.ndindex(x.shape):
        rows = [k for k in offsets if 0 <= i + k < 12]
        columns = [k for k in offsets if 0 <= j + k < 13]
        w = np.outer(gauss[np.array(rows) + 5], gauss[np.array(columns) + 5])
        w /= w.sum()
        here = np.ix_([i + k for k in rows], [j + k for k in columns])
        mx, my = (w * x[here]).sum(), (w * y[here]).sum()
        vx, vy = (w * (x[here] - mx) ** 2).sum(), (w * (y[here] - my) ** 2).sum()
        cov = (w * (x[here] - mx) * (y[here] - my)).sum()
        expected[i, j] = (2 * mx * my + 1e-4) * (2 * cov + 9e-4)
        expected[i, j] /= (mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)
    tensors = (torch.from_numpy(a).float()[None, None] for a in (x, y))
    np.testing.assert_allclose(ssim_map(*tensors)[0, 0], expected, atol=2e-5)


def test_ssim_difference_and_both_of_two_networks() -> None:
    x, first, second = (torch.rand(2, 3, 16, 16) for _ in range(3))
    ssim = difference_maps(x, [first, second], "ssim")
    assert ssim.shape == (2, 2, 16, 16)
    torch.testing.assert_close(ssim[:, 1], (1 - ssim_map(x, second)).mean(dim=1) / 2)
    assert 0 <= ssim.min() <= ssim.max() <= 1
    both = difference_maps(x, [first, second], "both")
    squared = difference_maps(x, [first, second], "squared")
    torch.testing.assert_close(both.square(), squared * ssim)


@pytest.mark.parametrize(("kernel", "repeats"), [(1, 1), (3, 1), (5, 2), (7, 3)])
def test_smoothing_is_the_direct_mean_over_pixels_that_exist(kernel: int, repeats: int) -> None:
    maps = torch.rand(1, 1, 9, 11)
    expected = maps[0, 0].numpy().astype(np.float64)
    reach = kernel // 2
    for _ in range(repeats):
        step = np.empty_like(expected)
        for i, j in np.ndindex(expected.shape):
            rows = slice(max(i - reach, 0), i + reach + 1)
            columns = slice(max(j - reach, 0), j + reach + 1)
            step[i, j] = expected[rows, columns].mean()
        expected = step
    np.testing.assert_allclose(smooth(maps, kernel, repeats)[0, 0], expected, rtol=1e-5)


def test_no_repeats_leave_the_map() -> None:
    maps = torch.rand(1, 1, 8, 8)
    assert torch.equal(smooth(maps, 11, 0), maps)


def test_average_map_is_the_mean_and_merges_over_workers() -> None:
    maps = torch.rand(7, 2, 5, 6)
    whole = AverageMap.of(maps)
    torch.testing.assert_close(whole.mean(), maps.mean(dim=0))
    parts = [AverageMap.of(part) for part in maps.split(3)]
    merged = parts[2] + parts[0] + parts[1]
    assert merged.count == 7
    torch.testing.assert_close(merged.mean(), whole.mean())


def test_weighting_is_equation_14() -> None:
    maps, average = torch.rand(2, 1, 3, 4), torch.rand(1, 3, 4)
    found = weighted(maps, average, 3.0)
    for b, _, i, j in np.ndindex(maps.shape):
        expected = float(maps[b, 0, i, j]) * (1 - float(average[0, i, j])) ** 3
        assert float(found[b, 0, i, j]) == pytest.approx(expected, rel=1e-4)


def test_common_scale_makes_channels_comparable() -> None:
    """A channel and a thousandfold of it weigh the same in the maximum."""
    maps = torch.rand(6, 1, 8, 8)
    channels = torch.cat([maps, 1000 * maps.flip(3)], dim=1)
    scale = common_scale(channels)
    torch.testing.assert_close(scale[1], 1000 * scale[0])
    assert float(scale[0]) == pytest.approx(float(maps.amax(dim=(1, 2, 3)).mean()))
    joined = combine(scaled(channels, scale), "max")
    torch.testing.assert_close(joined, torch.maximum(maps, maps.flip(3)) / scale[0])


def test_image_scores() -> None:
    maps = torch.arange(100.0).view(1, 1, 10, 10)
    assert image_scores(maps, "sum", 0.5) == 4950
    assert image_scores(maps, "max", 0.5) == 99
    assert image_scores(maps, "topk", 0.04) == pytest.approx(97.5)
    assert image_scores(maps, "topk", 1e-9) == 99


@pytest.mark.parametrize("power", [0.0, 2.0])
def test_the_map_maker_does_all_of_it_in_order(power: float) -> None:
    clean, maps = torch.rand(5, 2, 16, 16), torch.rand(3, 2, 16, 16)
    settings = MapSettings(
        difference="both", kernel=3, repeats=2, average_power=power, image_score="max"
    )
    maker = MapMaker.fitted(settings, clean)
    smooth_clean = smooth(clean, 3, 2)
    scale = smooth_clean.amax(dim=(2, 3)).mean(dim=0).view(2, 1, 1)
    average = (smooth_clean / scale).mean(dim=0)
    expected = (smooth(maps, 3, 2) / scale * (1 - average) ** power).amax(dim=1, keepdim=True)
    torch.testing.assert_close(maker(maps), expected)
    assert (maker.average is None) == (power == 0)


def test_the_map_of_a_perfect_reconstruction_is_zero_and_never_negative() -> None:
    x = torch.rand(1, 3, 16, 16)
    maker = MapMaker.fitted(
        MapSettings(difference="both", kernel=5, repeats=2, image_score="max"),
        torch.rand(4, 1, 16, 16),
    )
    maps = maker(difference_maps(x, [x], "both"))
    assert 0 <= maps.min() <= maps.max() < 1e-6


def test_relative_maps_weigh_a_difference_by_what_is_usual_there() -> None:
    """An edge always differs by ten times as much as what lies beside it."""
    rng = torch.Generator().manual_seed(0)
    level = torch.ones(1, 1, 16, 16)
    level[..., 8] = 10
    clean = level * (0.8 + 0.4 * torch.rand(12, 1, 16, 16, generator=rng))
    faint = clean[:1].clone()
    faint[..., 3, 3] = 4
    plain = AnomalyMap(difference="squared", kernel=1, repeats=0).model_dump()
    for relative, found in ((False, False), (True, True)):
        settings = MapSettings.model_validate(plain | {"relative": relative})
        maker = MapMaker.fitted(settings, clean, clean.mean(dim=0))
        maps = maker(torch.cat([faint, clean]))
        assert bool(maps[0].max() > maps[1:].max()) == found
        assert maps[1:].amax(dim=(1, 2, 3)).mean() == pytest.approx(1)
    own = MapMaker.fitted(settings, clean)
    torch.testing.assert_close(own.usual, maker.usual)
    left_out = MapMaker.left_out_scores(settings, clean)
    assert left_out.mean() > 1, "an image that is left out is less usual"
    even = MapMaker.fitted(settings, torch.ones(4, 1, 8, 8))
    assert torch.allclose(even(torch.full((1, 1, 8, 8), 2.0)), torch.full((1, 1, 8, 8), 2.0))


def test_what_is_usual_grows_with_the_mean_and_is_never_zero() -> None:
    mean = torch.zeros(1, 2, 2)
    assert (usual_level(mean) > 0).all()
    mean[0, 0, 0] = 4
    torch.testing.assert_close(usual_level(mean)[0], torch.tensor([[5.0, 1.0], [1.0, 1.0]]))


def good_maps(spread: float, level: float, count: int = 200) -> Tensor:
    """(N, 1, 4, 4) maps whose maxima are log-normal with a spread."""
    torch.manual_seed(0)
    maps = torch.rand(count, 1, 4, 4)
    maps[..., 0, 0] = 1
    return maps * level * (spread * torch.randn(count, 1, 1, 1)).exp()


def test_joined_experts_have_the_same_spread_and_keep_their_ranking() -> None:
    parts = [good_maps(0.9, 3.0), good_maps(0.05, 40.0)]
    joining = Joining.fitted(parts)
    for own, part in zip(joining.alike(parts), parts, strict=True):
        highest = own.amax(dim=(1, 2, 3))
        assert float(highest.log().std()) == pytest.approx(SPREAD, rel=0.03)
        assert float(highest.log().mean()) == pytest.approx(0.0, abs=0.01)
        assert torch.equal(highest.argsort(), part.amax(dim=(1, 2, 3)).argsort())
    assert float(common_scale(joining(parts))) == pytest.approx(1.0, rel=1e-5)


def test_a_defect_that_one_expert_sees_clearly_stands_out() -> None:
    """For neighbours, half as much again as good images reach is far beyond them; divided by the
    scales alone it would be lost among what autoencoders do to good images.
    """
    autoencoders, neighbours = good_maps(0.9, 1.0), good_maps(0.05, 1.0)
    joining = Joining.fitted([autoencoders, neighbours])
    seen = joining([autoencoders[:1], 1.5 * neighbours[:1] / neighbours[:1].max()])
    assert float(seen.max()) > float(joining([autoencoders, neighbours]).max())


def test_few_images_say_little_of_the_spread() -> None:
    alike = [torch.ones(2, 1, 4, 4), torch.ones(2, 1, 4, 4)]
    joining = Joining.fitted(alike)
    for power, usual in zip(joining.powers, USUAL_SPREADS, strict=True):
        assert power == pytest.approx(SPREAD / usual * (5 / 4) ** 0.5)


def test_a_map_maker_joins_autoencoders_and_neighbours() -> None:
    torch.manual_seed(0)
    clean, differences = torch.rand(6, 3, 8, 8), torch.rand(2, 3, 8, 8)
    wanted = MapSettings(
        difference="squared", kernel=3, repeats=1, join="mean", relative=True, experts="joined"
    )
    trained_on = torch.rand(2, 8, 8)
    maker = MapMaker.fitted(wanted, clean, trained_on)
    assert maker.usual is not None and torch.equal(maker.usual[2], torch.ones(8, 8))
    own = smooth(differences, 3, 1)
    usual = usual_level(smooth(trained_on[None], 3, 1)[0])
    scale = common_scale(smooth(clean, 3, 1) / torch.cat([usual, torch.ones(1, 8, 8)]))
    first = (own[:, :2] / usual / scale[:2].view(2, 1, 1)).mean(dim=1, keepdim=True)
    second = own[:, 2:] / scale[2]
    assert maker.joining is not None
    torch.testing.assert_close(maker(differences), maker.joining([first, second]))
    parts = maker.by_expert(differences)
    torch.testing.assert_close(parts, [first, second])
    alike = torch.cat(maker.joining.alike(parts), dim=1)
    torch.testing.assert_close(maker.scores_by_expert(parts), alike.amax(dim=(2, 3)))
    alone = MapMaker.fitted(wanted.model_copy(update={"experts": "neighbours"}), clean[:, 2:])
    assert alone.usual is None and alone.joining is None
    torch.testing.assert_close(alone(differences[:, 2:]), second)
