"""Draws reconstruction sheets: what a network in training makes of images it has not seen."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from ssray.config import Difference
from ssray.method.anomaly_map import difference_maps, smooth
from ssray.method.inference import evaluating, reconstruct, to_network
from ssray.method.synthetic_defects import KINDS, draw_defects
from ssray.scoring.heatmap import encode_levels, overlay

IMAGES = 3
"""How many images a sheet shows, each as it is and with a synthetic defect."""
ALIGNED = 12
"""How many pictures a sheet of upright parts shows, their mean included."""
_ROW = 3
_GAP = 4
"""The pixels between neighbouring pictures."""
_SIDE_OVER_KERNEL = 24
"""The image's shorter side divided by that of the mean filter for the heatmaps."""


@torch.inference_mode()
def reconstruction_sheet(
    network: nn.Module, held_out: Tensor, difference: Difference, precision: torch.dtype
) -> bytes:
    """Draws a sheet with a row for each image: input, reconstruction and heatmap.

    The images of the first rows are defect-free, the others have a synthetic defect, which is the
    same in every sheet of a training. The contour in a heatmap surrounds what exceeds the largest
    smoothed difference in the defect-free rows.

    Args:
        network: the network, on the device to use and in any mode.
        held_out: (M, H, W, 3) uint8 images that the network is not trained on.
        difference: the kind of difference that the heatmap shows; one in features, which is fitted
            at the end of a training, is shown as ``both``.
        precision: the type in which the network's inner layers compute.

    Returns:
        The sheet as the content of a PNG file.
    """
    clean = to_network(held_out[:IMAGES], next(network.parameters()).device)
    foreign = torch.full((len(clean),), KINDS.index("foreign"))
    made = draw_defects(clean, torch.Generator().manual_seed(0), foreign).visible()
    images = torch.cat([clean, made.images])
    with evaluating(network):
        reconstructions = reconstruct(network, images, precision)
    kernel = min(images.shape[2:]) // _SIDE_OVER_KERNEL // 2 * 2 + 1
    difference = "both" if difference == "features" else difference
    maps = smooth(difference_maps(images, [reconstructions], difference)[:, :1], kernel, 2)
    worst = float(maps[: len(clean)].max().clamp_min(torch.finfo(torch.float32).tiny))
    rows = []
    for image, reconstruction, heat in zip(images, reconstructions, maps, strict=True):
        before, after = to_picture(image), to_picture(reconstruction)
        levels = encode_levels(heat[0].cpu().numpy(), worst)
        rows.append(_joined([before, after, overlay(before, levels)], axis=1))
    buffer = io.BytesIO()
    Image.fromarray(_joined(rows, axis=0)).save(buffer, "PNG")
    return buffer.getvalue()


def alignment_sheet(images: Tensor) -> bytes:
    """Draws upright parts side by side, and last the mean of all: sharp where they fall onto each
    other.

    Args:
        images: (N, H, W, 3) uint8, as the network sees them.

    Returns:
        The sheet as the content of a PNG file, ``ALIGNED`` pictures in rows of ``_ROW``.
    """
    mean = images.float().mean(dim=0).round().byte()
    chosen = [*images[: ALIGNED - 1].cpu().numpy(), mean.cpu().numpy()]
    blank = np.full_like(chosen[0], 255)
    chosen += [blank] * (-len(chosen) % _ROW)
    rows = [_joined(chosen[start : start + _ROW], axis=1) for start in range(0, len(chosen), _ROW)]
    buffer = io.BytesIO()
    Image.fromarray(_joined(rows, axis=0)).save(buffer, "PNG")
    return buffer.getvalue()


def to_picture(image: Tensor) -> npt.NDArray[np.uint8]:
    """Turns a (3, H, W) float image in [0, 1] into (H, W, 3) uint8; other values are clipped."""
    pixels = image.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0)
    picture: npt.NDArray[np.uint8] = pixels.cpu().numpy()
    return picture


def _joined(pictures: list[npt.NDArray[np.uint8]], axis: int) -> npt.NDArray[np.uint8]:
    """Joins pictures below each other (axis 0) or side by side (axis 1), with white gaps."""
    padding = [(0, 0)] * 3
    padding[axis] = (0, _GAP)
    padded = [np.pad(picture, padding, constant_values=255) for picture in pictures[:-1]]
    return np.concatenate([*padded, pictures[-1]], axis=axis)
