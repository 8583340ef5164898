"""Model I: an autoencoder with stacked dilated convolutions (section 3.3, Table 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssray.config import STRIDE, Network

DILATIONS = (1, 2, 4, 8, 16, 32)
SDC_BLOCKS = 4


def _conv(inputs: int, outputs: int, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class StackedDilatedConvolution(nn.Module):
    """SDC block: parallel f x f convolutions of growing dilation, then a 3x3 that mixes them.

    Maps (B, inputs, H, W) to (B, 6 * width, H, W).
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
    """Transposed 3x3 convolution of stride 2, batch norm and ReLU: (B, C, H, W) to 2H x 2W."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(
            inputs, outputs, 3, stride=2, padding=1, output_padding=1, bias=False
        )
        self.norm = nn.Sequential(nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        up: Tensor = self.norm(self.conv(x))
        return up


class ModelI(nn.Module):
    """Table 1 of the paper; ``width=64`` is its size, 14.13 M parameters for ``kernel=3``.

    The last layer runs in float32 under autocast as well: eight bits of mantissa would
    round the reconstruction more coarsely than the image it is compared with.

    >>> ModelI(Network(width=4))(torch.rand(1, 3, 32, 24)).shape
    torch.Size([1, 3, 32, 24])
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        w, f = network.width, network.kernel
        stacked = w * len(DILATIONS)
        self.encoder = nn.Sequential(
            *(_conv(3, w), _conv(w, w), nn.MaxPool2d(2)),
            *(_conv(w, 2 * w), _conv(2 * w, 2 * w), nn.MaxPool2d(2)),
            *(_conv(2 * w, 4 * w), _conv(4 * w, 4 * w), nn.MaxPool2d(2)),
        )
        self.bottleneck = nn.Sequential(
            StackedDilatedConvolution(4 * w, w, f),
            *(StackedDilatedConvolution(stacked, w, f) for _ in range(SDC_BLOCKS - 1)),
        )
        self.decoder = nn.Sequential(
            *(Upsample(stacked, 4 * w), _conv(4 * w, 4 * w), _conv(4 * w, 4 * w)),
            *(Upsample(4 * w, 2 * w), _conv(2 * w, 2 * w), _conv(2 * w, 2 * w)),
            *(Upsample(2 * w, w), _conv(w, w), _conv(w, w)),
        )
        self.to_image = nn.Conv2d(w, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Reconstructs (B, 3, H, W) floats in [0, 1] as float32 of the same shape and range.

        Raises:
            ValueError: if H or W is no multiple of 8.
        """
        height, width = images.shape[-2:]
        if height % STRIDE or width % STRIDE:
            raise ValueError(
                f"image sides must be multiples of {STRIDE}, found {height} x {width}; "
                "resize or pad before the network"
            )
        features = self.decoder(self.bottleneck(self.encoder(images)))
        with torch.autocast(images.device.type, enabled=False):
            return torch.sigmoid(self.to_image(features.float()))
