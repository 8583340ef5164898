"""All settings: what each is called, what it means, its default and the values it may have.

A ``Recipe`` holds every setting that changes the model that comes out of a training; it is
stored inside the model's artifact. ``Compute`` holds the settings that only change where and how
fast the work is done. Both are frozen pydantic models that refuse unknown keys. The command line
makes its options and the ``--set`` keys from their fields and shows the descriptions as help.
"""

from __future__ import annotations

import json
from typing import Any, Literal, Self, TypeVar, get_args

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
Difference = Literal["squared", "ssim", "both", "features"]
ImageScore = Literal["sum", "max", "topk"]
Join = Literal["max", "mean"]
Experts = Literal["autoencoders", "neighbours", "joined"]
Augmentation = Literal["none", "flip_horizontal", "flip", "turn", "dihedral"]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16"]
Backend = Literal["auto", "torch", "openvino"]
ExportFormat = Literal["torch", "onnx", "openvino"]
Basis = Literal["synthetic", "labelled", "reconstruction"]
MapGrid = Literal["plain", "nt", "narrow", "wide"]
Heatmaps = Literal["flagged", "all", "none"]

Model = TypeVar("Model", bound=BaseModel)

RENAMED_SETTINGS = {"objective.lam": "objective.corrupted_weight"}
"""Settings that were renamed: the key that earlier versions used, and the present one."""

MOST_KERNEL = 1025
"""Pixels of the side of the largest mean filter."""
FRAME_SIDES = (0.02, 10.0)
"""The least side of a frame, and how far it reaches from the part's centre at most, as shares of
the photograph's shorter side."""

STRIDE = 8
"""Side lengths of the network's input are padded to a multiple of this: it halves them thrice."""


class _Frozen(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )


def _check_range(name: str, bounds: tuple[float, float]) -> None:
    low, high = bounds
    if not 0 < low <= high:
        raise ValueError(f"{name} must be two numbers 0 < low <= high, found {low}, {high}")


class Network(_Frozen):
    """The autoencoder: Table 1 of the paper (Model I), or that of Fig. 5 (Model II)."""

    width: int = Field(
        16, ge=1, le=256, description="channels of the first stage; the paper has 64"
    )
    kernel: Literal[3, 5] = Field(3, description="kernel f of the dilated convolutions")
    blend: Blend = Field(
        "none",
        description="none is Model I, without skip connections; the others are Model II, which "
        "blends each skip connection in by a coefficient per pixel, per channel, or for both",
    )


class Patches(_Frozen):
    """Where an image is corrupted: number, size and outline of the patches.

    Lengths are shares of the whole image's shorter side.
    """

    count: int = Field(
        3,
        ge=1,
        le=16,
        description="largest number of patches in an image; 1 to this many are drawn",
    )
    radius: tuple[float, float] = Field(
        (0.016, 0.19),
        description="range of the radius, as a share of the image's shorter side (log-uniform)",
    )
    shapes: tuple[Shape, ...] = Field(
        ("disk",), min_length=1, description="outlines a patch can have, each with equal chance"
    )
    fade: float = Field(
        0.5,
        gt=0,
        le=1,
        description="share of the radius over which a patch fades out at its border",
    )
    outline: float = Field(
        0.35, ge=0, lt=1, description="distortion of the outline, as a share of the radius (rms)"
    )

    elongation: tuple[float, float] = Field(
        (1.0, 3.0), description="rectangle: range of length over breadth (log-uniform)"
    )
    stroke: tuple[float, float] = Field(
        (0.006, 0.024),
        description="stroke: range of the breadth, as a share of the side (log-uniform)",
    )

    @model_validator(mode="after")
    def _ranges_are_ranges(self) -> Self:
        for name in ("radius", "elongation", "stroke"):
            _check_range(name, getattr(self, name))
        return self


