"""Named recipes, and recipe files.

A recipe file is JSON with the fields of ``ssray.config.Recipe``; what it leaves out takes
the defaults.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from ssray.config import Corruption, Network, Patches, Recipe, Schedule, parse
from ssray.data.storage import Location
from ssray.errors import ConfigError


def compact() -> Recipe:
    """Width 16 at 256 px, for CPUs and edge devices; textures and objects, grey or colour.

    ``ssray train --data ROOT --category grid --models STORE --max-minutes 15``
    """
    return Recipe(name="compact")


def paper() -> Recipe:
    """Table 1 at full width, 512 px and the paper's learning rate. Meant for GPUs.

    Batch size, crop sizes and length are ours: the paper does not state them. Lengths of the
    corruption are those of ``compact`` at twice the resolution. Never yet trained to its end
    by us, so no result is promised.
    """
    return Recipe(
        name="paper",
        image_size=512,
        network=Network(width=64, kernel=3),
        corruption=Corruption(
            patches=Patches(radius=(8.0, 96.0)), displacement=(3.0, 20.0), smoothness=(8.0, 32.0)
        ),
        schedule=Schedule(crops=(128, 256, 512), batch_pixels=4 * 512 * 512, learning_rate=1e-4),
    )


def demo() -> Recipe:
    """Width 8 at 128 px: the generated demo data in under a minute of two cores."""
    return Recipe(
        name="demo",
        image_size=128,
        network=Network(width=8),
        corruption=Corruption(patches=Patches(radius=(3.0, 28.0))),
        schedule=Schedule(crops=(64, 128), batch_pixels=4 * 128 * 128, learning_rate=2e-3),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {"compact": compact, "paper": paper, "demo": demo}


def load_recipe(name_or_file: str) -> Recipe:
    """A named recipe, or one read from a JSON file.

    Raises:
        ConfigError: if there is neither, or the file does not hold a valid recipe.
    """
    if name_or_file in RECIPES:
        return RECIPES[name_or_file]()
    place = Location.parse(name_or_file)
    if not place.exists() or place.is_dir():
        raise ConfigError(
            f"recipe '{name_or_file}': neither a file nor a known name. "
            f"Known: {', '.join(RECIPES)}."
        )
    try:
        values = json.loads(place.read())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name_or_file}: not valid JSON ({error}).") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{name_or_file}: expected a JSON object with a recipe's fields.")
    return parse(Recipe, values, name_or_file)
