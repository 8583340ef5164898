"""Visual anomaly detection for industry: learns from good parts, finds what is not.

>>> model = load("store", "hazelnut")
>>> verdict = model.judge("photograph.png")
>>> verdict.decision
'flagged'

``train`` makes a model of a folder of good photographs, ``evaluate`` tells how good the models of a
store are on labelled ones. What is below loads on first use: importing ssray costs nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssray.errors import (
    ArtifactError,
    ConfigError,
    ConflictError,
    DataError,
    ImageError,
    ScoringError,
    SsrayError,
    TrainingError,
)

if TYPE_CHECKING:
    from ssray.config import Backend, Device, Precision, Recipe
    from ssray.scoring.model import Model
    from ssray.scoring.verdict import Verdict

__version__ = "0.1.0"
__all__ = [
    "ArtifactError",
    "ConfigError",
    "ConflictError",
    "DataError",
    "ImageError",
    "Model",
    "Recipe",
    "ScoringError",
    "SsrayError",
    "TrainingError",
    "Verdict",
    "__version__",
    "evaluate",
    "load",
    "train",
]

_LOADED_ON_FIRST_USE = {
    "Model": "ssray.scoring.model",
    "Recipe": "ssray.config",
    "Verdict": "ssray.scoring.verdict",
}


def load(
    store: str | Path,
    category: str,
    version: str | None = None,
    *,
    device: Device = "auto",
    precision: Precision = "auto",
    backend: Backend = "auto",
) -> Model:
    """Loads a model to judge photographs with.

    Args:
        store: folder or URI of the model store.
        category: whose model.
        version: which of its versions; default: the one in use.
        device: ``auto`` takes CUDA where there is one.
        precision: of the network's inner layers; ``auto`` is what the model was trained in.
        backend: what runs the network; ``auto`` takes OpenVINO on CPUs, which is faster there.

    Raises:
        ArtifactError: if there is no such model, or its files were damaged.
        ConfigError: if the device is not there, or can't compute in the precision.

    >>> model = load("store", "hazelnut", backend="torch")
    >>> [verdict.decision for verdict in model.judge_many(["good.png", "photograph.png"])]
    ['passed', 'flagged']
    """
    from ssray.scoring.model import Model

    return Model.load(store, category, version, device=device, precision=precision, backend=backend)


def train(
    good: str | Path,
    name: str,
    store: str | Path,
    *,
    recipe: str | Recipe = "compact",
    settings: Sequence[str] = (),
    features: str | None = None,
    max_minutes: float | None = None,
    force: bool = False,
    progress: Callable[[str], None] | None = print,
    **compute: Any,
) -> Model:
    """Trains a model on photographs of good parts, puts it into use and loads it.

    Runs on the Ray cluster that ``RAY_ADDRESS`` names, or on this machine. A model that was trained
    with the same images, recipe, seed and budget is there already and not trained again; a training
    that was interrupted goes on where it was.

    Args:
        good: a folder or URI; every image below it counts, at any depth.
        name: of the category, in the store.
        store: folder or URI of the model store.
        recipe: the name of a recipe or a family, the place of a recipe file, or a ``Recipe``.
        settings: changes to it, such as ``"network.width=8"``.
        features: the weights of the pretrained network that the second expert sees by, or
            ``none``; default: EfficientNet-Lite0, where ``ssray[features]`` is installed.
        max_minutes: the time budget; default: the recipe's count of images ends the training.
        force: whether the model goes into use even if it tells synthetic defects from good parts
            hardly better than guessing.
        progress: gets a line of text now and then; None for silence.
        **compute: other fields of ``ssray.config.Compute``, such as ``seed`` or ``device``.

    Raises:
        ConfigError: if a setting is unknown or out of range.
        DataError: if there are no images that can be used.
        PoorModelError: if the model is hardly better than guessing, and not forced; the version
            that was in use stays.
        TrainingError: if there are too few images, or the training failed.
    """
    from ssray.cluster.environment import quiet_local_ray

    quiet_local_ray()
    from ssray.cluster.categories import train_on_folder
    from ssray.cluster.progress import Lines, Silent
    from ssray.config import Compute, parse
    from ssray.recipes.request import RecipeRequest
    from ssray.storage.location import Location

    train_on_folder(
        Location.parse(good),
        name,
        RecipeRequest(recipe, tuple(settings), features),
        parse(Compute, {"max_minutes": max_minutes, **compute}, "train"),
        Location.parse(store),
        progress=Lines(progress) if progress else Silent(),
        force=force,
    )
    return load(store, name)


def evaluate(
    data: str | Path,
    store: str | Path,
    out: str | Path,
    *,
    categories: Sequence[str] = (),
    good_name: str = "good",
    **compute: Any,
) -> Mapping[str, Mapping[str, Any]]:
    """Scores labelled test images and writes metrics, scores and a report.

    Args:
        data: the folder or URI above the categories, in the layout of MVTec AD or another that is
            known.
        store: folder or URI of the model store.
        out: folder or URI for ``metrics.parquet``, ``scores.parquet``, ``report.html`` and others.
        categories: which to evaluate; default: all that have images and a model.
        good_name: the name of the folders of good images.
        **compute: fields of ``ssray.config.Compute``, such as ``workers`` or ``device``.

    Returns:
        For each category its row of ``metrics.parquet``: ``image_auroc``, ``pixel_auroc``,
        ``false_alarms``, ``defects_flagged`` and others, shares of 1.

    Raises:
        ArtifactError: if a category asked for has no model, or none has.
        DataError: if there are no test images.
        ScoringError: if the work could not be finished.
    """
    from ssray.cluster.environment import quiet_local_ray

    quiet_local_ray()
    from ssray.cluster.categories import evaluate_categories
    from ssray.config import Compute, parse
    from ssray.storage.location import Location

    metrics, _ = evaluate_categories(
        Location.parse(data),
        list(categories),
        Location.parse(store),
        parse(Compute, compute, "evaluate"),
        Location.parse(out),
        good_name=good_name,
    )
    return {row["category"]: row for row in metrics.to_pylist()}


def __getattr__(name: str) -> Any:
    """Loads what is defined elsewhere when it is first asked for."""
    if name not in _LOADED_ON_FIRST_USE:
        raise AttributeError(f"module 'ssray' has no attribute '{name}'")
    return getattr(importlib.import_module(_LOADED_ON_FIRST_USE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
