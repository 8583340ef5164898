"""Corruptions: x_hat = m * y + (1 - m) * x (section 3.2).

``m`` comes from ``ssray.method.shapes``. ``y`` is one of the kinds below, drawn per image by
the weights of ``Corruption.mix``:

- *elastic*: the image under a Gaussian deformation. It keeps the colours of its surroundings,
  so the network can't tell by colour what was changed; the paper's main kind. The paper cuts a
  patch, deforms it and glues it back; deforming the image and blending only inside ``m`` gives
  the same pixels.
- *cut-out*, *swap*, *brightness*: zeros, another image's content, a lighter or darker patch.
- *occlusion*: foreign content; from other images of the batch, from given textures, generated.
- *pattern*: foreign content of random opacity over an image with Gaussian noise that stays in
  the target ("Noise & Pattern", the method's successor).

A share of the corrupted images may then be turned about their centre, as the paper does for
transistor.

Everything is drawn for the whole batch on the CPU, by one generator; what was drawn then goes to
the images' device in one copy, where tensor operations make the corruption of it. So ``corrupt``
has two halves: ``draw_corruption``, which knows the images' shape alone, and
``DrawnCorruption.of``. Each kind of content likewise has ``draw`` and ``of``. Warps and changes of
light are kornia's (``ssray.method.warp``), which gets the numbers drawn here.

Where the paper gives no strengths and sizes, ``ssray.config.Corruption`` holds our choices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from kornia.enhance import adjust_brightness
from torch import Tensor

from ssray.config import Corruption
from ssray.method.noise import (
    Range,
    SmoothNoise,
    draw_noise,
    log_uniform,
    signs,
    uniform,
)
from ssray.method.shapes import DrawnPatches, draw_patches
from ssray.method.transfer import moved
from ssray.method.warp import displace, rotations, transform


@dataclass(frozen=True)
class Corrupted:
    """A corrupted batch.

    Attributes:
        images: ``x_hat``, (B, C, H, W) float32 in [0, 1]; equal to ``target`` wherever the mask
            is 0.
        target: what the network has to give back, same shape and range: the images themselves,
            with noise for the kind *pattern*.
        mask: ``m``, (B, 1, H, W) float32 in [0, 1], 1 = corrupted.
    """

    images: Tensor
    target: Tensor
    mask: Tensor


def corrupt(
    images: Tensor,
    settings: Corruption,
    side: float,
    generator: torch.Generator,
    textures: Tensor | None = None,
) -> Corrupted:
    """Corrupts each image in a few places.

    Args:
        images: (B, C, H, W) float32 in [0, 1], on any device.
        settings: the kinds, their strengths and sizes.
        side: what their lengths are shares of, pixels: the shorter side of the whole image, of
            which ``images`` may be crops.
        generator: the source of all random numbers, on the CPU; the same state gives the same
            corruption, to rounding, on every device and with any number of threads, but for the
            white noise of *pattern*, which is drawn where the images are.
        textures: (T, H', W', C) uint8, a source of foreign content, on the device of ``images``.

    Raises:
        ValueError: if the settings want foreign content from textures and there are none.
    """
    count = None if textures is None else (textures.shape[0], textures.shape[1], textures.shape[2])
    drawn = draw_corruption(tuple(images.shape), settings, side, generator, count)
    return moved(drawn, images.device).of(images, textures)


Textures = tuple[int, int, int]
"""The number of textures, their rows and their columns."""


@dataclass(frozen=True)
class _Request:
    """Some images of a batch, for which one kind of content is drawn.

    Attributes:
        shape: the shape of the batch, (B, C, H, W).
        chosen: the numbers of the images in the batch, (N,) int64.
        settings: the kinds, their strengths and sizes.
        side: what their lengths are shares of, pixels.
        generator: the source of all random numbers, on the CPU.
        textures: how many there are and how large, or None.
    """

    shape: tuple[int, int, int, int]
    chosen: Tensor
    settings: Corruption
    side: float
    generator: torch.Generator
    textures: Textures | None

    def below(self, high: int, *shape: int) -> Tensor:
        """Draws whole numbers from 0 to below ``high`` for each image, (N, *shape) int64."""
        return torch.randint(high, (len(self.chosen), *shape), generator=self.generator)

    def uniform(self, bounds: Range) -> Tensor:
        """Draws a number between the bounds for each image, (N, 1, 1, 1)."""
        return uniform((len(self.chosen), 1, 1, 1), bounds, self.generator)

    def log_uniform(self, bounds: Range) -> Tensor:
        return log_uniform((len(self.chosen), 1, 1, 1), bounds, self.generator)

    def noise(self, channels: int, lengths: Range) -> SmoothNoise:
        """Draws a smooth field of as many channels for each image."""
        _, _, height, width = self.shape
        return draw_noise((len(self.chosen), channels, height, width), lengths, self.generator)

    def others(self) -> Tensor:
        """Draws another image of the batch for each; in a batch of one it is the image itself."""
        batch = self.shape[0]
        shift = torch.randint(1, max(batch, 2), self.chosen.shape, generator=self.generator)
        return (self.chosen + shift) % batch


class Content(Protocol):
    """What is put into the patches of some images: drawn by ``draw``, computed by ``of``."""

    @classmethod
    def draw(cls, request: _Request) -> Self:
        """Draws all that ``of`` needs, on the CPU."""

    def of(self, own: Tensor, images: Tensor, textures: Tensor | None) -> Tensor:
        """Computes the content, where the images and what was drawn are.

        Args:
            own: (N, C, H, W), the images whose patches get it.
            images: (B, C, H, W), the whole batch.
            textures: (T, H', W', C) uint8.

        Returns:
            (N, C, H, W) float32 in [0, 1].
        """


@dataclass(frozen=True)
class Elastic:
    """The content is the image itself under a smooth random displacement."""

    noise: SmoothNoise
    strength: Tensor

    @classmethod
    def draw(cls, request: _Request) -> Self:
        settings, side = request.settings, request.side
        low, high = (max(side * length, 1.0) for length in settings.smoothness)
        noise = request.noise(2, (low, high))
        return cls(noise, side * request.log_uniform(settings.displacement))

    def of(self, own: Tensor, images: Tensor, textures: Tensor | None) -> Tensor:
        return displace(own, self.strength * self.noise.field())


@dataclass(frozen=True)
class CutOut:
    """The content is zeros."""

    @classmethod
    def draw(cls, request: _Request) -> Self:
        return cls()

    def of(self, own: Tensor, images: Tensor, textures: Tensor | None) -> Tensor:
        return torch.zeros_like(own)


@dataclass(frozen=True)
class Swap:
    """The content is the same place in another image."""

    others: Tensor

    @classmethod
    def draw(cls, request: _Request) -> Self:
        return cls(request.others())

    def of(self, own: Tensor, images: Tensor, textures: Tensor | None) -> Tensor:
        return images.index_select(0, self.others)


@dataclass(frozen=True)
class Brightness:
    """The content is the image itself, lighter or darker."""

    change: Tensor

    @classmethod
    def draw(cls, request: _Request) -> Self:
        sense = signs((len(request.chosen), 1, 1, 1), request.generator)
        return cls(sense * request.uniform(request.settings.brightness))

    def of(self, own: Tensor, images: Tensor, textures: Tensor | None) -> Tensor:
        return adjust_brightness(own, self.change)


@dataclass(frozen=True)
class FromBatch:
    """The content is another image, upside down and moved by 1/4 to 3/4 of its size."""

    down: int
    across: int
    others: Tensor

    @classmethod
    def draw(cls, request: _Request) -> Self:
        _, _, height, width = request.shape
        down, across = uniform((2,), (0.25, 0.75), request.generator).tolist()
        return cls(int(down * height), int(across * width), request.others())

    def of(self, own: Tensor, images: Tensor, textures: Tensor | None) -> Tensor:
        others = images.index_select(0, self.others)
        return others.flip(2).roll((self.down, self.across), dims=(2, 3))


@dataclass(frozen=True)
class FromTextures:
    """The content is a random window of a random texture, repeated where it is too small."""

    which: Tensor
    y: Tensor
    x: Tensor

    @classmethod
    def draw(cls, request: _Request) -> Self:
        if request.textures is None:
            raise ValueError("foreign content from textures needs textures")
        _, _, height, width = request.shape
        count, rows, columns = request.textures
        which = request.below(count, 1).unsqueeze(2)
        y = (request.below(rows, 1) + torch.arange(height)) % rows
        x = (request.below(columns, 1) + torch.arange(width)) % columns
        return cls(which, y.unsqueeze(2), x.unsqueeze(1))

    def of(self, own: Tensor, images: Tensor, textures: Tensor | None) -> Tensor:
        assert textures is not None  # it was drawn for some
        windows = textures[self.which, self.y, self.x]
        return windows.permute(0, 3, 1, 2).float() / 255


@dataclass(frozen=True)
class _Colour:
    """A colour for each image: that of a random pixel of the batch, made lighter or darker."""

    which: Tensor
    y: Tensor
    x: Tensor
    change: Tensor

    @classmethod
    def draw(cls, request: _Request) -> Self:
        batch, _, height, width = request.shape
        which, y, x = (request.below(high) for high in (batch, height, width))
        return cls(which, y, x, request.uniform((-0.3, 0.3)))

    def of(self, images: Tensor) -> Tensor:
        """Computes the colours, (N, C, 1, 1) float32 in [0, 1]."""
        colours = images[self.which, :, self.y, self.x][..., None, None]
        return adjust_brightness(colours, self.change)


@dataclass(frozen=True)
class Generated:
    """The content is two colours like the batch's, mixed by noise, soft clouds to hard grain."""

    noise: SmoothNoise
    hardness: Tensor
    one: _Colour
    other: _Colour

    @classmethod
    def draw(cls, request: _Request) -> Self:
        noise = request.noise(1, (2.0, max(request.side / 4, 2.0)))
        hardness = request.log_uniform((0.5, 16.0))
        return cls(noise, hardness, _Colour.draw(request), _Colour.draw(request))

    def of(self, own: Tensor, images: Tensor, textures: Tensor | None) -> Tensor:
        share = torch.sigmoid(self.hardness * self.noise.field())
        return torch.lerp(self.one.of(images), self.other.of(images), share)


