"""Models that ask for too much, or for what is not theirs: one line each, before anything else."""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from ssray.errors import ArtifactError
from ssray.models import artifact, limits
from ssray.models.artifact import ModelArtifact, load, load_facts, load_framing
from ssray.models.store import publish, published, published_version, rollback
from ssray.storage.location import Location

CATEGORY, VERSION = "weave", "v1"
NOTHING = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
ROOM = 2**30
"""Bytes of address space that loading a tiny model may take."""


@pytest.fixture
def store(tmp_path: Path, tiny_model: ModelArtifact) -> Location:
    place = Location.parse(tmp_path / "models")
    artifact.save(tiny_model, place)
    return place


def folder(store: Location) -> Path:
    return Path(store.path) / CATEGORY / VERSION


def replaced(store: Location, name: str, content: bytes) -> None:
    """Puts another file into a version, with a manifest that fits it."""
    (folder(store) / name).write_bytes(content)
    manifest = json.loads((folder(store) / "manifest.json").read_text())
    manifest["sha256"][name] = hashlib.sha256(content).hexdigest()
    (folder(store) / "manifest.json").write_text(json.dumps(manifest))


def changed(store: Location, name: str, key: str, value: Any) -> None:
    """Changes a value in a JSON file of a version."""
    content = json.loads((folder(store) / name).read_text())
    *groups, last = key.split(".")
    group = content
    for each in groups:
        group = group[each]
    group[last] = value
    replaced(store, name, json.dumps(content).encode())


