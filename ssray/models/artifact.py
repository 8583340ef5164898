"""Saves and loads a model: weights, recipe, calibration, origin, and a manifest with checksums.

The files of a version are::

    STORE/CATEGORY/VERSION/weights.safetensors  recipe.json  calibration.json  training.json
                           manifest.json        epochs.parquet

An ensemble adds ``weights-1.safetensors`` for its second network, and ``partner.json`` if that was
trained with another recipe; a linear autoencoder adds ``linear.safetensors``, a memory bank, with
as much of its pretrained network as it needs, ``neighbours.safetensors``, a difference in features
``feature_difference.safetensors``, an average map
``average_map.safetensors``, and what is usual at a place ``usual_level.safetensors``.

``manifest.json`` has the checksums of the other files. It is written last, so a version that has it
is complete. A complete version is never changed; ``ssray.models.store`` says which one is in use.
Nothing is pickled.

``epochs.parquet`` is the epoch log, which grows during the training and remains if it does not
finish. ``sheets/PERCENT.png`` shows reconstructions at that share of the training's budget,
``aligned.png`` some of the upright parts of a model that aligns them.
"""

from __future__ import annotations

import hashlib
import io
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, field_validator
from torch import Tensor, nn

from ssray.calibration.calibrate import NOWHERE, Calibration, PlaceMaps
from ssray.config import Basis, Features, Linear, Network, Precision, Recipe
from ssray.data.pose import Framing
from ssray.errors import ArtifactError, ConfigError
from ssray.method.anomaly_map import Comparers, MapMaker
from ssray.method.autoencoder import Autoencoder
from ssray.method.feature_difference import FeatureDifference
from ssray.method.inference import Reconstructor
from ssray.method.linear import MOST_COMPONENTS, LinearAutoencoder
from ssray.method.neighbours import MemoryBank
from ssray.method.pretrained import State
from ssray.models.device import kept_precision, resolve_precision
from ssray.models.limits import (
    CALIBRATION_BYTES,
    EPOCH_LOG_BYTES,
    EPOCH_ROWS,
    FEATURES_BYTES,
    MOST_LETTERS,
    MOST_MAPS,
    NETWORKS,
    file_bytes,
    input_problem,
    network_shapes,
)
from ssray.models.stored import (
    FORMAT_VERSION,
    MANIFEST,
    Manifest,
    StoredFiles,
    is_complete,
    version_place,
)
from ssray.storage.location import Location
from ssray.storage.parquet import as_parquet

UPRIGHT_SINCE = 11
"""The first version of the file format whose recipes say how files are decoded."""
EPOCH_LOG = "epochs.parquet"
AVERAGE_MAP = "average_map.safetensors"
USUAL_LEVEL = "usual_level.safetensors"
LINEAR = "linear.safetensors"
NEIGHBOURS = "neighbours.safetensors"
BY_FEATURES = "feature_difference.safetensors"
PARTNER = "partner.json"
Expert = TypeVar("Expert", MemoryBank, FeatureDifference)
RECIPE, CALIBRATION, TRAINING = "recipe.json", "calibration.json", "training.json"
_ALWAYS = {RECIPE, CALIBRATION, TRAINING}
_SOMETIMES = {AVERAGE_MAP, USUAL_LEVEL, LINEAR, NEIGHBOURS, BY_FEATURES, PARTNER, EPOCH_LOG}
_OBJECTIVE = "objective"
"""The one column of the epoch log that has words."""
_TENSOR = "average_map"
"""The name of the tensor in the average map's file and in that of the usual level."""


