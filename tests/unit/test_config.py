"""Configuration refuses what it does not know and says what it does."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from ssray.cli.options import settings_help
from ssray.config import Alignment, Compute, Light, Recipe, override, parse
from ssray.errors import ConfigError
from ssray.recipes.request import RECIPES, RecipeRequest
from ssray.recipes.survey import Survey


def test_recipes_survive_json() -> None:
    for make in RECIPES.values():
        assert Recipe.model_validate_json(make().model_dump_json()) == make()


def settled(name: str, category: str = "thing", *, texture: bool = True) -> Recipe:
    seen = Survey(texture=texture, alignment=None, images=12, alike=0.0)
    return RecipeRequest(name).resolve(category, lambda: seen)


def test_families_look_at_the_training_images() -> None:
    assert settled("compact").name == "compact-texture"
    assert settled("compact", texture=False).name == "compact-object"
    assert settled("paper").name == "paper-texture"
    assert settled("paper", texture=False).name == "paper-object"
    assert settled("paper-as-published").name == "paper-as-published-texture"
    assert settled("paper-as-published", texture=False).name == "paper-as-published-object"
    assert settled("paper-wood", texture=False).name == "paper-wood"


def test_parts_at_any_angle_get_a_recipe_that_aligns_them() -> None:
    alignment = Alignment(frame=(-0.4, -0.2, 0.4, 0.2))
    seen = Survey(texture=False, alignment=alignment, images=64, alike=0.1, aligned=0.7)
    for family, category in (("compact", "thing"), ("paper", "thing"), ("paper", "screw")):
        recipe = RecipeRequest(family).resolve(category, lambda: seen)
        assert recipe.name == f"{family}-aligned"
        assert recipe.alignment == alignment
        assert recipe.schedule.augmentation == "none"
    without = RecipeRequest("paper", ("alignment=null",)).resolve("screw", lambda: seen)
    assert without.name == "paper-screw"
    assert RecipeRequest("paper-screw").resolve("screw", lambda: seen).alignment is None
    for category, name in (
        ("screw", "paper-as-published-screw"),
        ("thing", "paper-as-published-object"),
    ):
        recipe = RecipeRequest("paper-as-published").resolve(category, lambda: seen)
        assert (recipe.name, recipe.alignment) == (name, None)


def test_families_take_the_light_of_what_their_network_sees() -> None:
    seen = Survey(
        texture=False,
        alignment=Alignment(frame=(-0.4, -0.2, 0.4, 0.2)),
        images=64,
        alike=0.1,
        aligned=0.7,
        light=Light(mean=0.7, deviation=0.1),
        aligned_light=Light(mean=0.4, deviation=0.2),
    )

    def light(name: str, *settings: str) -> Light | None:
        return RecipeRequest(name, settings).resolve("screw", lambda: seen).light

    assert light("compact") == light("paper") == light("demo") == seen.aligned_light
    assert light("compact", "alignment=null") == seen.light
    assert light("compact", "light=null") is None
    assert light("paper-as-published") is light("compact-object") is None


def test_override_reaches_nested_settings() -> None:
    recipe = override(
        Recipe(),
        ["network.kernel=5", "schedule.crops=[0.25, 1]", "name=mine", "anomaly_map.kernel=9"],
    )
    assert recipe.network.kernel == 5
    assert recipe.schedule.crops == (0.25, 1.0)
    assert recipe.name == "mine"
    assert recipe.anomaly_map.kernel == 9


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("network.wdth=3", r"unknown key 'network\.wdth'.*Known keys here: width, kernel, blend"),
        ("nets.width=3", r"'nets' is no group of settings here.*network"),
        ("network.width=0", r"network\.width.*greater than or equal to 1.*found 0"),
        ("network.kernel=4", r"network\.kernel.*3 or 5"),
        ("network.width", r"expected key=value"),
        ("schedule.crops=[0.5,64]", r"shares above 0 up to 1, found \[0\.5, 64\.0\]"),
        ("schedule.crops=[1,0.5]", r"crops must grow"),
        ("corruption.patches.radius=[9,3]", r"0 < low <= high, found 9\.0, 3\.0"),
        ("anomaly_map.kernel=4", r"kernel must be odd, found 4"),
        ("corruption.displacement=[1,Infinity]", r"displacement.*finite number"),
        ("objective.corrupted_weight=2", r"objective\.corrupted_weight.*less than or equal to 1"),
    ],
)
def test_mistakes_are_named(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override(Recipe(), [assignment])


def test_recipe_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"image_size": 128, "network": {"width": 4}}')
    assert settled(str(path)).network.width == 4
    path.write_text('{"image_sise": 128}')
    with pytest.raises(ConfigError, match="unknown key 'image_sise'"):
        RecipeRequest(str(path))
    path.write_text("width = 4")
    with pytest.raises(ConfigError, match="not valid JSON"):
        RecipeRequest(str(path))
    path.write_text("[1]")
    with pytest.raises(ConfigError, match="expected a JSON object"):
        RecipeRequest(str(path))
    with pytest.raises(ConfigError, match=r"neither a file nor a known name.*compact, paper"):
        RecipeRequest("nope")


def test_settings_apply_to_whichever_recipe_is_chosen_and_are_checked_at_once() -> None:
    request = RecipeRequest("compact", ("network.width=3",))
    seen = Survey(texture=True, alignment=None, images=9, alike=0.0)
    assert request.resolve("thing", lambda: seen).network.width == 3
    for name in ("compact", "demo"):
        with pytest.raises(ConfigError, match=r"unknown key 'network\.wdth'"):
            RecipeRequest(name, ("network.wdth=3",))


def test_settings_of_a_group_that_some_do_without_are_for_the_others() -> None:
    request = RecipeRequest("compact", ("linear.variance=0.9",))
    texture = Survey(texture=True, alignment=None, images=9, alike=0.0)
    part = Survey(texture=False, alignment=None, images=9, alike=0.6)
    assert request.resolve("thing", lambda: texture).linear is None
    linear = request.resolve("thing", lambda: part).linear
    assert linear is not None and linear.variance == 0.9
    for name in ("compact", "compact-object"):
        with pytest.raises(
            ConfigError, match=r"unknown key 'linear\.varance'.*image_size, variance"
        ):
            RecipeRequest(name, ("linear.varance=0.9",))
    for name in ("compact-texture", "paper-as-published"):
        with pytest.raises(ConfigError, match="'linear' is no group"):
            RecipeRequest(name, ("linear.variance=0.9",))
    RecipeRequest("compact", ("alignment.turned=false",))
    with pytest.raises(ConfigError, match=r"unknown key 'alignment\.trned'"):
        RecipeRequest("compact", ("alignment.trned=false",))


def test_compute_is_validated() -> None:
    with pytest.raises(ConfigError, match="workers"):
        parse(Compute, {"workers": 0}, "options")


def test_every_setting_has_a_description() -> None:
    lines = settings_help(Recipe())
    assert len(lines) > 20
    assert not [line for line in lines if line.endswith("None")]


def test_the_readme_and_docs_are_finished_and_their_links_exist() -> None:
    root = Path(__file__).parents[2]
    pages = [root / "README.md", root / "CONTRIBUTING.md", *(root / "docs").rglob("*.md")]
    assert len(pages) > 10
    for page in pages:
        text = page.read_text()
        assert not re.findall(r"@[A-Z]+@", text), page
        for link in re.findall(r"\]\(([^)#]+)", text):
            assert "://" in link or (page.parent / link).exists(), (page, link)


def test_recipes_that_left_the_image_score_open_can_still_be_read() -> None:
    stored = {"anomaly_map": {"image_score": None, "difference": "both", "repeats": 2}}
    recipe = parse(Recipe, stored, "recipe.json")
    assert recipe.anomaly_map.image_score == "max"


def test_lambda_is_known_by_its_former_name() -> None:
    assert override(Recipe(), ["objective.lam=0.7"]).objective.corrupted_weight == 0.7
    stored = Recipe().model_dump_json().replace('"corrupted_weight":0.5', '"lam":0.25')
    assert Recipe.model_validate_json(stored).objective.corrupted_weight == 0.25


def test_a_long_texture_keeps_its_pixels_across() -> None:
    from ssray.data.decode import network_shape

    strip = Survey(texture=True, alignment=None, images=9, alike=0.0, aspect=2.52)
    recipe = RecipeRequest("compact").resolve("thing", lambda: strip)
    assert network_shape(500, 1260, recipe.image_size) == (257, 648)
    stated = RecipeRequest("compact", ("image_size=128",)).resolve("thing", lambda: strip)
    assert stated.image_size == 128
    part = dataclasses.replace(strip, texture=False)
    assert RecipeRequest("compact").resolve("thing", lambda: part).image_size == 128