@contextmanager
def little_memory() -> Iterator[None]:
    """Whoever asks for more than ``ROOM`` in here gets a MemoryError, or ends the process."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + ROOM, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def refused(store: Location, reason: str, read: Callable[..., object] = load) -> None:
    with little_memory(), pytest.raises(ArtifactError, match=reason) as raised:
        read(store, CATEGORY, VERSION)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("recipe.json", "network.width", 10**6),
        ("recipe.json", "network.width", 2**63),
        ("recipe.json", "network.kernel", 99_999),
        ("recipe.json", "image_size", 10**7),
        ("recipe.json", "anomaly_map.kernel", 10**6 + 1),
        ("recipe.json", "anomaly_map.repeats", 10**9),
        ("recipe.json", "linear", {"image_size": 10**5}),
        ("recipe.json", "features", {"image_size": 10**5}),
        ("recipe.json", "alignment", {"frame": [-1e9, -1, 1, 1]}),
        ("recipe.json", "alignment", {"frame": [0, 0, 1e-9, 1]}),
        ("recipe.json", "depth", 10**6),
        ("calibration.json", "anomaly_map.kernel", 10**6 + 1),
        ("calibration.json", "anomaly_map.repeats", 10**9),
        ("training.json", "input_shape", [8, 10**9]),
        ("training.json", "input_shape", [8192, 8192]),
        ("training.json", "input_shape", [0, 0]),
        ("training.json", "input_shape", [-64, -64]),
    ],
)
def test_a_setting_beyond_its_bounds_is_refused(
    store: Location, file: str, key: str, value: Any
) -> None:
    changed(store, file, key, value)
    refused(store, rf"{file}: not of a model this ssray can read.*{key.split('.')[-1]}")
    if file == "training.json":
        refused(store, "expected sides from 8 to 16,384", load_facts)
        refused(store, "expected sides from 8 to 16,384", load_framing)


@pytest.mark.parametrize("name", ["../other.json", "/dev/zero", "a/b", "..", ".hidden", "", "a\\b"])
def test_a_manifest_leads_nowhere_else(store: Location, name: str) -> None:
    changed(store, "manifest.json", "sha256", {name: "0" * 64})
    for read in (load, load_facts, load_framing):
        refused(store, r"no name of a file of .*weave/v1", read)


def test_a_file_that_no_model_has_is_refused(store: Location) -> None:
    replaced(store, "weights-2.safetensors", b"x")
    refused(store, r"weights-2.safetensors: .*no model has such a file")


@pytest.mark.parametrize("name", ["../elsewhere", "..", "/etc", "", ".training", "a\\b", "a\0b"])
def test_names_of_categories_and_versions_stay_in_the_store(store: Location, name: str) -> None:
    for read in (load, load_facts, load_framing):
        with pytest.raises(ArtifactError, match="no name of a category"):
            read(store, name, VERSION)
        with pytest.raises(ArtifactError, match="no name of a version"):
            read(store, CATEGORY, name)
    with pytest.raises(ArtifactError, match="no name of a category"):
        published_version(store, name)
    with pytest.raises(ArtifactError, match="no name of a version"):
        publish(store, CATEGORY, name, None)
    (store / CATEGORY / "published.json").write(json.dumps({"version": name}).encode())
    with pytest.raises(ArtifactError, match=r"no name of a version, in .*published.json"):
        published_version(store, CATEGORY)


@pytest.mark.parametrize(
    ("file", "size"),
    [
        ("manifest.json", limits.JSON_BYTES),
        ("recipe.json", limits.JSON_BYTES),
        ("training.json", limits.JSON_BYTES),
        ("calibration.json", limits.CALIBRATION_BYTES),
        ("epochs.parquet", limits.EPOCH_LOG_BYTES),
        ("weights.safetensors", 2**27),
    ],
)
def test_a_file_too_large_for_the_model_is_not_read(store: Location, file: str, size: int) -> None:
    with (folder(store) / file).open("r+b") as grown:
        grown.truncate(4 * 2**30)  # takes no room on the disk
    refused(store, rf"{file}: 4,294,967,296 bytes, expected a file of [\d,]+ bytes at most")
    with (folder(store) / file).open("r+b") as grown:
        grown.truncate(size)
    refused(store, rf"{file}: ")


def test_what_names_the_version_in_use_is_not_read_if_it_is_too_large(store: Location) -> None:
    place = Path((store / CATEGORY / "published.json").path)
    with place.open("wb") as grown:
        grown.truncate(4 * 2**30)  # takes no room on the disk
    for ask in (
        lambda: published_version(store, CATEGORY),
        lambda: publish(store, CATEGORY, VERSION, None),
        lambda: rollback(store, CATEGORY),
        lambda: published(store),
    ):
        with pytest.raises(ArtifactError, match=r"json: 4,294,967,296 bytes; .*\. Delete it and"):
            ask()
    place.unlink()
    os.mkfifo(place)
    with pytest.raises(OSError, match=r"published\.json: not a regular file"):
        published_version(store, CATEGORY)


@pytest.mark.parametrize("file", ["manifest.json", "recipe.json", "weights.safetensors"])
def test_what_is_no_regular_file_is_not_opened(store: Location, file: str) -> None:
    place = folder(store) / file
    place.unlink()
    os.mkfifo(place)
    refused(store, rf"{file}: no regular file")
    place.unlink()
    place.symlink_to("/dev/zero")
    refused(store, rf"{file}: no regular file")


@pytest.mark.parametrize(
    "content", [b"[" * 200_000, b"{}", b"null", b"\xff\xfe", b'{"format_version": 11}', b"[1]"]
)
def test_a_manifest_that_is_none_is_refused(store: Location, content: bytes) -> None:
    (folder(store) / "manifest.json").write_bytes(content)
    refused(store, r"cannot be read as JSON|format version None")


def with_header(header: dict[str, Any], tensors: bytes = b"") -> bytes:
    written = json.dumps(header).encode()
    return struct.pack("<Q", len(written)) + written + tensors


def test_weights_of_another_network_are_refused(store: Location, tiny_model: ModelArtifact) -> None:
    [weights] = tiny_model.weights
    name = next(iter(weights))
    for strange, reason in (
        ({**weights, "more": torch.zeros(3)}, "tensor 'more': 3, expected none"),
        ({k: v for k, v in weights.items() if k != name}, f"tensor '{name}': none, expected"),
        ({**weights, name: torch.zeros(7)}, f"tensor '{name}': 7, expected"),
    ):
        replaced(store, "weights.safetensors", safetensors.torch.save(strange))
        refused(store, reason)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        struct.pack("<Q", 2**40) + b"{}",
        with_header({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
        with_header(
            {f"{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(5000)}
        ),
        with_header({"a": {"dtype": "F32", "shape": [10**400], "data_offsets": [0, 0]}}),
        with_header({"a": []}),
        struct.pack("<Q", 100_000) + b"[" * 100_000,
    ],
)
@pytest.mark.parametrize(
    "file",
    [
        "weights.safetensors",
        "linear.safetensors",
        "neighbours.safetensors",
        "usual_level.safetensors",
    ],
)
def test_a_header_that_promises_too_much_is_refused(
    store: Location, file: str, content: bytes
) -> None:
    replaced(store, file, content)
    refused(store, rf"{file}: not of a model this ssray can read")


@pytest.mark.parametrize(
    ("file", "tensors"),
    [
        ("linear.safetensors", {"mean": (3, 64, 64), "basis": (4000, 8)}),
        ("linear.safetensors", {"mean": (3, 65, 1), "basis": (1, 195)}),
        ("linear.safetensors", {"mean": (3, 2, 2), "basis": (1, 13)}),
        ("linear.safetensors", {"mean": (3, 0, 0), "basis": (1, 0)}),
        ("linear.safetensors", {"mean": (3, 2, 2)}),
        ("average_map.safetensors", {"average_map": (1, 64, 63)}),
        ("usual_level.safetensors", {"average_map": (64, 64)}),
    ],
)
def test_tensors_of_other_shapes_than_the_input_implies_are_refused(
    store: Location, file: str, tensors: dict[str, tuple[int, ...]]
) -> None:
    content = {name: torch.zeros(shape) for name, shape in tensors.items()}
    replaced(store, file, safetensors.torch.save(content))
    refused(store, rf"{file}: not of a model this ssray can read")


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (pa.table({"epoch": pa.nulls(200_000, pa.float64())}), "200,000 rows"),
        (pa.table({"words": pa.array(["x" * 10_000])}), "column words"),
        (pa.table({"epoch": pa.array([[1.0] * 1000])}), "column epoch"),
        (pa.table({"objective": pa.array(["x" * 10_000] * 90_000).dictionary_encode()}), "letters"),
    ],
)
def test_an_epoch_log_that_unpacks_to_more_is_refused(
    store: Location, log: pa.Table, reason: str
) -> None:
    written = io.BytesIO()
    pq.write_table(log, written, store_schema=False)
    replaced(store, "epochs.parquet", written.getvalue())
    refused(store, rf"epochs.parquet: .*{reason}")


def test_the_largest_network_is_known_without_making_it() -> None:
    from ssray.config import Network

    with little_memory():
        shapes = limits.network_shapes(Network(width=256, kernel=5, blend="both"))
    assert shapes["to_image.weight"] == (3, 256, 1, 1)
    assert 2**30 < limits.file_bytes(shapes.values()) < 2**32


def test_a_model_as_it_was_saved_is_read(store: Location, tiny_model: ModelArtifact) -> None:
    with little_memory():
        model = load(store, CATEGORY, VERSION)
    assert model.recipe == tiny_model.recipe
    assert model.history == list(tiny_model.history)
    assert model.input_shape == load_facts(store, CATEGORY, VERSION).input_shape
