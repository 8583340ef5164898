"""Geometric warps of images and masks, by kornia.

Places are (x, y) in pixels, columns first; (0, 0) is the centre of the upper left pixel. A matrix,
(2, 3) for each image, takes a place of the source to its place in the result. Everything is
computed where the arguments are, without a copy between devices; ``rotations`` and ``inverse`` are
meant for the CPU, where the numbers are drawn.

Images are sampled bilinearly, and what comes in from outside repeats the border. Masks are sampled
at the nearest pixel, so they stay boolean, and outside the image nothing is marked. torch has two
conventions for the places of pixels; the results are the same to rounding with either, and here
``align_corners`` is False, which allows images one pixel wide. Nothing here may run inside
autocast, which would round the products of matrices to bfloat16 and so shift the pixels.
"""

from __future__ import annotations

import torch
from kornia.geometry.transform import (
    get_rotation_matrix2d,
    invert_affine_transform,
    remap,
    warp_affine,
)
from torch import Tensor

from ssray.method.shapes import pixel_grid


def rotations(degrees: Tensor, size: tuple[int, int]) -> Tensor:
    """Makes the matrices that turn images about their centre.

    Args:
        degrees: (B,) float32, counter-clockwise as an image is displayed.
        size: rows and columns of the images.

    Returns:
        (B, 2, 3) float32.

    >>> rotations(torch.tensor([0.0]), (4, 6))
    tensor([[[1., 0., 0.],
             [0., 1., 0.]]])
    """
    height, width = size
    centre = degrees.new_empty(len(degrees), 2)
    centre[:, 0], centre[:, 1] = (width - 1) / 2, (height - 1) / 2
    return get_rotation_matrix2d(centre, degrees, torch.ones_like(centre))


def inverse(matrices: Tensor) -> Tensor:
    """Inverts matrices, so that they lead back; same shape. On a GPU it waits for the device.

    >>> inverse(torch.tensor([[[1.0, 0.0, 3.0], [0.0, 2.0, 0.0]]]))
    tensor([[[ 1.0000,  0.0000, -3.0000],
             [ 0.0000,  0.5000,  0.0000]]])
    """
    return invert_affine_transform(matrices)


def transform(images: Tensor, matrices: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Warps each image by its own matrix.

    Args:
        images: (B, C, H, W) float32.
        matrices: (B, 2, 3) float32, from places of the image to places of the result.
        size: rows and columns h, w of the result; those of the images if None.

    Returns:
        (B, C, h, w) float32, within the range of ``images``.

    >>> row = torch.tensor([[[[1.0, 2.0, 3.0]]]])
    >>> transform(row, torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]]))
    tensor([[[[1., 1., 2.]]]])
    """
    size = size or (images.shape[2], images.shape[3])
    return warp_affine(images, matrices, size, padding_mode="border", align_corners=False)


def transform_masks(masks: Tensor, matrices: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Warps each mask by its own matrix, as ``transform`` does images.

    Args:
        masks: (B, C, H, W) bool.
        matrices: (B, 2, 3) float32, from places of the mask to places of the result.
        size: rows and columns h, w of the result; those of the masks if None.

    Returns:
        (B, C, h, w) bool, false where the place lies outside the mask.

    >>> row = torch.tensor([[[[True, True, False]]]])
    >>> transform_masks(row, torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]]))
    tensor([[[[False,  True,  True]]]])
    """
    size = size or (masks.shape[2], masks.shape[3])
    found = warp_affine(
        masks.float(), matrices, size, mode="nearest", padding_mode="zeros", align_corners=False
    )
    return found > 0.5


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Turns each image about its centre.

    Args:
        images: (B, C, H, W) float32.
        degrees: (B,) float32, counter-clockwise as an image is displayed.

    Returns:
        (B, C, H, W) float32; what comes in from outside repeats the border.

    >>> rotate(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.tensor([90.0])).round()
    tensor([[[[2., 4.],
              [1., 3.]]]])
    """
    return transform(images, rotations(degrees, (images.shape[2], images.shape[3])))


def displace(images: Tensor, displacement: Tensor) -> Tensor:
    """Samples every image at displaced places.

    Args:
        images: (B, C, H, W) float32.
        displacement: (B, 2, H, W) float32, pixels: x (columns) first, then y (rows).

    Returns:
        (B, C, H, W) float32, within the range of ``images``.

    >>> row = torch.tensor([[[[1.0, 2.0, 3.0]]]])
    >>> displace(row, torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 1, 3))
    tensor([[[[2., 3., 3.]]]])
    """
    height, width = images.shape[2:]
    rows, columns = pixel_grid(height, width, images.device)
    # kornia would turn pixels into shares of the image itself, but takes 1.25 times as long.
    x = (columns + displacement[:, 0]) * (2 / width) + (1 / width - 1)
    y = (rows + displacement[:, 1]) * (2 / height) + (1 / height - 1)
    return remap(
        images, x, y, padding_mode="border", align_corners=False, normalized_coordinates=True
    )
