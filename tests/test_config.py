"""Configuration refuses what it does not know and says what it does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ssray.config import Compute, Recipe, override, parse
from ssray.errors import ConfigError
from ssray.options import settings_help
from ssray.recipes import RECIPES, load_recipe


def test_recipes_survive_json() -> None:
    for make in RECIPES.values():
        assert Recipe.model_validate_json(make().model_dump_json()) == make()


def test_the_papers_recipe_is_table_1() -> None:
    recipe = load_recipe("paper")
    assert (recipe.network.width, recipe.image_size) == (64, 512)
    assert recipe.schedule.learning_rate == 1e-4
    assert recipe.schedule.holdout == 0.05


def test_override_reaches_nested_settings() -> None:
    recipe = override(
        Recipe(),
        ["network.kernel=5", "schedule.crops=[32, 64]", "name=mine", "select_map=false"],
    )
    assert recipe.network.kernel == 5
    assert recipe.schedule.crops == (32, 64)
    assert recipe.name == "mine"
    assert recipe.select_map is False


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("network.wdth=3", r"unknown key 'network\.wdth'.*Known keys here: width, kernel"),
        ("nets.width=3", r"'nets' is no group of settings here.*network"),
        ("network.width=0", r"network\.width.*greater than or equal to 1.*found 0"),
        ("network.kernel=4", r"network\.kernel.*3 or 5"),
        ("network.width", r"expected key=value"),
        ("schedule.crops=[64,30]", r"multiples of 8, found \[64, 30\]"),
        ("schedule.crops=[64,32]", r"crops must grow"),
        ("corruption.patches.radius=[9,3]", r"0 < low <= high, found 9\.0, 3\.0"),
        ("anomaly_map.kernel=4", r"kernel must be odd, found 4"),
        ("objective.lam=2", r"objective\.lam.*less than or equal to 1"),
    ],
)
def test_mistakes_are_named(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override(Recipe(), [assignment])


def test_recipe_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"image_size": 128, "network": {"width": 4}}')
    assert load_recipe(str(path)).network.width == 4
    path.write_text('{"image_sise": 128}')
    with pytest.raises(ConfigError, match="unknown key 'image_sise'"):
        load_recipe(str(path))
    path.write_text("width = 4")
    with pytest.raises(ConfigError, match="not valid JSON"):
        load_recipe(str(path))
    path.write_text("[1]")
    with pytest.raises(ConfigError, match="expected a JSON object"):
        load_recipe(str(path))
    with pytest.raises(ConfigError, match="neither a file nor a known name"):
        load_recipe("nope")


def test_compute_is_validated() -> None:
    with pytest.raises(ConfigError, match="workers"):
        parse(Compute, {"workers": 0}, "options")


def test_every_setting_has_a_description() -> None:
    lines = settings_help(Recipe)
    assert len(lines) > 20
    assert not [line for line in lines if line.endswith("None")]


def test_the_readme_and_docs_are_finished_and_their_links_exist() -> None:
    root = Path(__file__).parent.parent
    pages = [root / "README.md", root / "CONTRIBUTING.md", *(root / "docs").rglob("*.md")]
    assert len(pages) > 10
    for page in pages:
        text = page.read_text()
        assert not re.findall(r"@[A-Z]+@", text), page
        for link in re.findall(r"\]\(([^)#]+)", text):
            assert "://" in link or (page.parent / link).exists(), (page, link)