class SweepFacts(BaseModel):
    """The search whose best trial a model is.

    Attributes:
        key: a checksum of what the search tries, the same for searches that try the same.
        trial: the name of the trial in the search.
        criterion: what the trials were compared by.
        error: the trial's error by that criterion, the lowest of all trials, or that of the
            recipe as it was where no other is clearly lower.
        default_error: the error of the unchanged recipe with the same budget; None if that trial
            failed.
        trials: how many trials the search had.
        finished: how many of them were trained to their end.
        settings: the settings that differ from the recipe's, by their ``--set`` keys.
        partner: for an ensemble the trial that its second network comes from, else None.
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
    """How a model was trained: what reports show, and what is needed to train it again.

    The same images, recipe, ``seed``, ``precision``, ``images_per_step``, ``parts``, ``workers``,
    ``threads`` and ``compiled`` give the same weights on the same kind of CPU, if no time limit
    ended the training. If ``streamed`` is true, ``memory_gib`` must be the same, too.

    Attributes:
        data_fingerprint: a checksum of the training images, held-out ones included, and of the
            textures that the recipe names.
        training_key: a checksum of images, recipe, seed and budget.
        images_per_step: the images in a step over all workers, for which the learning rate was set;
            None in models of earlier versions, which took the recipe's number.
        max_minutes: the time limit in minutes, if there was one.
        resumed: how often the training resumed from a checkpoint.
        threads: the CPU threads of each worker.
        parts: the number of parts into which each step's batch was divided for batch normalisation.
        compiled: whether the network was compiled for the training.
        streamed: whether the images took more than ``memory_gib``, so that a window moved over
            them.
        memory_gib: the memory for decoded images of each worker, in GiB.
        peak_memory_gib: the most memory that the first worker used, in GiB: ``resident``, and
            ``device`` on a GPU.
        packages: the versions of the packages that matter, by name.
        hardware: the machine that it was trained on: what is described, and its description.
        sweep: the search that the model comes from; None if it comes from none.
        training_images: how many images the network was trained on.
        held_out_images: how many training images were held out.
        skipped_images: how many images could not be used.
        input_shape: the rows and columns of the network's input.
        images_seen: the length of the training in images; a crop counts by its area.
        seconds: how long the training took.
        validation_loss: the loss on held-out images at the end.
        device: where it was trained, ``cpu`` or such as ``cuda:0``.
        precision: the type in which the network's inner layers computed.
        workers: the number of worker processes.
        seed: the seed of all random choices.
        ssray_version: the version of ssray that trained it.
        torch_version: the version of PyTorch that trained it.
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

    @field_validator("input_shape")
    @classmethod
    def _input_is_bounded(cls, shape: tuple[int, int]) -> tuple[int, int]:
        if problem := input_problem(shape):
            raise ValueError(problem)
        return shape


