r"""Theorem 2 and its premise (7), counted on pairs of training images (section 3.4 and note 7).

:math:`S` holds the pixels of an image x that are corrupted, :math:`\bar S` all others. For x to be
the projection of its corrupted image, and no other normal image y to be nearer, Theorem 1 needs

.. math:: \|x_S - y_S\| \le \|x_{\bar S} - y_{\bar S}\| \qquad (7)

which says that at most half of the squared distance of x and y lies inside of the region. Theorem 2
ensures it in probability, in large textures with values in [0, 1], for all regions with

.. math:: |S| < 2 \sigma^2 |\bar S| \qquad (11)

The scan of the paper has lost the bars, and shows :math:`\le` as :math:`<`; the proof of Theorem 2
and that of Proposition 1 leave no other reading.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ssray.config import Corruption
from ssray.method.inference import to_network
from ssray.method.projection import mean
from ssray.method.shapes import patch_masks
from ssray.method.transfer import downloaded

RADII = (0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
"""Radii of patches that are tried, as shares of the image's shorter side; half of it is the limit
of the corruption."""

REGIONS = 64
"""How many regions are drawn at each radius, and as the recipe says."""

_VALUES = 2**21
"""How many differences of pixels are held at a time."""
_TIE = 1e-6
"""Share of a squared distance by which half of it may be exceeded, for rounding."""


@dataclass(frozen=True)
class Premise:
    """Which of some regions meet (11), and how many pairs of images violate (7) with them.

    Attributes:
        radius: the range that the patches' radii are drawn from, as shares of the shorter side;
            at most 0.5, as the corruption limits them.
        areas: (R,) float64, the share of the image that each region covers, in [0, 1].
        small: (R,) bool, which of the regions are as small as (11) says.
        violations: (R,) float64, the share of the pairs that violate (7) with each region.
    """

    radius: tuple[float, float]
    areas: Tensor
    small: Tensor
    violations: Tensor

    @property
    def too_large(self) -> float:
        """The share of the regions that do not meet (11)."""
        return 1 - mean(self.small)

    @property
    def violated(self) -> float:
        """The share that violates (7) of all pairs and regions."""
        return mean(self.violations)

    @property
    def violated_though_small(self) -> float | None:
        """The same of the regions that meet (11), as note 7 has it; None where none does."""
        return mean(self.violations[self.small]) if self.small.any() else None


@dataclass(frozen=True)
class Theorem:
    """What Theorem 2 and its premise say of a category's images and a recipe's corruption.

    Attributes:
        pairs: how many pairs of training images were compared.
        variance: sigma^2, half the mean squared difference of two images, values in [0, 1].
        turned: the share of the recipe's corrupted images that are turned as a whole. All of their
            pixels are in S, which the theorem leaves out, and so does all that is counted here.
        recipe: the regions as the recipe draws them.
        radii: regions whose patches all have one radius, ascending; all else as in the recipe. The
            ends of the recipe's range are among them.
    """

    pairs: int
    variance: float
    turned: float
    recipe: Premise
    radii: list[Premise]

    @property
    def small_area(self) -> float:
        """The share of the image below which a region meets (11)."""
        return small_area(self.variance)

    def small_radius(self) -> float:
        """Returns the largest radius up to which all regions meet (11); 0 if none does."""
        return self._largest(lambda at: at.too_large == 0)

    def held_radius(self) -> float:
        """Returns the largest radius up to which no pair violates (7); 0 if none does."""
        return self._largest(lambda at: at.violated == 0)

    def _largest(self, holds: Callable[[Premise], bool]) -> float:
        largest = 0.0
        for at in self.radii:
            if not holds(at):
                break
            largest = at.radius[1]
        return largest


def small_area(variance: float) -> float:
    """Computes the share of an image below which a region meets (11).

    It is a third for the largest variance that values in [0, 1] can have.

    >>> small_area(0.25) == 1 / 3
    True
    """
    return 2 * variance / (1 + 2 * variance)


def count_violations(
    images: Tensor, regions: Tensor, report: Callable[[int], None] = lambda pixels: None
) -> tuple[Tensor, float]:
    """Counts the pairs of images that violate (7), for each region.

    Args:
        images: (N, H, W, 3) uint8, at least 2.
        regions: (R, H, W) bool, on the same device, true inside.
        report: called with the number of pixels done, as they come.

    Returns:
        The share of all pairs that have more than half of their squared distance inside of each
        region, (R,) float64 on the CPU; and sigma^2. Two equal images violate nothing.

    >>> images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 4, 3)
    >>> regions = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]]).view(2, 1, 4).bool()
    >>> count_violations(images, regions)
    (tensor([0., 1.], dtype=torch.float64), 0.5)
    """
    values = to_network(images, images.device).flatten(2).transpose(0, 1)
    one, other = torch.triu_indices(len(images), len(images), 1, device=images.device)
    inside = torch.zeros(len(one), len(regions), dtype=torch.float64, device=images.device)
    total = inside.new_zeros(len(one))
    block = max(1, _VALUES // len(one))
    done = 0
    for part, region in zip(
        values.split(block, dim=2), regions.flatten(1).split(block, dim=1), strict=True
    ):
        squares = (part[:, one] - part[:, other]).square_().sum(dim=0)
        inside += squares @ region.to(squares.dtype).T
        total += squares.sum(dim=1)
        done += part.shape[2]
        report(done)
    violates = inside > (0.5 + _TIE) * total[:, None]
    shares, distances = downloaded(violates.double().mean(dim=0), total)
    return shares, mean(distances) / values[:, 0].numel() / 2


def check_theorem(
    images: Tensor,
    corruption: Corruption,
    generator: torch.Generator,
    report: Callable[[int], None] = lambda pixels: None,
) -> Theorem:
    """Counts what violates (7) and (11): in a recipe's regions, and by the radius of the patches.

    A region is where the corruption's mask is above 0. All pairs of images meet all regions.

    Args:
        images: (N, H, W, 3) uint8 training images as the network sees them, at least 2.
        corruption: the recipe's.
        generator: the source of all random numbers, on the CPU.
        report: called with the number of pixels done, as they come.
    """
    height, width = images.shape[1:3]
    side = min(height, width)
    low, high = (min(radius, max(RADII)) for radius in corruption.patches.radius)
    ranges = [(low, high), *((radius, radius) for radius in sorted({*RADII, low, high}))]
    regions = torch.cat(
        [
            patch_masks(
                REGIONS,
                height,
                width,
                corruption.patches.model_copy(update={"radius": bounds}),
                side,
                generator,
                images.device,
            )[:, 0]
            > 0
            for bounds in ranges
        ]
    )
    violations, variance = count_violations(images, regions, report)
    [covered] = downloaded(regions.sum(dim=(1, 2)))
    areas = covered.double() / (height * width)
    small = areas < small_area(variance)
    recipe, *radii = (
        Premise(*of_range)
        for of_range in zip(
            ranges,
            areas.split(REGIONS),
            small.split(REGIONS),
            violations.split(REGIONS),
            strict=True,
        )
    )
    return Theorem(
        pairs=len(images) * (len(images) - 1) // 2,
        variance=variance,
        turned=corruption.rotated,
        recipe=recipe,
        radii=radii,
    )
