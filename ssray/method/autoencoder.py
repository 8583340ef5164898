"""The autoencoder: Model I of Table 1 (section 3.3), and Model II of the latest version, Fig. 5.

Model II adds skip connections, each joined by a Convex Combination Module. No source gives its
formula; ``ConvexCombination`` holds our reading.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssray.config import STRIDE, Blend, Network

DILATIONS = (1, 2, 4, 8, 16, 32)
SDC_BLOCKS = 4


def _conv(inputs: int, outputs: int, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class StackedDilatedConvolution(nn.Module):
    """An SDC block: parallel f x f convolutions of growing dilation, then a 3x3 that mixes them.

    It maps (B, inputs, H, W) to (B, 6 * width, H, W).
    """

    def __init__(self, inputs: int, width: int, kernel: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(inputs, width, kernel, padding=d * (kernel // 2), dilation=d, bias=False)
            for d in DILATIONS
        )
        stacked = width * len(DILATIONS)
        self.norm = nn.Sequential(nn.BatchNorm2d(stacked), nn.ReLU(inplace=True))
        self.mix = _conv(stacked, stacked)

    def forward(self, x: Tensor) -> Tensor:
        stacked = torch.cat([branch(x) for branch in self.branches], dim=1)
        mixed: Tensor = self.mix(self.norm(stacked))
        return mixed


class Upsample(nn.Module):
    """Doubles the sides of (B, C, H, W) by a transposed 3x3 convolution, batch norm and ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(
            inputs, outputs, 3, stride=2, padding=1, output_padding=1, bias=False
        )
        self.norm = nn.Sequential(nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        up: Tensor = self.norm(self.conv(x))
        return up


class ConvexCombination(nn.Module):
    """A CCM: it mixes encoder features e and decoder features d to ``a * e + (1 - a) * d``.

    ``a = sigmoid(conv1x1([e; d]))`` with one coefficient for each pixel and channel
    (``both``) or for each pixel; for ``channel`` the convolution sees the features' means over
    the image. It maps two (B, C, H, W) to one.
    """

    def __init__(self, channels: int, blend: Blend) -> None:
        super().__init__()
        self.pooled = blend == "channel"
        self.gate = nn.Conv2d(2 * channels, 1 if blend == "pixel" else channels, 1)

    def coefficients(self, encoded: Tensor, decoded: Tensor) -> Tensor:
        """Computes ``a``, in [0, 1] and broadcastable to the features."""
        features = torch.cat((encoded, decoded), dim=1)
        if self.pooled:
            features = features.mean(dim=(2, 3), keepdim=True)
        return torch.sigmoid(self.gate(features))

    def forward(self, encoded: Tensor, decoded: Tensor) -> Tensor:
        return torch.lerp(decoded, encoded, self.coefficients(encoded, decoded).to(decoded.dtype))


class Autoencoder(nn.Module):
    """The network of Table 1; ``width=64`` is the paper's size, 14.13 M parameters at ``kernel=3``.

    The last layer runs in float32 under autocast as well: eight bits of mantissa would
    round the reconstruction more coarsely than the image it is compared with.

    >>> Autoencoder(Network(width=4))(torch.rand(1, 3, 30, 25)).shape
    torch.Size([1, 3, 30, 25])
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        w, f = network.width, network.kernel
        stacked = w * len(DILATIONS)
        self.encoder = nn.ModuleList(
            nn.Sequential(_conv(before, after), _conv(after, after))
            for before, after in ((3, w), (w, 2 * w), (2 * w, 4 * w))
        )
        self.bottleneck = nn.Sequential(
            StackedDilatedConvolution(4 * w, w, f),
            *(StackedDilatedConvolution(stacked, w, f) for _ in range(SDC_BLOCKS - 1)),
        )
        self.upsampling = nn.ModuleList(
            (Upsample(stacked, 4 * w), Upsample(4 * w, 2 * w), Upsample(2 * w, w))
        )
        self.decoder = nn.ModuleList(
            nn.Sequential(_conv(c, c), _conv(c, c)) for c in (4 * w, 2 * w, w)
        )
        self.joints = nn.ModuleList(
            ConvexCombination(c, network.blend)
            for c in (4 * w, 2 * w, w)
            if network.blend != "none"
        )
        self.to_image = nn.Conv2d(w, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Reconstructs (B, 3, H, W) floats in [0, 1] as float32 of the same shape and range.

        Sides that are no multiples of 8 are padded by reflection and cut again.
        """
        height, width = images.shape[-2:]
        features = pad_to_stride(images)
        skipped = []
        for stage in self.encoder:
            features = stage(features)
            skipped.append(features)
            features = F.max_pool2d(features, 2)
        features = self.bottleneck(features)
        for level, (upsample, stage) in enumerate(zip(self.upsampling, self.decoder, strict=True)):
            features = upsample(features)
            encoded = skipped.pop()
            if self.joints:
                features = self.joints[level](encoded, features)
            features = stage(features)
        with torch.autocast(images.device.type, enabled=False):
            reconstruction = torch.sigmoid(self.to_image(features.float()))
        return reconstruction[..., :height, :width]


def pad_to_stride(images: Tensor) -> Tensor:
    """Reflects (B, C, H, W) images at their lower and right edge up to multiples of 8.

    Raises:
        ValueError: if a side is shorter than 8 pixels.
    """
    height, width = images.shape[-2:]
    if min(height, width) < STRIDE:
        raise ValueError(f"images need at least {STRIDE} pixels a side, found {height} x {width}")
    below, right = -height % STRIDE, -width % STRIDE
    if not below and not right:
        return images
    return F.pad(images, (0, right, 0, below), mode="reflect")
