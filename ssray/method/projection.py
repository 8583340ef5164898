"""What the theory assumes of the data and promises of the model, measured (section 4.2).

Fig. 8: are the pixels of a category identically distributed, whatever their position? Then
it is a texture, as Proposition 2 assumes.

Fig. 9: how near is the trained network f to an orthogonal projection onto the normal images?
A square patch of a training image x is replaced by the same place's patch of another one,
which gives x_hat; f(x_hat) should lie nearer to x than to any other training image.

Distances are root mean squares over all values of an image (pixels times channels), in units
of the full scale: black is 0, white 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ssray.method.inference import to_network
from ssray.method.transfer import downloaded

WIDTH_SHARES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Patch widths tried, as shares of the image's shorter side."""

_BATCH_PIXELS = 2**21
_SEARCHED = 32
"""Images that the search for the nearest turns into float64 at a time, on each thread."""
_TIE = 1e-9
"""Mean square below which two distances count as equal."""
_SHORT = 8


@dataclass(frozen=True)
class PositionMoments:
    """The first two moments of every position of a window, over images and its places.

    A window as large as the image has one place, which leaves the moments of every pixel over
    the images. A smaller one visits every place, one pixel apart. Parts add up: the moments of
    two sets of images are the sum of the two.

    Attributes:
        images: how many images were seen.
        first: (C, h, w) float64, the sum over the images of the window's mean over its places.
        second: the same of the squared values.
        spread: (C,) float64, the sum over the images of the variance over positions of the
            image's own window mean, its trend of second order taken off.
    """

    images: int
    first: Tensor
    second: Tensor
    spread: Tensor

    @classmethod
    def zero(cls, window: tuple[int, int], channels: int = 3) -> PositionMoments:
        """Returns the moments of no image."""
        nothing = torch.zeros(channels, *window, dtype=torch.float64)
        return cls(0, nothing, nothing, nothing[:, 0, 0])

    @classmethod
    def of(cls, images: Tensor, window: tuple[int, int]) -> PositionMoments:
        """Computes the moments of a batch.

        Args:
            images: (B, C, H, W) float in [0, 1].
            window: rows and columns h, w of the window, at most H, W.

        >>> pixels = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
        >>> moments = PositionMoments.of(pixels, (1, 1))
        >>> moments.mean.item(), moments.std.item()
        (0.5, 0.5)
        """
        exact = images.double()
        own = _mean_over_places(exact, window)
        return cls(
            images=len(images),
            first=own.sum(dim=0),
            second=_mean_over_places(exact.square(), window).sum(dim=0),
            spread=_without_trend(own).square().mean(dim=(2, 3)).sum(dim=0),
        )

    def __add__(self, other: PositionMoments) -> PositionMoments:
        return PositionMoments(
            self.images + other.images,
            self.first + other.first,
            self.second + other.second,
            self.spread + other.spread,
        )

    @property
    def mean(self) -> Tensor:
        """The mean at each position, (C, h, w) float64 in [0, 1]."""
        return self.first / self.images

    @property
    def std(self) -> Tensor:
        """The standard deviation at each position, (C, h, w) float64 in [0, 0.5]."""
        return (self.second / self.images - self.mean.square()).clamp_min(0).sqrt()

    def position_share(self) -> float:
        """Computes the share of all variance that the position alone explains, in [0, 1].

        The variance over positions of the mean, divided by the variance of all values; both are
        summed over the channels. A trend of second order is taken from both first: uneven light
        and vignetting do not make an object.

        The share is 0 where the values are identically distributed, as in a texture, and 1 where
        all images are the same. The variance that the mean of n unrelated images has by chance is
        taken off (only products of two different images count), so the number is unbiased for any
        n; an estimate below 0 counts as 0. Images without any variance have a share of 0.

        >>> same = torch.tensor([0.0, 1.0]).expand(3, 1, 1, 2)
        >>> round(PositionMoments.of(same, (1, 2)).position_share(), 6)
        1.0

        Raises:
            ValueError: if fewer than 2 images were seen.
        """
        n = self.images
        if n < 2:
            raise ValueError(f"a position's share needs at least 2 images, found {n}")
        by_position = (_without_trend(self.first).square().mean(dim=(1, 2)) - self.spread).sum()
        by_position = by_position / (n * (n - 1))
        trend = self.mean - _without_trend(self.mean)
        total = ((self.second / n).mean(dim=(1, 2)) - trend.square().mean(dim=(1, 2))).sum()
        if total <= _TIE:
            return 0.0
        return float((by_position / total).clamp(0, 1))


