"""The search for the nearest training image, against brute force, and who does it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from ssray.method.inference import to_network
from ssray.method.projection import TrainingImages, measure_projection

CPU = torch.device("cpu")


def stored(count: int, height: int, width: int) -> torch.Tensor:
    """(N, 3, H, W) float32 of independent pixels."""
    generator = torch.Generator().manual_seed(3)
    levels = torch.randint(
        0, 255, (count, height, width, 3), dtype=torch.uint8, generator=generator
    )
    return to_network(levels, CPU)


@pytest.mark.parametrize("count", [2, 7, 33, 70])
def test_the_nearest_is_brute_forces(count: int) -> None:
    """More images than are searched at a time, and fewer."""
    images = stored(count, 12, 10)
    queries = images.flip(0) + 0.3 * torch.randn(
        images.shape, generator=torch.Generator().manual_seed(4)
    )
    distances = torch.cdist(
        queries.flatten(1).double(),
        images.flatten(1).double(),
        compute_mode="donot_use_mm_for_euclid_dist",
    )
    assert torch.equal(TrainingImages(images).nearest(queries), distances.argmin(dim=1))


def test_one_255th_in_one_of_120_000_values_is_seen() -> None:
    """Products of float32 would not see it, nor would distances rounded to float32."""
    one = stored(1, 200, 200)
    images = one.repeat(3, 1, 1, 1)
    images[1, 1, 100, 50] += 1 / 255
    images[2, 1, 100, 50] += 2 / 255
    assert TrainingImages(images).nearest(images).tolist() == [0, 1, 2]
    far = torch.zeros(1, 3, 200, 200)
    assert TrainingImages(images.flip(0)).nearest(far).tolist() == [2]


def test_of_two_nearly_equal_images_the_nearer_one_counts() -> None:
    """Trials of one image hit, those of its copy, a hair farther from all, miss."""
    levels = (255 * stored(2, 40, 40)).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    levels[1] = levels[0]
    levels[1, 0, 0, 0] += 40
    dark = torch.zeros(1, 3, 40, 40)
    [at] = measure_projection(
        levels, lambda x: dark.expand_as(x), [0], 6, torch.Generator().manual_seed(0)
    )
    assert at.output_hits.tolist() == [True, False] * 3
    assert at.input_hits.all()


WITHOUT = """
import sys
sys.modules["sklearn"] = None
import torch
from ssray.method.projection import measure_projection
images = torch.randint(0, 255, (3, 8, 8, 3), dtype=torch.uint8)
try:
    list(measure_projection(images, lambda x: x, [2], 3, torch.Generator()))
except ImportError as error:
    assert "sklearn" in str(error), error
    print("needs it")
"""


def test_neighbours_are_scikit_learns() -> None:
    """The product's own code fails without the package: nothing stands in for it."""
    command = [sys.executable, "-c", WITHOUT]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout == "needs it\n"


def test_training_does_not_load_scikit_learn() -> None:
    """It takes a second; only the search for the nearest needs it."""
    code = "import sys, ssray.training.fit; print('sklearn' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"