_SOURCES: dict[str, type[Content]] = {
    "batch": FromBatch,
    "generated": Generated,
    "textures": FromTextures,
}


@dataclass(frozen=True)
class Occlusion:
    """The content does not belong there; each image's comes from one of the sources.

    Attributes:
        sources: which of the N images a source serves, (n,) int64, and what they get from it.
    """

    sources: tuple[tuple[Tensor, Content], ...]

    @classmethod
    def draw(cls, request: _Request) -> Self:
        names = request.settings.foreign
        drawn = request.below(len(names))
        sources = []
        for number, name in enumerate(names):
            places = _indices(drawn == number)
            if len(places):
                part = replace(request, chosen=request.chosen[places])
                sources.append((places, _SOURCES[name].draw(part)))
        return cls(tuple(sources))

    def of(self, own: Tensor, images: Tensor, textures: Tensor | None) -> Tensor:
        content = torch.empty_like(own)
        for places, source in self.sources:
            content.index_copy_(0, places, source.of(own, images, textures))
        return content


@dataclass(frozen=True)
class Pattern(Occlusion):
    """The content is foreign, of random opacity, over white noise that stays in the target.

    Attributes:
        opacity: how opaque each image's patches are, (N, 1, 1, 1) in [0, 1].
        seed: the seed of the noise, which is drawn where the images are.
        deviation: the standard deviation of each image's noise, (N, 1, 1, 1).
    """

    opacity: Tensor
    seed: int
    deviation: Tensor

    @classmethod
    def draw(cls, request: _Request) -> Self:
        sources = Occlusion.draw(request).sources
        opacity = request.uniform(request.settings.opacity)
        seed = int(torch.randint(2**62, (), generator=request.generator))
        return cls(sources, opacity, seed, request.uniform((0.0, request.settings.noise)))

    def noisy(self, own: Tensor) -> Tensor:
        """Adds the noise to the images and clips them to [0, 1]."""
        generator = torch.Generator(own.device).manual_seed(self.seed)
        noise = torch.randn(own.shape, generator=generator, device=own.device)
        return (own + self.deviation * noise).clamp(0, 1)


