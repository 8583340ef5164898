"""From an image and its reconstructions to an anomaly map and a score (equations 2, 3, 13, 14).

Each autoencoder of a model, a network, two of an ensemble, the linear one, gives one *channel* of a
stack of difference maps, (B, K, H, W). Every channel is smoothed, divided by what is usual at its
place and by its scale, the level that defect-free images reach, and weighted by its average map;
the anomaly map is the pixel-wise maximum or mean over the channels.

A second expert (``ssray.method.neighbours``) adds a channel of its own at the end. Its maps vary
far less between good images than squared errors do, so ``Joining`` brings both to one spread, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from ssray.config import Difference, ImageScore, Join, MapSettings
from ssray.method.ssim import ssim_map
from ssray.method.windows import window_means

Comparers = Mapping[Difference, nn.Module]
"""What makes (B, 1, H, W) difference maps of (B, 6, H, W) pairs of images and reconstructions."""


def difference_maps(
    images: Tensor, reconstructions: Sequence[Tensor], difference: Difference
) -> Tensor:
    """Computes equation (2), or its SSIM counterpart, for every reconstruction.

    Args:
        images: (B, C, H, W) float in [0, 1].
        reconstructions: one from each of K networks, same shape and range.
        difference: ``squared`` is the mean over channels of the squared difference, ``ssim`` the
            mean of ``(1 - SSIM) / 2``, ``both`` the geometric mean of these two: high only
            where the colours differ and the structure does, too. ``features`` is not for here
            (``ssray.method.feature_difference``).

    Returns:
        (B, K, H, W) float32 in [0, 1].
    """
    return torch.cat(each_difference(images, reconstructions, difference), dim=1)


def each_difference(
    images: Tensor,
    reconstructions: Sequence[Tensor],
    difference: Difference,
    comparers: Comparers = MappingProxyType({}),
) -> list[Tensor]:
    """Computes what ``difference_maps`` does, (B, 1, H, W) for each of the reconstructions.

    Args:
        images: as there.
        reconstructions: as there.
        difference: as there, or ``features``.
        comparers: what computes a kind of difference in place of the functions here; there must be
            one for ``features``.
    """
    if difference in comparers or difference == "features":
        compare = comparers[difference]
        return [compare(torch.cat([images, each], dim=1)) for each in reconstructions]
    return [_DIFFERENCES[difference](images, each) for each in reconstructions]


class Comparer(nn.Module):
    """A kind of difference but ``features`` as a module: (B, 6, H, W) pairs to (B, 1, H, W)."""

    def __init__(self, difference: Difference) -> None:
        super().__init__()
        self._compare = _DIFFERENCES[difference]

    def forward(self, pairs: Tensor) -> Tensor:
        return self._compare(pairs[:, :3], pairs[:, 3:])


def smooth(maps: Tensor, kernel: int, repeats: int) -> Tensor:
    """Applies a ``kernel`` x ``kernel`` mean filter ``repeats`` times (equation 3).

    Near the border the mean runs over the pixels that exist.

    Args:
        maps: (B, K, H, W) float32.
        kernel: odd side of the filter, pixels.
        repeats: 0 returns the maps unchanged.

    Returns:
        Maps of the same shape.

    >>> import torch
    >>> smooth(torch.tensor([[[[0.0, 3.0, 0.0, 0.0]]]]), kernel=3, repeats=1)
    tensor([[[[1.5000, 1.0000, 1.0000, 0.0000]]]])
    """
    return window_means(maps, [1.0] * kernel, repeats) if repeats else maps


@dataclass(frozen=True)
class AverageMap:
    """The mean of the smoothed difference maps of defect-free images (equation 13).

    Sums of several workers are added before the mean is taken.

    Attributes:
        total: (K, H, W) float64, the sum of the maps.
        count: the number of images.
    """

    total: Tensor
    count: int

    @classmethod
    def of(cls, maps: Tensor) -> AverageMap:
        """Adds up the maps of a batch, (B, K, H, W).

        >>> maps = torch.rand(4, 1, 2, 2)
        >>> parts = AverageMap.of(maps[:1]) + AverageMap.of(maps[1:])
        >>> torch.allclose(parts.mean(), maps.mean(dim=0))
        True
        """
        return cls(maps.sum(dim=0, dtype=torch.float64), len(maps))

    def __add__(self, other: AverageMap) -> AverageMap:
        return AverageMap(self.total + other.total, self.count + other.count)

    def mean(self) -> Tensor:
        """Returns the average map, (K, H, W) float32."""
        return (self.total / self.count).float()


USUAL_FLOOR = 1.0
"""Added to what is usual at a place, as a share of its mean over all places: where hardly any
difference is usual, the least one must not count.

