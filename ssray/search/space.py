"""The search space: which settings of a recipe a search varies, and over what values.

A space maps ``--set`` keys to lists of values or ranges. In a file it is JSON, such as
``{"schedule.learning_rate": {"low": 3e-4, "high": 3e-3, "log": true}, "network.kernel": [3, 5]}``.
Settings that are not in it stay as in the recipe. Settings of the anomaly map can't be in it: they
need no training, so they are tried on every trained model; nor can the linear autoencoder, which
costs seconds and goes with every trial alike.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from ssray.config import RENAMED_SETTINGS, STRIDE, Recipe, override
from ssray.errors import ConfigError
from ssray.storage.location import Location

_NEEDS_NO_TRAINING = ("anomaly_map", "decision", "linear", "name")
"""Settings, and groups of them, that a search can't vary, as they don't change the training."""
_SEEN = ("alignment", "image_size", "light")
"""Settings, and groups of them, that change the images which networks see."""
_SHARED = ("schedule.images", "schedule.epochs", "schedule.holdout")
"""Settings that a search can't vary, as they must be the same for all trials."""


class FloatRange(BaseModel):
    """A range of numbers, drawn evenly; or evenly on a logarithmic scale if ``log`` is true."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    low: float
    high: float
    log: bool = Field(False, description="draw the logarithms evenly")

    @model_validator(mode="after")
    def _low_is_lower(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low must be below high, found {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low must be above 0 where log is true, found {self.low}")
        return self

    @property
    def spread(self) -> float:
        """The distance between the bounds."""
        return self.high - self.low

    def __contains__(self, value: Any) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high


Choices = tuple[Any, ...]
"""A list of JSON values, each drawn with equal chance."""
SearchSpace = Mapping[str, FloatRange | Choices]
"""What a search varies: ranges or lists of values by ``--set`` key."""

_ADAPTER: TypeAdapter[dict[str, FloatRange | Choices]] = TypeAdapter(
    dict[str, FloatRange | Choices]
)


def _mix(**weights: float) -> dict[str, float]:
    """Makes a value of ``corruption.mix``; kinds that are not named get the weight 0."""
    kinds = ("elastic", "cut_out", "swap", "brightness", "occlusion", "pattern")
    return {kind: weights.get(kind, 0.0) for kind in kinds}


_MIXES = (
    _mix(elastic=1),
    _mix(elastic=1, pattern=1),
    _mix(elastic=1, occlusion=1, pattern=1),
    _mix(elastic=3, cut_out=1, swap=1, brightness=1, occlusion=3, pattern=3),
)

SIZES = (0.75, 1.5)
"""Image sizes to try besides the recipe's own, as multiples of it."""


def small(recipe: Recipe) -> SearchSpace:
    """Three settings of the training that suit any recipe."""
    return {
        "objective.corrupted_weight": FloatRange(low=0.3, high=0.9),
        "corruption.mix": _MIXES[:3],
        "schedule.learning_rate": FloatRange(low=3e-4, high=3e-3, log=True),
    }


def default(recipe: Recipe) -> SearchSpace:
    """What may matter for a recipe: its size, crops and pose, network, corruption and objective.

    A part in its place has a left and a right, so it is not turned by quarters, and crops are no
    smaller than half of its side; an aligned one is also tried as photographed.
    """
    has_places = recipe.linear is not None or recipe.alignment is not None
    half, quarter = (0.5, 1.0), (0.25, 0.5, 1.0)
    space: dict[str, FloatRange | Choices] = {
        "objective.kind": ("reconstruct", "amplify"),
        "objective.corrupted_weight": FloatRange(low=0.3, high=0.9),
        "network.kernel": (3, 5),
        "network.blend": ("none", "pixel", "both"),
        "corruption.mix": _MIXES,
        "corruption.displacement": ((0.004, 0.02), (0.006, 0.04), (0.012, 0.08)),
        "corruption.patches.count": (1, 3, 6),
        "schedule.learning_rate": FloatRange(low=3e-4, high=3e-3, log=True),
        "schedule.crops": ((1.0,), half) if has_places else ((1.0,), half, quarter),
        "schedule.augmentation": (
            ("none", "flip_horizontal", "flip") if has_places else ("none", "flip", "dihedral")
        ),
        "image_size": tuple(
            max(2 * STRIDE, round(share * recipe.image_size / STRIDE) * STRIDE) for share in SIZES
        ),
    }
    if recipe.alignment:
        space["alignment"] = (None,)
    return space


SPACES: dict[str, Callable[[Recipe], SearchSpace]] = {"small": small, "default": default}
"""The spaces that have a name; each suits the recipe that it is asked for."""


