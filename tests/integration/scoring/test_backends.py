"""What runs the networks gives what torch gives."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import get_args

import openvino
import pytest
import torch

from ssray.config import Blend, Network
from ssray.method.autoencoder import Autoencoder
from ssray.method.inference import reconstruct
from ssray.scoring.backends import OpenVinoNetwork, resolve_backend

CPU = torch.device("cpu")


def network(blend: Blend = "pixel") -> Autoencoder:
    """With statistics and weights unlike those it begins with."""
    torch.manual_seed(0)
    made = Autoencoder(Network(width=8, blend=blend))
    with torch.no_grad():
        for _ in range(3):
            made(torch.rand(4, 3, 64, 64))
    return made.eval()


@pytest.fixture(scope="module", autouse=True)
def _converted_once() -> Iterator[None]:
    """Converts a network, which takes seconds, once for both precisions."""
    found: dict[tuple[float, torch.Size], openvino.Model] = {}
    convert = openvino.convert_model

    def once(program: torch.export.ExportedProgram) -> openvino.Model:
        [example], _ = program.example_inputs
        key = float(program.module()(torch.ones_like(example)).sum()), example.shape
        if key not in found:
            found[key] = convert(program)
        return found[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino, "convert_model", once)
        yield


@functools.cache
def compiled(blend: Blend, precision: torch.dtype) -> OpenVinoNetwork:
    """Shared, as compiling takes seconds for each size of images."""
    return OpenVinoNetwork(network(blend), precision, 1)


@pytest.mark.parametrize(
    ("blend", "shape"), [*((blend, (64, 64)) for blend in get_args(Blend)), ("pixel", (51, 90))]
)
def test_openvino_gives_what_torch_gives(blend: Blend, shape: tuple[int, int]) -> None:
    own = network(blend)
    images = torch.rand(3, 3, *shape, generator=torch.Generator().manual_seed(1))
    images = images.to(memory_format=torch.channels_last)
    reference = reconstruct(own, images, torch.float32)
    exact = reconstruct(compiled(blend, torch.float32), images, torch.float32)
    assert exact.shape == reference.shape
    assert exact.dtype == torch.float32
    assert (exact - reference).abs().max() < 1e-5
    rounded = reconstruct(compiled(blend, torch.bfloat16), images, torch.bfloat16)
    torchs = reconstruct(own, images, torch.bfloat16)
    off, torchs_off = ((each - reference).square().mean() for each in (rounded, torchs))
    assert off < 4 * torchs_off + 1e-9


def test_one_network_takes_images_of_several_sizes() -> None:
    own = network()
    for shape in ((64, 64), (51, 90), (64, 64)):
        images = torch.rand(1, 3, *shape)
        found = reconstruct(compiled("pixel", torch.float32), images, torch.float32)
        assert (found - reconstruct(own, images, torch.float32)).abs().max() < 1e-5


def test_the_default_is_the_faster_one_where_it_runs() -> None:
    assert resolve_backend("auto", CPU) == "openvino"
    assert resolve_backend("auto", torch.device("cuda")) == "torch"
    assert resolve_backend("torch", CPU) == "torch"