class Mix(_Frozen):
    """How often each kind of corruption is used; every image gets one kind for all its patches."""

    elastic: float = Field(1.0, ge=0, description="weight of the patch's own content, deformed")
    cut_out: float = Field(0.0, ge=0, description="weight of patches set to zero")
    swap: float = Field(
        0.0, ge=0, description="weight of content from the same place in another image of the batch"
    )
    brightness: float = Field(
        0.0, ge=0, description="weight of the patch's own content, lighter or darker"
    )
    occlusion: float = Field(0.0, ge=0, description="weight of foreign content")
    pattern: float = Field(
        0.0,
        ge=0,
        description="weight of foreign content of random opacity over an image with added noise",
    )

    @model_validator(mode="after")
    def _something_is_drawn(self) -> Self:
        if sum(self.model_dump().values()) <= 0:
            raise ValueError("at least one kind needs a weight above 0")
        return self


class Corruption(_Frozen):
    """How training images are corrupted (section 3.2 of the paper).

    A value is drawn from each range for every image. Lengths are shares of the whole image's
    shorter side, also when a crop is trained on.
    """

    patches: Patches = Patches()
    mix: Mix = Mix()
    displacement: tuple[float, float] = Field(
        (0.006, 0.04),
        description="elastic: range of the rms displacement along each axis, as a share of the "
        "side (log-uniform)",
    )
    smoothness: tuple[float, float] = Field(
        (0.016, 0.0625),
        description="elastic: range of the displacement's correlation length, as a share of the "
        "side",
    )
    brightness: tuple[float, float] = Field(
        (0.05, 0.4), description="brightness: range of the change, up or down; the full scale is 1"
    )
    foreign: tuple[Foreign, ...] = Field(
        ("batch", "generated"),
        min_length=1,
        description="occlusion, pattern: where foreign content comes from, each with equal chance",
    )
    textures: str | None = Field(
        None,
        description="occlusion, pattern: folder or URI of images, needed for 'textures' in foreign",
    )
    opacity: tuple[float, float] = Field(
        (0.2, 1.0), description="pattern: range of the opacity (uniform)"
    )
    noise: float = Field(
        0.02,
        ge=0,
        le=1,
        description="pattern: largest standard deviation of the noise added to the image and its "
        "target",
    )
    rotated: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the corrupted images that are rotated about the centre",
    )
    rotation: tuple[float, float] = Field(
        (2.0, 30.0), description="rotated: range of the angle in degrees, either way (log-uniform)"
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
    """What a network is trained for: objective (1) or (4) of the paper, or one network for each."""

    kind: ObjectiveKind = Field(
        "reconstruct",
        description="reconstruct is objective (1), amplify is objective (4), ensemble trains one "
        "network for each with half the budget and joins their maps",
    )
    corrupted_weight: float = Field(
        0.5,
        ge=0,
        le=1,
        description="weight of the corrupted region in the loss (lambda of the paper); the rest of "
        "the image has 1 - lambda",
    )
    patience: float = Field(
        0.3,
        gt=0,
        le=1,
        description="early stopping: training ends when synthetic defects in held-out images were "
        "not separated better for this share of the budget; the best weights are kept",
    )
    early_stopping: bool | None = Field(
        None,
        description="whether training may stop early; default: for amplify, which overfits, but "
        "not for reconstruct",
    )

    @model_validator(mode="before")
    @classmethod
    def _lambda_had_another_name(cls, values: Any) -> Any:
        """Accepts ``lam``, which earlier versions of ssray called ``corrupted_weight``."""
        if isinstance(values, dict) and "lam" in values:
            values = {**values, "corrupted_weight": values["lam"]}
            del values["lam"]
        return values


class Schedule(_Frozen):
    """How long a model is trained, with what steps and on what images."""

    images: int = Field(
        100_000,
        ge=1,
        description="length of the training, in images over all workers; a crop counts by its "
        "share of the image's area",
    )
    epochs: float | None = Field(
        400,
        gt=0,
        description="largest number of passes over the training images, whatever schedule.images "
        "says; a network that sees them more often learns to reproduce defects",
    )
    batch: int = Field(
        4,
        ge=1,
        description="whole images in a step, over all workers; of smaller crops a step has as many "
        "as cover the same area, and at least two for each worker",
    )
    crops: tuple[float, ...] = Field(
        (0.5, 1.0),
        min_length=1,
        description="sides of the crops as shares of the image's, smallest first; each is trained "
        "on for an equal share of the budget, and 1 is the whole image",
    )
    learning_rate: float = Field(1e-3, gt=0, description="Adam's peak learning rate")
    warmup: float = Field(
        0.03, ge=0, lt=1, description="share of the budget over which the rate rises"
    )
    averaging: float = Field(
        0.998,
        ge=0,
        lt=1,
        description="decay of the average of the weights, which becomes the model; 0 takes the "
        "last",
    )
    augmentation: Augmentation = Field(
        "none",
        description="changes that leave a normal image normal: flip_horizontal, flip (both ways), "
        "turn (by quarters), or dihedral (flips and turns)",
    )
    photometric: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="largest relative change of a training image's brightness and contrast, which "
        "keeps a drifting light from being taken for a defect",
    )
    holdout: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="share of the training images that is held out, for validation and thresholds",
    )

    @model_validator(mode="after")
    def _crops_grow(self) -> Self:
        if not all(0 < share <= 1 for share in self.crops):
            raise ValueError(f"crops must be shares above 0 up to 1, found {list(self.crops)}")
        if list(self.crops) != sorted(self.crops):
            raise ValueError(f"crops must grow, found {list(self.crops)}")
        return self