def _without_trend(maps: Tensor) -> Tensor:
    """Takes a quadratic polynomial of row and column off (..., h, w) float64 maps.

    A side too short for a trend of its own, of up to 8 pixels, has only its mean taken off.
    """
    height, width = maps.shape[-2:]
    axes = (
        torch.linspace(-1, 1, side, dtype=maps.dtype, device=maps.device)
        for side in (height, width)
    )
    y, x = torch.meshgrid(*axes, indexing="ij")
    terms = [torch.ones_like(x)]
    if min(height, width) > _SHORT:
        terms += [x, y, x * y, x.square(), y.square()]
    basis = torch.stack([term.flatten() for term in terms], dim=1)
    orthonormal = torch.linalg.qr(basis).Q
    flat = maps.reshape(-1, height * width)
    rest: Tensor = flat - flat @ orthonormal @ orthonormal.T
    return rest.view(maps.shape)


def _mean_over_places(images: Tensor, window: tuple[int, int]) -> Tensor:
    """Averages, over all places of the window, what lies at each of its pixels: (B, C, h, w).

    That is a mean filter of (H - h + 1) x (W - w + 1) pixels, computed from an integral image.
    """
    rows, columns = (side - part + 1 for side, part in zip(images.shape[2:], window, strict=True))
    if (rows, columns) == (1, 1):
        return images
    integral = F.pad(images.cumsum(dim=2).cumsum(dim=3), (1, 0, 1, 0))
    strips = integral[:, :, rows:] - integral[:, :, :-rows]
    return (strips[..., columns:] - strips[..., :-columns]) / (rows * columns)


@dataclass(frozen=True)
class Projection:
    """The outcome at one patch width of Fig. 9; distances are as the module describes them.

    Attributes:
        width: the side of the replaced patch, pixels; 0 leaves the images as they are.
        input_hits: (T,) bool, whether x is the training image nearest to x_hat.
        output_hits: (T,) bool, whether x is the training image nearest to f(x_hat).
        input_rms: (T,) float64, distance of x_hat and x.
        output_rms: (T,) float64, distance of f(x_hat) and x.
        input_patch_rms: (T,) float64, distance of x_hat and x over the patch alone.
        output_patch_rms: (T,) float64, distance of f(x_hat) and x over the patch alone.
    """

    width: int
    input_hits: Tensor
    output_hits: Tensor
    input_rms: Tensor
    output_rms: Tensor
    input_patch_rms: Tensor
    output_patch_rms: Tensor


def patch_widths(shape: tuple[int, int], shares: Sequence[float] = WIDTH_SHARES) -> list[int]:
    """Chooses patch widths in pixels for images of (rows, columns), ascending, each once.

    >>> patch_widths((64, 128), (0.05, 0.5, 0.9))
    [3, 32, 58]
    """
    return sorted({max(1, round(share * min(shape))) for share in shares})


def swap_patches(images: Tensor, donors: Tensor, corners: Tensor, width: int) -> Tensor:
    """Replaces a square patch of each image by the same place's patch of its donor.

    Args:
        images: (B, C, H, W).
        donors: where the patches come from, same shape.
        corners: (B, 2) int64, the upper row and left column of each patch.
        width: the side of the patch, pixels.

    Returns:
        (B, C, H, W), equal to ``images`` outside the patches.

    >>> zeros, ones = torch.zeros(1, 1, 2, 3), torch.ones(1, 1, 2, 3)
    >>> swap_patches(zeros, ones, torch.tensor([[1, 0]]), 1)[0, 0]
    tensor([[0., 0., 0.],
            [1., 0., 0.]])
    """
    return torch.where(_patches(corners, width, images.shape[2:]), donors, images)


class TrainingImages:
    """Training images among which the one nearest to another image is looked for.

    The search is scikit-learn's: exact, over all of them, and on the CPU, whatever the device of
    the images.

    >>> black_and_white = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    >>> TrainingImages(black_and_white).nearest(torch.full((1, 3, 4, 4), 0.75))
    tensor([1])
    """

    def __init__(self, images: Tensor) -> None:
        """Keeps the images, (N, C, H, W) float32 in [0, 1]."""
        # A second to load and 150 MB, and everything that trains loads this module.
        from sklearn.neighbors import NearestNeighbors

        self._search = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(_rows(images))

    def nearest(self, images: Tensor) -> Tensor:
        """Finds the training image that is nearest to each image in L2.

        Args:
            images: (B, C, H, W) float32 in [0, 1].

        Returns:
            Its number, (B,) int64 on the CPU. Distances are added up in float64; of training
            images that are equally near to its rounding it is any.
        """
        import sklearn

        with sklearn.config_context(pairwise_dist_chunk_size=_SEARCHED):
            numbers = self._search.kneighbors(_rows(images), return_distance=False)
        return torch.from_numpy(numbers).squeeze(1)


