"""Whose maps count: how that is chosen, and how it is said."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ssray.calibration.calibrate import Calibration, calibrate, filling_up
from ssray.calibration.candidates import judge
from ssray.calibration.evidence import Evidence
from ssray.calibration.map_settings import PLAIN, Choice, choose
from ssray.config import AnomalyMap, Difference, Experts, Features, MapSettings, Recipe
from ssray.method.inference import Reconstructor
from ssray.method.synthetic_defects import KINDS
from ssray.models.quality import LEAST_AUROC, lower_bound


class Repairs(nn.Module):
    """An autoencoder that takes every image for grey."""

    def __init__(self) -> None:
        super().__init__()
        self.grey = nn.Parameter(torch.tensor(0.5))

    def forward(self, images: Tensor) -> Tensor:
        return torch.ones_like(images) * self.grey


class Tells(nn.Module):
    """Neighbours that know only grey."""

    def __init__(self) -> None:
        super().__init__()
        self.grey = nn.Parameter(torch.tensor(0.5))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.grey).abs().mean(dim=1, keepdim=True)


def grey(count: int) -> Tensor:
    torch.manual_seed(0)
    return (128 + 6 * torch.randn(count, 32, 32, 3)).clamp(0, 255).byte()


def test_two_experts_that_see_are_joined() -> None:
    experts = Reconstructor([Repairs().eval()], torch.float32, Tells())
    recipe = Recipe(image_size=32, features=Features())
    found, _ = calibrate(experts, grey(20), grey(24)[20:], recipe, seed=0)
    assert found.anomaly_map.experts == "joined" and found.selection.tried == 3
    assert len(found.scale) == len(found.experts) == len(found.expert_limits) == 2
    assert Calibration.model_validate_json(found.model_dump_json()) == found
    for stated in ("autoencoders", "neighbours"):
        wanted = AnomalyMap.model_validate({"experts": stated})
        alone = recipe.model_copy(update={"anomaly_map": wanted})
        kept, _ = calibrate(experts, grey(20), grey(24)[20:], alone, seed=0)
        assert kept.anomaly_map.experts == stated and kept.selection.tried == 1
        assert kept.joining is None and len(kept.scale) == 1


class Copies(nn.Module):
    """Gives every image back as it is, so its maps are 0 everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.0))

    def forward(self, images: Tensor) -> Tensor:
        return images * self.gain


def test_a_model_that_is_blind_fails_the_gate_and_one_that_sees_does_not() -> None:
    for network, passes in ((Copies(), False), (Repairs(), True)):
        reconstructor = Reconstructor([network.eval()], torch.float32)
        found, _ = calibrate(reconstructor, grey(20), grey(24)[20:], Recipe(image_size=32), seed=0)
        chosen = found.selection
        assert chosen.image_auroc is not None and chosen.defects > 60
        least = lower_bound(chosen.image_auroc, found.reference_images, chosen.defects)
        assert (least > LEAST_AUROC) == passes
        assert (chosen.image_auroc == 0.5) != passes
        flagged = found.flagged
        assert (
            set(flagged) <= set(KINDS) and sum(of for _, of in flagged.values()) == chosen.defects
        )
        assert (sum(seen for seen, _ in flagged.values()) > 0) == passes


def test_what_is_flagged_of_each_kind_is_said_only_of_images_that_no_network_knows() -> None:
    reconstructor = Reconstructor([Repairs().eval()], torch.float32)
    recipe = Recipe(image_size=32)
    found, _ = calibrate(reconstructor, grey(20), grey(24)[20:], recipe, seed=0)
    for kind, scores in found.defect_scores.items():
        seen = sum(score > found.image_threshold for score in scores)
        assert found.flagged[kind] == (seen, len(scores))
    few, _ = calibrate(reconstructor, grey(15), grey(24)[20:], recipe, seed=0)
    assert few.reference_images > few.held_out_references and few.flagged == {}


