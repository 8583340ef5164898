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

Everything is drawn for the whole batch by tensor operations on the images' device. Where the
paper gives no strengths and sizes, ``ssray.config.Corruption`` holds our choices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ssray.config import Corruption
from ssray.method.noise import Range, log_uniform, signs, smooth_noise, uniform
from ssray.method.shapes import patch_masks, pixel_grid


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
        settings: kinds, strengths and sizes.
        side: what their lengths are shares of, pixels: the shorter side of the whole image, of
            which ``images`` may be crops.
        generator: on the CPU; the same state gives the same corruption, to rounding, on every
            device and with any number of threads, but for the white noise of *pattern*, which is
            drawn where the images are.
        textures: (T, H', W', C) uint8, a source of foreign content, on the device of ``images``.
    """
    batch, _, height, width = images.shape
    alpha = patch_masks(batch, height, width, settings.patches, side, generator, images.device)
    mask = alpha
    weights = torch.tensor([getattr(settings.mix, kind) for kind in KINDS])
    drawn = torch.multinomial(weights, batch, replacement=True, generator=generator)
    target, content = images, torch.empty_like(images)
    for number, (kind, fill) in enumerate(KINDS.items()):
        chosen = _indices(drawn == number, images.device)
        if not len(chosen):
            continue
        draw = _Draw(images, chosen, settings, side, generator, textures)
        if len(chosen) == batch:
            content = fill(draw)
        else:
            content.index_copy_(0, chosen, fill(draw))
        if kind == "pattern":
            alpha = alpha.index_copy(0, chosen, alpha[chosen] * draw.uniform(settings.opacity))
            target = target.index_copy(0, chosen, _noisy(draw))
    corrupted = torch.lerp(target, content, alpha)
    turned = _indices(torch.rand(batch, generator=generator) < settings.rotated, images.device)
    if len(turned):
        mask = mask.index_fill(0, turned, 1.0)
        corrupted[turned] = _rotated(corrupted[turned], settings.rotation, generator)
    return Corrupted(corrupted, target, mask)


@dataclass(frozen=True)
class _Draw:
    """The images of a batch that get one kind of content, and what it is drawn from."""

    images: Tensor
    chosen: Tensor
    settings: Corruption
    side: float
    generator: torch.Generator
    textures: Tensor | None

    @property
    def own(self) -> Tensor:
        whole = len(self.chosen) == len(self.images)
        return self.images if whole else self.images.index_select(0, self.chosen)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        _, channels, height, width = self.images.shape
        return len(self.chosen), channels, height, width

    def others(self) -> Tensor:
        """Another image of the batch for each; in a batch of one, itself."""
        batch = len(self.images)
        shift = torch.randint(1, max(batch, 2), self.chosen.shape, generator=self.generator)
        return self.images.index_select(0, (self.chosen + self.moved(shift)) % batch)

    def moved(self, numbers: Tensor) -> Tensor:
        """On the images' device."""
        return numbers.to(self.images.device, non_blocking=True)

    def uniform(self, bounds: Range) -> Tensor:
        """A number for each, (N, 1, 1, 1)."""
        return self.moved(uniform((len(self.chosen), 1, 1, 1), bounds, self.generator))

    def log_uniform(self, bounds: Range) -> Tensor:
        return self.moved(log_uniform((len(self.chosen), 1, 1, 1), bounds, self.generator))

    def signs(self) -> Tensor:
        return self.moved(signs((len(self.chosen), 1, 1, 1), self.generator))


def elastic(draw: _Draw) -> Tensor:
    """The image under a smooth random displacement."""
    images, settings = draw.own, draw.settings
    batch, _, height, width = draw.shape
    low, high = (max(draw.side * length, 1.0) for length in settings.smoothness)
    field = smooth_noise((batch, 2, height, width), (low, high), draw.generator, images.device)
    return warp(images, draw.side * draw.log_uniform(settings.displacement) * field)


def cut_out(draw: _Draw) -> Tensor:
    """Zeros."""
    return torch.zeros_like(draw.own)


def swap(draw: _Draw) -> Tensor:
    """The same place in another image."""
    return draw.others()


def brightness(draw: _Draw) -> Tensor:
    """The image, lighter or darker."""
    return (draw.own + draw.signs() * draw.uniform(draw.settings.brightness)).clamp(0, 1)


def foreign(draw: _Draw) -> Tensor:
    """Content that does not belong there, from one of the sources for each image."""
    sources = draw.settings.foreign
    drawn = torch.randint(len(sources), draw.chosen.shape, generator=draw.generator)
    content = torch.empty_like(draw.own)
    for number, source in enumerate(sources):
        place = _indices(drawn == number, draw.images.device)
        if len(place):
            found = _SOURCES[source](replace(draw, chosen=draw.chosen[place]))
            content.index_copy_(0, place, found)
    return content


