"""Features of pretrained networks against the layers that they were trained with."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssray.data.pretrained_weights import read_weights
from ssray.errors import ConfigError
from ssray.method.feature_difference import FeatureDifference
from ssray.method.neighbours import MemoryBank
from ssray.method.pretrained import STRIDES, FeatureNetwork
from tests.pretrained import State, tiny_lite, tiny_resnet


def layer(state: State, x: Tensor, convolution: str, norm: str, stride: int, same: bool) -> Tensor:
    """A convolution and its batch normalisation in float64, one after the other."""
    weight = kept(state[f"{convolution}.weight"])
    side = weight.shape[-1]
    padding = side // 2
    if same:  # as TensorFlow has it, computed from the size of what comes in
        missing = [max((math.ceil(n / stride) - 1) * stride + side - n, 0) for n in x.shape[-2:]]
        x = F.pad(x, [part for n in reversed(missing) for part in (n // 2, n - n // 2)])
        padding = 0
    x = F.conv2d(x, weight, None, stride, padding, groups=x.shape[1] // weight.shape[1])
    mean, variance, gain, offset = (
        state[f"{norm}.{name}"].double()
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    return F.batch_norm(x, mean, variance, gain, offset, eps=1e-3 if same else 1e-5)


def kept(weight: Tensor) -> Tensor:
    """As an artifact keeps it."""
    return weight.half().double()


def resnet(state: State, images: Tensor, bottleneck: bool) -> list[Tensor]:
    mean, deviation = (
        torch.tensor(values, dtype=torch.float64).view(3, 1, 1)
        for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    x = layer(state, (images - mean) / deviation, "conv1", "bn1", 2, same=False).relu()
    x, found = F.max_pool2d(x, 3, 2, 1), []
    for stage in (1, 2, 3):
        stride, name, before = 1 if stage == 1 else 2, f"layer{stage}.0.", x
        strides = (1, stride, 1) if bottleneck else (stride, 1)
        for number, step in enumerate(strides, 1):
            x = layer(state, x, f"{name}conv{number}", f"{name}bn{number}", step, same=False)
            x = x.relu() if number < len(strides) else x
        if f"{name}downsample.0.weight" in state:
            before = layer(
                state, before, f"{name}downsample.0", f"{name}downsample.1", stride, same=False
            )
        x = (x + before).relu()
        found.append(x)
    return found[1:]


def lite(state: State, images: Tensor) -> list[Tensor]:
    x = layer(state, 2 * images - 1, "_conv_stem", "_bn0", 2, same=True).clamp(0, 6)
    strides = {0: 1, 1: 2, 2: 1, 3: 2, 4: 1, 5: 2, 6: 1}
    found = {}
    for number, stride in strides.items():
        name, before = f"_blocks.{number}.", x
        if number:
            x = layer(state, x, f"{name}_expand_conv", f"{name}_bn0", 1, same=True).clamp(0, 6)
        x = layer(state, x, f"{name}_depthwise_conv", f"{name}_bn1", stride, same=True).clamp(0, 6)
        x = layer(state, x, f"{name}_project_conv", f"{name}_bn2", 1, same=True)
        x = x + before if number in (2, 4) else x
        found[number] = x
    return [found[4], found[6]]


@pytest.mark.parametrize("bottleneck", [False, True])
def test_a_resnet_computes_what_its_layers_do(bottleneck: bool) -> None:
    state, images = tiny_resnet(bottleneck), torch.rand(2, 3, 64, 48)
    found = FeatureNetwork.of(state, "a file")(images)
    expected = resnet(state, images.double(), bottleneck)
    for stride, one, other in zip(STRIDES, found, expected, strict=True):
        assert one.shape[-2:] == (64 // stride, 48 // stride)
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("timm", [False, True])
def test_a_lite_network_computes_what_its_layers_do(timm: bool) -> None:
    images = torch.rand(2, 3, 64, 48)
    network = FeatureNetwork.of(tiny_lite(timm), "a file")
    assert network.channels == 8 + 12
    for one, other in zip(network(images), lite(tiny_lite(), images.double()), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)


def test_it_is_the_same_again_from_what_an_artifact_keeps() -> None:
    state, images = tiny_resnet(), torch.rand(1, 3, 32, 32)
    network = FeatureNetwork.of(state, "a file")
    assert not {"fc.weight", "layer4.0.conv1.weight"} & network.weights.keys()
    again = FeatureNetwork.of(network.weights, "an artifact")
    assert all(map(torch.equal, network(images), again(images)))


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"encoder.weight": torch.zeros(1)},
        {k: v for k, v in tiny_resnet().items() if k != "layer2.0.bn1.running_var"},
        {k: v for k, v in tiny_resnet().items() if not k.startswith("layer3")},
        {k: v for k, v in tiny_lite().items() if not k.startswith("_blocks.6.")},
        tiny_lite(timm=True) | {"blocks.1.0.se.conv_reduce.weight": torch.zeros(1)},
    ],
)
def test_other_networks_are_refused(state: State) -> None:
    with pytest.raises(ConfigError, match="EfficientNet-Lite or a ResNet"):
        FeatureNetwork.of(state, "a file")


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("layer1.0.conv1.weight", (1, 4, 3, 3), "layer layer1.0.conv1"),  # would be broadcast
        ("layer1.0.conv1.weight", (4, 4), "layer layer1.0.conv1"),
        ("layer1.0.conv1.weight", (4, 4, 301, 301), "11 pixels a side"),
        ("layer1.0.bn1.weight", (10**6,), "layer layer1.0.conv1"),
        ("conv1.weight", (0, 3, 7, 7), "layer conv1"),
    ],
)
def test_weights_that_a_small_file_could_ask_much_memory_by_are_refused(
    name: str, shape: tuple[int, ...], reason: str
) -> None:
    state = tiny_resnet(bottleneck=False) | {name: torch.zeros(shape)}
    with pytest.raises(ConfigError, match=reason):
        FeatureNetwork.of(state, "here")


def test_layers_that_do_not_fit_one_another_are_refused() -> None:
    state = tiny_resnet(bottleneck=False)
    weight = state["layer2.0.conv2.weight"]
    state["layer2.0.conv2.weight"] = torch.zeros(len(weight), weight.shape[1] + 1, 3, 3)
    with pytest.raises(ConfigError, match="do not fit one another"):
        FeatureNetwork.of(state, "here")


def test_a_bank_of_other_features_is_refused() -> None:
    network = FeatureNetwork.of(tiny_resnet(bottleneck=False), "here")
    for bank in ({}, {"bank": torch.zeros(2, 1)}, {"bank": torch.zeros(40_001, network.channels)}):
        with pytest.raises(ConfigError, match="expected a memory bank of at most 40,000"):
            MemoryBank.restored({**network.weights, **bank}, 64, "here")
    for residuals in ({}, {"residuals": torch.zeros(1)}):
        with pytest.raises(ConfigError, match="features' usual differences"):
            FeatureDifference.restored({**network.weights, **residuals}, 64, "here")


def test_the_installed_network_is_the_one_that_is_known() -> None:
    network = FeatureNetwork.of(read_weights("efficientnet-lite0"), "efficientnet-lite0")
    fine, coarse = network(torch.rand(1, 3, 64, 96))
    assert fine.shape == (1, 40, 8, 12) and coarse.shape == (1, 112, 4, 6)
    assert sum(weight.nbytes for weight in network.weights.values()) < 1.5 * 2**20