KINDS: dict[str, type[Content]] = {
    "elastic": Elastic,
    "cut_out": CutOut,
    "swap": Swap,
    "brightness": Brightness,
    "occlusion": Occlusion,
    "pattern": Pattern,
}


@dataclass(frozen=True)
class _Turn:
    """Turns some images about their centre; what comes in from outside repeats the border.

    Attributes:
        chosen: the numbers of these images in the batch, (N,) int64.
        matrices: what turns each of them, (N, 2, 3) float32, as ``warp.transform`` takes it.
    """

    chosen: Tensor
    matrices: Tensor

    @classmethod
    def draw(
        cls, batch: int, size: tuple[int, int], settings: Corruption, generator: torch.Generator
    ) -> Self | None:
        """Draws which images are turned, and how far; None where none is."""
        chosen = _indices(torch.rand(batch, generator=generator) < settings.rotated)
        if not len(chosen):
            return None
        each = (len(chosen),)
        degrees = log_uniform(each, settings.rotation, generator) * signs(each, generator)
        return cls(chosen, rotations(degrees, size))

    def of(self, images: Tensor) -> Tensor:
        """Turns the chosen images, (N, C, H, W)."""
        return transform(images, self.matrices)


@dataclass(frozen=True)
class DrawnCorruption:
    """All random numbers from which a batch's corruption is computed.

    Attributes:
        patches: what the masks are made of.
        contents: for each kind of content, the numbers of the images that get it, (N,) int64, and
            the content.
        turn: which images are turned and how far; None where none is.
    """

    patches: DrawnPatches
    contents: tuple[tuple[Tensor, Content], ...]
    turn: _Turn | None

    def of(self, images: Tensor, textures: Tensor | None) -> Corrupted:
        """Computes the corruption, where the images, the textures and what was drawn are."""
        alpha = self.patches.masks()
        mask = alpha
        target, filled = images, torch.empty_like(images)
        for chosen, content in self.contents:
            whole = len(chosen) == len(images)
            own = images if whole else images.index_select(0, chosen)
            found = content.of(own, images, textures)
            if whole:
                filled = found
            else:
                filled.index_copy_(0, chosen, found)
            if isinstance(content, Pattern):
                alpha = alpha.index_copy(0, chosen, alpha[chosen] * content.opacity)
                target = target.index_copy(0, chosen, content.noisy(own))
        corrupted = torch.lerp(target, filled, alpha)
        if self.turn:
            chosen = self.turn.chosen
            mask = mask.index_fill(0, chosen, 1.0)
            corrupted[chosen] = self.turn.of(corrupted[chosen])
        return Corrupted(corrupted, target, mask)


def draw_corruption(
    shape: tuple[int, ...],
    settings: Corruption,
    side: float,
    generator: torch.Generator,
    textures: Textures | None = None,
) -> DrawnCorruption:
    """Draws the corruption of images of a shape (B, C, H, W), on the CPU; see ``corrupt``."""
    batch, channels, height, width = shape
    patches = draw_patches(batch, height, width, settings.patches, side, generator)
    weights = torch.tensor([getattr(settings.mix, kind) for kind in KINDS])
    drawn = torch.multinomial(weights, batch, replacement=True, generator=generator)
    contents = []
    for number, kind in enumerate(KINDS.values()):
        chosen = _indices(drawn == number)
        if len(chosen):
            request = _Request(
                (batch, channels, height, width), chosen, settings, side, generator, textures
            )
            contents.append((chosen, kind.draw(request)))
    return DrawnCorruption(
        patches, tuple(contents), _Turn.draw(batch, (height, width), settings, generator)
    )


def _indices(chosen: Tensor) -> Tensor:
    return chosen.nonzero().flatten()
