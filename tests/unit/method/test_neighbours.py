"""The memory bank: what it keeps, and what is far from it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssray.config import Features
from ssray.method import neighbours
from ssray.method.neighbours import MemoryBank
from ssray.method.pretrained import FeatureNetwork
from tests.pretrained import tiny_resnet

SETTINGS = Features(image_size=64, memory_mib=0.02, dropped=0.0)


@pytest.fixture(scope="module")
def network() -> FeatureNetwork:
    return FeatureNetwork.of(tiny_resnet(), "a file")


def stripes(count: int) -> Tensor:
    """(N, 64, 96, 3) uint8, waves that differ in where they begin."""
    torch.manual_seed(1)
    begin = 6.28 * torch.rand(count, 1, 1, 3)
    waves = torch.sin(torch.arange(96).view(1, 1, -1, 1) * 0.4 + begin).expand(-1, 64, -1, -1)
    return ((waves + 1) * 100).byte()


def seen(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2).float() / 255


def test_it_is_as_large_as_it_may_be(network: FeatureNetwork) -> None:
    bank = MemoryBank.fitted(network, stripes(8), SETTINGS, seed=0)
    assert bank.bank.shape == (int(0.02 * 2**20 / (2 * 28)), 28)
    assert bank.kept()["bank"].dtype == torch.float16
    small = MemoryBank.fitted(network, stripes(2), Features(image_size=64, dropped=0.25), seed=0)
    assert len(small.bank) == 2 * 8 * 12 * 3 // 4, "there are no more"


def test_a_map_is_the_distance_to_the_nearest(network: FeatureNetwork) -> None:
    bank = MemoryBank.fitted(network, stripes(8), SETTINGS, seed=0)
    images = seen(stripes(9)[8:])
    places = bank.described(images)[0].flatten(1).T
    nearest = torch.cdist(places, bank.bank, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
    expected = F.interpolate(nearest.view(1, 1, 8, 12), (64, 96), mode="bilinear")
    torch.testing.assert_close(bank(images), expected, rtol=1e-3, atol=1e-3)


def test_a_defect_is_far_and_an_image_that_is_known_is_near(network: FeatureNetwork) -> None:
    images = stripes(12)
    whole = Features(image_size=64, memory_mib=4, dropped=0.0)
    bank = MemoryBank.fitted(network, images[:8], whole, seed=0)
    stained = images[8:].clone()
    stained[:, 24:40, 40:56] = 255
    known, good, bad = (bank(seen(each)) for each in (images[:8], images[8:], stained))
    assert float(known.max()) < 0.05 * float(good.mean()), "but for float16"
    inside = bad[..., 28:36, 44:52]
    assert float(inside.mean()) > 2 * float(good.mean()) and float(inside.max()) > float(good.max())


def test_small_images_are_enlarged_and_large_ones_are_not(network: FeatureNetwork) -> None:
    bank = MemoryBank(network, torch.zeros(1, 28), image_size=64)
    assert bank.described(torch.rand(1, 3, 32, 32)).shape[-2:] == (8, 8)
    assert bank.described(torch.rand(1, 3, 128, 96)).shape[-2:] == (16, 12)
    assert bank.described(torch.rand(1, 3, 16, 200)).shape[-2:] == (2, 28), "at least one place"
    assert bank(torch.rand(2, 3, 50, 70)).shape == (2, 1, 50, 70)


def test_the_bank_takes_what_is_farthest_from_what_it_has() -> None:
    vectors = torch.tensor([[0.0], [0.1], [10.0], [5.0], [4.9]])
    assert neighbours._coreset(vectors, 3).tolist() == [0, 2, 3]
    assert sorted(neighbours._coreset(vectors, 9).tolist()) == [0, 1, 2, 3, 4]


def test_what_no_other_image_has_is_marked() -> None:
    vectors = torch.tensor([[0.0], [0.1], [7.0], [7.1], [3.0], [3.1]])
    origin = torch.tensor([0, 1, 0, 1, 2, 2])
    marked = neighbours._farthest_from_other_images(vectors, origin, 1 / 3)
    assert marked.tolist() == [False] * 4 + [True] * 2, "those alike are of the same image"


def test_a_defect_among_the_images_is_not_learned_by_heart(network: FeatureNetwork) -> None:
    images = stripes(20)
    images[3, 24:40, 40:56] = 255
    stained = images[3:4].clone()
    found = {
        share: MemoryBank.fitted(
            network, images, Features(image_size=64, dropped=share, memory_mib=0.1), seed=0
        )(seen(stained))[..., 28:36, 44:52]
        for share in (0.0, 0.02)
    }
    assert float(found[0.02].max()) > 5 * float(found[0.0].max())


def test_it_is_the_same_again_from_an_artifact(network: FeatureNetwork) -> None:
    bank = MemoryBank.fitted(network, stripes(4), SETTINGS, seed=0)
    again = MemoryBank.restored(bank.kept(), SETTINGS.image_size, "an artifact")
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(bank(images), again(images))


def test_the_same_seed_gives_the_same_bank(network: FeatureNetwork) -> None:
    images = stripes(4)
    one, same, other = (MemoryBank.fitted(network, images, SETTINGS, seed) for seed in (0, 0, 1))
    assert torch.equal(one.bank, same.bank) and not torch.equal(one.bank, other.bank)
    assert len(MemoryBank.fitted(network, stripes(1), SETTINGS, 0).bank), "of one image"