KINDS: dict[str, Callable[[_Draw], Tensor]] = {
    "elastic": elastic,
    "cut_out": cut_out,
    "swap": swap,
    "brightness": brightness,
    "occlusion": foreign,
    "pattern": foreign,
}


def _from_batch(draw: _Draw) -> Tensor:
    """Another image, upside down and moved by a quarter to three quarters of its size."""
    _, _, height, width = draw.shape
    down, across = uniform((2,), (0.25, 0.75), draw.generator).tolist()
    return draw.others().flip(2).roll((int(down * height), int(across * width)), dims=(2, 3))


def _from_textures(draw: _Draw) -> Tensor:
    """A random window of a random texture, which is repeated where it is too small."""
    if draw.textures is None:
        raise ValueError("foreign content from textures needs textures")
    batch, _, height, width = draw.shape
    count, rows, columns, _ = draw.textures.shape
    device = draw.images.device

    def start(high: int) -> Tensor:
        return draw.moved(torch.randint(high, (batch, 1), generator=draw.generator))

    which = start(count).unsqueeze(2)
    y = (start(rows) + torch.arange(height, device=device)) % rows
    x = (start(columns) + torch.arange(width, device=device)) % columns
    windows = draw.textures[which, y.unsqueeze(2), x.unsqueeze(1)]
    return windows.permute(0, 3, 1, 2).float() / 255


def _generated(draw: _Draw) -> Tensor:
    """Two colours like those of the batch, mixed by noise between soft clouds and hard grain."""
    batch, _, height, width = draw.shape
    lengths = (2.0, max(draw.side / 4, 2.0))
    noise = smooth_noise((batch, 1, height, width), lengths, draw.generator, draw.images.device)
    share = torch.sigmoid(draw.log_uniform((0.5, 16.0)) * noise)
    return torch.lerp(_colours(draw), _colours(draw), share)


def _colours(draw: _Draw) -> Tensor:
    """The colour of a random pixel of the batch for each, then made lighter or darker."""
    count, _, height, width = draw.shape
    images = draw.images
    which, y, x = (
        draw.moved(torch.randint(high, (count,), generator=draw.generator))
        for high in (len(images), height, width)
    )
    return (images[which, :, y, x][..., None, None] + draw.uniform((-0.3, 0.3))).clamp(0, 1)


_SOURCES: dict[str, Callable[[_Draw], Tensor]] = {
    "batch": _from_batch,
    "generated": _generated,
    "textures": _from_textures,
}


def _indices(chosen: Tensor, device: torch.device) -> Tensor:
    return chosen.nonzero().flatten().to(device, non_blocking=True)


def _noisy(draw: _Draw) -> Tensor:
    """The images under white Gaussian noise, its strength drawn for each."""
    images = draw.own
    seed = int(torch.randint(2**62, (), generator=draw.generator))
    on_device = torch.Generator(images.device).manual_seed(seed)
    noise = torch.randn(images.shape, generator=on_device, device=images.device)
    return (images + draw.uniform((0.0, draw.settings.noise)) * noise).clamp(0, 1)


def _rotated(images: Tensor, degrees: Range, generator: torch.Generator) -> Tensor:
    """Turned about the centre, either sense; what comes in from outside repeats the border."""
    batch, _, height, width = images.shape
    angle = log_uniform((batch, 1, 1), degrees, generator).deg2rad() * signs(
        (batch, 1, 1), generator
    )
    cosine, sine = (t.to(images.device, non_blocking=True) for t in (angle.cos(), angle.sin()))
    rows, columns = pixel_grid(height, width, images.device)
    down, across = rows - (height - 1) / 2, columns - (width - 1) / 2
    x = (cosine - 1) * across - sine * down
    y = sine * across + (cosine - 1) * down
    return warp(images, torch.stack((x, y), dim=1))


def warp(images: Tensor, displacement: Tensor) -> Tensor:
    """Samples every image at displaced positions, bilinearly; outside, the border repeats.

    Args:
        images: (B, C, H, W) float32.
        displacement: (B, 2, H, W) float32, pixels: x (columns) first, then y (rows).

    Returns:
        (B, C, H, W) float32, within the range of ``images``.
    """
    height, width = images.shape[-2:]
    rows, columns = pixel_grid(height, width, images.device)
    x = (columns + displacement[:, 0]) * (2 / width) + (1 / width - 1)
    y = (rows + displacement[:, 1]) * (2 / height) + (1 / height - 1)
    return F.grid_sample(
        images, torch.stack((x, y), dim=-1), padding_mode="border", align_corners=False
    )
