"""Configuration: frozen, validated, and the one place where a setting is described.

A ``Recipe`` holds everything that decides what a model is, and travels inside the
model's artifact. ``Compute`` holds what decides only how fast it gets there. Both are
pydantic models that refuse unknown keys; the command line derives its options and the
``--set`` keys from their fields.
"""

from __future__ import annotations

import json
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ssray.errors import ConfigError

ImageScore = Literal["sum", "max", "topk"]
Augmentation = Literal["none", "flip_horizontal", "flip", "dihedral"]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16"]

Model = TypeVar("Model", bound=BaseModel)

STRIDE = 8
"""The network halves its input three times, so image sides are multiples of this."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Network(_Frozen):
    """Model I of Table 1, scaled in width."""

    width: int = Field(16, ge=1, description="channels of the first stage; 64 is the paper's")
    kernel: Literal[3, 5] = Field(3, description="kernel f of the dilated convolutions")


class Corruption(_Frozen):
    """Elastic deformation inside faded, distorted disks (section 3.2).

    Lengths are pixels of the image as the network sees it. Each is drawn per image
    (or per disk) between the two ends given, log-uniformly.
    """

    disks: int = Field(3, ge=1, le=16, description="most disks an image; 1 to this many are drawn")
    radius: tuple[float, float] = Field((4.0, 48.0), description="disk radius, pixels")
    fade: float = Field(
        0.5, gt=0, le=1, description="share of the radius over which the border fades"
    )
    outline: float = Field(
        0.35, ge=0, lt=1, description="distortion of the outline, as a share of the radius (rms)"
    )
    displacement: tuple[float, float] = Field(
        (1.5, 10.0), description="rms displacement of the elastic field, pixels"
    )
    smoothness: tuple[float, float] = Field(
        (4.0, 16.0), description="correlation length of the elastic field, pixels"
    )

    @model_validator(mode="after")
    def _ranges_are_ordered(self) -> Self:
        for name in ("radius", "displacement", "smoothness"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} must be two lengths 0 < low <= high, found {low}, {high}")
        return self


class Objective(_Frozen):
    """Objective (1) of the paper."""

    lam: float = Field(
        0.5, ge=0, le=1, description="weight of the corrupted region; 1 - lam of the rest"
    )


class Schedule(_Frozen):
    """How long and in which steps a model is trained."""

    images: int = Field(
        40_000,
        ge=1,
        description="images to train on, over all workers; a crop counts by the area it covers",
    )
    batch_pixels: int = Field(
        4 * 256 * 256,
        ge=4096,
        description="pixels a step over all workers; the batch grows as crops shrink and is at "
        "least two crops a worker",
    )
    crops: tuple[int, ...] = Field(
        (64, 128, 256),
        description="crop sides in pixels, smallest first, each for an equal share of the budget",
    )
    learning_rate: float = Field(1e-3, gt=0, description="Adam's peak learning rate")
    warmup: float = Field(0.03, ge=0, lt=1, description="share of the budget the rate rises over")
    averaging: float = Field(
        0.998, ge=0, lt=1, description="decay of the weight average that is kept; 0 keeps the last"
    )
    augmentation: Augmentation = Field(
        "none", description="flips and quarter turns that leave a normal image normal"
    )
    holdout: float = Field(
        0.05, gt=0, lt=1, description="share of the training images held out for validation"
    )

    @model_validator(mode="after")
    def _crops_fit_the_network(self) -> Self:
        if not self.crops or any(c < STRIDE or c % STRIDE for c in self.crops):
            raise ValueError(f"crops must be multiples of {STRIDE}, found {list(self.crops)}")
        if list(self.crops) != sorted(self.crops):
            raise ValueError(f"crops must grow, found {list(self.crops)}")
        return self


class AnomalyMap(_Frozen):
    """Equations (2) and (3), and how a map becomes one number."""

    kernel: int = Field(11, ge=1, description="side k of the mean filter, pixels (odd)")
    repeats: int = Field(3, ge=0, description="times n the filter is applied; 0 leaves the map")
    image_score: ImageScore = Field("topk", description="reduction of a map to the image score")
    top_fraction: float = Field(
        0.001, gt=0, le=1, description="share of pixels averaged when image_score is topk"
    )

    @model_validator(mode="after")
    def _kernel_is_odd(self) -> Self:
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, found {self.kernel}")
        return self


class Recipe(_Frozen):
    """Everything that decides a model. Stored inside its artifact."""

    name: str = Field("custom", description="for people; two recipes may share it")
    image_size: int = Field(
        256,
        ge=2 * STRIDE,
        description="longer side of the resized image, pixels; the aspect ratio is kept",
    )
    network: Network = Network()
    corruption: Corruption = Corruption()
    objective: Objective = Objective()
    schedule: Schedule = Schedule()
    anomaly_map: AnomalyMap = AnomalyMap()
    select_map: bool = Field(
        True,
        description="choose the anomaly map's settings on synthetic defects made from defect-free "
        "images; off takes anomaly_map as it stands",
    )


class Compute(_Frozen):
    """Where and how fast; never what. The same recipe runs on any of these."""

    device: Device = Field("auto", description="auto takes CUDA where there is one")
    precision: Precision = Field(
        "auto",
        description="auto: training times both on this processor and takes the faster, scoring "
        "takes what the model was trained in",
    )
    workers: int = Field(1, ge=1, description="training processes (DDP)")
    cpus_per_worker: int | None = Field(
        None, ge=1, description="cores of each worker; default: this machine's, shared out"
    )
    gpus_per_worker: float = Field(
        1, gt=0, description="GPUs of each worker where the device is CUDA"
    )
    max_minutes: float | None = Field(
        None, gt=0, description="time budget the learning rate anneals to, if it ends first"
    )
    seed: int = Field(0, ge=0, description="fixes initial weights, hold-out and corruption")


def parse(model: type[Model], values: dict[str, Any], source: str) -> Model:
    """Validates ``values`` as ``model``.

    Raises:
        ConfigError: names the offending key, what was found and what was expected.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "settings"
        if first["type"] == "extra_forbidden":
            known = ", ".join(_keys(model, first["loc"][:-1]))
            raise ConfigError(f"{source}: unknown key '{key}'. Known keys here: {known}.") from None
        message = first["msg"].removeprefix("Value error, ")
        found = "" if first["type"] == "value_error" else f" (found {first['input']!r})"
        raise ConfigError(f"{source}: {key}: {message}{found}.") from None