Measured on MVTec AD screw, aligned, after 28 passes, ``both`` and k 9, as image AUROC, the same
against held-out good images, and pixel AUROC: not divided 0.941, 0.846, 0.974; with a floor of 0.1
0.947, 0.882, 0.953; of 0.5 0.958, 0.882, 0.966; of 1 0.961, 0.882, 0.970; of 3 0.959, 0.868, 0.974.
Of transistor, which is not aligned, dividing takes up to 0.02 at any floor.
"""


def usual_level(mean: Tensor) -> Tensor:
    """What maps are divided by at each place, from (K, H, W) smoothed mean difference maps."""
    overall = mean.mean(dim=(1, 2), keepdim=True)
    return (mean + USUAL_FLOOR * overall).clamp_min(torch.finfo(torch.float32).tiny)


def common_scale(maps: Tensor) -> Tensor:
    """Measures the level that defect-free images reach: the mean of their maps' maxima.

    Args:
        maps: (N, K, H, W) float, smoothed, of defect-free images.

    Returns:
        (K,) float32 above 0.
    """
    return maps.amax(dim=(2, 3)).mean(dim=0).clamp_min(torch.finfo(torch.float32).tiny)


def scaled(maps: Tensor, scale: Tensor) -> Tensor:
    """Divides (B, K, H, W) maps by the scale of their channel, (K,)."""
    return maps / scale.view(-1, 1, 1)


def weighted(maps: Tensor, average: Tensor, power: float) -> Tensor:
    """Dims what is never reproduced well: ``anomap * (1 - avgmap) ** t`` (equation 14).

    The paper takes maps as they are, in [0, 1] but mostly far below; here both are on the
    common scale, on which an average map reaches at most 1 and small t have an effect.

    Args:
        maps: (B, K, H, W) float, on the common scale.
        average: (K, H, W) float, on the common scale.
        power: t, at least 0.
    """
    return maps * (1 - average).clamp_min(0) ** power


def combine(maps: Tensor, join: Join) -> Tensor:
    """Joins (B, K, H, W) channels at each pixel, by their maximum (section 4.3) or mean."""
    return maps.mean(dim=1, keepdim=True) if join == "mean" else maps.amax(dim=1, keepdim=True)


def image_scores(maps: Tensor, reduction: ImageScore, top_fraction: float) -> Tensor:
    """Reduces each anomaly map to one number; larger is more anomalous.

    Args:
        maps: (B, 1, H, W) float.
        reduction: ``sum`` is the paper's; ``max`` looks at the worst place; ``topk`` is the
            mean of the worst ``top_fraction`` of the pixels (at least one).
        top_fraction: in (0, 1].

    Returns:
        (B,) float32.
    """
    flat = maps.flatten(1)
    if reduction == "sum":
        return flat.sum(dim=1)
    if reduction == "max":
        return flat.amax(dim=1)
    count = max(1, round(top_fraction * int(flat.shape[1])))  # no int while it is being traced
    return flat.topk(count, dim=1).values.mean(dim=1)


SPREAD = 0.3
"""The spread of good images' scores to which each expert is brought, that of their logarithms:
about what autoencoders have. On it, a score of twice the usual one is as rare for each."""
USUAL_SPREADS = (0.3, 0.06)
"""That of the autoencoders and of the neighbours where too few images tell.

