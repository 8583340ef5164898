"""What a sweep varies: read, checked against the recipe, applied to it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ssray.config import Alignment
from ssray.errors import ConfigError
from ssray.recipes.compact import aligned, object_, texture
from ssray.search.space import (
    SPACES,
    FloatRange,
    default,
    fitted_to,
    largest_size,
    own_values,
    read_space,
    seen_alike,
    size_of,
    with_settings,
)


def written(folder: Path, content: Any) -> str:
    file = folder / "space.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(file)


ALIGNED = aligned(Alignment(frame=(-0.6, -0.2, 0.5, 0.2)))


@pytest.mark.parametrize("name", list(SPACES))
@pytest.mark.parametrize("recipe", [texture(), object_(), ALIGNED], ids=lambda recipe: recipe.name)
def test_each_named_space_fits_the_default_recipes(name: str, recipe: Any) -> None:
    space = read_space(name)(recipe)
    fitted = fitted_to(space, recipe)
    assert list(fitted) == list(space)
    for key, own in own_values(fitted, recipe).items():
        values = fitted[key]
        if isinstance(values, FloatRange):
            assert own in values
        else:
            stated = [json.dumps(value) for value in values]
            assert json.dumps(own) == stated[0], "to the letter, as a sampler compares texts"
            assert len(set(stated)) == len(stated)


def test_the_default_space_suits_what_the_recipe_sees() -> None:
    surface, part, turned = (
        fitted_to(default(each), each) for each in (texture(), object_(), ALIGNED)
    )
    assert [space["image_size"] for space in (surface, part, turned)] == [
        (256, 192, 384),
        (128, 96, 192),
        (180, 136, 272),
    ]
    assert largest_size(turned, ALIGNED) == 272
    assert largest_size({}, ALIGNED) == 180
    assert surface["schedule.crops"] == ([0.5, 1.0], [1.0], [0.25, 0.5, 1.0])
    assert part["schedule.crops"] == ([1.0], [0.5, 1.0])
    assert "dihedral" in surface["schedule.augmentation"]
    assert "dihedral" not in part["schedule.augmentation"]
    assert "alignment" not in part
    assert turned["alignment"] == (ALIGNED.model_dump(mode="json")["alignment"], None)
    assert with_settings(ALIGNED, {"alignment": None}).alignment is None


def test_a_file_names_lists_and_ranges(tmp_path: Path) -> None:
    space = read_space(
        written(
            tmp_path,
            {"network.kernel": [3, 5], "objective.corrupted_weight": {"low": 0.2, "high": 0.8}},
        )
    )(texture())
    assert space == {
        "network.kernel": (3, 5),
        "objective.corrupted_weight": FloatRange(low=0.2, high=0.8),
    }
    assert size_of({"network.kernel": (3, 5), "image_size": (128, 192, 256)}) == 6
    assert size_of(space) == sys.maxsize


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", ["not valid JSON"]),
        ({}, ["at least one setting"]),
        ({"objective.corrupted_weight": 3}, ["objective.corrupted_weight", "expected a list"]),
        (
            {"objective.corrupted_weight": {"low": 0.8, "high": 0.2}},
            ["objective.corrupted_weight", "below"],
        ),
        ({"objective.corrupted_weight": {"low": 0, "high": 1, "log": True}}, ["above 0"]),
    ],
)
def test_a_file_that_is_no_space_is_refused(tmp_path: Path, content: Any, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        read_space(written(tmp_path, content))
    assert all(word in str(caught.value) for word in words)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"medium.*small, default"):
        read_space("medium")


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"network.depth": (3,)}, ["network.depth", "no setting"]),
        ({"network.kernel": (3, 4)}, ["network.kernel", "found 4"]),
        ({"network.kernel": ()}, ["at least one value"]),
        ({"schedule.learning_rate": FloatRange(low=0.1, high=0.2)}, ["0.001", "Widen"]),
        (
            {"objective.corrupted_weight": FloatRange(low=0.2, high=3)},
            ["objective.corrupted_weight", "found 3"],
        ),
        ({"image_size": FloatRange(low=128, high=256)}, ["image_size", "integer"]),
        ({"schedule.images": (10, 20)}, ["schedule.images", "--set"]),
        ({"alignment": (None,)}, ["alignment", "not aligned by this recipe"]),
        ({"anomaly_map.kernel": (3, 5)}, ["anomaly_map.kernel", "not a setting of the training"]),
    ],
)
def test_what_the_recipe_does_not_allow_is_refused(space: Any, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        fitted_to(space, texture())
    assert all(word in str(caught.value) for word in words)


def test_the_recipes_own_value_is_always_among_the_choices() -> None:
    fitted = fitted_to({"network.width": (8, 32), "network.kernel": (5, 3)}, texture())
    assert fitted == {"network.width": (16, 8, 32), "network.kernel": (3, 5)}
    mixed = fitted_to({"corruption.mix": ({"elastic": 1, "pattern": 1}, {"elastic": 2})}, texture())
    choices = mixed["corruption.mix"]
    assert isinstance(choices, tuple)
    assert [mix["elastic"] for mix in choices] == [1, 2]


def test_settings_change_the_recipe_and_nothing_else() -> None:
    mix = {"elastic": 0.0, "cut_out": 2.0}
    changed = with_settings(texture(), {"corruption.mix": mix, "schedule.learning_rate": 2e-3})
    assert (changed.corruption.mix.elastic, changed.corruption.mix.cut_out) == (0, 2)
    assert changed.schedule.learning_rate == 2e-3
    assert with_settings(changed, own_values(default(texture()), texture())) == texture()


def test_a_space_may_name_lambda_as_it_was(tmp_path: Path) -> None:
    space = read_space(written(tmp_path, {"objective.lam": [0.3, 0.5]}))(texture())
    assert space == {"objective.corrupted_weight": (0.3, 0.5)}


def test_reconstruction_errors_are_compared_on_the_same_images() -> None:
    space = default(ALIGNED)
    alike = seen_alike(space, stated=False)
    assert set(space) - set(alike) == {"alignment", "image_size"}
    with pytest.raises(ConfigError, match="light: changes what the networks see"):
        seen_alike({"light": (None,), "network.kernel": (3, 5)}, stated=True)
    assert seen_alike({"network.kernel": (3, 5)}, stated=True) == {"network.kernel": (3, 5)}
