"""The search space: which settings of a recipe a search varies, and over what values.

A space maps ``--set`` keys to lists of values or ranges. In a file it is JSON, such as
``{"schedule.learning_rate": {"low": 3e-4, "high": 3e-3, "log": true}, "network.kernel": [3, 5]}``.
Settings that are not in it stay as in the recipe. Settings of the anomaly map can't be in it: they
need no training, so they are tried on every trained model; nor can the linear autoencoder, which
all trials share.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from ssray.config import RENAMED_SETTINGS, Recipe, override
from ssray.errors import ConfigError
from ssray.storage.location import Location

_NEEDS_NO_TRAINING = ("anomaly_map", "decision", "linear", "name")
"""Settings, and groups of them, that a search can't vary, as they don't change the training."""
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

SPACES: dict[str, dict[str, FloatRange | Choices]] = {
    "small": {
        "objective.corrupted_weight": FloatRange(low=0.3, high=0.9),
        "corruption.mix": _MIXES[:3],
        "schedule.learning_rate": FloatRange(low=3e-4, high=3e-3, log=True),
    },
    "default": {
        "objective.kind": ("reconstruct", "amplify"),
        "objective.corrupted_weight": FloatRange(low=0.3, high=0.9),
        "network.kernel": (3, 5),
        "network.blend": ("none", "pixel", "both"),
        "corruption.mix": _MIXES,
        "corruption.displacement": ((0.004, 0.02), (0.006, 0.04), (0.012, 0.08)),
        "corruption.patches.count": (1, 3, 6),
        "schedule.learning_rate": FloatRange(low=3e-4, high=3e-3, log=True),
        "image_size": (128, 192, 256),
    },
}


def read_space(name: str) -> dict[str, FloatRange | Choices]:
    """Returns a space by its name, or reads it from a JSON file.

    Args:
        name: one of ``SPACES``, or the path or URI of a file.

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
    return space


def fitted_to(space: SearchSpace, recipe: Recipe) -> dict[str, FloatRange | Choices]:
    """Checks a space against a recipe, and adds the recipe's own value to each list.

    Values are written as the recipe would write them, and none is repeated.

    Raises:
        ConfigError: if a key is no setting of the training or decides what all trials share, a
            value is not one of its values, a list is empty, or the recipe's own value lies outside
            a range.
    """
    own = own_values(space, recipe)
    found: dict[str, FloatRange | Choices] = {}
    for key, values in space.items():
        if key.split(".")[0] in _NEEDS_NO_TRAINING:
            raise ConfigError(
                f"space: {key}: not a setting of the training. Settings of the anomaly map are "
                "tried on every trained model (--map-settings), the linear autoencoder is the "
                "same for all trials."
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
