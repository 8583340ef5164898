"""Model I against Table 1."""

from __future__ import annotations

import pytest
import torch

from ssray.config import Network
from ssray.method.autoencoder import ModelI


@pytest.mark.parametrize(("kernel", "millions"), [(3, 14.13), (5, 22.78)])
def test_parameter_count_at_the_papers_width(kernel: int, millions: float) -> None:
    model = ModelI(Network(width=64, kernel=kernel))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize(("kernel", "gigaflop"), [(3, 304), (5, 375)])
def test_operations_at_the_papers_size(kernel: int, gigaflop: float) -> None:
    """2 x MAC of a 512 x 512 forward pass, counted on a 64 x 64 one: it scales with area."""
    from torch.utils.flop_counter import FlopCounterMode

    model = ModelI(Network(width=64, kernel=kernel)).eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.rand(1, 3, 64, 64))
    assert counter.get_total_flops() * 64 / 1e9 == pytest.approx(gigaflop, rel=0.01)


def test_bottleneck_is_an_eighth_of_the_input() -> None:
    model = ModelI(Network(width=4)).eval()
    features = model.encoder(torch.rand(1, 3, 64, 40))
    assert features.shape == (1, 16, 8, 5)
    assert model.bottleneck(features).shape == (1, 24, 8, 5)


def test_output_is_an_image_of_the_input_shape() -> None:
    reconstruction = ModelI(Network(width=4)).eval()(torch.rand(2, 3, 40, 64))
    assert reconstruction.shape == (2, 3, 40, 64)
    assert 0 <= reconstruction.min() <= reconstruction.max() <= 1


def test_last_layer_keeps_float32_under_autocast() -> None:
    model = ModelI(Network(width=4)).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        reconstruction = model(torch.rand(1, 3, 32, 32))
    assert reconstruction.dtype == torch.float32
    rounded = reconstruction.bfloat16().float()
    assert not torch.equal(reconstruction, rounded)


def test_sides_that_are_no_multiples_of_eight_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 8, found 30 x 32"):
        ModelI(Network(width=4))(torch.rand(1, 3, 30, 32))