def read_space(name: str) -> Callable[[Recipe], SearchSpace]:
    """Returns a space by its name, or reads it from a JSON file.

    Args:
        name: one of ``SPACES``, or the path or URI of a file.

    Returns:
        Gives the space for a recipe.

    Raises:
        ConfigError: if there is neither, or the file does not hold a space.
    """
    if name in SPACES:
        return SPACES[name]
    file = Location.parse(name)
    if not file.exists() or file.is_dir():
        known = ", ".join(SPACES)
        raise ConfigError(f"space '{name}': neither a file nor a known name. Known: {known}.")
    try:
        space = _ADAPTER.validate_python(json.loads(file.read()))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f'{name}: not valid JSON ({error}). Expected such as {{"network.kernel": [3, 5]}}.'
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else "the file"
        raise ConfigError(
            f'{name}: {key}: expected a list of values, or {{"low": ..., "high": ...}} '
            f"({first['msg']})."
        ) from None
    for old, key in RENAMED_SETTINGS.items():
        if old in space:
            space[key] = space.pop(old)
    if not space:
        raise ConfigError(
            f"{name}: empty; expected at least one setting to vary, such as "
            '{"network.kernel": [3, 5]}.'
        )
    return lambda recipe: space


def seen_alike(space: SearchSpace, *, stated: bool) -> SearchSpace:
    """A space without what changes the images that networks see, so that their reconstruction
    errors can be compared.

    Args:
        space: the space.
        stated: whether the user wrote it, so that nothing may be left out of it.

    Raises:
        ConfigError: if it was stated and varies what is seen.
    """
    alike = {key: values for key, values in space.items() if key.split(".")[0] not in _SEEN}
    left_out = [key for key in space if key not in alike]
    if stated and left_out:
        raise ConfigError(
            f"space: {left_out[0]}: changes what the networks see, and then their reconstruction "
            "errors can't be compared. Use --select-by synthetic or labelled, or --set."
        )
    return alike


def fitted_to(space: SearchSpace, recipe: Recipe) -> dict[str, FloatRange | Choices]:
    """Checks a space against a recipe, and adds the recipe's own value to each list.

    Values are written as the recipe would write them, and none is repeated.

    Raises:
        ConfigError: if a key is no setting of the training or decides what all trials share, a
            value is not one of its values, a list is empty, the recipe's own value lies outside a
            range, or it has no alignment to vary.
    """
    own = own_values(space, recipe)
    found: dict[str, FloatRange | Choices] = {}
    for key, values in space.items():
        if key.split(".")[0] in _NEEDS_NO_TRAINING:
            raise ConfigError(
                f"space: {key}: not a setting of the training. Settings of the anomaly map are "
                "tried on every trained model (--map-settings), the linear autoencoder goes with "
                "every trial alike."
            )
        if key.split(".")[0] == "alignment" and recipe.alignment is None:
            raise ConfigError(
                f"space: {key}: parts are not aligned by this recipe. Trials are judged where it "
                "sees defects, so only a recipe that aligns can be tried with and without."
            )
        if key in _SHARED:
            raise ConfigError(
                f"space: {key}: decides the budget or the images that models are judged on, which "
                "are the same for all trials. Use --set."
            )
        if isinstance(values, FloatRange):
            if own[key] not in values:
                raise ConfigError(
                    f"space: {key}: the recipe's own value {own[key]} lies outside "
                    f"{values.low:g} to {values.high:g}. Widen the range."
                )
            for value in (values.low, values.high, values.low + 0.3819 * values.spread):
                with_settings(recipe, {key: value})
            found[key] = values
        else:
            if not values:
                raise ConfigError(f"space: {key}: an empty list; expected at least one value.")
            stated = [own_values([key], with_settings(recipe, {key: v}))[key] for v in values]
            found[key] = tuple(
                json.loads(text) for text in dict.fromkeys(map(json.dumps, [own[key], *stated]))
            )
    return found


def own_values(space: Iterable[str], recipe: Recipe) -> dict[str, Any]:
    """Returns the recipe's own value for each key, as a JSON value.

    Raises:
        ConfigError: if a key is not a setting of a recipe.
    """
    values = recipe.model_dump(mode="json")
    found = {}
    for key in space:
        value: Any = values
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                raise ConfigError(
                    f"space: '{key}' is no setting of a recipe. Expected a key as for --set, such "
                    "as network.kernel."
                )
            value = value[part]
        found[key] = value
    return found


def with_settings(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """Returns the recipe with some settings changed, given by their ``--set`` keys.

    Raises:
        ConfigError: as ``override`` does.
    """
    return override(recipe, [f"{key}={json.dumps(value)}" for key, value in settings.items()])


def size_of(space: SearchSpace) -> int:
    """Counts the different recipes in a space; ``sys.maxsize`` if it holds a range."""
    if any(isinstance(values, FloatRange) for values in space.values()):
        return sys.maxsize
    return math.prod(len(values) for values in space.values() if not isinstance(values, FloatRange))


def largest_size(space: SearchSpace, recipe: Recipe) -> int:
    """The largest ``image_size`` of any recipe in a space."""
    values = space.get("image_size", ())
    assert not isinstance(values, FloatRange), "sizes are whole numbers, as fitted_to has checked"
    return int(max((recipe.image_size, *values)))
