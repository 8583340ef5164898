"""The state of a training in one file, from which it goes on as if it had never stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from ssray.errors import ArtifactError
from ssray.storage.location import Location

FILE = "checkpoint.safetensors"
_HEADER_SIZE_BYTES = 8


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training between two steps.

    Attributes:
        tensors: the weights, their average, the optimizer's moments and the states of the random
            generators, by dotted names.
        facts: everything else that is needed, as values that JSON can hold.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    def __or__(self, other: Checkpoint) -> Checkpoint:
        """Both states in one."""
        return Checkpoint(self.tensors | other.tensors, self.facts | other.facts)

    def below(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names start with ``prefix.``, without it."""
        start = f"{prefix}."
        return {k.removeprefix(start): v for k, v in self.tensors.items() if k.startswith(start)}

    def to_bytes(self) -> bytes:
        """The content of a safetensors file with the facts in its metadata."""
        tensors = {name: tensor.detach().cpu() for name, tensor in self.tensors.items()}
        return safetensors.torch.save(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            metadata={"facts": json.dumps(self.facts)},
        )

    @classmethod
    def from_bytes(cls, content: bytes) -> Checkpoint:
        """Reads what ``to_bytes`` gave.

        Raises:
            ValueError: if the content is something else, or cut short.
        """
        try:
            tensors = safetensors.torch.load(content)
            size = int.from_bytes(content[:_HEADER_SIZE_BYTES], "little")
            header = json.loads(content[_HEADER_SIZE_BYTES : _HEADER_SIZE_BYTES + size])
            return cls(tensors, json.loads(header["__metadata__"]["facts"]))
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"no checkpoint: {error}") from None


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with ``prefix.`` before their names, which ``Checkpoint.below`` undoes."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


class CheckpointFile:
    """The file of a training's latest checkpoint."""

    def __init__(self, folder: Location) -> None:
        self._place = folder / FILE

    def read(self) -> Checkpoint | None:
        """The latest checkpoint; None if there is none.

        Raises:
            ArtifactError: if the file can't be used.
        """
        if not self._place.exists():
            return None
        try:
            return Checkpoint.from_bytes(self._place.read())
        except ValueError as error:
            raise ArtifactError(
                f"{self._place}: {error}. Delete it to train from the start."
            ) from None

    def write(self, checkpoint: Checkpoint) -> None:
        """Replaces the file as a whole, so that a reader finds the old or the new checkpoint."""
        self._place.write(checkpoint.to_bytes())