class AnomalyMap(_Frozen):
    """How anomaly maps are made (equations (2), (3) and (14)) and reduced to an image score."""

    difference: Difference | None = Field(
        None,
        description="how reconstruction and image are compared; both is the geometric mean of "
        "squared and ssim, features compares what a pretrained network sees; default: both",
    )
    kernel: int | None = Field(
        None,
        ge=1,
        le=MOST_KERNEL,
        description="side k of the mean filter in pixels, odd; default: 5 % of the shorter side",
    )
    repeats: int = Field(
        3,
        ge=0,
        le=20,
        description="how many times n the filter is applied; 0 leaves the map as it is",
    )
    relative: bool = Field(
        False,
        description="whether maps are divided by the difference that is usual at each place of "
        "training images, so that edges and highlights count no more than what lies beside them",
    )
    average_power: float = Field(
        0.0,
        ge=0,
        description="power t of (1 - avgmap) in equation (14); 0 does without the average map",
    )
    join: Join = Field(
        "max",
        description="how the maps of a model's autoencoders become one, each on the scale of good "
        "images: the larger value at each pixel, as the paper joins an ensemble, or the mean",
    )
    experts: Experts | None = Field(
        None,
        description="whose maps count in a model with a memory bank: those of the autoencoders, of "
        "the neighbours in the bank, or both joined; default: joined, unless synthetic defects are "
        "found clearly better by one of them",
    )
    image_score: ImageScore = Field("max", description="how a map is reduced to the image score")
    top_fraction: float = Field(
        0.001,
        gt=0,
        le=1,
        description="topk: share of the pixels, the highest ones, whose mean is the image score",
    )

    @field_validator("image_score", mode="before")
    @classmethod
    def _null_was_once_a_choice(cls, score: Any) -> Any:
        """Accepts null, which recipes of earlier versions have, as ``max``."""
        return "max" if score is None else score

    @model_validator(mode="after")
    def _kernel_is_odd(self) -> Self:
        if self.kernel is not None and self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, found {self.kernel}")
        return self


class MapSettings(AnomalyMap):
    """The settings of ``AnomalyMap`` once those that may be left open have been chosen.

    ``experts`` stays None in a model that has no memory bank.
    """

    difference: Difference
    kernel: int = Field(ge=1, le=MOST_KERNEL)


class Decision(_Frozen):
    """When an image is flagged as defective."""

    false_alarm_rate: float = Field(
        0.05, gt=0, lt=1, description="share of the defect-free images that may be flagged"
    )
    folds: int = Field(
        0,
        ge=0,
        description="cross-fitting: how many further models to train, each without its own fold of "
        "the images, so that every image is scored by a model that has not seen it; 0 takes the "
        "scores of the held-out images alone",
    )

    @field_validator("folds")
    @classmethod
    def _one_fold_is_none(cls, folds: int) -> int:
        if folds == 1:
            raise ValueError("expected 0, or at least 2")
        return folds


