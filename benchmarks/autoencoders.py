"""The paper's own comparison: one network, trained in four ways, with equal budgets in images.

    python benchmarks/autoencoders.py --data ROOT --category grid --images 3000

prints a row a way: plain (gives back what it gets), denoising (Gaussian noise on what it gets),
contractive (the reconstruction's Jacobian is kept small), and ours, with objective (1). The network
is the recipe's without skip connections (Model I), since with them a plain autoencoder only has to
copy; ``--skip-connections`` adds the recipe's own network, plain and ours. All see the same crops
in the same light, with the same steps, schedule and averaging of weights, and are calibrated alike.
The network alone is compared, so there is no linear autoencoder. No label decides anything.

Of contractive autoencoders this is the one whose penalty is on the Jacobian of the reconstruction
(RCAE; Alain and Bengio, *What Regularized Auto-Encoders Learn from the Data-Generating
Distribution*, 2014): a decoder with weights of its own can undo a contraction of the encoding. The
squared Frobenius norm is not computed but estimated, by one random projection a step. For little
noise of variance s, denoising is the same as contracting with weight s, so both get the same s.

Each figure becomes a line of ``benchmarks/history/autoencoders.jsonl``, or of ``--out FILE``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.compute as pc
import torch
from labelled import TestSet, judge
from torch import Tensor, nn

from ssray.calibration.calibrate import MAX_TRAINING, calibrate
from ssray.cluster.categories import survey_of
from ssray.config import Recipe, override
from ssray.data.dataset import index_dataset
from ssray.data.pose import Framing
from ssray.method.augmentation import draw_crops, random_light
from ssray.method.autoencoder import Autoencoder
from ssray.method.corruption import corrupt
from ssray.method.inference import Reconstructor
from ssray.recipes.request import RecipeRequest
from ssray.storage.location import Location
from ssray.training.averaging import WeightAverage
from ssray.training.budget import Budget
from ssray.training.images import Feed, load_feed
from ssray.training.loss import objective
from ssray.training.schedule import batch_size, crop_shape, learning_rate

PRECISION = torch.float32
HISTORY = Path(__file__).with_name("history") / "autoencoders.jsonl"
NOISE = 0.1
"""Standard deviation of the denoising autoencoder's noise; images are in [0, 1]."""

Network = Callable[[Tensor], Tensor]
Loss = Callable[[Network, Tensor, torch.Generator], Tensor]
"""A scalar, of a network, (B, 3, h, w) float32 crops in [0, 1] and a source of random numbers."""


