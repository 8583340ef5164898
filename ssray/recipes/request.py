"""Named recipes, recipe files, and the choice between texture, object and aligned part.

``compact``, ``paper``, ``paper-as-published`` and ``demo`` are families. Which of its recipes a
category gets is decided by the category's name or by its training images, never by test images or
labels. A recipe file is JSON with the fields of ``ssray.config.Recipe``; what it leaves out takes
the defaults.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ssray.config import (
    STRIDE,
    Alignment,
    Decoding,
    Features,
    Light,
    Recipe,
    in_a_group_that_is_null,
    override,
    parse,
)
from ssray.data.pretrained_weights import LITE0, checksum, is_installed, located
from ssray.errors import ConfigError
from ssray.recipes import compact, paper, paper_as_published

if TYPE_CHECKING:
    from ssray.recipes.survey import Survey


MOST_ASPECT = 4.0
"""The aspect ratio up to which a long texture costs as much more as it is longer."""


@dataclass(frozen=True)
class Family:
    """Recipes of one size of networks, one of which suits a category.

    Attributes:
        texture: for surfaces, where places do not matter.
        object_: for parts in a fixed place.
        aligned: for parts that are located first and turned upright; None if the family takes
            photographs as they are.
        by_category: for categories known by name, unless their parts are aligned.
        adapts: whether images are brought to the light that training images have on average, and
            long textures get more pixels.
    """

    texture: Callable[[], Recipe]
    object_: Callable[[], Recipe]
    aligned: Callable[[Alignment], Recipe] | None
    by_category: Mapping[str, Callable[[], Recipe]]
    adapts: bool = True

    def by_name(self) -> dict[str, Callable[[], Recipe]]:
        """The recipes that need no look at images, by their name within the family."""
        return {"texture": self.texture, "object": self.object_, **self.by_category}

    def examples(self) -> list[Recipe]:
        """A recipe for a texture, an object and, if there is one, an aligned part of some size."""
        recipes = [self.texture(), self.object_()]
        if self.aligned:
            recipes.append(self.aligned(Alignment(frame=(-0.5, -0.5, 0.5, 0.5))))
        if self.adapts:
            light = Light(mean=0.5, deviation=0.1)
            update = {"light": light, "features": Features()}
            recipes = [recipe.model_copy(update=update) for recipe in recipes]
        return recipes


FAMILIES = {
    "compact": Family(compact.texture, compact.object_, compact.aligned, {}),
    "paper": Family(paper.texture, paper.object_, paper.aligned, paper.MVTEC_AD),
    "paper-as-published": Family(
        paper_as_published.texture,
        paper_as_published.object_,
        None,
        paper_as_published.MVTEC_AD,
        adapts=False,
    ),
    "demo": Family(compact.demo, compact.demo_object, compact.demo_aligned, {}),
}
RECIPES: dict[str, Callable[[], Recipe]] = {
    f"{family}-{name}": recipe
    for family in ("compact", "paper", "paper-as-published")
    for name, recipe in FAMILIES[family].by_name().items()
}


@dataclass(frozen=True)
class RecipeRequest:
    """What a user asked for: a recipe, a family or a file, and changes to it.

    Attributes:
        name: of a recipe or a family, the place of a recipe file, or the recipe itself.
        settings: ``key.path=value`` assignments.
        features: the pretrained network of the second expert, its name or the place of its weights,
            or ``none``; None leaves it to the recipe, and families take the network that is
            installed.
    """

    name: str | Recipe = "compact"
    settings: tuple[str, ...] = ()
    features: str | None = None

    def __post_init__(self) -> None:
        """Finds mistakes before any data is read.

        Raises:
            ConfigError: if there is no such recipe, or a setting is wrong.
        """
        if isinstance(self.name, str) and self.name in FAMILIES:
            recipes = FAMILIES[self.name].examples()
            for recipe in recipes:
                self._changed(recipe)
            for setting in self.settings:
                if all(in_a_group_that_is_null(recipe, setting) for recipe in recipes):
                    override(recipes[0], [setting])
        else:
            self._named()
        if self.features and self.features != "none":
            checksum(self.features)

    def resolve(self, category: str, survey: Callable[[], Survey]) -> Recipe:
        """The recipe for a category.

        Args:
            category: its name.
            survey: tells what its training images show; called unless the name settles it.
        """
        return _naming_its_weights(self._resolved(category, survey))

    def _resolved(self, category: str, survey: Callable[[], Survey]) -> Recipe:
        if isinstance(self.name, Recipe) or self.name not in FAMILIES:
            return self._named()
        family = FAMILIES[self.name]
        known = family.by_category.get(category)
        if known and not family.aligned:
            return self._changed(known())
        seen = survey()
        if family.aligned and seen.alignment and not self._unaligned:
            recipe = family.aligned(seen.alignment)
        elif known:
            recipe = known()
        elif seen.texture:
            recipe = family.texture()
            if family.adapts:
                recipe = as_sharp_as_a_square(recipe, seen.aspect)
        else:
            recipe = family.object_()
        if family.adapts:
            light = seen.aligned_light if recipe.alignment else seen.light
            recipe = recipe.model_copy(update={"light": light})
            if is_installed():
                recipe = with_features(recipe, LITE0)
        return self._changed(recipe)

    @property
    def _unaligned(self) -> bool:
        """Whether the settings take photographs as they are."""
        return any(s.replace(" ", "") == "alignment=null" for s in self.settings)

    def _changed(self, recipe: Recipe) -> Recipe:
        """A family's recipe with the settings; those of a group that it does without are for others
        of the family.
        """
        recipe = self._featured(recipe)
        applicable = [s for s in self.settings if not in_a_group_that_is_null(recipe, s)]
        return override(recipe, applicable)

    def _featured(self, recipe: Recipe) -> Recipe:
        """A recipe with the second expert that was asked for, if any was."""
        return with_features(recipe, self.features) if self.features else recipe

    def _named(self) -> Recipe:
        if isinstance(self.name, Recipe):
            recipe = self.name
        else:
            recipe = RECIPES[self.name]() if self.name in RECIPES else read_recipe(self.name)
        return override(self._featured(recipe), self.settings)


def with_features(recipe: Recipe, weights: str) -> Recipe:
    """The recipe with a second expert that sees by a pretrained network; ``none`` takes it away.

    Other settings of the expert stay as they are.
    """
    if weights == "none":
        return recipe.model_copy(update={"features": None})
    known = recipe.features or Features()
    named = known.model_copy(update={"weights": weights, "sha256": None})
    return recipe.model_copy(update={"features": named})


def _naming_its_weights(recipe: Recipe) -> Recipe:
    """The recipe with the place and the checksum of its pretrained weights.

    Raises:
        ConfigError: if they can't be found.
    """
    wanted = recipe.features
    if wanted is None or wanted.sha256:
        return recipe
    place = located(wanted.weights)
    named = wanted.model_copy(update={"weights": place, "sha256": checksum(place)})
    return recipe.model_copy(update={"features": named})


def with_bits(recipe: Recipe, bits: int | None) -> Recipe:
    """The recipe with the bits in use of the training images, unless it names them itself."""
    if bits is None or recipe.decoding is None or recipe.decoding.bits:
        return recipe
    return recipe.model_copy(update={"decoding": Decoding(bits=bits)})


def as_sharp_as_a_square(recipe: Recipe, aspect: float) -> Recipe:
    """The recipe for a texture whose photographs are long: their shorter side gets as many pixels
    as a square's, so that a strip shows the details that its breadth would show alone.

    Args:
        recipe: for square photographs.
        aspect: the longer side over the shorter one; beyond ``MOST_ASPECT`` strips get coarser.

    >>> as_sharp_as_a_square(Recipe(image_size=256), aspect=2.25).image_size
    384
    """
    stretched = recipe.image_size * math.sqrt(min(aspect, MOST_ASPECT))
    return recipe.model_copy(update={"image_size": round(stretched / STRIDE) * STRIDE})


def read_recipe(place: str) -> Recipe:
    """A recipe from a JSON file.

    Raises:
        ConfigError: if there is none, or it holds no valid recipe.
    """
    from ssray.storage.location import Location

    file = Location.parse(place)
    if not file.exists() or file.is_dir():
        raise ConfigError(
            f"recipe '{place}': neither a file nor a known name. Known: {', '.join(FAMILIES)}; "
            f"single recipes: {', '.join(RECIPES)}."
        )
    try:
        values = json.loads(file.read())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{place}: not valid JSON ({error}).") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{place}: expected a JSON object with a recipe's fields.")
    return parse(Recipe, values, place)
