"""Random numbers and smooth random fields, the raw material of corruptions.

Numbers are drawn on the CPU from the generator passed in and then moved: the coarse grids are
small, and one generator state gives the same fields, to rounding, on a CPU, a GPU and every worker.
``draw_noise`` draws, ``SmoothNoise.field`` computes, wherever its numbers are by then.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ssray.method.transfer import moved

_OCTAVES = 3

Range = tuple[float, float]


@dataclass(frozen=True)
class SmoothNoise:
    """The random numbers from which smooth noise is computed.

    Attributes:
        size: the rows and columns of the field.
        octaves: white noise on coarse grids, (B, C, h, w) float32 each, weighted by how much of it
            each image gets.
    """

    size: tuple[int, int]
    octaves: tuple[Tensor, ...]

    def field(self) -> Tensor:
        """Computes the noise, (B, C, H, W) float32 with root mean square 1 in every image."""
        height, width = self.size
        batch, channels = self.octaves[0].shape[:2]
        device = self.octaves[0].device
        noise = torch.zeros((batch, channels, height, width), device=device)
        for coarse in self.octaves:
            rows, columns = coarse.shape[2:]
            along_rows = coarse @ _cubic(columns, width, device).T
            noise += _cubic(rows, height, device) @ along_rows
        norm = noise.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        return noise / norm.clamp_min(torch.finfo(noise.dtype).eps)


def draw_noise(
    shape: tuple[int, int, int, int], lengths: Range, generator: torch.Generator
) -> SmoothNoise:
    """Draws what ``smooth_noise`` is computed from, on the CPU."""
    low, high = lengths
    batch, channels, height, width = shape
    count = _OCTAVES if high > low else 1
    # A hat function over the octaves, centred where this image's length lies.
    position = uniform((batch, 1, 1, 1), (0.0, count - 1.0), generator)
    octaves = []
    for octave in range(count):
        length = low * (high / low) ** (octave / max(count - 1, 1))
        weight = (1 - (position - octave).abs()).clamp_min(0)
        rows, columns = math.ceil(height / length) + 1, math.ceil(width / length) + 1
        octaves.append(weight * torch.randn(batch, channels, rows, columns, generator=generator))
    return SmoothNoise((height, width), tuple(octaves))


def smooth_noise(
    shape: tuple[int, int, int, int],
    lengths: Range,
    generator: torch.Generator,
    device: torch.device,
) -> Tensor:
    """Draws Gaussian noise of unit mean square, with a correlation length for each image.

    White noise on a few coarse grids, upsampled by cubic interpolation, stands in for
    white noise under a Gaussian filter: the cost does not grow with the length. Every
    image mixes neighbouring octaves by a position drawn between the two lengths.

    Args:
        shape: the shape of the result, (B, C, H, W).
        lengths: the shortest and the longest correlation length, pixels.
        generator: the source of all random numbers, on the CPU.
        device: where the result is.

    Returns:
        (B, C, H, W) float32 with root mean square 1 in every image. Where the length is no longer
        small against the image, part of that is its mean.
    """
    return moved(draw_noise(shape, lengths, generator), device).field()


def uniform(shape: tuple[int, ...], bounds: Range, generator: torch.Generator) -> Tensor:
    """Draws float32 numbers on the CPU, uniform between the two bounds."""
    low, high = bounds
    return low + (high - low) * torch.rand(shape, generator=generator)


def log_uniform(shape: tuple[int, ...], bounds: Range, generator: torch.Generator) -> Tensor:
    """Draws float32 numbers on the CPU, their logarithm uniform between two bounds above 0."""
    return uniform(shape, (math.log(bounds[0]), math.log(bounds[1])), generator).exp()


def signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draws float32 numbers on the CPU, each -1 or 1 with equal chance."""
    return torch.randint(2, shape, generator=generator) * 2.0 - 1.0


@functools.lru_cache(maxsize=256)
def _cubic(points: int, size: int, device: torch.device) -> Tensor:
    """Builds the matrix, (size, points), that interpolates cubically along one axis.

    Products with it take a fraction of the time that torch's own interpolation takes on a CPU.
    """
    values = torch.eye(points).view(1, points, points, 1)
    matrix = F.interpolate(values, size=(size, 1), mode="bicubic", align_corners=True)
    return matrix.view(points, size).T.contiguous().to(device)
