"""Configuration: frozen, validated, and the one place where a setting is described.

A ``Recipe`` holds everything that decides what a model is, and travels inside the
model's artifact. ``Compute`` holds what decides only how fast it gets there. Both are
pydantic models that refuse unknown keys; the command line derives its options and the
``--set`` keys from their fields.
"""

from __future__ import annotations

import json
from typing import Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from ssray.errors import ConfigError

Blend = Literal["none", "pixel", "channel", "both"]
Shape = Literal["disk", "rectangle", "blob", "stroke"]
Foreign = Literal["batch", "generated", "textures"]
ObjectiveKind = Literal["reconstruct", "amplify", "ensemble"]
Difference = Literal["squared", "ssim", "both"]
ImageScore = Literal["sum", "max", "topk"]
Augmentation = Literal["none", "flip_horizontal", "flip", "turn", "dihedral"]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16"]
Backend = Literal["auto", "torch", "openvino"]
ExportFormat = Literal["torch", "onnx", "openvino"]
Basis = Literal["synthetic", "labelled", "reconstruction"]
MapGrid = Literal["narrow", "wide"]
Heatmaps = Literal["flagged", "all", "none"]

Model = TypeVar("Model", bound=BaseModel)

RENAMED_SETTINGS = {"objective.lam": "objective.corrupted_weight"}
"""Keys of earlier versions, in files and ``--set``, and what they are called now."""

STRIDE = 8
"""The network halves its input three times; other sides are padded to multiples of this."""


class _Frozen(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )


def _check_range(name: str, bounds: tuple[float, float]) -> None:
    low, high = bounds
    if not 0 < low <= high:
        raise ValueError(f"{name} must be two numbers 0 < low <= high, found {low}, {high}")


class Network(_Frozen):
    """Table 1, scaled in width; with skip connections Model II of Fig. 5."""

    width: int = Field(16, ge=1, description="channels of the first stage; 64 is the paper's")
    kernel: Literal[3, 5] = Field(3, description="kernel f of the dilated convolutions")
    blend: Blend = Field(
        "none",
        description="none is Model I; else Model II, with one blending coefficient per pixel, "
        "per channel, or for both",
    )


class Patches(_Frozen):
    """Where an image is corrupted. Lengths are shares of the whole image's shorter side."""

    count: int = Field(
        3, ge=1, le=16, description="most patches an image; 1 to this many are drawn"
    )
    radius: tuple[float, float] = Field(
        (0.016, 0.19), description="radius, share of the image's shorter side (log-uniform)"
    )
    shapes: tuple[Shape, ...] = Field(
        ("disk",), min_length=1, description="drawn with equal chance for every patch"
    )
    fade: float = Field(
        0.5, gt=0, le=1, description="share of the radius over which the border fades"
    )
    outline: float = Field(
        0.35, ge=0, lt=1, description="distortion of the outline, as a share of the radius (rms)"
    )

    elongation: tuple[float, float] = Field(
        (1.0, 3.0), description="rectangle: length over breadth (log-uniform)"
    )
    stroke: tuple[float, float] = Field(
        (0.006, 0.024), description="stroke: breadth, share of the side (log-uniform)"
    )

    @model_validator(mode="after")
    def _ranges_are_ranges(self) -> Self:
        for name in ("radius", "elongation", "stroke"):
            _check_range(name, getattr(self, name))
        return self


class Mix(_Frozen):
    """Relative frequency of each kind of content; every image gets one kind."""

    elastic: float = Field(1.0, ge=0, description="the patch's own content, deformed")
    cut_out: float = Field(0.0, ge=0, description="zeros")
    swap: float = Field(0.0, ge=0, description="the same place in another image of the batch")
    brightness: float = Field(0.0, ge=0, description="the patch's own content, lighter or darker")
    occlusion: float = Field(0.0, ge=0, description="foreign content")
    pattern: float = Field(
        0.0, ge=0, description="foreign content of random opacity over an image with noise"
    )

    @model_validator(mode="after")
    def _something_is_drawn(self) -> Self:
        if sum(self.model_dump().values()) <= 0:
            raise ValueError("at least one kind needs a weight above 0")
        return self


