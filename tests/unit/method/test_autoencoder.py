"""Models I and II against Table 1 and Fig. 5."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from ssray.config import Blend, Network
from ssray.method.autoencoder import Autoencoder, ConvexCombination, pad_to_stride

BLENDS = get_args(Blend)


@pytest.mark.parametrize(("kernel", "millions"), [(3, 14.13), (5, 22.78)])
def test_parameter_count_at_the_papers_width(kernel: int, millions: float) -> None:
    model = Autoencoder(Network(width=64, kernel=kernel))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize(("kernel", "gigaflop"), [(3, 304), (5, 375)])
def test_operations_at_the_papers_size(kernel: int, gigaflop: float) -> None:
    """2 x MAC of a 512 x 512 forward pass."""
    found = forward_operations(Network(width=64, kernel=kernel), 512)
    assert found / 1e9 == pytest.approx(gigaflop, rel=0.01)


def forward_operations(network: Network, side: int) -> float:
    """Counted on an image of 64 x 64: they scale with the area."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        Autoencoder(network).eval()(torch.rand(1, 3, 64, 64))
    return counter.get_total_flops() * (side / 64) ** 2


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("width", [1, 6])
def test_output_is_an_image_of_the_input_shape(blend: Blend, kernel: int, width: int) -> None:
    model = Autoencoder(Network(width=width, kernel=kernel, blend=blend)).eval()
    reconstruction = model(torch.rand(2, 3, 40, 64))
    assert reconstruction.shape == (2, 3, 40, 64)
    assert 0 <= reconstruction.min() <= reconstruction.max() <= 1


@pytest.mark.parametrize("blend", BLENDS)
def test_last_layer_keeps_float32_under_autocast(blend: Blend) -> None:
    model = Autoencoder(Network(width=4, blend=blend)).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        reconstruction = model(torch.rand(1, 3, 32, 32))
    assert reconstruction.dtype == torch.float32
    assert not torch.equal(reconstruction, reconstruction.bfloat16().float())


@pytest.mark.parametrize(
    ("blend", "shape"),
    [("pixel", (2, 1, 5, 6)), ("channel", (2, 4, 1, 1)), ("both", (2, 4, 5, 6))],
)
def test_ccm_blends_convexly_at_its_granularity(blend: Blend, shape: tuple[int, ...]) -> None:
    module = ConvexCombination(4, blend)
    e, d = torch.randn(2, 4, 5, 6), torch.randn(2, 4, 5, 6)
    a = module.coefficients(e, d)
    assert a.shape == shape
    assert 0 < a.min() <= a.max() < 1
    torch.testing.assert_close(module(e, d), a * e + (1 - a) * d)
    weight, bias = module.gate.weight[:, :, 0, 0], module.gate.bias
    stacked = torch.cat([e, d], dim=1)
    if blend == "channel":
        stacked = stacked.mean(dim=(2, 3), keepdim=True)
    assert bias is not None
    by_hand = torch.einsum("oc,bchw->bohw", weight, stacked) + bias.view(1, -1, 1, 1)
    torch.testing.assert_close(a, by_hand.sigmoid())


def test_model_ii_adds_nothing_but_the_combinations() -> None:
    def parameters(blend: Blend) -> int:
        return sum(p.numel() for p in Autoencoder(Network(width=8, blend=blend)).parameters())

    gates = sum(2 * c * c + c for c in (32, 16, 8))
    assert parameters("both") - parameters("none") == gates
    assert parameters("channel") == parameters("both")
    assert parameters("pixel") - parameters("none") == sum(2 * c + 1 for c in (32, 16, 8))


@pytest.mark.parametrize(("height", "width"), [(30, 33), (9, 64), (41, 39)])
def test_any_size_is_padded_by_reflection_and_cut_again(height: int, width: int) -> None:
    model = Autoencoder(Network(width=4, blend="both")).eval()
    images = torch.rand(1, 3, height, width)
    padded = pad_to_stride(images)
    assert padded.shape[2] % 8 == padded.shape[3] % 8 == 0
    assert torch.equal(padded[..., :height, :width], images)
    if height % 8:
        assert torch.equal(padded[..., height, :width], images[..., height - 2, :])
    if width % 8:
        assert torch.equal(padded[..., :height, width], images[..., :, width - 2])
    with torch.no_grad():
        assert torch.equal(model(images), model(padded)[..., :height, :width])


def test_images_below_a_stride_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 8 pixels a side, found 7 x 32"):
        Autoencoder(Network(width=4))(torch.rand(1, 3, 7, 32))
