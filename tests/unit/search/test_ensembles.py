"""Ensembles of two models: chosen where they complete each other, and files like any model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ssray.calibration.calibrate import calibrate
from ssray.calibration.criterion import Criterion
from ssray.config import Network, Recipe, override
from ssray.method.autoencoder import Autoencoder
from ssray.method.inference import Reconstructor
from ssray.models import artifact
from ssray.models.artifact import ModelArtifact, TrainingFacts
from ssray.search.ensembles import best_ensemble
from ssray.storage.location import Location

SIDE = 32
CPU = torch.device("cpu")
CRITERION = Criterion(seed=0)


@pytest.fixture
def held_out() -> Tensor:
    """Alike up to noise."""
    rows = torch.arange(SIDE).view(SIDE, 1, 1).expand(SIDE, SIDE, 3) * 23 % 200 + 20
    noise = torch.randint(-3, 4, (8, SIDE, SIDE, 3), generator=torch.Generator().manual_seed(0))
    return (rows + noise).clamp(0, 255).to(torch.uint8)


class RepairsPart(nn.Module):
    """Knows what is normal in some of the columns, and gives back the others as they are."""

    def __init__(self, normal: Tensor, columns: slice) -> None:
        super().__init__()
        self.normal = nn.Parameter(normal.permute(2, 0, 1).float() / 255)
        self.columns = columns

    def forward(self, images: Tensor) -> Tensor:
        repaired = images + 0.01 * torch.sin(torch.arange(SIDE))
        repaired[..., self.columns] = self.normal[..., self.columns]
        return repaired


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model(ModelArtifact):
    """A model whose network is given."""

    network: nn.Module

    def build(self, device: torch.device) -> nn.Module:
        return self.network


def model(held_out: Tensor, columns: slice, name: str) -> Model:
    recipe = override(Recipe(name=name), ["anomaly_map.kernel=3"])
    network = RepairsPart(held_out[0], columns).eval()
    reconstructor = Reconstructor([network], torch.float32)
    calibration, places = calibrate(reconstructor, held_out, held_out[:0], recipe, 0, CRITERION)
    return Model(
        category="plate",
        version=name,
        recipe=recipe,
        calibration=calibration,
        facts=FACTS.model_copy(update={"training_key": name}),
        weights=({"of": torch.zeros(1)},),
        places=places,
        network=network,
    )


FACTS = TrainingFacts(
    training_images=8,
    held_out_images=8,
    skipped_images=0,
    input_shape=(SIDE, SIDE),
    images_seen=100,
    seconds=10,
    validation_loss=0.1,
    device="cpu",
    precision="float32",
    workers=1,
    seed=0,
    ssray_version="0",
    torch_version="0",
)


def test_models_that_see_different_defects_become_an_ensemble(held_out: Tensor) -> None:
    left = model(held_out, slice(0, SIDE // 2), "left")
    right = model(held_out, slice(SIDE // 2, SIDE), "right")
    narrower = model(held_out, slice(SIDE // 2, SIDE * 3 // 4), "narrower")
    found = best_ensemble([left, narrower, right], held_out, held_out[:0], CRITERION, CPU)
    assert found is not None
    assert (found.first, found.second) == (0, 2)
    ensemble = found.model
    alone = left.calibration.selection.error
    together = ensemble.calibration.selection.error
    assert alone is not None
    assert together is not None
    assert together < 0.9 * alone
    assert len(ensemble.calibration.scale) == 2, "each network's maps have a scale of their own"
    assert ensemble.facts.seconds == 20
    assert ensemble.facts.training_key == "left+right"
    both = Reconstructor([left.network, right.network], torch.float32)
    again = CRITERION.examine(both, held_out, left.recipe.anomaly_map)
    assert again.selection == ensemble.calibration.selection
    assert again.settings == ensemble.calibration.anomaly_map


def test_a_model_that_adds_nothing_is_no_partner(held_out: Tensor) -> None:
    left = model(held_out, slice(0, SIDE // 2), "left")
    twin = model(held_out, slice(0, SIDE // 2), "twin")
    assert best_ensemble([left, twin], held_out, held_out[:0], CRITERION, CPU) is None
    assert best_ensemble([left], held_out, held_out[:0], CRITERION, CPU) is None


def test_networks_of_different_recipes_share_a_version(held_out: Tensor, tmp_path: Path) -> None:
    store = Location.parse(tmp_path)
    recipe = override(Recipe(name="one"), ["network.width=4"])
    partner = override(recipe, ["network.kernel=5", "network.blend=none"])
    networks = [Autoencoder(each.network).eval() for each in (recipe, partner)]
    reconstructor = Reconstructor(networks, torch.float32)
    calibration, places = calibrate(reconstructor, held_out, held_out[:0], recipe, 0, CRITERION)
    written = ModelArtifact(
        category="plate",
        version="v1",
        recipe=recipe,
        partner=partner,
        calibration=calibration,
        facts=FACTS,
        weights=tuple(network.state_dict() for network in networks),
        places=places,
    )
    artifact.save(written, store)
    read = artifact.load(store, "plate", "v1")
    assert read.partner == partner
    image = torch.rand(1, 3, SIDE, SIDE)
    with torch.no_grad():
        for network, rebuilt in zip(networks, read.build_all(CPU), strict=True):
            assert torch.allclose(network(image), rebuilt(image), atol=1e-6)
    assert (tmp_path / "plate/v1/partner.json").exists()
    assert Network(width=4, kernel=5, blend="none") == read.partner.network