def _rows(images: Tensor) -> npt.NDArray[np.float32]:
    """Lays each image out as a row: (B, C * H * W) on the CPU."""
    rows: npt.NDArray[np.float32] = downloaded(images.float().flatten(1))[0].numpy()
    return rows


def measure_projection(
    images: Tensor,
    model: Callable[[Tensor], Tensor],
    widths: Sequence[int],
    trials: int,
    generator: torch.Generator,
) -> Iterator[Projection]:
    """Measures Fig. 9, one patch width after the other.

    Trial t replaces a patch of image t mod N, at a uniformly drawn place, by that of another
    image, uniformly drawn. Of equally near training images x counts as the nearest.

    Args:
        images: (N, H, W, 3) uint8 training images, at least 2; the search for the nearest runs
            over all of them. They are on the device that ``model`` works on.
        model: the network, which maps (B, 3, H, W) float32 in [0, 1] to the same shape.
        widths: patch sides in pixels, each at most the shorter side; 0 measures f(x).
        trials: T, how many at each width.
        generator: the source of all random numbers, on the CPU, whatever the images' device.
    """
    training = TrainingImages(to_network(images, images.device))
    batch = max(1, _BATCH_PIXELS // (images.shape[1] * images.shape[2]))
    for width in widths:
        originals = torch.arange(trials) % len(images)
        steps = torch.randint(1, len(images), (trials,), generator=generator)
        donors = (originals + steps) % len(images)
        corners = _corners(trials, width, images.shape[1:3], generator)
        parts = [
            _trials(images, training, model, *part, width)
            for part in zip(
                originals.split(batch), donors.split(batch), corners.split(batch), strict=True
            )
        ]
        columns = (torch.cat(column) for column in zip(*parts, strict=True))
        yield Projection(width, *downloaded(*columns))


def _trials(
    images: Tensor,
    training: TrainingImages,
    model: Callable[[Tensor], Tensor],
    originals: Tensor,
    donors: Tensor,
    corners: Tensor,
    width: int,
) -> tuple[Tensor, ...]:
    """Measures a part of the trials; returns the columns of ``Projection``."""
    device = images.device

    def stored(numbers: Tensor) -> Tensor:
        return to_network(images[numbers.to(device)], device)

    corners = corners.to(device)
    x = stored(originals)
    x_hat = swap_patches(x, stored(donors), corners, width)
    outcomes = [x_hat, model(x_hat)]
    patches = _patches(corners, width, x.shape[2:])
    squares = [_squares(outcome, x) for outcome in outcomes]
    to_original = [square.sum(dim=(1, 2, 3)) for square in squares]
    to_nearest = (
        _squares(outcome, stored(training.nearest(outcome))).sum(dim=(1, 2, 3))
        for outcome in outcomes
    )
    values, area = x[0].numel(), max(1, width * width) * x.shape[1]
    return (
        *(own <= least + _TIE * values for own, least in zip(to_original, to_nearest, strict=True)),
        *(own.div(values).sqrt() for own in to_original),
        *((square * patches).sum(dim=(1, 2, 3)).div(area).sqrt() for square in squares),
    )


def _squares(one: Tensor, other: Tensor) -> Tensor:
    """Squares the difference of each two values, in float64."""
    return (one.double() - other.double()).square()


def _corners(count: int, width: int, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    rows, columns = (
        torch.randint(0, side - width + 1, (count,), generator=generator) for side in shape
    )
    return torch.stack([rows, columns], dim=1)


def _patches(corners: Tensor, width: int, shape: Sequence[int]) -> Tensor:
    """Marks the patches: (B, 1, H, W) bool, true inside."""
    rows, columns = (torch.arange(side, device=corners.device) for side in shape)
    top, left = corners[:, :1], corners[:, 1:]
    inside_rows = (rows >= top) & (rows < top + width)
    inside_columns = (columns >= left) & (columns < left + width)
    return (inside_rows[:, :, None] & inside_columns[:, None, :])[:, None]


TEXTURE_SHARE = 0.05
"""Below this share of variance explained by the position in the image, a category is a texture.

Measured at 128 and 256 px: at most 0.0006 for textures (MVTec AD grid; the generated weave and
grain), 0.44 to 0.79 for objects (MVTec AD transistor, hazelnut, cookie; the generated washer and
connector). The threshold lies between, nearer to the textures, of which there was one real one."""


def mean(values: Tensor) -> float:
    """Averages all values, added up in float64."""
    return float(values.double().mean())
