"""Images are brought to one light, whatever lamp they were taken under."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ssray.config import Light
from ssray.data.large import decode_framed
from ssray.data.light import MOST_SHIFT, levelled, levelled_photograph, usual_light
from ssray.data.pose import Framing


@pytest.fixture
def images() -> Tensor:
    """Eight images of one scene with some noise, (8, 3, 24, 40)."""
    generator = torch.Generator().manual_seed(0)
    scene = torch.rand(1, 3, 24, 40, generator=generator)
    return 0.35 + 0.2 * scene + 0.02 * torch.rand(8, 3, 24, 40, generator=generator)


def test_an_image_in_the_usual_light_stays_as_it_is(images: Tensor) -> None:
    one = images[:1]
    assert torch.allclose(levelled(one, usual_light(one)), one, atol=2e-4)


@pytest.mark.parametrize("gain", [0.8, 1.2])
@pytest.mark.parametrize("offset", [-0.1, 0.1])
@pytest.mark.parametrize("slope", [(0.0, 0.0), (0.1, -0.06)])
def test_gain_offset_and_slope_vanish(
    images: Tensor, gain: float, offset: float, slope: tuple[float, float]
) -> None:
    light = usual_light(images)
    down = torch.linspace(-1, 1, 24).view(1, 1, -1, 1) * slope[0]
    across = torch.linspace(-1, 1, 40).view(1, 1, 1, -1) * slope[1]
    lit = gain * images + offset + down + across
    assert (lit - images).abs().max() > 0.02
    assert torch.allclose(levelled(lit, light), levelled(images, light), atol=1e-3)


def test_what_is_redder_stays_redder(images: Tensor) -> None:
    red = images.clone()
    red[:, 0] += 0.1
    brought = levelled(red, usual_light(images))
    assert float((brought[:, 0] - brought[:, 1]).mean()) > 0.07


def test_what_no_lamp_does_stays_conspicuous(images: Tensor) -> None:
    light = usual_light(images)
    black = levelled(torch.zeros(1, 3, 24, 40), light)
    assert float(black.max()) < MOST_SHIFT + 0.01 < light.mean
    flat = levelled(torch.full((1, 3, 24, 40), light.mean), light)
    assert float(flat.std()) < 0.1 * light.deviation


def test_a_defect_has_no_say_in_the_light() -> None:
    """A dark speck of 0.4 % on a plain surface doubles the deviation of all pixels."""
    surface = 0.6 + 0.01 * torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    light = usual_light(surface)
    defective = surface.clone()
    defective[..., 200:216, 100:116] -= 0.3
    assert float(defective.std()) > 2 * float(surface.std())
    brought = levelled(defective, light)
    untouched = torch.ones(256, 256, dtype=torch.bool)
    untouched[200:216, 100:116] = False
    assert (brought - surface)[..., untouched].abs().max() < 0.004
    contrast = (brought - surface)[..., ~untouched].mean()
    assert float(contrast) == pytest.approx(-0.3, abs=0.01)


def test_the_light_does_not_depend_on_the_number_of_threads(images: Tensor) -> None:
    large = torch.nn.functional.interpolate(images, (256, 384), mode="bicubic")
    threads = torch.get_num_threads()
    found = []
    for number in (1, 2, 4):
        torch.set_num_threads(number)
        found.append(levelled(large, usual_light(large[:3])))
    torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_a_single_row_has_no_slope_down() -> None:
    line = torch.linspace(0.2, 0.6, 8).view(1, 1, 1, 8).expand(1, 3, 1, 8)
    light = usual_light(line)
    assert light.slope[0] == 0
    assert torch.allclose(levelled(line, light), line, atol=2e-4)


@pytest.mark.parametrize("shape", [(24, 40), (12, 20)])
def test_every_way_to_a_networks_input_ends_in_that_light(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    photograph = np.random.default_rng(0).integers(60, 120, (24, 40, 3)).astype(np.uint8)
    light = Light(mean=0.5, deviation=0.1, slope=(0.05, 0.0))
    content = io.BytesIO()
    Image.fromarray(photograph).save(content, "PNG")
    framing = Framing(shape, light=light)
    direct, _ = framing(photograph)
    decoded = decode_framed(content.getvalue(), framing).image
    assert np.array_equal(direct, decoded)
    assert np.array_equal(direct, levelled_photograph(Framing(shape)(photograph)[0], light))
    assert direct.mean() / 255 == pytest.approx(0.5, abs=0.003)
    assert usual_light(torch.from_numpy(direct).permute(2, 0, 1)[None] / 255).slope[0] == (
        pytest.approx(0.05, abs=0.003)
    )