class Corruption(_Frozen):
    """What is put into the patches (section 3.2). Ranges are drawn from per image.

    Lengths are shares of the whole image's shorter side, whatever the crop.
    """

    patches: Patches = Patches()
    mix: Mix = Mix()
    displacement: tuple[float, float] = Field(
        (0.006, 0.04),
        description="elastic: rms displacement along each axis, share of the side (log-uniform)",
    )
    smoothness: tuple[float, float] = Field(
        (0.016, 0.0625),
        description="elastic: correlation length of the displacement, share of the side",
    )
    brightness: tuple[float, float] = Field(
        (0.05, 0.4), description="brightness: change, of the full range 1, either sign"
    )
    foreign: tuple[Foreign, ...] = Field(
        ("batch", "generated"),
        min_length=1,
        description="occlusion, pattern: sources of foreign content, with equal chance",
    )
    textures: str | None = Field(
        None, description="occlusion, pattern: folder or URI of images for 'textures' in foreign"
    )
    opacity: tuple[float, float] = Field((0.2, 1.0), description="pattern: opacity (uniform)")
    noise: float = Field(
        0.02, ge=0, le=1, description="pattern: largest standard deviation of the target's noise"
    )
    rotated: float = Field(
        0.0, ge=0, le=1, description="share of corrupted images that are turned about the centre"
    )
    rotation: tuple[float, float] = Field(
        (2.0, 30.0), description="rotated: angle, degrees, either sense (log-uniform)"
    )

    @model_validator(mode="after")
    def _values_fit_together(self) -> Self:
        for name in ("displacement", "smoothness", "brightness", "opacity", "rotation"):
            _check_range(name, getattr(self, name))
        if self.opacity[1] > 1:
            raise ValueError(f"opacity must be at most 1, found {self.opacity[1]}")
        if ("textures" in self.foreign) != (self.textures is not None):
            raise ValueError("'textures' in foreign and a folder in textures go together")
        return self


class Objective(_Frozen):
    """Objective (1), objective (4), or one network of each."""

    kind: ObjectiveKind = Field(
        "reconstruct",
        description="reconstruct is objective (1), amplify is (4), ensemble trains one of each for "
        "half the budget and joins their maps",
    )
    corrupted_weight: float = Field(
        0.5,
        ge=0,
        le=1,
        description="lambda of the paper: weight of the corrupted region; the rest has 1 - lambda",
    )
    patience: float = Field(
        0.3,
        gt=0,
        le=1,
        description="early stopping: share of the budget after which training stops if synthetic "
        "defects in held-out images are separated no better; the best weights are kept",
    )
    early_stopping: bool | None = Field(
        None, description="by default for amplify, which overfits, and not for reconstruct"
    )

    @model_validator(mode="before")
    @classmethod
    def _lambda_had_another_name(cls, values: Any) -> Any:
        """Recipes of earlier versions, in artifacts and files, and ``--set objective.lam``."""
        if isinstance(values, dict) and "lam" in values:
            values = {**values, "corrupted_weight": values["lam"]}
            del values["lam"]
        return values


class Schedule(_Frozen):
    """How long and in which steps a model is trained."""

    images: int = Field(
        100_000,
        ge=1,
        description="images to train on, over all workers; a crop counts by the area it covers",
    )
    epochs: float | None = Field(
        400,
        gt=0,
        description="passes over the training images after which the run ends, if it has not yet; "
        "a network that saw them more often learns to reproduce defects",
    )
    batch: int = Field(
        4,
        ge=1,
        description="whole images a step over all workers; of smaller crops as many as fill the "
        "same area, and at least two a worker",
    )
    crops: tuple[float, ...] = Field(
        (0.5, 1.0),
        min_length=1,
        description="crop sides as shares of the image's, smallest first, each for an equal share "
        "of the budget; 1 is the whole image",
    )
    learning_rate: float = Field(1e-3, gt=0, description="Adam's peak learning rate")
    warmup: float = Field(0.03, ge=0, lt=1, description="share of the budget the rate rises over")
    averaging: float = Field(
        0.998, ge=0, lt=1, description="decay of the weight average that is kept; 0 keeps the last"
    )
    augmentation: Augmentation = Field(
        "none",
        description="what leaves a normal image normal: flip (both ways), quarter turns, or both "
        "(dihedral)",
    )
    photometric: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="largest relative change of brightness and contrast of a training image, so "
        "that drifting light does not read as a defect",
    )
    holdout: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="share of the training images held out for validation and thresholds",
    )

    @model_validator(mode="after")
    def _crops_grow(self) -> Self:
        if not all(0 < share <= 1 for share in self.crops):
            raise ValueError(f"crops must be shares above 0 up to 1, found {list(self.crops)}")
        if list(self.crops) != sorted(self.crops):
            raise ValueError(f"crops must grow, found {list(self.crops)}")
        return self