class Linear(_Frozen):
    """The linear autoencoder beside the network: principal components of the training images."""

    image_size: int = Field(
        64,
        ge=STRIDE,
        le=256,
        description="side of a square with as many pixels as the images are shrunk to",
    )
    variance: float = Field(
        0.98,
        gt=0,
        lt=1,
        description="share of the training images' variance that the components keep",
    )


class Features(_Frozen):
    """The second expert: a memory bank of features that a pretrained network makes."""

    weights: str = Field(
        "efficientnet-lite0",
        description="the pretrained network: efficientnet-lite0 of the package that "
        "'ssray[features]' installs, or the place of a state dict",
    )
    sha256: str | None = Field(
        None,
        pattern="^[0-9a-f]{64}$",
        description="the checksum that the file of the weights must have; null takes any, and the "
        "model names what it was",
    )
    image_size: int = Field(
        320,
        ge=64,
        le=1024,
        description="side of a square with as many pixels as smaller images are enlarged to",
    )
    memory_mib: float = Field(
        0.5, gt=0, le=1024, description="MiB of the memory bank, two bytes for each number"
    )
    dropped: float = Field(
        0.02,
        ge=0,
        lt=1,
        description="share of the training images' places that the bank does not keep, those with "
        "least like them in other images: a defect among the images is not to be learned by heart",
    )


class Alignment(_Frozen):
    """The frame around a part that is located in each photograph and turned upright."""

    frame: tuple[float, float, float, float] = Field(
        description="left, top, right and bottom of the frame from the part's centre, as shares of "
        "the photograph's shorter side"
    )
    turned: bool = Field(
        True, description="whether the part is turned upright, or only brought to one place"
    )

    @model_validator(mode="after")
    def _frame_has_an_inside(self) -> Self:
        left, top, right, bottom = self.frame
        if left >= right or top >= bottom:
            raise ValueError(f"frame must be left < right and top < bottom, found {self.frame}")
        least, most = FRAME_SIDES
        if min(right - left, bottom - top) < least or max(map(abs, self.frame)) > most:
            raise ValueError(
                f"frame must be at least {least} wide and high and reach at most {most} from the "
                f"centre, found {self.frame}"
            )
        return self


class Light(_Frozen):
    """The light that every image is brought to before a network sees it."""

    mean: float = Field(ge=0, le=1, description="mean of an image's values; the full scale is 1")
    deviation: float = Field(
        gt=0, le=1, description="standard deviation of an image's values without the slope"
    )
    slope: tuple[float, float] = Field(
        (0.0, 0.0), description="by how much grey rises from the middle to the lower and right edge"
    )


class Decoding(_Frozen):
    """How files become pixels: upright, and JPEGs no larger than the network needs them."""

    bits: int | None = Field(
        None,
        ge=8,
        le=32,
        description="bits in use of images that are stored in more than 8; null finds them in the "
        "training images",
    )


class Recipe(_Frozen):
    """Every setting that changes the model; stored inside the model's artifact."""

    name: str = Field("custom", description="a name for people; two recipes may share it")
    image_size: int = Field(
        256,
        ge=2 * STRIDE,
        le=4096,
        description="side of a square with as many pixels as the resized image has; the aspect "
        "ratio is kept",
    )
    decoding: Decoding | None = Field(
        Decoding(),
        description="how files become pixels; null leaves images as they lie in the file and takes "
        "the upper 8 of 16 bits, as models of earlier versions do",
    )
    alignment: Alignment | None = Field(
        None,
        description="the frame around a part that is located in each photograph and turned "
        "upright; null takes whole photographs",
    )
    light: Light | None = Field(
        None,
        description="the light that every image is brought to by a gain, an offset and a slope, "
        "which the families take from the training images; null leaves images as they are",
    )
    network: Network = Network()
    linear: Linear | None = Field(
        None,
        description="a linear autoencoder beside the network, which sees the whole part at once; "
        "for parts that are in their place; null does without",
    )
    features: Features | None = Field(
        None,
        description="a second expert beside the autoencoders, which compares an image with the "
        "training images in the features of a pretrained network; families take it where "
        "'ssray[features]' is installed; null does without",
    )
    corruption: Corruption = Corruption()
    objective: Objective = Objective()
    schedule: Schedule = Schedule()
    anomaly_map: AnomalyMap = AnomalyMap()
    decision: Decision = Decision()

    @model_validator(mode="after")
    def _features_come_from_a_network(self) -> Self:
        if self.anomaly_map.difference == "features" and self.features is None:
            raise ValueError(
                "anomaly_map.difference=features takes a pretrained network: install "
                "'ssray[features]', or name its weights by --features FILE"
            )
        return self


