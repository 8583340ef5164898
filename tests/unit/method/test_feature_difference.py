"""The difference of an image and its reconstruction in features."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ssray.method.feature_difference import FeatureDifference
from ssray.method.pretrained import FeatureNetwork
from tests.pretrained import tiny_resnet


@pytest.fixture(scope="module")
def network() -> FeatureNetwork:
    return FeatureNetwork.of(tiny_resnet(), "a file")


def test_it_is_the_difference_in_units_of_what_is_usual(network: FeatureNetwork) -> None:
    torch.manual_seed(0)
    images, others = torch.rand(4, 3, 64, 64), torch.rand(4, 3, 64, 64)
    pairs = [(images[:3], others[:3]), (images[3:], others[3:])]
    found = FeatureDifference.fitted(network, pairs, image_size=64)
    maps, usual = [], []
    for one, other in zip(network(images), network(others), strict=True):
        apart = one - other
        usual.append(apart.square().mean(dim=(0, 2, 3)).sqrt())
        mean = (apart / usual[-1].view(-1, 1, 1)).square().mean(dim=1, keepdim=True)
        maps.append(F.interpolate(mean.sqrt(), (64, 64), mode="bilinear"))
    torch.testing.assert_close(found.residuals, torch.cat(usual))
    expected = (maps[0] + maps[1]) / 2
    torch.testing.assert_close(found(torch.cat([images, others], dim=1)), expected)


def test_a_change_is_where_it_is_and_an_equal_image_has_none(network: FeatureNetwork) -> None:
    images = torch.rand(2, 3, 96, 128)
    changed = images.clone()
    changed[..., 32:48, 80:96] = 0
    found = FeatureDifference(network, torch.ones(network.channels), image_size=64)
    assert float(found(torch.cat([images, images], dim=1)).max()) == 0
    maps = found(torch.cat([images, changed], dim=1))
    assert maps.shape == (2, 1, 96, 128)
    near, far = maps[..., 32:48, 80:96].mean(), maps[..., :, :32].mean()
    assert float(near) > 10 * float(far)


def test_it_is_the_same_again_from_an_artifact(network: FeatureNetwork) -> None:
    found = FeatureDifference(network, torch.rand(network.channels) + 1, image_size=64)
    again = FeatureDifference.restored(found.kept(), 64, "an artifact")
    pairs = torch.rand(1, 6, 32, 32)
    assert torch.equal(found(pairs), again(pairs))
