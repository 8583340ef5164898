"""Objectives (1) and (4), in which each region's error is averaged over its own size.

Objective (1) has the network give back the undistorted image everywhere. Objective (4) rewards it
for making the error large where the image was changed.
"""

from __future__ import annotations

from torch import Tensor

_TINY = 1e-6
"""Least size of a region: one that is empty in the whole batch then contributes nothing."""


def reconstruction_objective(
    reconstruction: Tensor, images: Tensor, mask: Tensor, lam: float
) -> Tensor:
    r"""Computes equation (1) over a batch.

    .. math::
        \frac{1-\lambda}{|1-m|_1} \| (1-m) (f(\hat x) - x) \|^2
        + \frac{\lambda}{|m|_1} \| m (f(\hat x) - x) \|^2

    Both norms run over the whole batch, so that an image with a tiny mask does not
    outweigh the others; images that are masked as a whole have a norm of their own, or they would
    drown the patches of the others. The scan of the paper does not show which term carries lambda;
    as written here, ``lam = 1`` looks at nothing but the corrupted region.

    Args:
        reconstruction: ``f(x_hat)``, (B, C, H, W) float.
        images: ``x``, the undistorted images, same shape.
        mask: ``m``, (B, 1, H, W) float in [0, 1], 1 = corrupted.
        lam: the weight of the corrupted region, in [0, 1].

    Returns:
        A scalar, at least 0.

    >>> import torch
    >>> x, m = torch.zeros(1, 1, 1, 2), torch.tensor([[[[1.0, 0.0]]]])
    >>> reconstruction_objective(torch.tensor([[[[2.0, 3.0]]]]), x, m, lam=0.25)
    tensor(7.7500)
    """
    error = (reconstruction.float() - images).square()
    clean = _region_mean(error, 1 - mask)
    corrupted = _mean_of_groups(error, mask, _whole(mask))
    return (1 - lam) * clean + lam * corrupted


def amplification_objective(
    reconstruction: Tensor, images: Tensor, corrupted: Tensor, mask: Tensor, lam: float
) -> Tensor:
    r"""Computes equation (4) over a batch.

    .. math::
        \frac{1-\lambda}{|1-m|_1} \| (1-m) (f(\hat x) - x) \|^2
        - \frac{\lambda}{|w|_1} \| w (f(\hat x) - x) \|^2, \quad w = |x - \hat x|

    The weight ``w`` keeps the network from raising the error where nothing was changed.

    Args:
        reconstruction: ``f(x_hat)``, (B, C, H, W) float in [0, 1].
        images: ``x``, same shape.
        corrupted: ``x_hat``, same shape.
        mask: ``m``, (B, 1, H, W) float in [0, 1], 1 = corrupted.
        lam: the weight of the corrupted region, in [0, 1].

    Returns:
        A scalar, at least ``-lam``.

    >>> import torch
    >>> x, m = torch.zeros(1, 1, 1, 2), torch.tensor([[[[1.0, 0.0]]]])
    >>> x_hat = torch.tensor([[[[0.5, 0.0]]]])
    >>> amplification_objective(torch.tensor([[[[1.0, 0.0]]]]), x, x_hat, m, lam=0.5)
    tensor(-0.2500)
    """
    error = (reconstruction.float() - images).square()
    clean = _region_mean(error, 1 - mask)
    amplified = _mean_of_groups(error, (images - corrupted).abs(), _whole(mask))
    return (1 - lam) * clean - lam * amplified


def _whole(mask: Tensor) -> Tensor:
    """Marks images that are masked everywhere, as turned ones are: (B, 1, 1, 1), 0 or 1."""
    return (mask.amin(dim=(1, 2, 3), keepdim=True) == 1).to(mask.dtype)


def _mean_of_groups(error: Tensor, weight: Tensor, whole: Tensor) -> Tensor:
    """Averages ``_region_mean`` of the patched and the wholly masked images by their share."""
    share = whole.mean()
    return (1 - share) * _region_mean(error, weight * (1 - whole)) + share * _region_mean(
        error, weight * whole
    )


def _region_mean(error: Tensor, weight: Tensor) -> Tensor:
    """Divides ``weight ** 2 * error`` by the norm of ``weight``, both summed over the batch."""
    weight = weight.expand_as(error)
    return (weight.square() * error).sum() / weight.sum().clamp_min(_TINY)
