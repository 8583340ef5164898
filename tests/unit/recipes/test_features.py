"""The second expert of a recipe: where it comes from, and how it is left out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ssray.config import Features, Recipe
from ssray.data.pretrained_weights import LITE0, checksum
from ssray.errors import ConfigError
from ssray.recipes import request
from ssray.recipes.request import RecipeRequest
from ssray.recipes.survey import Survey
from tests.pretrained import tiny_resnet

SEEN = Survey(texture=True, alignment=None, images=8, alike=0.1)


def resolved(name: str | Recipe = "compact", *settings: str, features: str | None = None) -> Recipe:
    return RecipeRequest(name, settings, features).resolve("bolts", lambda: SEEN)


def test_families_take_the_network_that_is_installed() -> None:
    assert resolved().features == Features(weights=LITE0, sha256=checksum(LITE0))
    assert resolved("demo").features is not None
    assert resolved("paper-as-published").features is None, "the paper has none"
    assert resolved("compact-texture").features is None, "only what the recipe says"
    assert resolved("compact-texture", features=LITE0).features is not None


def test_without_the_package_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request, "is_installed", lambda: False)
    assert resolved().features is None
    assert resolved().model_dump(exclude={"features"}) == resolved(features=LITE0).model_dump(
        exclude={"features"}
    )
    assert resolved("compact", "features.image_size=400").features is None


def test_it_can_be_left_out() -> None:
    for recipe in (resolved(features="none"), resolved("compact", "features=null")):
        assert recipe.features is None


def test_settings_apply_to_it() -> None:
    found = resolved("compact", "features.image_size=400", "anomaly_map.experts=neighbours")
    assert found.features is not None and found.features.image_size == 400
    assert found.anomaly_map.experts == "neighbours"


def test_a_file_is_named_by_its_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = str(tmp_path / "resnet.pth")
    torch.save(tiny_resnet(), file)
    monkeypatch.chdir(tmp_path)
    relative = resolved(features="resnet.pth").features
    assert relative and relative.weights == file, "workers run elsewhere"
    found = resolved("compact", "features.memory_mib=0.25", features=file).features
    assert found == Features(weights=file, sha256=checksum(file), memory_mib=0.25)
    again = resolved(Recipe(features=found), features=LITE0).features
    assert again == Features(weights=LITE0, sha256=checksum(LITE0), memory_mib=0.25)
    with pytest.raises(ConfigError, match="no file with the weights"):
        resolved(features=str(tmp_path / "missing.pth"))
