"""A model as files: weights, recipe, calibration, origin, and a manifest with checksums.

Layout of a version::

    STORE/CATEGORY/VERSION/weights.safetensors  recipe.json  calibration.json  training.json
                           manifest.json        epochs.parquet

The second network of an ensemble adds ``weights-1.safetensors``, and ``partner.json`` if its recipe
is another; an average map adds ``average_map.safetensors``.

``manifest.json`` is written last, so its presence means the version is complete.
Nothing is pickled. A version is never changed; ``ssray.models.store`` tells which one is in use.
``sheets/PERCENT.png`` shows reconstructions at that share of the training's budget.
``epochs.parquet`` is the epoch log; it grows while training runs and is there even when the
run does not finish.
"""

from __future__ import annotations

import hashlib
import io
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn

from ssray.calibration.calibrate import Calibration
from ssray.config import Basis, Precision, Recipe
from ssray.errors import ArtifactError
from ssray.method.anomaly_map import MapMaker
from ssray.method.autoencoder import Autoencoder
from ssray.models.device import kept_precision, resolve_precision
from ssray.storage.location import Location

FORMAT_VERSION = 6
READABLE = (2, 3, 4, 5, FORMAT_VERSION)
MANIFEST = "manifest.json"
EPOCH_LOG = "epochs.parquet"
AVERAGE_MAP = "average_map.safetensors"
PARTNER = "partner.json"
_TENSOR = "average_map"


class SweepFacts(BaseModel):
    """The search that a model is the best trial of.

    Attributes:
        key: the same for searches that try the same.
        trial: its name there.
        criterion: what it was chosen by.
        error: by the criterion, the least of all trials.
        default_error: of the recipe as it was, at the same budget; None if that failed.
        trials: how many there were.
        finished: how many of them were trained to their end.
        settings: what the trial has in place of the recipe's.
        partner: the trial that the second network of an ensemble comes from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    trial: str
    criterion: Basis
    error: float
    default_error: float | None
    trials: int
    finished: int
    settings: dict[str, Any]
    partner: str | None = None


class TrainingFacts(BaseModel):
    """What a model was trained on and with: for people, for reports, and to repeat it.

    The same images, recipe, ``seed``, ``precision``, ``images_per_step``, ``parts``, ``workers``,
    ``threads`` and ``compiled`` give the same weights on the same kind of CPU, if the budget was in
    images; where ``streamed``, with the same ``memory_gib``.

    Attributes:
        data_fingerprint: of the training images, held-out ones included, and of the textures that
            the recipe names.
        training_key: the same for the same images, recipe, seed and budget.
        images_per_step: over all workers, that the learning rate was set for; None in earlier
            versions, which took the recipe's.
        max_minutes: the time budget, if there was one.
        resumed: how often the run went on from a checkpoint.
        parts: in which each step's batch was normalised.
        compiled: whether the network that was trained was.
        streamed: whether the images were more than ``memory_gib`` holds.
        peak_memory_gib: of the first worker's process: ``resident``, and ``device`` on a GPU.
        sweep: the search that the model comes from, if it does.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data_fingerprint: str = ""
    training_key: str = ""
    images_per_step: int | None = None
    max_minutes: float | None = None
    resumed: int = 0
    threads: int = 0
    parts: int = 1
    compiled: bool = False
    streamed: bool = False
    memory_gib: float | None = None
    peak_memory_gib: dict[str, float] = {}
    packages: dict[str, str] = {}
    hardware: dict[str, str] = {}
    sweep: SweepFacts | None = None

    training_images: int
    held_out_images: int
    skipped_images: int
    input_shape: tuple[int, int]
    images_seen: float
    seconds: float
    validation_loss: float
    device: str
    precision: Literal["float32", "bfloat16"]
    workers: int
    seed: int
    ssray_version: str
    torch_version: str


@dataclass(frozen=True, kw_only=True)
class ModelArtifact:
    """Everything a scorer needs, and what a person wants to know about its origin.

    Attributes:
        weights: state dict of each network, CPU tensors; more than one for an ensemble.
        history: the rows of the epoch log.
        average_map: (K, H, W) float32 on the CPU, where the calibration makes use of one.
        partner: the second network's recipe, where it is not ``recipe``.
    """

    category: str
    version: str
    recipe: Recipe
    calibration: Calibration
    facts: TrainingFacts
    weights: tuple[dict[str, Tensor], ...]
    average_map: Tensor | None = None
    partner: Recipe | None = None
    history: Sequence[Mapping[str, Any]] = ()

    @property
    def input_shape(self) -> tuple[int, int]:
        """Rows and columns every image is resized to."""
        return self.facts.input_shape

    def build(self, device: torch.device) -> nn.Module:
        """The first network, which reconstructs: (B, 3, H, W) float32 to the same shape."""
        return self.build_all(device)[0]

    def build_all(self, device: torch.device) -> list[nn.Module]:
        """Every network with its weights, in eval mode on ``device``, channels-last."""
        networks: list[nn.Module] = []
        recipes = (self.recipe, self.partner or self.recipe)
        for recipe, weights in zip(recipes, self.weights, strict=False):
            network = Autoencoder(recipe.network)
            network.load_state_dict(weights)
            networks.append(network.eval().to(device, memory_format=torch.channels_last))  # type: ignore[call-overload]
        return networks

    def precision(self, wanted: Precision, device: torch.device) -> torch.dtype:
        """The precision of the forward pass; ``auto`` is the one the model was calibrated in, where
        the device has instructions for it.

        Raises:
            ConfigError: if the device has none for the one asked for.
        """
        if wanted == "auto":
            return kept_precision(self.facts.precision, device)
        return resolve_precision(wanted, device, self.recipe.network)

    def map_maker(self, device: torch.device) -> MapMaker:
        """What turns difference maps into anomaly maps and image scores."""
        scale = torch.tensor(self.calibration.scale, device=device)
        average = None if self.average_map is None else self.average_map.to(device)
        return MapMaker(self.calibration.anomaly_map, scale, average)


