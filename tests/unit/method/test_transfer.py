"""What a step draws on the CPU reaches another device in few copies, without a wait.

The device is ``meta``, which computes nothing: it refuses what needs a value back on the host.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ssray.config import Corruption, Mix, Patches
from ssray.method import corruption
from ssray.method.augmentation import draw_crops, random_light
from ssray.method.corruption import KINDS, corrupt, draw_corruption
from ssray.method.transfer import moved

META = torch.device("meta")
EVERYTHING = Corruption(
    patches=Patches(shapes=("disk", "rectangle", "blob", "stroke")),
    mix=Mix(**dict.fromkeys(KINDS, 1.0)),
    foreign=("batch", "generated", "textures"),
    textures="folder",
    rotated=0.5,
)


class Copies(TorchDispatchMode):
    """Counts copies from the CPU to another device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        sources = [value for value in args if isinstance(value, Tensor)]
        if (
            isinstance(result, Tensor)
            and result.device == META
            and any(source.device.type == "cpu" and source.dim() for source in sources)
        ):
            self.count += 1
        return result


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_one_tensor_or_many_arrive_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = draw_corruption((6, 3, 40, 48), EVERYTHING, 40, generator(), (2, 20, 30))
    one = torch.arange(5)
    assert moved(one, torch.device("cpu")) is one
    assert moved(drawn, torch.device("cpu")) is drawn

    class Elsewhere:
        """The CPU under another name, so that what arrives can be looked at."""

        type = "elsewhere"

    monkeypatch.setattr(Tensor, "to", lambda tensor, *_, **__: tensor.clone())
    there = moved(drawn, Elsewhere())  # type: ignore[arg-type]
    assert repr(there) == repr(drawn)
    assert torch.equal(moved(one, Elsewhere()), one)  # type: ignore[arg-type]
    images = torch.rand(6, 3, 40, 48, generator=generator())
    textures = (255 * torch.rand(2, 20, 30, 3, generator=generator())).to(torch.uint8)
    expected, found = drawn.of(images, textures), there.of(images, textures)
    for name in ("images", "target", "mask"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


@pytest.mark.parametrize("augmentation", ["none", "flip", "dihedral"])
def test_a_step_makes_three_copies_and_never_waits(
    augmentation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # meta has no generator; the noise is drawn where the images are, whatever they are
    monkeypatch.setattr(
        corruption.Pattern, "noisy", lambda self, own: own + self.deviation * torch.randn_like(own)
    )
    training = torch.empty(20, 64, 64, 3, dtype=torch.uint8, device=META)
    textures = torch.empty(4, 32, 32, 3, dtype=torch.uint8, device=META)
    draws = generator()
    for _ in range(5):  # matrices that interpolate are kept from their first use on
        with Copies() as copies:
            images = draw_crops(training, 32, (48, 48), augmentation, draws)
            images = random_light(images, 0.1, draws)
            corrupted = corrupt(images, EVERYTHING, 64, draws, textures)
    assert corrupted.images.shape == (32, 3, 48, 48)
    assert corrupted.images.device == META
    assert copies.count == 3