def main() -> None:
    """Trains, measures and prints a row at a time."""
    parser = argparse.ArgumentParser(description="One network, trained in four ways.")
    parser.add_argument("--data", required=True, help="folder above the categories")
    parser.add_argument("--category", required=True)
    parser.add_argument("--images", type=int, required=True, help="that each network sees")
    parser.add_argument(
        "--skip-connections", action="store_true", help="the recipe's own network, too"
    )
    parser.add_argument("--set", action="append", default=[], help="as for ssray train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HISTORY, help="gets a line a figure")
    options = parser.parse_args()

    manifest = index_dataset(Location.parse(options.data), [options.category])
    uris = manifest.filter(pc.equal(manifest["split"], "train"))["uri"].to_pylist()
    request = RecipeRequest("compact", tuple(options.set))
    recipe = override(
        request.resolve(options.category, lambda: survey_of(uris)),
        ["linear=null", f"schedule.images={options.images}"],
    )
    feed = load_feed(uris, recipe, os.cpu_count() or 1, options.seed)
    test_set = TestSet.read(manifest, Framing.of(recipe, feed.shape))
    ways = losses(recipe, min(feed.shape))
    without = override(recipe, ["network.blend=none"])
    runs = [("Model I", without, way) for way in ways]
    if options.skip_connections:
        runs += [(f"blend {recipe.network.blend}", recipe, way) for way in ("plain", "ours")]

    print(
        "| network | trained as | images | images a minute | image AUROC | pixel AUROC |\n"
        "|---|---|---|---|---|---|"
    )
    for name, each, way in runs:
        began = time.monotonic()
        network, seen = train(feed, each, ways[way], options.seed)
        rate = 60 * seen / (time.monotonic() - began)
        image, pixel = measured(network, feed, each, test_set, options.seed)
        print(
            f"| {name} | {way} | {seen:,.0f} | {rate:.0f} | {image:.4f} | {pixel:.4f} |", flush=True
        )
        conditions = (
            f"{seen:,.0f} images of {feed.shape[0]} x {feed.shape[1]} pixels, float32, seed "
            f"{options.seed}, recipe {' '.join([recipe.name, *options.set])}, noise {NOISE:g}"
        )
        with options.out.open("a") as out:
            for what, value in (("image AUROC", image), ("pixel AUROC", pixel)):
                found = f"{options.category}, {name}, {way}: {what}"
                out.write(_record(found, value, conditions, options) + "\n")


def measured(
    network: nn.Module, feed: Feed, recipe: Recipe, test_set: TestSet, seed: int
) -> tuple[float, float]:
    """Image and pixel AUROC of a network that is calibrated as in the product."""
    reconstructor, training = Reconstructor([network], PRECISION), feed.sample(MAX_TRAINING)
    calibration, places = calibrate(reconstructor, feed.held_out, training, recipe, seed)
    return judge([network], calibration, places, test_set, PRECISION)


def train(feed: Feed, recipe: Recipe, loss: Loss, seed: int) -> tuple[nn.Module, float]:
    """Trains a network by a loss; all else is as ``ssray.training.fit`` does it, on one CPU.

    Returns:
        The averaged network in eval mode, and how many images it saw.
    """
    schedule = recipe.schedule
    torch.manual_seed(seed)
    network = Autoencoder(recipe.network).train()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = WeightAverage(network, schedule.averaging)
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    generator = torch.Generator().manual_seed(1_000_003 * seed)
    budget = Budget(schedule, feed.training_images)
    while not budget.finished:
        crop = crop_shape(budget.spent, schedule, feed.shape)
        batch = batch_size(crop, feed.shape, schedule, workers=1)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(budget.spent, schedule)
        images = feed.images_after(budget.images_seen)
        crops = draw_crops(images, batch, crop, schedule.augmentation, generator)
        if schedule.photometric:
            crops = random_light(crops, schedule.photometric, generator)
        optimizer.zero_grad()
        loss(network, crops, generator).backward()
        optimizer.step()
        average.update()
        budget.images_seen += batch * crop[0] * crop[1] / (feed.shape[0] * feed.shape[1])
        budget.spent = min(1.0, budget.share())
    average.model.eval()
    return average.model, budget.images_seen


def losses(recipe: Recipe, side: int) -> dict[str, Loss]:
    """The four ways to train, by name.

    Args:
        recipe: how ours corrupts, and what it weighs.
        side: the shorter side of whole images, pixels.
    """

    def ours(network: Network, images: Tensor, generator: torch.Generator) -> Tensor:
        corrupted = corrupt(images, recipe.corruption, side, generator)
        return objective(network(corrupted.images), corrupted, recipe.objective)

    return {"plain": plain, "denoising": denoising, "contractive": contractive, "ours": ours}


def plain(network: Network, images: Tensor, generator: torch.Generator) -> Tensor:
    """The mean squared error of what the network makes of the images as they are."""
    return (network(images) - images).square().mean()


def denoising(network: Network, images: Tensor, generator: torch.Generator) -> Tensor:
    """The mean squared error of what it makes of images with noise, to those without."""
    noise = NOISE * torch.randn(images.shape, generator=generator)
    return (network(images + noise) - images).square().mean()


def contractive(network: Network, images: Tensor, generator: torch.Generator) -> Tensor:
    """The mean squared error, and ``NOISE ** 2`` times the mean squared row of the Jacobian."""
    images = images.detach().requires_grad_()
    reconstruction = network(images)
    penalty = squared_jacobian(reconstruction, images, generator) / reconstruction.numel()
    return (reconstruction - images).square().mean() + NOISE**2 * penalty


def squared_jacobian(outputs: Tensor, inputs: Tensor, generator: torch.Generator) -> Tensor:
    """Estimates the squared Frobenius norm of the Jacobian of all outputs by all inputs.

    The squared norm of ``J^T v`` with v of independent normal values has that expectation
    (Hutchinson's estimator of the trace of ``J J^T``). One v is drawn.

    Returns:
        A scalar, through which gradients flow.
    """
    projection = torch.randn(outputs.shape, generator=generator)
    [product] = torch.autograd.grad(outputs, inputs, projection, create_graph=True)
    return product.square().sum()


def _record(what: str, value: float, conditions: str, options: argparse.Namespace) -> str:
    """A line of the history, with the keys that ``benchmarks/history/README.md`` explains."""
    command = f"--category {options.category} --images {options.images} --seed {options.seed}"
    command += " --skip-connections" * options.skip_connections
    command += "".join(f" --set {setting}" for setting in options.set)
    record = {
        "topic": "autoencoders",
        "what": what,
        "value": round(value, 4),
        "unit": "AUROC",
        "conditions": conditions,
        "commit": _git("describe", "--always", "--dirty"),
        "date": _git("log", "-1", "--format=%cs"),
        "command": f"python benchmarks/autoencoders.py --data ROOT {command}",
    }
    return json.dumps(record)


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
