"""Timings and comparisons that take minutes: ``make bench``. Ratios, no absolutes."""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from ssray.calibration.candidates import judge
from ssray.calibration.evidence import Evidence
from ssray.calibration.map_settings import DIFFERENCES, KERNEL_SHARES, kernels_of
from ssray.cluster.train import train_category
from ssray.config import Compute, MapSettings, Recipe, override
from ssray.data.decode import read_image
from ssray.data.demo.dataset import write_demo_data
from ssray.data.loading import load_images
from ssray.method.autoencoder import Autoencoder
from ssray.method.corruption import KINDS, Corrupted, corrupt
from ssray.method.inference import autocast
from ssray.method.objective import reconstruction_objective
from ssray.models.device import resolve_precision, use_cores
from ssray.recipes import paper
from ssray.recipes.compact import demo, object_, texture
from ssray.storage.location import Location
from ssray.training.fit import TrainingRun
from ssray.training.images import Feed, framing_for
from ssray.training.progress import ROW_COST, ProgressRow
from ssray.training.trainer import Numerics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

CPU = torch.device("cpu")


def median_in_turn(steps: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
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
    recipe: Recipe, memory: torch.memory_format, precision: torch.dtype, share: float = 1.0
) -> tuple[Callable[[], Corrupted], Callable[[Corrupted], None]]:
    """What a step does on crops of a share of the side: corrupts images, and learns from them."""
    side = recipe.image_size
    crop = round(share * side)
    count = round(recipe.schedule.batch / share**2)
    generator = torch.Generator().manual_seed(0)
    model = Autoencoder(recipe.network)
    model.to(memory_format=memory)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    images = torch.rand(count, 3, crop, crop, generator=generator).contiguous(memory_format=memory)

    def draw() -> Corrupted:
        return corrupt(images, recipe.corruption, side, generator)

    def learn(batch: Corrupted) -> None:
        with autocast(CPU, precision):
            reconstruction = model(batch.images)
        loss = reconstruction_objective(reconstruction, batch.target, batch.mask, 0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return draw, learn


@pytest.mark.parametrize(
    ("recipe", "crop", "most"),
    [
        (texture(), 1.0, 0.10),
        (texture(), 0.25, 0.10),
        (object_(), 1.0, 0.10),
        (paper.of_category("grid"), 1.0, 0.05),
        (paper.of_category("transistor"), 1.0, 0.05),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_cost_of_the_corruption(recipe: Recipe, crop: float, most: float) -> None:
    """Every kind and shape mixed: at most a tenth of a compact step, a twentieth of a full one."""
    use_cores(os.cpu_count() or 1)
    everything = override(
        recipe,
        [
            *(f"corruption.mix.{kind}=1" for kind in KINDS),
            'corruption.patches.shapes=["disk","rectangle","blob","stroke"]',
            "corruption.rotated=0.3",
        ],
    )
    precision = resolve_precision("auto", CPU, recipe.network)
    rounds = 24 if recipe.network.width < 32 else 6
    for name, tried in (("the recipe's own", recipe), ("everything mixed", everything)):
        draw, learn = training_step(tried, torch.channels_last, precision, crop)
        corrupting, learning = [], []
        for turn in range(rounds + 2):
            begun = time.perf_counter()
            batch = draw()
            drawn = time.perf_counter()
            learn(batch)
            if turn >= 2:
                corrupting.append(drawn - begun)
                learning.append(time.perf_counter() - drawn)
        rest = statistics.median(learning)
        cost = statistics.median(corrupting) / rest
        print(
            f"\n{recipe.name}, crops of {crop:g}, {name}: the rest of a step takes {rest:.3f} s, "
            f"corruption adds {100 * cost:.1f} %"
        )
        assert cost <= most


def test_bfloat16_and_channels_last_pay() -> None:
    use_cores(os.cpu_count() or 1)
    recipe = texture()
    precision = resolve_precision("auto", CPU, recipe.network)
    if precision != torch.bfloat16:
        pytest.skip("this processor has no bfloat16 instructions")
    draw, learn = training_step(recipe, torch.channels_last, precision)
    draw_plain, learn_plain = training_step(recipe, torch.contiguous_format, torch.float32)
    ready = draw_plain()
    seconds = median_in_turn(
        {"ours": lambda: learn(draw()), "plain": lambda: learn_plain(ready)}, rounds=12
    )
    gain = seconds["plain"] / seconds["ours"]
    print(f"\nplain float32 contiguous step on ready tensors takes {gain:.2f} x ours")
    assert gain >= 2


@pytest.mark.parametrize(
    ("recipe", "crop", "rounds"),
    [
        (texture(), 0.5, 12),
        (texture(), 1.0, 12),
        (object_(), 1.0, 40),
        (paper.of_category("grid"), 1.0, 3),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_training_keeps_up_with_the_bare_step(recipe: Recipe, crop: float, rounds: int) -> None:
    """Forward, backward and Adam on ready tensors, against all that training does in a step.

    The rows of the epoch log may take ``ROW_COST`` of the time; that is added in full.
    """
    use_cores(os.cpu_count() or 1)
    recipe = override(recipe, [f"schedule.crops=[{crop}]"])
    side = recipe.image_size
    precision = resolve_precision("auto", CPU, recipe.network)
    images = torch.randint(256, (40, side, side, 3), dtype=torch.uint8)
    run = TrainingRun(Feed(images[:32], images[32:]), recipe, Numerics(CPU, precision))
    draw, learn = training_step(recipe, torch.channels_last, precision, crop)
    ready = draw()
    seconds = median_in_turn(
        {
            "ours": run.step,
            "bare": lambda: learn(ready),
        },
        rounds,
    )
    ratio = (1 - ROW_COST) * seconds["bare"] / seconds["ours"]
    print(
        f"\n{recipe.name}, crops of {crop:g}: bare step {seconds['bare']:.3f} s, training runs at "
        f"{ratio:.3f} of its images/s"
    )
    assert ratio >= 0.92


class DecodedEachTime(torch.utils.data.Dataset[torch.Tensor]):
    """What a plain loop would read from: an image is decoded whenever it is drawn."""

    def __init__(self, uris: list[str]) -> None:
        self.uris = uris

    def __len__(self) -> int:
        return len(self.uris)

    def __getitem__(self, number: int) -> torch.Tensor:
        return torch.from_numpy(read_image(self.uris[number]).copy()).permute(2, 0, 1) / 255


def plain_loop(uris: list[str], recipe: Recipe, workers: int, told: Connection) -> None:
    """A DataLoader, float32 and contiguous tensors; a step each time it is told to."""
    torch.set_num_threads(os.cpu_count() or 1)
    generator = torch.Generator().manual_seed(0)
    model = Autoencoder(recipe.network)
    optimizer = torch.optim.Adam(model.parameters())
    batches = iter(
        torch.utils.data.DataLoader(
            DecodedEachTime(uris),
            batch_size=recipe.schedule.batch,
            num_workers=workers,
            sampler=torch.utils.data.RandomSampler(uris, replacement=True, num_samples=10**6),
        )
    )
    while told.recv():
        batch = corrupt(next(batches), recipe.corruption, recipe.image_size, generator)
        loss = reconstruction_objective(model(batch.images), batch.target, batch.mask, 0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        told.send(True)


def test_training_is_twice_as_fast_as_a_plain_loop(tmp_path: Path) -> None:
    """On the same network and corruption; plain loops run in processes of their own, in turn."""
    use_cores(os.cpu_count() or 1)
    recipe = override(texture(), ["schedule.crops=[1]"])
    write_demo_data(tmp_path, categories=1, images=64, size=recipe.image_size)
    uris = sorted(str(path) for path in (tmp_path / "weave/train/good").iterdir())
    images = torch.from_numpy(load_images(uris, framing_for(uris, recipe, 2), threads=2).images)
    precision = resolve_precision("auto", CPU, recipe.network)
    run = TrainingRun(Feed(images[:56], images[56:]), recipe, Numerics(CPU, precision))

    spawn = multiprocessing.get_context("spawn")
    loops = {"in the loop": spawn.Pipe(), "by a worker": spawn.Pipe()}
    processes = [
        spawn.Process(target=plain_loop, args=(uris, recipe, workers, there))
        for workers, (_, there) in enumerate(loops.values())
    ]
    for process in processes:
        process.start()

    def plain(here: Connection) -> Callable[[], None]:
        def step() -> None:
            here.send(True)
            here.recv()

        return step

    steps = {name: plain(here) for name, (here, _) in loops.items()}
    seconds = median_in_turn({"ours": run.step, **steps}, rounds=12)
    for (here, _), process in zip(loops.values(), processes, strict=True):
        here.send(False)
        process.join()
    gains = {
        name: (1 - ROW_COST) * seconds[name] / seconds["ours"]
        for name in ("in the loop", "by a worker")
    }
    print(f"\n{recipe.name}: images/s over a plain loop's, images decoded {gains}")
    assert min(gains.values()) >= 2


def test_streaming_costs_little(ray_local: None, tmp_path: Path) -> None:
    """Images/s with a window over a quarter of the images, against all of them in memory."""
    recipe = override(texture(), ["schedule.images=500", "schedule.crops=[1]"])
    write_demo_data(tmp_path / "data", categories=1, images=256, size=512)
    uris = sorted(str(path) for path in (tmp_path / "data/weave/train/good").iterdir())
    rates: dict[str, float] = {}
    for name, images in (("in memory", 256), ("streamed", 64), ("in memory again", 256)):
        compute = Compute(
            precision="bfloat16",
            cpus_per_worker=2,
            checkpoint_minutes=60,
            memory_gib=images * 3 * recipe.image_size**2 / 1024**3,
        )
        rows: list[ProgressRow] = []
        train_category(
            uris, "weave", recipe, compute, Location.parse(tmp_path / name), on_row=rows.append
        )
        rates[name] = rows[-1].images_seen / rows[-1].seconds
        print(f"\n{name}: {rates[name]:.1f} images/s", end="")
    whole = (rates["in memory"] + rates["in memory again"]) / 2
    print(f"\nstreamed: {rates['streamed'] / whole:.2f} of the speed in memory")
    assert rates["streamed"] >= 0.85 * whole


def test_thousands_of_settings_are_judged_in_half_a_minute() -> None:
    """As many maps as grid gives at 256 px, three repeats, scores and ten average-map powers."""
    use_cores(1)
    generator = torch.Generator().manual_seed(0)

    def maps(count: int) -> torch.Tensor:
        return torch.rand(count, 1, 256, 256, generator=generator) ** 8

    truth = torch.zeros(96, 1, 256, 256, dtype=torch.bool)
    truth[..., 96:128, 96:128] = True
    evidence = {kind: Evidence(maps(26), maps(96) + 0.2 * truth, truth) for kind in DIFFERENCES}
    candidates = [
        MapSettings(
            difference=kind,
            kernel=kernel,
            repeats=repeats,
            average_power=power,
            image_score=reduction,
            top_fraction=0.005,
        )
        for kind in DIFFERENCES
        for kernel in kernels_of(KERNEL_SHARES, evidence["squared"])
        for repeats in (1, 2, 3)
        for power in (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)
        for reduction in ("max", "topk", "sum")
    ]
    started = time.monotonic()
    judged = judge(evidence, candidates, threads=2)
    seconds = time.monotonic() - started
    print(f"\n{len(judged)} settings in {seconds:.1f} s")
    assert len(judged) >= 2000
    assert seconds <= 30


def test_two_workers_train_what_one_trains(ray_local: None, tmp_path: Path) -> None:
    """The same parts on one worker with two threads and on two: losses, time, efficiency."""
    write_demo_data(tmp_path / "data", categories=1)
    uris = sorted(str(path) for path in (tmp_path / "data/weave/train/good").iterdir())
    recipe = override(demo(), ["schedule.images=2400"])
    store = Location.parse(tmp_path / "store")
    shared = {"precision": "bfloat16", "checkpoint_minutes": 60}
    runs = {
        "two workers": Compute(workers=2, cpus_per_worker=1, **shared),
        "one, two threads": Compute(workers=1, cpus_per_worker=2, accumulate=2, **shared),
        "one, one thread": Compute(workers=1, cpus_per_worker=1, accumulate=2, **shared),
    }
    found: dict[str, list[ProgressRow]] = {}
    for name, compute in runs.items():
        train_category(
            uris,
            "weave",
            override(recipe, [f"name={json.dumps(name)}"]),
            compute,
            store / name.replace(" ", "-"),
            on_row=found.setdefault(name, []).append,
        )
        last = found[name][-1]
        print(
            f"\n{name}: validation loss {last.validation_loss:.6f}, {last.images_seen:.0f} images "
            f"in {last.seconds:.1f} s",
            end="",
        )
    losses = {name: rows[-1].validation_loss for name, rows in found.items()}
    times = {name: rows[-1].seconds for name, rows in found.items()}
    efficiency = times["one, one thread"] / (2 * times["two workers"])
    print(f"\ntwo workers: {efficiency:.2f} of twice the speed of one with one thread")
    assert losses["two workers"] == pytest.approx(losses["one, one thread"], rel=1e-3)
    assert losses["two workers"] == pytest.approx(losses["one, two threads"], rel=0.1)
    assert efficiency >= 0.65


def test_the_demo_finds_the_defects_twice_in_a_row(tmp_path: Path) -> None:
    """`ssray demo` as a user runs it, and again over its own results."""
    for turn in ("first", "second"):
        started = time.monotonic()
        result = subprocess.run(
            [sys.executable, "-m", "ssray", "demo", "--out", tmp_path / "demo"],
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