@dataclass(frozen=True, kw_only=True)
class ModelArtifact:
    """A trained and calibrated model: all that scoring needs, and where it comes from.

    Attributes:
        category: the category that it was trained for.
        version: its version, as ``new_version`` names it.
        recipe: the settings that it was trained with.
        calibration: its map settings, scales and thresholds.
        facts: how it was trained.
        weights: the state dict of each network, CPU tensors; an ensemble has two.
        linear: that of the linear autoencoder, or None.
        neighbours: what the memory bank is restored from, or None.
        by_features: what the difference in features is restored from, or None.
        places: what belongs to the calibration at every place.
        partner: the recipe of an ensemble's second network if it is not ``recipe``, else None.
        history: the rows of the epoch log.
    """

    category: str
    version: str
    recipe: Recipe
    calibration: Calibration
    facts: TrainingFacts
    weights: tuple[dict[str, Tensor], ...]
    linear: dict[str, Tensor] | None = None
    neighbours: dict[str, Tensor] | None = None
    by_features: dict[str, Tensor] | None = None
    places: PlaceMaps = NOWHERE
    partner: Recipe | None = None
    history: Sequence[Mapping[str, Any]] = ()

    @property
    def input_shape(self) -> tuple[int, int]:
        """The rows and columns of the network's input."""
        return self.facts.input_shape

    @property
    def framing(self) -> Framing:
        """How photographs become the network's input, and its maps go back."""
        return Framing.of(self.recipe, self.facts.input_shape)

    def build(self, device: torch.device) -> nn.Module:
        """Builds the first network; it turns (B, 3, H, W) float32 images into their reconstruction.

        It is in eval mode on ``device``, channels-last in memory.
        """
        return self.build_all(device)[0]

    def build_all(self, device: torch.device) -> list[nn.Module]:
        """Builds every network with its weights, in eval mode on ``device``, channels-last.

        The linear autoencoder, where there is one, comes last.
        """
        networks: list[nn.Module] = []
        recipes = (self.recipe, self.partner or self.recipe)
        for recipe, weights in zip(recipes, self.weights, strict=False):
            network = Autoencoder(recipe.network)
            network.load_state_dict(weights)
            networks.append(network.eval().to(device, memory_format=torch.channels_last))  # type: ignore[call-overload]
        linear = self.build_linear(device)
        return [*networks, linear] if linear else networks

    def build_linear(self, device: torch.device) -> LinearAutoencoder | None:
        """Builds the linear autoencoder, in eval mode on ``device``; None where there is none."""
        if self.linear is None:
            return None
        linear = LinearAutoencoder(self.linear["mean"], self.linear["basis"], self.input_shape)
        return linear.eval().to(device)

    def build_neighbours(self, device: torch.device) -> MemoryBank | None:
        """Builds the memory bank, in eval mode on ``device``; None where there is none."""
        if self.neighbours is None or self.recipe.features is None:
            return None
        bank = self._restored(MemoryBank.restored, self.neighbours, self.recipe.features)
        return bank.eval().to(device)

    @property
    def nbytes(self) -> int:
        """How many bytes its tensors take."""
        kept = (*self.weights, self.linear, self.neighbours, self.by_features)
        return sum(tensor.nbytes for each in kept for tensor in (each or {}).values())

    def build_comparers(self, device: torch.device) -> Comparers:
        """Builds the difference in features, in eval mode on ``device``, where there is one."""
        if self.by_features is None or self.recipe.features is None:
            return {}
        kept, features = self.by_features, self.recipe.features
        compare = self._restored(FeatureDifference.restored, kept, features)
        return {"features": compare.eval().to(device)}

    def _restored(
        self,
        restored: Callable[[State, int, str], Expert],
        kept: dict[str, Tensor],
        features: Features,
    ) -> Expert:
        try:
            return restored(kept, features.image_size, f"{self.category} {self.version}")
        except ConfigError as error:
            raise ArtifactError(f"{error} Train again, or use another version.") from None

    def reconstructor(self, device: torch.device, precision: torch.dtype) -> Reconstructor:
        """Builds all that makes difference maps: what the experts need whose maps count."""
        every = Reconstructor(
            self.build_all(device),
            precision,
            self.build_neighbours(device),
            self.build_comparers(device),
        )
        return every.only(self.calibration.anomaly_map.experts)

    def precision(self, wanted: Precision, device: torch.device) -> torch.dtype:
        """Returns the type in which the networks' inner layers shall compute.

        Args:
            wanted: the precision asked for; ``auto`` takes the one that the model was calibrated
                with, if the device has instructions for it.
            device: where the networks shall run.

        Raises:
            ConfigError: if the device has no instructions for the precision asked for.
        """
        if wanted == "auto":
            return kept_precision(self.facts.precision, device)
        return resolve_precision(wanted, device, self.recipe.network)

    def map_maker(self, device: torch.device) -> MapMaker:
        """Makes what turns difference maps into anomaly maps and image scores, on ``device``."""
        return self.calibration.map_maker(self.places, device)