Over MVTec AD grid and transistor, cookie, hazelnut and a strip, held-out and good test images:
0.17 to 0.96 and 0.03 to 0.1.
"""
_SPREAD_IMAGES = 4
"""How many images the ``USUAL_SPREADS`` count as."""


@dataclass(frozen=True)
class Joining:
    """How the maps of two experts become one: the mean, once good images are alike in both.

    Each map is divided by the level of its expert on good images and raised to a power that gives
    the scores of good images the same ``SPREAD``. That changes no expert's own ranking.

    Attributes:
        levels: of the autoencoders and of the neighbours.
        powers: likewise.
        level: what the mean is divided by, so that 1 is again the worst place of a good image.
    """

    levels: tuple[float, float]
    powers: tuple[float, float]
    level: float = 1.0

    @classmethod
    def fitted(cls, clean: Sequence[Tensor]) -> Joining:
        """Takes levels and powers from defect-free images that neither expert has seen.

        Args:
            clean: the (N, 1, H, W) maps of each expert.
        """
        levels, powers = [], []
        for maps, usual in zip(clean, USUAL_SPREADS, strict=True):
            tiny = torch.finfo(torch.float32).tiny
            logs = maps.flatten(1).amax(dim=1).clamp_min(tiny).log().double()
            mean = logs.mean()
            off = float((logs - mean).square().sum()) + _SPREAD_IMAGES * usual**2
            levels.append(float(mean.exp()))
            powers.append(SPREAD / (off / (len(logs) - 1 + _SPREAD_IMAGES)) ** 0.5)
        joining = cls((levels[0], levels[1]), (powers[0], powers[1]))
        return dataclasses.replace(joining, level=float(common_scale(joining(clean))))

    def __call__(self, maps: Sequence[Tensor]) -> Tensor:
        """Joins the (B, 1, H, W) maps of each expert; the result has that shape."""
        return torch.stack(self.alike(maps)).mean(dim=0) / self.level

    def alike(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The maps of each expert, (B, 1, H, W), on the scale and with the spread of both."""
        parts = zip(maps, self.levels, self.powers, strict=True)
        return [(own / level) ** power for own, level, power in parts]


