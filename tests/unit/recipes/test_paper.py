"""The recipes of the paper's width: those that took over what proved right, and the paper's own."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from types import ModuleType

import pytest

from ssray.config import Alignment, AnomalyMap, Linear, Network, Recipe
from ssray.data.mvtec_ad import CATEGORIES
from ssray.recipes import compact, paper, paper_as_published
from ssray.recipes.request import FAMILIES, RECIPES, RecipeRequest
from ssray.recipes.survey import Survey
from tests.unit.method.test_autoencoder import forward_operations

FRAME = Alignment(frame=(-0.5, -0.2, 0.5, 0.2))
TEXTURES = {"carpet", "grid", "leather", "tile", "wood"}
MAY_BE_TURNED = {"bottle", "hazelnut", "metal_nut", "screw"}

PUBLISHED = {
    #               px, f, flips and turns, difference, occlusion, turned
    "carpet": (512, 3, "flip", "ssim", 0, 0),
    "grid": (512, 3, "flip", "squared", 0, 0),
    "leather": (512, 3, "dihedral", "squared", 0, 0),
    "tile": (512, 3, "dihedral", "ssim", 0, 0),
    "wood": (512, 3, "flip", "squared", 0, 0),
    "bottle": (256, 5, "dihedral", "ssim", 0, 0),
    "cable": (256, 5, "none", "ssim", 1, 0),
    "capsule": (256, 5, "none", "ssim", 0, 0),
    "hazelnut": (256, 5, "dihedral", "squared", 0, 0),
    "metal_nut": (256, 5, "turn", "ssim", 0, 0),
    "pill": (256, 5, "none", "squared", 0, 0),
    "screw": (512, 5, "turn", "squared", 1, 0),
    "toothbrush": (256, 5, "flip_horizontal", "squared", 0, 0),
    "transistor": (256, 5, "none", "ssim", 1, 0.3),
    "zipper": (256, 5, "flip_horizontal", "ssim", 0, 0),
}


def of(family: str, category: str) -> Recipe:
    """What a family gives a category whose parts are in their place."""
    seen = Survey(texture=False, alignment=None, images=12, alike=0.6)
    return RecipeRequest(family).resolve(category, lambda: seen)


def table(module: ModuleType) -> dict[str, list[str]]:
    """The lines of the table in a module's docstring by category, split at two blanks."""
    rows = re.findall(r"^    (\w+)  +(.*)$", inspect.cleandoc(module.__doc__ or ""), re.MULTILINE)
    return {name: re.split(r"  +", rest) for name, rest in rows if name != "category"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_called_by_its_own_name(name: str) -> None:
    assert RECIPES[name]().name == name


@pytest.mark.parametrize("family", ["paper", "paper-as-published"])
def test_both_families_have_a_recipe_for_each_category_of_mvtec_ad(family: str) -> None:
    assert len(CATEGORIES) == 15
    for category in CATEGORIES:
        recipe = of(family, category)
        assert recipe.name == f"{family}-{category}"
        assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize("category", PUBLISHED)
def test_as_published_holds_what_the_paper_says(category: str) -> None:
    size, kernel, augmentation, difference, occlusion, rotated = PUBLISHED[category]
    recipe = of("paper-as-published", category)
    assert recipe.image_size == size
    assert recipe.network == Network(width=64, kernel=kernel, blend="none")
    assert (recipe.alignment, recipe.linear) == (None, None)
    mix = recipe.corruption.mix
    assert (mix.elastic, mix.occlusion, mix.pattern) == (1, occlusion, 0)
    assert recipe.corruption.rotated == rotated
    schedule = recipe.schedule
    assert (schedule.learning_rate, schedule.holdout, schedule.photometric) == (1e-4, 0.05, 0)
    assert (schedule.images, schedule.epochs, schedule.batch) == (100_000, None, 4)
    assert schedule.augmentation == augmentation
    texture = category in TEXTURES
    assert schedule.crops == ((0.25, 0.5, 1) if texture else (1,))
    assert recipe.anomaly_map == AnomalyMap(
        difference=difference, average_power=0 if texture else 1, image_score="sum", relative=False
    )


@pytest.mark.parametrize("category", CATEGORIES)
def test_paper_has_what_proved_right(category: str) -> None:
    texture = category in TEXTURES
    recipe = of("paper", category)
    assert recipe.image_size == (512 if texture else 256)
    assert recipe.network == Network(width=64, kernel=3, blend="pixel")
    assert recipe.linear == (None if texture else Linear())
    mix = recipe.corruption.mix
    assert (mix.elastic, mix.occlusion, mix.pattern) == (1, 0 if texture else 1, 1)
    schedule = recipe.schedule
    assert (schedule.learning_rate, schedule.holdout, schedule.photometric) == (1e-3, 0.1, 0.1)
    assert (schedule.epochs, schedule.batch) == (400, 4)
    assert schedule.crops == ((0.5, 1) if texture else (1,))
    assert recipe.anomaly_map == AnomalyMap(
        difference=None, kernel=None, repeats=3, average_power=0, image_score="max",
        relative=texture, join="max" if texture else "mean",
    )  # fmt: skip


def test_paper_differs_from_compact_in_name_size_and_width_alone() -> None:
    for ours, small in (
        (paper.texture(), compact.texture()),
        (paper.object_(), compact.object_()),
        (paper.aligned(FRAME), compact.aligned(FRAME)),
    ):
        assert (ours.network.width, small.network.width) == (64, 16)
        assert ours.image_size == 2 * small.image_size or ours.image_size == 288
        kept = {"name", "image_size", "network"}
        assert ours.model_dump(exclude=kept) == small.model_dump(exclude=kept)


def test_what_may_be_turned_is_not_corrupted_by_turning() -> None:
    for category in CATEGORIES.keys() - TEXTURES:
        rotated = of("paper", category).corruption.rotated
        assert rotated == (0 if category in MAY_BE_TURNED else 0.3)


@pytest.mark.parametrize("family", ["paper", "paper-as-published"])
def test_no_category_is_augmented_into_its_own_defect(family: str) -> None:
    """Swapped wires, prints and mirrored threads are defects."""
    allowed = {
        name: make().schedule.augmentation for name, make in FAMILIES[family].by_category.items()
    }
    assert {allowed[c] for c in ("cable", "capsule", "pill", "transistor")} == {"none"}
    assert {allowed[c] for c in ("screw", "metal_nut")} == {"turn"}
    assert {allowed[c] for c in ("carpet", "grid", "wood")} == {"flip"}


def cost(recipe: Recipe) -> float:
    """FLOP of a run; backward takes twice the forward pass."""
    return 3 * forward_operations(recipe.network, recipe.image_size) * recipe.schedule.images


@pytest.mark.parametrize(
    ("make", "recipe"),
    [
        *((make, make()) for make in (compact.texture, compact.object_, compact.demo)),
        *((make, make()) for make in (paper.texture, paper.object_)),
        (paper.aligned, paper.aligned(FRAME)),
        *((make, make()) for make in (paper_as_published.texture, paper_as_published.object_)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_recipes_state_their_command_and_what_a_run_costs(
    make: Callable[..., Recipe], recipe: Recipe
) -> None:
    text = make.__doc__ or ""
    assert "ssray train --data ROOT" in text
    stated = re.search(r"Cost: (\S+) FLOP", text)
    assert stated, text
    assert float(stated[1]) == pytest.approx(cost(recipe), rel=0.05)


def test_the_table_of_paper_tells_flips_turns_and_the_papers_figures() -> None:
    rows = table(paper)
    assert list(rows) == list(CATEGORIES)
    for category, (augmentation, tried, published, *_) in rows.items():
        image, pixel = CATEGORIES[category].published
        assert augmentation == of("paper", category).schedule.augmentation
        assert published == f"{image:g} / {pixel:g}"
        developed = category in {"grid", "transistor", "screw", "hazelnut"}
        assert (tried == "never tried") == (not developed)


def test_the_table_of_as_published_tells_settings_costs_and_the_papers_figures() -> None:
    rows = table(paper_as_published)
    assert list(rows) == list(CATEGORIES)
    for category, row in rows.items():
        size, kernel, augmentation, difference, occlusion, rotated = PUBLISHED[category]
        image, pixel = CATEGORIES[category].published
        besides = ["occlusion"] * bool(occlusion) + ["turned"] * bool(rotated)
        flop = row.pop(5)
        assert row == [
            f"{size}", f"{kernel}", augmentation, difference, ", ".join(besides) or "-",
            f"{image:g} / {pixel:g}",
        ]  # fmt: skip
        assert float(flop) == pytest.approx(cost(of("paper-as-published", category)), rel=0.05)
