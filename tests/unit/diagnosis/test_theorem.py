"""Theorem 2 and its premise, on images for which the share of violating pairs is known."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ssray.config import Corruption, Patches
from ssray.diagnosis import theorem
from ssray.diagnosis.findings import paragraph
from ssray.diagnosis.theorem import (
    RADII,
    REGIONS,
    Premise,
    Theorem,
    check_theorem,
    count_violations,
    small_area,
)
from tests.unit.diagnosis.test_diagnosis import aligned_object, diagnosed, texture

LEFT = (1, 1, 0, 0)
"""A region of the left half of an image of four pixels."""


def rows(*images: tuple[int, ...]) -> Tensor:
    """Grey images of one row, (N, 1, W, 3) uint8."""
    return torch.tensor(images, dtype=torch.uint8)[:, None, :, None].expand(-1, -1, -1, 3)


def regions(*masks: tuple[int, ...]) -> Tensor:
    return torch.tensor(masks)[:, None].bool()


def checked(images: Tensor, corruption: Corruption, seed: int = 0) -> Theorem:
    return check_theorem(images, corruption, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("images", "share"),
    [
        (rows((0, 0, 0, 0), (9, 0, 9, 9)), 0),
        (rows((0, 0, 0, 0), (9, 9, 9, 0)), 1),
        (rows((0, 0, 0, 0), (9, 9, 9, 9)), 0),  # a tie: half of the distance, not more
        (rows((0, 0, 0, 0), (7, 0, 5, 4)), 1),  # 49 > 25 + 16: distances are squared
        (rows((0, 0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 0), (9, 9, 0, 0)), 0.5),  # equal images hold
        (rows((0, 0, 0, 0), (5, 0, 0, 0), (0, 0, 9, 0)), 1 / 3),
    ],
)
def test_the_share_of_pairs_that_differ_more_inside_than_outside(
    images: Tensor, share: float
) -> None:
    violations, _ = count_violations(images, regions(LEFT))
    assert violations.tolist() == [pytest.approx(share, abs=1e-15)]


def test_nothing_is_violated_by_an_empty_region_and_everything_by_the_whole_image() -> None:
    images = rows((0, 0, 0, 0), (9, 0, 0, 0), (0, 0, 0, 8))
    violations, _ = count_violations(images, regions((0, 0, 0, 0), (1, 1, 1, 1)))
    assert violations.tolist() == [0, 1]


@pytest.mark.parametrize("values", [1, 1000, theorem._VALUES])
def test_counts_equal_numpys_pair_by_pair(monkeypatch: pytest.MonkeyPatch, values: int) -> None:
    monkeypatch.setattr(theorem, "_VALUES", values)
    images = aligned_object(7)[:, :9, :11]
    masks = torch.rand(5, 9, 11, generator=torch.Generator().manual_seed(2)) < torch.tensor(
        [0.3, 0.45, 0.5, 0.55, 0.7]
    ).view(5, 1, 1)
    exact = images.double().numpy() / 255
    pairs = list(itertools.combinations(exact, 2))
    expected = [
        np.mean([((x - y)[m] ** 2).sum() > ((x - y)[~m] ** 2).sum() for x, y in pairs])
        for m in masks.numpy()
    ]
    reported: list[int] = []
    violations, variance = count_violations(images, masks, reported.append)
    assert violations.tolist() == pytest.approx(expected)
    assert 0 < sum(expected) < 5
    assert variance == pytest.approx(exact.var(axis=0, ddof=1).mean(), rel=1e-6)
    assert reported[-1] == 9 * 11 and reported == sorted(reported)


def test_theorem_2_allows_a_third_of_the_image_at_most() -> None:
    assert small_area(0) == 0
    assert small_area(0.25) == pytest.approx(1 / 3)
    area = small_area(0.1)
    assert area / (1 - area) == pytest.approx(2 * 0.1)


def test_regions_are_the_corruptions_masks_where_they_are_above_zero() -> None:
    """A disk of radius r reaches as far as r, although it fades from half of it on."""
    patches = Patches(count=1, radius=(0.05, 0.25), outline=0)
    found = checked(torch.zeros(2, 120, 200, 3, dtype=torch.uint8), Corruption(patches=patches))
    for at in found.radii:
        assert len(at.areas) == len(at.violations) == REGIONS
        exact, wider = (math.pi * (120 * at.radius[1] + by) ** 2 / (120 * 200) for by in (0, 2))
        assert exact < at.areas.max() < wider
    assert found.recipe.areas.max() > 0.5 * math.pi * (120 * 0.25) ** 2 / (120 * 200)
    assert found.recipe.areas.median() < 0.25 * found.recipe.areas.max()


def test_the_ends_of_the_recipes_range_are_among_the_radii() -> None:
    found = checked(texture(3), Corruption(patches=Patches(radius=(0.016, 0.7)), rotated=0.3))
    assert found.recipe.radius == (0.016, 0.5)
    assert [at.radius for at in found.radii] == [(r, r) for r in (0.016, *RADII)]
    assert (found.pairs, found.turned) == (3, 0.3)


def test_independent_pixels_violate_the_premise_beyond_half_of_the_area_alone() -> None:
    found = checked(texture(), Corruption())
    areas = torch.cat([at.areas for at in found.radii])
    violations = torch.cat([at.violations for at in found.radii])
    assert violations[areas < 0.4].max() == 0
    assert violations[areas > 0.6].min() == 1
    for at in found.radii:
        assert not at.violated_though_small  # as in note 7
        assert torch.equal(at.small, at.areas < small_area(found.variance))
    assert found.small_area == pytest.approx(1 / 7, rel=0.01)  # uniform values: 1/12
    assert 0 < found.small_radius() <= found.held_radius() < 0.5


def test_the_generator_decides() -> None:
    first, again, other = (
        checked(texture(3), Corruption(), seed).recipe.areas for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def premise(radius: tuple[float, float], too_large: bool, violated: float) -> Premise:
    """Two regions, one of which is small in any case."""
    violations = torch.tensor([0, 2 * violated], dtype=torch.float64)
    areas = torch.tensor([0.01, 0.5 if too_large else 0.02], dtype=torch.float64)
    return Premise(radius, areas, torch.tensor([True, not too_large]), violations)


def handmade(*violated: float, recipe: float = 0.0, turned: float = 0.0) -> Theorem:
    """Radii of 0.1, 0.2, 0.4 with these shares of violations; the recipe draws 0.1 to 0.2."""
    radii = [
        premise((radius, radius), radius > 0.1, share)
        for radius, share in zip((0.1, 0.2, 0.4), violated, strict=True)
    ]
    return Theorem(2016, 0.025, turned, premise((0.1, 0.2), True, recipe), radii)


def test_the_largest_radii_end_at_the_first_failure() -> None:
    assert handmade(0, 0, 0.1).held_radius() == 0.2
    assert handmade(0.01, 0, 0).held_radius() == 0
    assert handmade(0, 0, 0).held_radius() == 0.4
    assert handmade(0, 0, 0).small_radius() == 0.1


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            handmade(0, 0, 0.1),
            "holds for all 2,016 pairs of training images with every region that was drawn as in "
            "the recipe. With all patches of one radius no pair violates it up to 0.2: the "
            "recipe's radius stays within.",
        ),
        (
            handmade(0, 0.04, 0.1, recipe=0.02),
            "is violated by 2 % of 2,016 pairs of training images, on average over the recipe's "
            "regions. With all patches of one radius no pair violates it up to 0.1, and 4 % of the "
            "pairs do at 0.2: the recipe's radius goes beyond,",
        ),
        (
            handmade(0.01, 0.04, 0.1, recipe=0.02, turned=0.3),
            "Images turned as a whole, 30 % of those it corrupts, are left out: nothing of them "
            "lies outside. Some pair violates it with patches of 0.1 already, and 4 % of the pairs",
        ),
    ],
)
def test_the_paragraph_says_whether_the_recipe_goes_beyond(found: Theorem, words: str) -> None:
    text = paragraph(replace(diagnosed(texture()), theorem=found))
    assert words in text
    covered = "covers corrupted regions below 4.8 % of the image; 50 % of those that the recipe"
    assert covered in text
    assert "(corruption.patches.radius 0.1 to 0.2 of the shorter side) are larger." in text
    assert "guide" not in text


def test_for_an_object_the_theorem_is_a_guide() -> None:
    assert "It is about textures, so here it is a guide only." in paragraph(
        diagnosed(aligned_object())
    )