def shown(autoencoders: float, neighbours: float) -> dict[Difference, Evidence]:
    """Maps of 300 images without and 300 with a defect.

    Values are up to 0.9, but for those given where the defect is; 0.45 is nothing to see. Images
    differ in their level, far more so in what autoencoders make of them.
    """
    torch.manual_seed(0)
    truth = torch.zeros(300, 1, 8, 8, dtype=torch.bool)
    truth[..., 3:5, 3:5] = True
    found = []
    for gains in ((0.45, 0.45), (autoencoders, neighbours)):
        channels = []
        for spread, gain in zip((0.9, 0.05), gains, strict=True):
            maps = 0.9 * torch.rand(300, 1, 8, 8)
            maps[..., 3:5, 3:5] = gain
            channels.append(maps * (spread * torch.randn(300, 1, 1, 1)).exp())
        found.append(torch.cat(channels, dim=1))
    clean, defects = found
    return {"both": Evidence(clean, defects, truth, neighbours=True)}


@pytest.mark.parametrize(
    ("autoencoders", "neighbours", "chosen"),
    [(0.45, 1.05, "neighbours"), (20.0, 0.45, "autoencoders"), (8.0, 1.0, "joined")],
)
def test_one_is_taken_alone_where_the_other_sees_nothing(
    autoencoders: float, neighbours: float, chosen: Experts
) -> None:
    evidence, wanted = shown(autoencoders, neighbours), AnomalyMap(kernel=1, repeats=0)
    judged = judge(evidence, PLAIN.candidates(evidence, wanted))
    settings, _ = choose(judged, evidence, wanted)
    assert settings.experts == chosen


def calibration(experts: Experts | None, limits: tuple[float, ...]) -> Calibration:
    return Calibration(
        anomaly_map=MapSettings(difference="both", kernel=5, experts=experts),
        scale=(1.0,),
        pixel_threshold=1.0,
        reference_images=0,
        held_out_references=0,
        selection=Choice(basis="recipe", defects=0, image_auroc=None, pixel_auroc=None),
        expert_limits=limits,
    )


@pytest.mark.parametrize(
    ("scores", "seen_by"),
    [
        ((2.0, 0.5), "autoencoders"),
        ((0.5, 2.0), "neighbours"),
        ((2.0, 2.0), "joined"),
        ((1.0, 1.0), "joined"),
    ],
)
def test_a_flagged_image_is_seen_by_whose_limit_it_exceeds(
    scores: tuple[float, float], seen_by: str
) -> None:
    assert calibration("joined", (1.0, 1.0)).seen_by(scores) == seen_by


def test_a_single_expert_sees_all_that_is_flagged() -> None:
    assert calibration(None, (1.0,)).seen_by([2.0]) == "autoencoders"
    assert calibration("neighbours", (1.0,)).seen_by([2.0]) == "neighbours"
    assert calibration(None, ()).seen_by([2.0]) == "autoencoders", "of an earlier version"


def test_evidence_of_some_experts_has_their_channels() -> None:
    torch.manual_seed(0)
    maps, defects = torch.rand(3, 3, 8, 8), torch.rand(2, 3, 8, 8)
    truth, mean = torch.zeros(2, 1, 8, 8, dtype=torch.bool), torch.rand(2, 8, 8)
    both = Evidence(maps, defects, truth, fitted_on=maps[:2], mean=mean, neighbours=True)
    assert both.of("joined") is both
    own, theirs = both.of("autoencoders"), both.of("neighbours")
    assert torch.equal(own.clean, maps[:, :2]) and torch.equal(theirs.clean, maps[:, 2:])
    assert torch.equal(own.defects, defects[:, :2]) and torch.equal(theirs.defects, defects[:, 2:])
    assert own.fitted_on is not None and own.fitted_on.shape == (2, 2, 8, 8)
    assert own.mean is mean and theirs.mean is None
    alone = Evidence(maps, defects, truth)
    assert alone.of("autoencoders") is alone


def test_half_of_few_training_images_remain_for_a_bank() -> None:
    training = torch.empty(10, 1, 1, 3)
    assert filling_up(14, training, neighbours=True) == 2
    assert filling_up(2, training, neighbours=True) == 5
    assert filling_up(2, training, neighbours=False) == 10
    assert filling_up(20, training, neighbours=True) == 0
