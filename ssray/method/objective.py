"""Objective (1): reconstruct everything, each region averaged over its own size."""

from __future__ import annotations

from torch import Tensor


def reconstruction_objective(
    reconstruction: Tensor, images: Tensor, mask: Tensor, lam: float
) -> Tensor:
    r"""Equation (1), over a batch.

    .. math::
        \frac{1-\lambda}{|1-m|_1} \| (1-m) (f(\hat x) - x) \|^2
        + \frac{\lambda}{|m|_1} \| m (f(\hat x) - x) \|^2

    Both norms run over the whole batch, so that an image with a tiny mask does not
    outweigh the others. The scan of the paper does not show which term carries lambda;
    as written here, ``lam = 1`` looks at nothing but the corrupted region.

    Args:
        reconstruction: ``f(x_hat)``, (B, C, H, W) float.
        images: ``x``, the undistorted images, same shape.
        mask: ``m``, (B, 1, H, W) float in [0, 1], 1 = corrupted.
        lam: weight of the corrupted region, in [0, 1].

    Returns:
        A scalar, at least 0.

    >>> import torch
    >>> x, m = torch.zeros(1, 1, 1, 2), torch.tensor([[[[1.0, 0.0]]]])
    >>> reconstruction_objective(torch.tensor([[[[2.0, 3.0]]]]), x, m, lam=0.25)
    tensor(7.7500)
    """
    error = (reconstruction.float() - images).square().sum(dim=1, keepdim=True)
    kept = 1 - mask
    channels = images.shape[1]
    tiny = 1e-6  # a region that is empty in the whole batch contributes nothing
    clean = (kept.square() * error).sum() / (channels * kept.sum()).clamp_min(tiny)
    corrupted = (mask.square() * error).sum() / (channels * mask.sum()).clamp_min(tiny)
    return (1 - lam) * clean + lam * corrupted
