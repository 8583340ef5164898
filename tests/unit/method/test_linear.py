"""The linear autoencoder: the projection onto the span of the training images."""

from __future__ import annotations

import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from ssray.config import Linear
from ssray.method.inference import reconstruct, to_network
from ssray.method.linear import MOST_IMAGES, LinearAutoencoder
from ssray.method.tiling import Tiling

CPU = torch.device("cpu")


def parts(count: int, seed: int = 0, shape: tuple[int, int] = (40, 64)) -> Tensor:
    """(N, H, W, 3) uint8: a bright bar of varying height on a dark ground, with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(shape[0]).view(1, -1, 1, 1)
    top = torch.randint(6, 14, (count, 1, 1, 1), generator=generator)
    inside = ((rows >= top) & (rows < 30)).float().expand(count, *shape, 3)
    noise = 2 * torch.randn(count, *shape, 3, generator=generator)
    return (60 + 120 * inside + noise).clamp(0, 255).to(torch.uint8)


def floats(images: Tensor) -> Tensor:
    return to_network(images, CPU)


def error(autoencoder: LinearAutoencoder, images: Tensor) -> float:
    return float((autoencoder(images) - images).square().mean())


def test_at_full_size_it_is_the_projection_that_scikit_learn_computes() -> None:
    images = parts(30)
    autoencoder = LinearAutoencoder.fitted(images, Linear(variance=0.9))
    flat = floats(images).flatten(1).numpy()
    pca = PCA(0.9, svd_solver="full").fit(flat)
    light = len(autoencoder.basis) - pca.n_components_
    assert light == 12, "three offsets and a gain, constant and rising to two sides"
    components = torch.from_numpy(pca.components_)
    within = components @ autoencoder.basis.T @ autoencoder.basis
    torch.testing.assert_close(within, components, atol=1e-4, rtol=0)


def test_it_gives_back_what_it_was_fitted_to_and_repairs_what_is_missing() -> None:
    autoencoder = LinearAutoencoder.fitted(parts(60), Linear(image_size=32))
    good = floats(parts(8, seed=1))
    broken = good.clone()
    broken[:, :, 15:25, 20:30] = 60 / 255
    missing = torch.zeros_like(broken, dtype=torch.bool)
    missing[:, :, 17:23, 22:28] = True
    off = (autoencoder(broken) - broken).abs()
    assert float(off[missing].mean()) > 5 * float(off[~missing].mean())
    assert float((autoencoder(broken) - good).abs()[missing].mean()) < 0.1
    assert error(autoencoder, broken) > 10 * error(autoencoder, good)


@pytest.mark.parametrize("light", ["brighter", "darker", "less contrast", "a gradient"])
def test_a_change_of_light_is_no_anomaly(light: str) -> None:
    autoencoder = LinearAutoencoder.fitted(parts(60), Linear(image_size=32))
    good = floats(parts(8, seed=1))
    across = torch.linspace(-0.15, 0.15, good.shape[3])
    changed = {
        "brighter": 1.2 * good,
        "darker": 0.8 * good,
        "less contrast": 0.4 + 0.7 * (good - 0.4),
        "a gradient": (good * (1 + across)).clamp(0, 1),
    }[light]
    change = float((changed - good).square().mean())
    assert error(autoencoder, changed) < error(autoencoder, good) + 0.03 * change


def test_it_keeps_the_share_of_the_variance_that_was_asked_for() -> None:
    images = parts(60)
    counts = [
        len(LinearAutoencoder.fitted(images, Linear(image_size=32, variance=share)).basis)
        for share in (0.5, 0.9, 0.999)
    ]
    assert counts == sorted(set(counts))
    shown = LinearAutoencoder.fitted(images, Linear(variance=0.9))
    off = floats(images) - shown.mean
    assert error(shown, floats(images)) <= 0.1 * float(off.square().mean())


def test_the_basis_is_orthonormal() -> None:
    basis = LinearAutoencoder.fitted(parts(20), Linear(image_size=24)).basis
    torch.testing.assert_close(basis @ basis.T, torch.eye(len(basis)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("count", [1, 4])
def test_images_that_are_all_alike_are_their_own_span(count: int) -> None:
    images = parts(1).expand(count, -1, -1, -1)
    autoencoder = LinearAutoencoder.fitted(images, Linear(image_size=32))
    assert len(autoencoder.basis) == 12
    assert error(autoencoder, floats(images)) < 1e-6


def test_no_more_images_are_taken_than_stated() -> None:
    images = parts(MOST_IMAGES + 8, shape=(16, 16))
    whole, first = (
        LinearAutoencoder.fitted(each, Linear(image_size=16))
        for each in (images, images[:MOST_IMAGES])
    )
    assert torch.equal(whole.basis, first.basis)


def test_a_large_image_is_seen_whole_and_not_in_tiles() -> None:
    side = Tiling().side + 64
    images = parts(4, shape=(40, side))
    autoencoder = LinearAutoencoder.fitted(images, Linear(image_size=32)).eval()
    torch.testing.assert_close(
        reconstruct(autoencoder, floats(images), torch.bfloat16), autoencoder(floats(images))
    )