def new_version() -> str:
    """A version name that sorts by time of creation, such as ``20260131T235959Z-1f2e3d``."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def save(artifact: ModelArtifact, store: Location) -> None:
    """Writes a complete version.

    Raises:
        ArtifactError: if the version exists already.
    """
    place = store / artifact.category / artifact.version
    if is_complete(place):
        raise ArtifactError(f"{place}: exists already; versions are never overwritten.")
    files = {
        **{
            _weights_file(number): safetensors.torch.save(weights)
            for number, weights in enumerate(artifact.weights)
        },
        "recipe.json": _json(artifact.recipe),
        "calibration.json": _json(artifact.calibration),
        "training.json": _json(artifact.facts),
        EPOCH_LOG: _epoch_log(artifact.history),
    }
    if artifact.average_map is not None:
        files[AVERAGE_MAP] = safetensors.torch.save({_TENSOR: artifact.average_map})
    if artifact.partner is not None:
        files[PARTNER] = _json(artifact.partner)
    for name, content in files.items():
        (place / name).write(content)
    manifest = {
        "format_version": FORMAT_VERSION,
        "category": artifact.category,
        "version": artifact.version,
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
    (place / MANIFEST).write(json.dumps(manifest, indent=2).encode())


def load(store: Location, category: str, version: str) -> ModelArtifact:
    """Reads one version and verifies it.

    Raises:
        ArtifactError: if it is incomplete, was changed, or was written by a newer ssray.
    """
    place = store / category / version
    manifest = _manifest(place)
    files = {name: _verified(place, name, manifest) for name in manifest["sha256"]}
    try:
        return ModelArtifact(
            category=category,
            version=version,
            recipe=Recipe.model_validate_json(files["recipe.json"]),
            calibration=Calibration.model_validate_json(files["calibration.json"]),
            facts=TrainingFacts.model_validate_json(files["training.json"]),
            weights=tuple(
                safetensors.torch.load(files[name])
                for name in map(_weights_file, range(len(files)))
                if name in files
            ),
            history=pq.read_table(io.BytesIO(files[EPOCH_LOG])).to_pylist()
            if EPOCH_LOG in files
            else (),
            average_map=safetensors.torch.load(files[AVERAGE_MAP])[_TENSOR]
            if AVERAGE_MAP in files
            else None,
            partner=Recipe.model_validate_json(files[PARTNER]) if PARTNER in files else None,
        )
    except (KeyError, ValidationError, SafetensorError, pa.ArrowException) as error:
        raise ArtifactError(f"{place}: not a model this ssray can read. ({error})") from None


def is_complete(place: Location) -> bool:
    """Whether a version's folder holds all of it."""
    return (place / MANIFEST).exists()


def load_facts(store: Location, category: str, version: str) -> TrainingFacts:
    """Reads a version's origin without its weights; raises as ``load``."""
    place = store / category / version
    try:
        return TrainingFacts.model_validate_json(
            _verified(place, "training.json", _manifest(place))
        )
    except ValidationError as error:
        raise ArtifactError(f"{place}: not a model this ssray can read. ({error})") from None


def write_epoch_log(
    store: Location, category: str, version: str, history: Sequence[Mapping[str, Any]]
) -> None:
    """Writes the epoch log of a version that is not complete yet, one row a mapping.

    The whole file is written anew with each row, as object stores know no appending; a
    long run has a few hundred short rows.
    """
    (store / category / version / EPOCH_LOG).write(_epoch_log(history))


def _epoch_log(history: Sequence[Mapping[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([dict(row) for row in history]), buffer)
    return buffer.getvalue()


def _weights_file(number: int) -> str:
    return "weights.safetensors" if number == 0 else f"weights-{number}.safetensors"


def _manifest(place: Location) -> dict[str, Any]:
    if not is_complete(place):
        raise ArtifactError(f"{place}: no complete model here ({MANIFEST} is missing).")
    manifest = _read_json(place / MANIFEST)
    if manifest.get("format_version") not in READABLE:
        raise ArtifactError(
            f"{place}: format version {manifest.get('format_version')}, this ssray reads "
            f"{', '.join(map(str, READABLE))}. Upgrade ssray or train again."
        )
    return manifest


def _verified(place: Location, name: str, manifest: dict[str, Any]) -> bytes:
    try:
        content = (place / name).read()
    except OSError:
        raise ArtifactError(f"{place / name}: listed in {MANIFEST} but missing.") from None
    if hashlib.sha256(content).hexdigest() != manifest["sha256"].get(name):
        raise ArtifactError(
            f"{place / name}: checksum differs from {MANIFEST}; the file was changed or cut "
            "short. Restore it or train again."
        )
    return content


def _json(model: BaseModel) -> bytes:
    return model.model_dump_json(indent=2).encode()


def _read_json(place: Location) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(place.read())
    except (OSError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{place}: cannot be read as JSON. ({error})") from None
    return content