@dataclass(frozen=True)
class MapMaker:
    """Makes anomaly maps and image scores of difference maps.

    Attributes:
        settings: how the anomaly map is made.
        scale: (K,) float32, the level of each channel on defect-free images.
        average: (K, H, W) float32 average map on that scale; None where its power is 0.
        usual: (K, H, W) float32, what smoothed maps are divided by; None for nothing.
        joining: how the neighbours' channel, the last one, joins the others; None without one.
    """

    settings: MapSettings
    scale: Tensor
    average: Tensor | None = None
    usual: Tensor | None = None
    joining: Joining | None = None

    @classmethod
    def fitted(cls, settings: MapSettings, clean: Tensor, mean: Tensor | None = None) -> MapMaker:
        """Takes scale, average map and usual level from defect-free images.

        Args:
            settings: how the anomaly map is made.
            clean: (N, K, H, W) difference maps of images that were not trained on.
            mean: (K, H, W), the mean difference map of images that were; None takes that of the
                clean ones.
        """
        smoothed_mean = None if mean is None else cls._smoothed(settings, mean[None])[0]
        return cls.fitted_to_smoothed(settings, cls._smoothed(settings, clean), smoothed_mean)

    @classmethod
    def fitted_to_smoothed(
        cls, settings: MapSettings, clean: Tensor, mean: Tensor | None = None
    ) -> MapMaker:
        """Does the same as ``fitted`` with maps that are smoothed already."""
        usual = average = None
        if settings.relative and settings.experts != "neighbours":
            usual = usual_level(clean.mean(dim=0) if mean is None else mean)
            if settings.experts == "joined":  # what is usual among neighbours is in the bank
                usual = torch.cat([usual[: clean.shape[1] - 1], torch.ones_like(usual[:1])])
            clean = clean / usual
        scale = common_scale(clean)
        if settings.average_power:
            average = AverageMap.of(scaled(clean, scale)).mean()
        maker = cls(settings, scale, average, usual)
        if settings.experts != "joined":
            return maker
        joining = Joining.fitted(maker._by_expert(scaled(clean, scale), average))
        return dataclasses.replace(maker, joining=joining)

    def __call__(self, differences: Tensor) -> Tensor:
        """Makes anomaly maps, (B, 1, H, W) float32, of difference maps, (B, K, H, W).

        On the common scale 1 is what a defect-free image typically reaches at its worst place.
        """
        return self.join(self.by_expert(differences))

    def by_expert(self, differences: Tensor) -> list[Tensor]:
        """Makes the anomaly maps of each expert alone, (B, 1, H, W), of (B, K, H, W) maps."""
        return self._parts(self._smoothed(self.settings, differences))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Joins what ``by_expert`` made to anomaly maps, (B, 1, H, W)."""
        return self.joining(parts) if self.joining else parts[0]

    def scores_by_expert(self, parts: Sequence[Tensor]) -> Tensor:
        """Reduces what ``by_expert`` made to scores, (B, E), with equal spread for all experts."""
        alike = self.joining.alike(parts) if self.joining else parts
        return torch.stack([self.scores(each) for each in alike], dim=1)

    def joined(self, smoothed: Tensor, stride: int = 1) -> Tensor:
        """Makes anomaly maps of smoothed maps, from every ``stride``-th row and column alone."""
        return self.join(self._parts(smoothed, stride))

    def _parts(self, smoothed: Tensor, stride: int = 1) -> list[Tensor]:
        maps = smoothed[..., ::stride, ::stride]
        if self.usual is not None:
            maps = maps / self.usual[..., ::stride, ::stride]
        average = None if self.average is None else self.average[..., ::stride, ::stride]
        return self._by_expert(scaled(maps, self.scale), average)

    def _by_expert(self, maps: Tensor, average: Tensor | None) -> list[Tensor]:
        """The maps of each expert, (B, 1, H, W), of (B, K, H, W) scaled ones."""
        if average is not None:
            maps = weighted(maps, average, self.settings.average_power)
        if self.settings.experts != "joined":
            return [combine(maps, self.settings.join)]
        return [combine(maps[:, :-1], self.settings.join), maps[:, -1:]]

    def scores(self, maps: Tensor) -> Tensor:
        """Reduces anomaly maps, (B, 1, H, W), to image scores, (B,)."""
        return image_scores(maps, self.settings.image_score, self.settings.top_fraction)

    @classmethod
    def left_out_scores(
        cls,
        settings: MapSettings,
        clean: Tensor,
        mean: Tensor | None = None,
        level: Tensor | None = None,
    ) -> Tensor:
        """Scores each defect-free image as if it were new.

        What is fitted to the images is fitted to the other ones: what is fitted to an image, too,
        fits it better than an image to come.

        Args:
            settings: how the anomaly map is made.
            clean: (N, K, H, W) difference maps, N at least 2.
            mean: as for ``fitted``.
            level: that of the map maker which images to come are scored with, where it is fitted to
                the same images: one number for all changes no rank, and without one of a few
                images it would be known badly. Joined experts have none.

        Returns:
            (N,) float32 image scores.
        """
        smoothed = cls._smoothed(settings, clean)
        smoothed_mean = None if mean is None else cls._smoothed(settings, mean[None])[0]
        scores = []
        for number, own in enumerate(smoothed):
            others = torch.cat([smoothed[:number], smoothed[number + 1 :]])
            maker = cls.fitted_to_smoothed(settings, others, smoothed_mean)
            own_scores = maker.scores(maker.joined(own[None]))
            if level is not None and maker.joining is None:
                own_scores = own_scores * (maker.level / level)
            scores.append(own_scores)
        return torch.cat(scores)

    @property
    def level(self) -> Tensor:
        """What maps are divided by, as one number, the geometric mean over channels."""
        divisors = self.scale if self.usual is None else self.scale * self.usual.mean(dim=(1, 2))
        return divisors.log().mean().exp()

    @staticmethod
    def _smoothed(settings: MapSettings, differences: Tensor) -> Tensor:
        return smooth(differences, settings.kernel, settings.repeats)


def _squared(images: Tensor, reconstruction: Tensor) -> Tensor:
    return (images.float() - reconstruction.float()).square().mean(dim=1, keepdim=True)


def _ssim(images: Tensor, reconstruction: Tensor) -> Tensor:
    distance = (1 - ssim_map(images, reconstruction)).clamp_min(0) / 2
    return distance.mean(dim=1, keepdim=True)


def _both(images: Tensor, reconstruction: Tensor) -> Tensor:
    return (_squared(images, reconstruction) * _ssim(images, reconstruction)).sqrt()


_DIFFERENCES = {"squared": _squared, "ssim": _ssim, "both": _both}
