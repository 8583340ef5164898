"""The linear autoencoder: an image as the nearest one in the span of the training images.

The paper takes an autoencoder that repairs for an approximate projection onto the normal images.
Of parts in one place these lie near a flat subspace, and there the projection has a closed form,
the principal components: nothing is trained, a few dozen images are enough, and the whole image is
seen at once, so a part that is missing, misplaced or of another shape stands out. It knows no
detail, as it sees images shrunk; the trained network does.
"""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssray.config import Linear

MOST_IMAGES = 1024
"""How many training images it is fitted to, at most."""
MOST_COMPONENTS = MOST_IMAGES + 12
"""Rows of its basis at most: one an image, and the changes of light."""
_BATCH = 64


class LinearAutoencoder(nn.Module):
    """Gives back what of an image lies in the span of the training images, and its finer detail.

    The span also holds smooth changes of light: an offset of each channel and a gain, both
    constant or rising across or down the image. So a lamp that drifts is no anomaly.

    It computes in float32: what is left over is small beside what is taken away.

    Args:
        mean: (3, h, w) float32, the mean of the shrunk training images.
        basis: (n, 3 * h * w) float32, orthonormal.
        shape: the rows and columns of the images, (H, W).
    """

    mean: Tensor
    basis: Tensor
    shrink_rows: Tensor
    shrink_columns: Tensor
    enlarge_rows: Tensor
    enlarge_columns: Tensor

    def __init__(self, mean: Tensor, basis: Tensor, shape: tuple[int, int]) -> None:
        super().__init__()
        _, height, width = mean.shape
        self.register_buffer("mean", mean)
        self.register_buffer("basis", basis)
        for name, length, small in (("rows", shape[0], height), ("columns", shape[1], width)):
            self.register_buffer(f"shrink_{name}", _shrinking(length, small), persistent=False)
            self.register_buffer(f"enlarge_{name}", _enlarging(small, length), persistent=False)

    @classmethod
    def fitted(cls, images: Tensor, settings: Linear) -> Self:
        """Fits it to defect-free images.

        Args:
            images: (N, H, W, 3) uint8, the training images; the first ``MOST_IMAGES`` count.
            settings: how far images are shrunk, and how much of their variance is kept.
        """
        images = images[:MOST_IMAGES]
        height, width = images.shape[1:3]
        share = min(1.0, settings.image_size / (height * width) ** 0.5)
        small = (max(1, round(share * height)), max(1, round(share * width)))
        rows = _shrinking(height, small[0]).to(images.device)
        columns = _shrinking(width, small[1]).to(images.device)
        shrunk = torch.cat(
            [
                _resized(part.permute(0, 3, 1, 2).float() / 255, rows, columns)
                for part in images.split(_BATCH)
            ]
        ).cpu()
        mean = shrunk.mean(dim=0)
        components = _components((shrunk - mean).flatten(1).double(), settings.variance)
        spanned = torch.cat([_changes_of_light(mean).double(), components])
        basis = torch.linalg.qr(spanned.T)[0].T.float().contiguous()
        return cls(mean, basis, (height, width))

    def forward(self, images: Tensor) -> Tensor:
        """Reconstructs (B, 3, H, W) float32 images in [0, 1]; the result is alike."""
        shrunk = _resized(images, self.shrink_rows, self.shrink_columns)
        off = (shrunk - self.mean).flatten(1)
        outside = off - (off @ self.basis.T) @ self.basis
        outside = outside.unflatten(1, self.mean.shape)
        back = images - _resized(outside, self.enlarge_rows, self.enlarge_columns)
        return back.clamp(0, 1)


def _components(off: Tensor, variance: float) -> Tensor:
    """The first principal components of (N, D) deviations from the mean, (n, D), unit length.

    There are as many as keep that share of the variance, and none that only rounding makes.
    """
    values, vectors = torch.linalg.eigh(off @ off.T)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    total = float(values.sum())
    if total == 0:
        return off[:0]
    kept = int((values.cumsum(0) < variance * total).sum()) + 1
    kept = min(kept, int((values > 1e-9 * values[0]).sum()))
    components: Tensor = (vectors[:, :kept].T @ off) / values[:kept, None].sqrt()
    return components


def _changes_of_light(mean: Tensor) -> Tensor:
    """Offsets and gains of a (3, h, w) image, constant and rising to two sides, (12, 3 * h * w)."""
    _, height, width = mean.shape
    down = torch.linspace(-1, 1, height).view(1, -1, 1)
    across = torch.linspace(-1, 1, width).view(1, 1, -1)
    changed = torch.cat([torch.eye(3).view(3, 3, 1, 1).expand(3, 3, height, width), mean[None]])
    return torch.cat([changed, changed * down, changed * across]).flatten(1)


def _resized(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(B, 3, H, W) images by linear maps of rows, (h, H), and columns, (w, W), to (B, 3, h, w).

    As products of matrices every runtime computes it alike.
    """
    return rows @ images @ columns.T


def _shrinking(length: int, small: int) -> Tensor:
    """(small, length), the mean over the pixels that fall into each of the fewer ones."""
    return F.adaptive_avg_pool2d(torch.eye(length)[None], (small, length))[0]


def _enlarging(small: int, length: int) -> Tensor:
    """(length, small), bilinear interpolation."""
    return F.interpolate(torch.eye(small)[None, None], (length, small), mode="bilinear")[0, 0]