class AnomalyMap(_Frozen):
    """Equations (2), (3) and (14), and how a map becomes one number."""

    difference: Difference | None = Field(
        None,
        description="both is the geometric mean of squared and ssim; by default chosen for every "
        "model on synthetic defects made from defect-free images",
    )
    kernel: int | None = Field(
        None,
        ge=1,
        description="side k of the mean filter, pixels (odd); by default chosen likewise",
    )
    repeats: int = Field(3, ge=0, description="times n the filter is applied; 0 leaves the map")
    average_power: float = Field(
        0.0, ge=0, description="power t of (1 - avgmap); 0 leaves out the average map"
    )
    image_score: ImageScore = Field("max", description="reduction of a map to the image score")
    top_fraction: float = Field(
        0.001, gt=0, le=1, description="share of pixels averaged when image_score is topk"
    )

    @field_validator("image_score", mode="before")
    @classmethod
    def _null_was_once_a_choice(cls, score: Any) -> Any:
        """Recipes of earlier versions, in artifacts and files, left it open."""
        return "max" if score is None else score

    @model_validator(mode="after")
    def _kernel_is_odd(self) -> Self:
        if self.kernel is not None and self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, found {self.kernel}")
        return self


class MapSettings(AnomalyMap):
    """An ``AnomalyMap`` in which nothing is left to be chosen."""

    difference: Difference
    kernel: int = Field(ge=1)


class Decision(_Frozen):
    """When an image is flagged."""

    false_alarm_rate: float = Field(
        0.05, gt=0, lt=1, description="share of the defect-free images that may be flagged"
    )
    folds: int = Field(
        0,
        ge=0,
        description="train as many more models, each without its part of the images, so that every "
        "image gives a score it was not trained for; 0 leaves it at the held-out ones",
    )

    @field_validator("folds")
    @classmethod
    def _one_fold_is_none(cls, folds: int) -> int:
        if folds == 1:
            raise ValueError("expected 0, or at least 2")
        return folds


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
    decision: Decision = Decision()


class Compute(_Frozen):
    """Where and how fast; never what. The same recipe runs on any of these."""

    device: Device = Field(
        "auto",
        description="auto takes CUDA where there is one now; cuda also where a cluster starts its "
        "GPUs on demand",
    )
    precision: Precision = Field(
        "auto",
        description="auto: training times both on this processor and takes the faster, scoring "
        "takes what the model was trained in",
    )
    backend: Backend = Field(
        "auto",
        description="what scores: torch, or openvino on CPUs, which is faster; auto takes it there",
    )
    compile: bool = Field(
        False, description="train a compiled network (torch.compile): minutes to start, then faster"
    )
    workers: int | None = Field(
        None,
        ge=1,
        description="worker processes: of a training (DDP), or that score; default: one, on CPUs "
        "one for every two cores, of scoring one a GPU",
    )
    cpus_per_worker: int | None = Field(
        None, ge=1, description="cores of each worker; default: this machine's, shared out"
    )
    gpus_per_worker: float | None = Field(
        None,
        gt=0,
        description="GPUs that Ray reserves for each worker, 1 or a part of one or several; "
        "default: 1 where it computes on CUDA",
    )
    images_per_step: int | None = Field(
        None,
        ge=1,
        description="images a step of a training, the learning rate following by the square root; "
        "default: the recipe's, and more where they fill a GPU or the cores of several workers",
    )
    memory_gib: float = Field(
        4,
        gt=0,
        description="memory of each worker for decoded images, on its device; of a category that "
        "needs more, a window moves over the images while it is trained",
    )
    accumulate: int = Field(
        1,
        ge=1,
        description="parts in which each worker takes its share of a step, where memory holds no "
        "more; each has at least two crops",
    )
    max_minutes: float | None = Field(
        None, gt=0, description="time budget the learning rate anneals to, if it ends first"
    )
    checkpoint_minutes: float = Field(
        2, ge=0, description="minutes between checkpoints, from which a killed training goes on"
    )
    restarts: int = Field(
        3, ge=0, description="how often a training goes on after it lost a worker"
    )
    min_workers: int | None = Field(
        None, ge=1, description="go on with as few workers as this if others stay lost"
    )
    seed: int = Field(
        0, ge=0, lt=2**32, description="fixes initial weights, hold-out and corruption"
    )

    @field_validator("gpus_per_worker")
    @classmethod
    def _a_part_or_several(cls, gpus: float | None) -> float | None:
        if gpus is not None and gpus > 1 and gpus != int(gpus):
            raise ValueError("expected a part of one GPU or a whole number of them")
        return gpus

    @model_validator(mode="after")
    def _backend_runs_on_the_device(self) -> Self:
        if self.backend == "openvino" and self.device == "cuda":
            raise ValueError(
                "backend openvino computes on CPUs, device cuda asks for a GPU; take --device cpu, "
                "or --backend torch"
            )
        return self


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
