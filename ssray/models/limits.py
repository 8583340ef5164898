"""What a stored model may ask for, checked before anything is allocated for it.

A model can come from anywhere, and its checksums are its own. So its names are plain, its files are
regular and not larger than a model of its recipe has, and tensors have the shapes that recipe and
input imply before they are made of a file. ``ssray.config`` bounds the recipe's settings.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import safetensors.torch
import torch
from pyarrow import fs
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from ssray.config import STRIDE, Network
from ssray.errors import ArtifactError
from ssray.method.autoencoder import Autoencoder
from ssray.storage.location import Location

NETWORKS = 2
"""Autoencoders of a model at most."""
SIDE = 16_384
"""Pixels of the longer side of a network's input at most."""
PIXELS = 2**24
"""Pixels of a network's input at most."""
JSON_BYTES = 2**20
"""Bytes of a manifest, a recipe or the record of a training at most."""
CALIBRATION_BYTES = 2**26
"""Bytes of a calibration at most: it has the scores of all held-out images."""
EPOCH_LOG_BYTES = 2**24
"""Bytes of an epoch log at most."""
EPOCH_ROWS = 100_000
"""Rows of an epoch log at most."""
MOST_LETTERS = 64
"""Letters of a word in an epoch log at most."""
MOST_MAPS = 4
"""Difference maps of a model's experts at most."""
HEADER_BYTES = 2**20
"""Bytes before the tensors in a file of tensors at most."""
TENSORS = 4096
"""Tensors in a file at most."""
FEATURES_BYTES = 2**29
"""Bytes of a pretrained network's weights in a model at most; a memory bank adds its own."""
_BYTES_A_NUMBER = 8


def plain_name(name: str, what: str) -> str:
    """Gives back the name of a category, a version or a file if it can't lead anywhere else.

    Args:
        name: as it was read or typed.
        what: it names, for the error message.

    Raises:
        ArtifactError: if it is empty, hidden, or more than a name.
    """
    if not name or name.startswith(".") or any(c in name for c in "/\\\0"):
        raise ArtifactError(
            f"'{name}': no name of a {what}. Expected one without slashes and a leading dot."
        )
    return name


def input_problem(shape: tuple[int, int]) -> str | None:
    """Says what is wrong with the rows and columns of a network's input; None if nothing is."""
    if min(shape) >= STRIDE and max(shape) <= SIDE and math.prod(shape) <= PIXELS:
        return None
    return (
        f"an input of {shape[0]} x {shape[1]} pixels; expected sides from {STRIDE} to {SIDE:,} "
        f"and {PIXELS:,} pixels at most"
    )


def read_file(place: Location, most: int) -> bytes:
    """Reads a file of a model.

    Args:
        place: where it is.
        most: its bytes at most.

    Raises:
        ArtifactError: if it is larger, or no regular file.
        OSError: if there is none.
    """
    info: fs.FileInfo = place.filesystem.get_file_info(place.path)
    if info.type == fs.FileType.NotFound:
        raise FileNotFoundError(str(place))
    if info.type != fs.FileType.File or info.size > most:
        found = f"{info.size:,} bytes" if info.is_file else "no regular file"
        raise ArtifactError(
            f"{place}: {found}, expected a file of {most:,} bytes at most for this model. Restore "
            "it or train again."
        )
    return place.read()


class _Entry(BaseModel):
    """What the header of a file of tensors says of one of them."""

    model_config = ConfigDict(extra="allow")

    shape: tuple[int, ...]


_HEADER = TypeAdapter(dict[str, dict[str, Any]])


def shapes_in(content: bytes) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors in a safetensors file, by name, without making any.

    Raises:
        ValueError: if the header is damaged or too large, or names too many tensors.
    """
    size = int.from_bytes(content[:8], "little")
    if size > HEADER_BYTES:
        raise ValueError(f"a header of {size:,} bytes, at most {HEADER_BYTES:,} are read")
    try:
        header = _HEADER.validate_json(content[8 : 8 + size])
        header.pop("__metadata__", None)
        shapes = {name: _Entry.model_validate(entry).shape for name, entry in header.items()}
    except ValidationError:
        raise ValueError("no header of safetensors") from None
    if len(shapes) > TENSORS:
        raise ValueError(f"{len(shapes):,} tensors, at most {TENSORS:,} are read")
    return shapes


def tensors_in(content: bytes, expected: Mapping[str, tuple[int, ...]] | None) -> dict[str, Tensor]:
    """The tensors of a safetensors file that has those expected and no others.

    Args:
        content: of the file.
        expected: the shape of each; 0 stands for any length. None takes whatever there is.

    Raises:
        ValueError: if there are others, and names the first; or as ``shapes_in``.
    """
    found = shapes_in(content)
    expected = found if expected is None else expected
    for name in sorted({*found, *expected}):
        has, wanted = found.get(name), expected.get(name)
        if has is None or wanted is None or not _alike(has, wanted):
            raise ValueError(f"tensor '{name}': {_shown(has)}, expected {_shown(wanted)}")
    return safetensors.torch.load(content)


def _alike(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        w in (0, n) for n, w in zip(shape, wanted, strict=True)
    )


def _shown(shape: Iterable[int] | None) -> str:
    return (
        "none" if shape is None else " x ".join(str(n) if n else "n" for n in shape) or "a number"
    )


def network_shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """The shapes of an autoencoder's weights, by name, without making any."""
    with torch.device("meta"):
        weights = Autoencoder(network).state_dict()
    return {name: tuple(weight.shape) for name, weight in weights.items()}


def file_bytes(shapes: Iterable[tuple[int, ...]]) -> int:
    """The bytes at most of a file with tensors of these shapes."""
    return HEADER_BYTES + _BYTES_A_NUMBER * sum(map(math.prod, shapes))
