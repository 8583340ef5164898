"""What synthetic defects look like: measured on the images."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from ssray.method.synthetic_defects import (
    FAINT,
    FAINTEST,
    FINEST,
    KINDS,
    LARGEST,
    OUTLINE,
    PERCEPTIBLE,
    SMALLEST,
    STRONG,
    WIDTH,
    Defects,
    draw_defects,
)

SIDE = 128
GREY = 0.5


def flat(batch: int, channels: int = 1) -> Tensor:
    return torch.full((batch, channels, SIDE, SIDE), GREY)


def noisy(batch: int, deviation: float) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return (GREY + deviation * torch.randn(batch, 1, SIDE, SIDE, generator=generator)).clamp(0, 1)


def made(images: Tensor, kind: str, pixel: float = 1.0, seed: int = 0) -> Defects:
    kinds = torch.full((len(images),), KINDS.index(kind))
    return draw_defects(images, torch.Generator().manual_seed(seed), kinds, pixel=pixel)


def changes(found: Defects, images: Tensor) -> Tensor:
    """How much each pixel changed, averaged over the channels, (B, H, W)."""
    return (found.images - images).abs().mean(dim=1)


def test_the_same_seed_draws_the_same_defects_and_another_does_not() -> None:
    images = noisy(10, 0.05)
    one, same, other = (
        draw_defects(images, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(one.images, same.images) and torch.equal(one.truth, same.truth)
    assert not torch.equal(one.images, other.images)


def test_the_kinds_take_turns_and_what_is_not_perceptible_can_be_left_out() -> None:
    found = draw_defects(flat(10), torch.Generator().manual_seed(0))
    assert found.kind.tolist() == [0, 1, 2, 3, 4] * 2
    unseen = [KINDS.index("foreign"), KINDS.index("blur")]
    for kind, seen in zip(found.kind.tolist(), found.perceptible.tolist(), strict=True):
        assert seen == (kind not in unseen), "a flat image has no texture to take from or away"
    left = found.visible()
    assert left.kind.tolist() == [0, 1, 2] * 2
    assert len(left.images) == len(left.truth) == len(left.size) == 6


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_changed_beside_what_counts_as_the_defect(kind: str) -> None:
    images = noisy(16, 0.1)
    found = made(images, kind)
    change = changes(found, images)
    assert change[~found.truth[:, 0]].max() <= OUTLINE
    assert change[found.truth[:, 0]].mean() > PERCEPTIBLE
    assert 0 <= found.images.min() <= found.images.max() <= 1


def test_spots_are_as_large_as_is_said_from_the_finest_detail_to_a_large_share() -> None:
    images = flat(300)
    found = made(images, "spot")
    change = changes(found, images)
    covered = (change / change.amax(dim=(1, 2), keepdim=True)).sum(dim=(1, 2))
    small = found.size < 20  # larger ones are bent and may lie half outside
    ratio = (2 * (covered[small] / torch.pi).sqrt() / found.size[small]).log()
    assert ratio.abs().median() < 0.15
    assert found.size.min() < 1.2 * FINEST and found.size.max() > 0.9 * LARGEST * SIDE
    assert found.size.min() >= FINEST and found.size.max() <= LARGEST * SIDE
    middle = (FINEST * LARGEST * SIDE) ** 0.5
    assert 0.42 < (found.size < middle).float().mean() < 0.58, "log-uniform"


def test_fine_defects_change_few_pixels() -> None:
    images = noisy(200, 0.03)
    for kind in ("spot", "line"):
        found = made(images, kind)
        share = found.truth.float().mean(dim=(1, 2, 3))
        fine = share[found.size < 12]
        assert len(fine) > 20
        assert fine.max() < 0.015 and fine.median() < 0.003
    lines = made(images, "line").truth.float().mean(dim=(1, 2, 3))
    assert lines.median() < 0.01, "a line of any length is thin"


def test_lines_are_one_to_three_pixels_wide() -> None:
    """A pixel of a line is at most two from the background."""
    images = flat(200)
    found = made(images, "line")
    change = changes(found, images)
    full = (change > 0.5 * change.amax(dim=(1, 2), keepdim=True))[:, None].float()
    widths = []
    for each in full[found.size > 20]:
        inner = each[None]
        for peeled in itertools.count(1):
            inner = 1 - torch.nn.functional.max_pool2d(1 - inner, 3, 1, 1)
            if inner.sum() < 0.05 * each.sum():
                widths.append(peeled)
                break
    assert torch.tensor(widths).float().mean() < 1.6
    assert max(widths) <= 4 and min(widths) == 1
    assert WIDTH == (1.0, 3.0)


@pytest.mark.parametrize("deviation", [0.01, 0.03, 0.08])
def test_contrast_is_from_a_little_above_the_local_noise_to_strong(deviation: float) -> None:
    images = noisy(300, deviation)
    found = made(images, "line")
    strongest = changes(found, images).amax(dim=(1, 2))
    lowest = max(deviation, FAINTEST)
    assert 0.9 * lowest < strongest.min() < 2.2 * lowest
    assert 0.75 * STRONG < strongest.max() < 1.1 * max(STRONG, 8 * deviation)


def test_the_smaller_a_spot_the_more_contrast_it_takes_to_be_seen() -> None:
    deviation = 0.03
    images = noisy(400, deviation)
    found = made(images, "spot")
    peak = changes(found, images).amax(dim=(1, 2))
    small, large = peak[found.size < 2.5], peak[found.size > 15]
    assert small.min() > 2.5 * deviation > 1.6 * large.min() > 1.4 * deviation


def test_stains_are_faint() -> None:
    deviation = 0.03
    images = noisy(200, deviation)
    found = made(images, "stain")
    peak = changes(found, images).amax(dim=(1, 2))
    assert 0.8 * deviation < peak.min() and peak.max() < 2 * FAINT * deviation
    assert found.size.min() >= SMALLEST


def test_defects_of_grey_images_are_grey_and_those_of_others_slightly_coloured() -> None:
    images = flat(20, channels=3)
    found = made(images, "spot").images
    assert torch.equal(found[:, 0], found[:, 1]) and torch.equal(found[:, 0], found[:, 2])
    images[:, 0] = 0.4
    coloured = made(images, "spot").images - images
    tint = (coloured[:, 0] - coloured[:, 2]).abs().amax(dim=(1, 2))
    light = coloured.abs().mean(dim=1).amax(dim=(1, 2))
    assert (tint > 0).all() and (tint < light).float().mean() > 0.9


def test_defects_lie_where_the_part_is() -> None:
    where = torch.zeros(60, 1, SIDE, SIDE, dtype=torch.bool)
    where[..., 40:60, 70:90] = True
    kinds = torch.zeros(60, dtype=torch.int64)
    found = draw_defects(flat(60), torch.Generator().manual_seed(0), kinds, where)
    small = found.truth[found.size < 6]
    assert len(small) > 10
    rows, columns = small.any(dim=3).nonzero()[:, 2], small.any(dim=2).nonzero()[:, 2]
    assert rows.min() >= 36 and rows.max() < 64 and columns.min() >= 66 and columns.max() < 94


def test_a_third_of_the_defects_lie_at_strong_edges() -> None:
    images = flat(300)
    images[..., SIDE // 2 :] = 0.9
    found = made(images, "spot")
    fine = found.truth[found.size < 4]
    at_edge = fine[..., SIDE // 2 - 4 : SIDE // 2 + 4].any(dim=3).any(dim=2)
    assert 0.25 < at_edge.float().mean() < 0.55, "the edge is a sixteenth of the image"


def test_what_is_drawn_finer_and_shrunk_is_what_is_drawn() -> None:
    """For a network that sees images at half the size, all lengths are twice as many pixels."""
    images = flat(200)
    found = made(images, "spot", pixel=2.0)
    assert found.size.min() >= 2 * FINEST
    change = changes(found, images)
    shrunk = torch.nn.functional.avg_pool2d(change[:, None], 2)[:, 0]
    fine = found.size < 2 * 1.3 * FINEST
    assert fine.any()
    covered = (shrunk / change.amax(dim=(1, 2), keepdim=True)).sum(dim=(1, 2))[fine]
    expected = torch.pi / 4 * (found.size[fine] / 2) ** 2
    assert ((covered / expected).log().abs() < 0.4).all()