def new_version() -> str:
    """Makes a new version name, such as ``20260131T235959Z-1f2e3d``; names sort by their time."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def save(artifact: ModelArtifact, store: Location) -> None:
    """Writes all files of a version, the manifest last.

    Raises:
        ArtifactError: if the store has that version already.
    """
    place = version_place(store, artifact.category, artifact.version)
    if is_complete(place):
        raise ArtifactError(
            f"{place}: exists already; versions are never overwritten. Save it under a new version."
        )
    files = {
        **{
            _weights_file(number): safetensors.torch.save(weights)
            for number, weights in enumerate(artifact.weights)
        },
        RECIPE: _json(artifact.recipe),
        CALIBRATION: _json(artifact.calibration),
        TRAINING: _json(artifact.facts),
        EPOCH_LOG: _epoch_log(artifact.history),
    }
    if artifact.linear is not None:
        files[LINEAR] = safetensors.torch.save(artifact.linear)
    if artifact.neighbours is not None:
        files[NEIGHBOURS] = safetensors.torch.save(artifact.neighbours)
    if artifact.by_features is not None:
        files[BY_FEATURES] = safetensors.torch.save(artifact.by_features)
    for name, tensor in _place_files(artifact.places).items():
        files[name] = safetensors.torch.save({_TENSOR: tensor})
    if artifact.partner is not None:
        files[PARTNER] = _json(artifact.partner)
    for name, content in files.items():
        (place / name).write(content)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        category=artifact.category,
        version=artifact.version,
        sha256={name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    )
    (place / MANIFEST).write(_json(manifest))


def load(store: Location, category: str, version: str) -> ModelArtifact:
    """Reads one version, checks it against its manifest, and that it asks for no more than
    ``ssray.models.limits`` allows.

    Raises:
        ArtifactError: if it is incomplete, was changed, was written by a newer ssray, or is no
            model that was trained with its recipe.
    """
    files = StoredFiles(version_place(store, category, version))
    recipe, facts = _recipe(files), files.record(TrainingFacts, TRAINING)
    calibration = files.record(Calibration, CALIBRATION, CALIBRATION_BYTES)
    partner = _recipe(files, PARTNER) if PARTNER in files else None
    weights = [name for name in map(_weights_file, range(NETWORKS)) if name in files]
    known = {*_ALWAYS, *_SOMETIMES, *weights}
    if strange := sorted(set(files.manifest.sha256) - known):
        raise files.unreadable(strange[0], "no model has such a file")
    places = [_place_map(files, name, facts.input_shape) for name in (AVERAGE_MAP, USUAL_LEVEL)]
    return ModelArtifact(
        category=category,
        version=version,
        recipe=recipe,
        calibration=calibration,
        facts=facts,
        weights=tuple(
            _network(files, name, each.network)
            for name, each in zip(weights, (recipe, partner or recipe), strict=False)
        ),
        history=_history(files) if EPOCH_LOG in files else (),
        linear=_linear(files, recipe, facts.input_shape) if LINEAR in files else None,
        neighbours=_features(files, NEIGHBOURS, recipe) if NEIGHBOURS in files else None,
        by_features=_features(files, BY_FEATURES, recipe) if BY_FEATURES in files else None,
        places=PlaceMaps(*places),
        partner=partner,
    )


def _network(files: StoredFiles, name: str, network: Network) -> dict[str, Tensor]:
    """The weights of an autoencoder, those that its settings imply."""
    shapes = network_shapes(network)
    return files.tensors(name, shapes, file_bytes(shapes.values()))


def _place_map(files: StoredFiles, name: str, shape: tuple[int, int]) -> Tensor | None:
    """What has a value at every place of the input, for each network; None where there is none."""
    if name not in files:
        return None
    most = file_bytes([(MOST_MAPS, *shape)])
    return files.tensors(name, {_TENSOR: (0, *shape)}, most)[_TENSOR]


def _linear(files: StoredFiles, recipe: Recipe, shape: tuple[int, int]) -> dict[str, Tensor]:
    """The linear autoencoder, of images not larger than the input or than the recipe shrinks to."""
    side = (recipe.linear or Linear()).image_size
    pixels = min(2 * side**2, math.prod(shape))  # rounding a side may add to its square
    most = file_bytes([(1 + MOST_COMPONENTS, 3 * pixels)])
    expected = {"mean": (3, 0, 0), "basis": (0, 0)}
    linear = files.tensors(LINEAR, expected, most)
    (_, rows, columns), (count, length) = linear["mean"].shape, linear["basis"].shape
    fits = 0 < rows <= shape[0] and 0 < columns <= shape[1] and length == 3 * rows * columns
    if not fits or rows * columns > pixels or count > MOST_COMPONENTS:
        found = f"components {count} x {length} of {rows} x {columns} pixels"
        raise files.unreadable(LINEAR, f"{found}, an input of {shape[0]} x {shape[1]}")
    return linear


def _features(files: StoredFiles, name: str, recipe: Recipe) -> dict[str, Tensor]:
    """What an expert is restored from that has a pretrained network, which knows its own shapes."""
    bank = int((recipe.features.memory_mib if recipe.features else 0) * 2**20)
    return files.tensors(name, None, FEATURES_BYTES + bank)


def _history(files: StoredFiles) -> list[dict[str, Any]]:
    """The rows of the epoch log: numbers, and what the network was trained for."""
    content = files.read(EPOCH_LOG, EPOCH_LOG_BYTES)
    try:
        log = pq.ParquetFile(io.BytesIO(content))
        if log.metadata.num_rows > EPOCH_ROWS:
            raise ValueError(f"{log.metadata.num_rows:,} rows, at most {EPOCH_ROWS:,} are read")
        for field in log.schema_arrow:
            if field.name != _OBJECTIVE and not pa.types.is_primitive(field.type):
                raise ValueError(f"column {field.name}: {field.type}, expected a number")
        words = [name for name in log.schema_arrow.names if name == _OBJECTIVE]
        table = pq.read_table(io.BytesIO(content), read_dictionary=words)
        for chunk in table[_OBJECTIVE].chunks if words else ():  # each value that occurs, once
            if any(len(word) > MOST_LETTERS for word in chunk.dictionary.to_pylist()):
                raise ValueError(f"an objective of more than {MOST_LETTERS} letters")
        rows: list[dict[str, Any]] = table.to_pylist()
        return rows
    except (pa.ArrowException, OSError, ValueError) as error:
        raise files.unreadable(EPOCH_LOG, next(iter(str(error).splitlines()), "")) from None


def _recipe(files: StoredFiles, name: str = RECIPE) -> Recipe:
    """A version's recipe; those of earlier formats saw images as they lie in their files."""
    recipe = files.record(Recipe, name)
    if files.manifest.format_version < UPRIGHT_SINCE:
        return recipe.model_copy(update={"decoding": None})
    return recipe