def override(recipe: Recipe, assignments: list[str] | tuple[str, ...]) -> Recipe:
    """A recipe with ``key.path=value`` assignments applied; values are JSON or plain words.

    >>> override(Recipe(), ["network.width=8", "anomaly_map.image_score=sum"]).network.width
    8

    Raises:
        ConfigError: if an assignment has no ``=``, names no field or fails validation.
    """
    values: dict[str, Any] = recipe.model_dump()
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator:
            raise ConfigError(f"--set {assignment}: expected key=value, such as network.width=8.")
        *parents, leaf = path.strip().split(".")
        node = values
        for i, parent in enumerate(parents):
            child = node.get(parent)
            if not isinstance(child, dict):
                known = ", ".join(_keys(Recipe, tuple(parents[:i])))
                raise ConfigError(
                    f"--set {assignment}: '{parent}' is no group of settings here. Known: {known}."
                )
            node = child
        try:
            node[leaf] = json.loads(text)
        except json.JSONDecodeError:
            node[leaf] = text
    source = "--set " + " ".join(assignments) if assignments else "recipe"
    return parse(Recipe, values, source)


def _keys(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    for part in path:
        annotation = model.model_fields[str(part)].annotation
        assert isinstance(annotation, type) and issubclass(annotation, BaseModel)
        model = annotation
    return list(model.model_fields)
