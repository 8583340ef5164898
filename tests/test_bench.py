"""Timings and comparisons that take minutes: ``make bench``. Ratios, no absolutes."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from ssray import artifact
from ssray.config import Compute, Recipe, override
from ssray.data.demo import write_demo_data
from ssray.data.storage import Location
from ssray.device import resolve_precision
from ssray.method.autoencoder import Autoencoder
from ssray.method.corruption import KINDS, corrupt
from ssray.method.inference import autocast
from ssray.method.objective import reconstruction_objective
from ssray.recipes import paper
from ssray.recipes.compact import demo, object_, texture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

CPU = torch.device("cpu")


def median_in_turn(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median seconds of each step, run in turn so that drift of the machine hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 2):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in seconds.items()}


def training_step(
    recipe: Recipe,
    memory: torch.memory_format,
    precision: torch.dtype,
    corrupted: bool,
    share: float = 1.0,
) -> Callable[[], None]:
    side = recipe.image_size
    crop = round(share * side)
    batch = round(recipe.schedule.batch / share**2)
    generator = torch.Generator().manual_seed(0)
    model = Autoencoder(recipe.network).to(memory_format=memory)
    optimizer = torch.optim.Adam(model.parameters())
    images = torch.rand(batch, 3, crop, crop, generator=generator).contiguous(memory_format=memory)
    ready = corrupt(images, recipe.corruption, side, generator)

    def step() -> None:
        batch = corrupt(images, recipe.corruption, side, generator) if corrupted else ready
        with autocast(CPU, precision):
            reconstruction = model(batch.images)
        loss = reconstruction_objective(reconstruction, batch.target, batch.mask, 0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


@pytest.mark.parametrize(
    ("recipe", "crop", "most"),
    [
        (texture(), 1.0, 0.10),
        (texture(), 0.25, 0.10),
        (object_(), 1.0, 0.10),
        (paper.grid(), 1.0, 0.05),
        (paper.transistor(), 1.0, 0.05),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_cost_of_the_corruption(recipe: Recipe, crop: float, most: float) -> None:
    """Every kind and shape mixed: at most a tenth of a compact step, a twentieth of a full one."""
    torch.set_num_threads(os.cpu_count() or 1)
    everything = override(
        recipe,
        [
            *(f"corruption.mix.{kind}=1" for kind in KINDS),
            'corruption.patches.shapes=["disk","rectangle","blob","stroke"]',
            "corruption.rotated=0.3",
        ],
    )
    precision = resolve_precision("auto", CPU, recipe.network)
    rounds = 24 if recipe.network.width < 32 else 4
    for name, tried in (("the recipe's own", recipe), ("everything mixed", everything)):
        seconds = median_in_turn(
            {
                "with": training_step(tried, torch.channels_last, precision, True, crop),
                "without": training_step(tried, torch.channels_last, precision, False, crop),
            },
            rounds,
        )
        cost = seconds["with"] / seconds["without"] - 1
        print(
            f"\n{recipe.name}, crops of {crop:g}, {name}: step {seconds['without']:.3f} s on ready "
            f"tensors, corruption adds {100 * cost:.1f} %"
        )
        assert cost <= most


def test_bfloat16_and_channels_last_pay() -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    recipe = texture()
    precision = resolve_precision("auto", CPU, recipe.network)
    if precision != torch.bfloat16:
        pytest.skip("this processor has no bfloat16 instructions")
    seconds = median_in_turn(
        {
            "ours": training_step(recipe, torch.channels_last, precision, corrupted=True),
            "plain": training_step(recipe, torch.contiguous_format, torch.float32, corrupted=False),
        },
        rounds=12,
    )
    gain = seconds["plain"] / seconds["ours"]
    print(f"\nplain float32 contiguous step on ready tensors takes {gain:.2f} x ours")
    assert gain >= 2


def test_two_workers_reach_what_one_reaches(ray_local: None, tmp_path: Path) -> None:
    """Same number of images, three seeds each: mean validation losses within the seeds' spread."""
    from ssray.cluster.train import train_category

    write_demo_data(tmp_path / "data", categories=1)
    uris = sorted(str(path) for path in (tmp_path / "data/weave/train/good").iterdir())
    recipe = override(demo(), ["schedule.images=2400"])
    store = Location.parse(tmp_path / "store")
    losses: dict[int, list[float]] = {1: [], 2: []}
    for seed in range(3):
        for workers, found in losses.items():
            compute = Compute(workers=workers, seed=seed, precision="bfloat16")
            version = train_category(uris, "weave", recipe, compute, store)
            facts = artifact.load_facts(store, "weave", version)
            found.append(facts.validation_loss)
            print(f"\n{workers} workers, seed {seed}: validation loss {found[-1]:.6f}, "
                  f"{facts.images_seen:.0f} images in {facts.seconds:.1f} s", end="")  # fmt: skip
    one, two = (statistics.mean(losses[workers]) for workers in (1, 2))
    spread = max(statistics.stdev(losses[workers]) for workers in (1, 2))
    print(f"\nmeans {one:.6f} and {two:.6f}, largest standard deviation {spread:.6f}")
    assert abs(one - two) <= 2 * spread


def test_the_demo_finds_the_defects_twice_in_a_row(tmp_path: Path) -> None:
    """`ssray demo` as a user runs it, and again over its own results."""
    for turn in ("first", "second"):
        started = time.monotonic()
        result = subprocess.run(
            [sys.executable, "-m", "ssray.cli", "demo", "--out", tmp_path / "demo"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        rows = pq.read_table(tmp_path / "demo/metrics.parquet").to_pylist()
        aurocs = {row["category"]: round(row["image_auroc"], 4) for row in rows}
        print(f"\n{turn} demo: {time.monotonic() - started:.0f} s, image AUROC {aurocs}")
        assert len(rows) == 3
        assert min(aurocs.values()) >= 0.95
