"""What a sweep varies: settings of the recipe by their ``--set`` keys, each a list or a range.

A space is JSON, ``{"objective.corrupted_weight": {"low": 0.3, "high": 0.9},
"network.kernel": [3, 5]}``. What is not in it stays as the recipe has it. Settings of the anomaly
map do not belong into it: they need no training, so every trained model is judged with all of them.
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

_NEEDS_NO_TRAINING = ("anomaly_map", "decision", "name")
_SHARED = ("schedule.images", "schedule.epochs", "schedule.holdout")


class Range(BaseModel):
    """Numbers between two bounds, evenly spread; or their logarithms."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    low: float
    high: float
    log: bool = Field(False, description="spread the logarithms evenly")

    @model_validator(mode="after")
    def _low_is_lower(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low must be below high, found {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low must be above 0 where log is true, found {self.low}")
        return self

    @property
    def spread(self) -> float:
        """From one bound to the other."""
        return self.high - self.low

    def __contains__(self, value: Any) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high


Choices = tuple[Any, ...]
"""JSON values, each with equal chance."""
SearchSpace = Mapping[str, Range | Choices]
"""By dotted key."""

_ADAPTER: TypeAdapter[dict[str, Range | Choices]] = TypeAdapter(dict[str, Range | Choices])


def _mix(**weights: float) -> dict[str, float]:
    kinds = ("elastic", "cut_out", "swap", "brightness", "occlusion", "pattern")
    return {kind: weights.get(kind, 0.0) for kind in kinds}


_MIXES = (
    _mix(elastic=1),
    _mix(elastic=1, pattern=1),
    _mix(elastic=1, occlusion=1, pattern=1),
    _mix(elastic=3, cut_out=1, swap=1, brightness=1, occlusion=3, pattern=3),
)

SPACES: dict[str, dict[str, Range | Choices]] = {
    "small": {
        "objective.corrupted_weight": Range(low=0.3, high=0.9),
        "corruption.mix": _MIXES[:3],
        "schedule.learning_rate": Range(low=3e-4, high=3e-3, log=True),
    },
    "default": {
        "objective.kind": ("reconstruct", "amplify"),
        "objective.corrupted_weight": Range(low=0.3, high=0.9),
        "network.kernel": (3, 5),
        "network.blend": ("none", "pixel", "both"),
        "corruption.mix": _MIXES,
        "corruption.displacement": ((0.004, 0.02), (0.006, 0.04), (0.012, 0.08)),
        "corruption.patches.count": (1, 3, 6),
        "schedule.learning_rate": Range(low=3e-4, high=3e-3, log=True),
        "image_size": (128, 192, 256),
    },
}


def read_space(name: str) -> dict[str, Range | Choices]:
    """A space by its name, or from a JSON file.

    Raises:
        ConfigError: if there is none, or it is not one.
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
        raise ConfigError(f"{name}: not valid JSON ({error}).") from None
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
        raise ConfigError(f"{name}: expected at least one setting to vary.")
    return space


def fitted_to(space: SearchSpace, recipe: Recipe) -> dict[str, Range | Choices]:
    """The space with values as the recipe would state them, its own among those of each list.

    Raises:
        ConfigError: if a key is no setting of the training or decides what all trials share, a
            value is not one of its values, a list is empty, or the recipe's own value lies outside
            a range.
    """
    own = own_values(space, recipe)
    found: dict[str, Range | Choices] = {}
    for key, values in space.items():
        if key.split(".")[0] in _NEEDS_NO_TRAINING:
            raise ConfigError(
                f"space: {key}: not a setting of the training. Settings of the anomaly map are "
                "chosen for every trained model."
            )
        if key in _SHARED:
            raise ConfigError(
                f"space: {key}: decides the budget or the images that models are judged on, which "
                "are the same for all trials. Use --set."
            )
        if isinstance(values, Range):
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
                raise ConfigError(f"space: {key}: expected at least one value.")
            stated = [own_values([key], with_settings(recipe, {key: v}))[key] for v in values]
            found[key] = tuple(
                json.loads(text) for text in dict.fromkeys(map(json.dumps, [own[key], *stated]))
            )
    return found


def own_values(space: Iterable[str], recipe: Recipe) -> dict[str, Any]:
    """What the recipe itself has for each key, as JSON values.

    Raises:
        ConfigError: if a key is no setting.
    """
    values = recipe.model_dump(mode="json")
    found = {}
    for key in space:
        value: Any = values
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                raise ConfigError(f"space: '{key}' is no setting of a recipe.")
            value = value[part]
        found[key] = value
    return found


def with_settings(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """The recipe with some settings changed.

    Raises:
        ConfigError: as ``override``.
    """
    return override(recipe, [f"{key}={json.dumps(value)}" for key, value in settings.items()])


def size_of(space: SearchSpace) -> int:
    """How many different recipes there are; ``sys.maxsize`` where something is a range."""
    if any(isinstance(values, Range) for values in space.values()):
        return sys.maxsize
    return math.prod(len(values) for values in space.values() if not isinstance(values, Range))