def _place_files(places: PlaceMaps) -> dict[str, Tensor]:
    """The maps that there are, by the names of their files."""
    named = {AVERAGE_MAP: places.average, USUAL_LEVEL: places.usual}
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def load_facts(store: Location, category: str, version: str) -> TrainingFacts:
    """Reads how a version was trained, but not its weights.

    Raises:
        ArtifactError: as ``load`` does.
    """
    files = StoredFiles(version_place(store, category, version))
    return files.record(TrainingFacts, TRAINING)


def load_framing(store: Location, category: str, version: str) -> Framing:
    """Reads how a version's photographs become its network's input, but not its weights.

    Raises:
        ArtifactError: as ``load`` does.
    """
    files = StoredFiles(version_place(store, category, version))
    recipe, facts = _recipe(files), files.record(TrainingFacts, TRAINING)
    return Framing.of(recipe, facts.input_shape)


def write_epoch_log(
    store: Location, category: str, version: str, history: Sequence[Mapping[str, Any]]
) -> None:
    """Writes the epoch log of a version that is not complete yet.

    The whole file is written anew for each further row, since object stores can't append to files;
    a long run has a few hundred short rows.

    Args:
        store: the model store.
        category: the category that is trained.
        version: the version that will come of it.
        history: one mapping for each row so far.
    """
    (version_place(store, category, version) / EPOCH_LOG).write(_epoch_log(history))


def _epoch_log(history: Sequence[Mapping[str, Any]]) -> bytes:
    return as_parquet(pa.Table.from_pylist([dict(row) for row in history]))


def _weights_file(number: int) -> str:
    """Returns the name of the file with the weights of a network, counted from 0."""
    return "weights.safetensors" if number == 0 else f"weights-{number}.safetensors"


def _json(model: BaseModel) -> bytes:
    return model.model_dump_json(indent=2).encode()