class Compute(_Frozen):
    """Settings of where and how fast the work is done; any recipe runs with any of them."""

    device: Device = Field(
        "auto",
        description="auto takes a CUDA GPU if there is one now; cuda asks for one, which a "
        "cluster may start on demand",
    )
    precision: Precision = Field(
        "auto",
        description="auto: training measures both on this processor and takes the faster one, "
        "scoring takes the one that the model was trained with",
    )
    backend: Backend = Field(
        "auto",
        description="what runs the network for scoring: torch, or openvino, which is faster on "
        "CPUs; auto takes openvino on CPUs",
    )
    compile: bool = Field(
        False,
        description="train a network compiled by torch.compile: it takes minutes to start, then "
        "runs faster",
    )
    workers: int | None = Field(
        None,
        ge=1,
        description="number of worker processes of a training (DDP) or a scoring; default: on CPUs "
        "one for every two cores, on GPUs one for a training and one for each GPU for a scoring",
    )
    cpus_per_worker: int | None = Field(
        None, ge=1, description="CPU cores of each worker; default: an equal share of the machine's"
    )
    gpus_per_worker: float | None = Field(
        None,
        gt=0,
        description="GPUs that Ray reserves for each worker: a part of one, or a whole number; "
        "default: 1 for workers that compute on CUDA",
    )
    images_per_step: int | None = Field(
        None,
        ge=1,
        description="images in each step of a training; the learning rate grows with the square "
        "root of it; default: as the recipe says, or more to fill a GPU or several workers",
    )
    memory_gib: float = Field(
        4,
        gt=0,
        description="GiB of each worker's device memory for decoded images; if a category needs "
        "more, a window of images moves over it during the training",
    )
    accumulate: int = Field(
        1,
        ge=1,
        description="number of parts in which each worker computes its share of a step, to save "
        "memory; each part has at least two crops",
    )
    max_minutes: float | None = Field(
        None,
        gt=0,
        description="time limit of a training in minutes; the learning rate reaches zero by then",
    )
    checkpoint_minutes: float = Field(
        2, ge=0, description="minutes between checkpoints, from which a killed training resumes"
    )
    restarts: int = Field(
        3, ge=0, description="how often a training may resume after it lost a worker"
    )
    min_workers: int | None = Field(
        None, ge=1, description="smallest number of workers to go on with if others stay lost"
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**32,
        description="seed of the initial weights, the choice of held-out images and the corruption",
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
    """Makes a model of settings from a dictionary, and checks every value.

    Args:
        model: the class to make, such as ``Recipe``.
        values: the settings by name; groups of settings are dictionaries.
        source: where the values come from, for the error message.

    Raises:
        ConfigError: if a key is unknown or a value is not allowed; it names the key, what was found
            and what was expected.
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
    """Returns a recipe in which some settings have been changed.

    Args:
        recipe: the recipe to start from.
        assignments: one ``group.key=value`` each; a value is JSON or a plain word.

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


def in_a_group_that_is_null(recipe: Recipe, assignment: str) -> bool:
    """Tells whether an assignment changes a group of settings that the recipe does without.

    >>> in_a_group_that_is_null(Recipe(), "linear.variance=0.9")
    True
    """
    group, dot, _ = assignment.partition("=")[0].strip().partition(".")
    return bool(dot) and group in Recipe.model_fields and getattr(recipe, group) is None


def _group(model: type[BaseModel], name: str) -> type[BaseModel]:
    """The class of a group of settings; of one that may be null, its class if it is not."""
    annotation = model.model_fields[name].annotation
    classes = get_args(annotation) or (annotation,)
    [found] = [each for each in classes if isinstance(each, type) and issubclass(each, BaseModel)]
    return found


def _keys(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    for part in path:
        model = _group(model, str(part))
    return list(model.model_fields)
