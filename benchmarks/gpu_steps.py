"""The steps of ``gpu_check.py`` that need no Ray. Each is a function of a ``Setup``."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from labelled import TestSet, judge
from torch import Tensor, nn

from ssray.calibration.calibrate import MAX_TRAINING, calibrate
from ssray.config import Compute, Recipe, override
from ssray.data.dataset import index_dataset
from ssray.data.demo.dataset import write_demo_data
from ssray.data.pose import Framing
from ssray.method.autoencoder import Autoencoder
from ssray.method.corruption import KINDS, corrupt
from ssray.method.inference import Reconstructor, autocast, to_network
from ssray.method.objective import reconstruction_objective
from ssray.models.artifact import ModelArtifact
from ssray.models.device import PRECISIONS
from ssray.recipes import compact, paper
from ssray.scoring.export import export as export_model
from ssray.scoring.scorer import Scorer
from ssray.storage.location import Location
from ssray.training.build import BuildRequest, build_model
from ssray.training.fit import TrainingRun, fit
from ssray.training.growth import filling_growth, grown, most_growth
from ssray.training.images import Feed, load_feed
from ssray.training.trainer import Numerics

CPU = torch.device("cpu")
SMALL = 8
"""A dry run's sides, widths and counts are so many times smaller."""
LOSS_TOLERANCE = 0.15
"""Of trained networks, relatively: rounding and noise differ, the draws do not."""
AUROC_TOLERANCE = 0.03
MAP_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
"""Of the same network's anomaly maps, relative to the largest value."""
TRAINING_IMAGES = 260
"""As many as a category of MVTec AD has, about; bounds how far a step grows."""


@dataclass(frozen=True)
class Setup:
    """Where a step runs, and how large things are.

    Attributes:
        device: that is checked.
        small: whether this is a dry run.
        minutes: after which the step will be ended.
        data: categories of MVTec AD, if they are there.
    """

    device: torch.device
    small: bool
    minutes: float
    data: str | None

    @classmethod
    def of(cls, dry_run: bool, minutes: float, data: str | None) -> Setup:
        """Refuses to check a GPU that is not there."""
        if not dry_run and not torch.cuda.is_available():
            raise SystemExit("torch sees no CUDA device here; --dry-run tries the check without")
        if dry_run:
            torch.set_num_threads(1)  # two would wait for each other on a busy machine
        return cls(torch.device("cpu" if dry_run else "cuda"), dry_run, minutes, data)

    def scaled(self, number: int, least: int = 2) -> int:
        """A side, a width or a count."""
        return max(least, number // SMALL) if self.small else number

    def recipe(self, recipe: Recipe, *settings: str) -> Recipe:
        """A recipe of this size."""
        return override(
            recipe,
            [
                f"image_size={self.scaled(recipe.image_size, 32)}",
                f"network.width={self.scaled(recipe.network.width, 4)}",
                *settings,
            ],
        )

    @property
    def precision(self) -> torch.dtype:
        """What training on the device takes by itself."""
        return torch.float32 if self.small else torch.bfloat16

    def wait(self) -> None:
        """Until the device has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object], rounds: int, warm: int = 3) -> float:
        """Of one call, where many follow each other without a wait between them."""
        for _ in range(warm):
            work()
        self.wait()
        began = time.perf_counter()
        for _ in range(rounds):
            work()
        self.wait()
        return (time.perf_counter() - began) / rounds

    def memory_mib(self) -> float:
        """The most that tensors took on the device."""
        if self.device.type != "cuda":
            return 0.0
        return torch.cuda.max_memory_allocated() / 2**20


def row(
    what: str,
    value: float | str,
    unit: str = "",
    *,
    least: float | None = None,
    most: float | None = None,
) -> None:
    """Prints a row; ``least`` or ``most`` is its target."""
    if isinstance(value, float) and not math.isfinite(value):
        value = str(value)
    found: dict[str, Any] = {"what": what, "value": value, "unit": unit}
    for sign, bound in ((">=", least), ("<=", most)):
        if bound is None:
            continue
        found["target"] = f"{sign} {bound:g}"
        found["holds"] = not isinstance(value, str) and (
            value >= bound if sign == ">=" else value <= bound
        )
    print(json.dumps(found), flush=True)


def recipes(setup: Setup) -> dict[str, Recipe]:
    """What is trained and scored, from the smallest network to the largest images."""
    return {
        "compact, 128 px": setup.recipe(compact.object_(), "schedule.crops=[1]"),
        "compact, 256 px": setup.recipe(compact.texture(), "schedule.crops=[1]"),
        "paper, 256 px, f 3": setup.recipe(paper.object_(), "schedule.crops=[1]"),
        "paper, 512 px, f 3": setup.recipe(paper.texture(), "schedule.crops=[1]"),
    }


def network_of(recipe: Recipe, device: torch.device) -> nn.Module:
    """An untrained network as trainings have it."""
    torch.manual_seed(0)
    network: nn.Module = Autoencoder(recipe.network)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def bare_step(network: nn.Module, images: Tensor, precision: torch.dtype) -> Callable[[], None]:
    """Forward, backward and Adam on images that are there."""
    optimizer = torch.optim.Adam(network.parameters(), fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(images.device, precision):
            loss = F.mse_loss(network(images), images)
        loss.backward()
        optimizer.step()

    return step


def random_images(setup: Setup, count: int, side: int) -> Tensor:
    """(B, 3, H, W) float32 on the device, channels-last."""
    images = torch.rand(count, 3, side, side, device=setup.device)
    return images.contiguous(memory_format=torch.channels_last)


def growth_of(setup: Setup, recipe: Recipe) -> float:
    """How far its step grows on the device, for a category of usual size."""
    shape = (recipe.image_size, recipe.image_size)
    most = 2 if setup.small else most_growth(recipe, TRAINING_IMAGES)
    return filling_growth(
        recipe, shape, Numerics(setup.device, setup.precision, parts=1), most=most
    )


def machine(setup: Setup) -> None:
    """What is checked."""
    row("torch", str(torch.__version__))
    row("python", platform.python_version())
    row("CPU cores", os.cpu_count() or 0)
    if setup.device.type == "cuda":
        row("card", torch.cuda.get_device_name())
        row("cards", torch.cuda.device_count())
        row("memory", torch.cuda.get_device_properties(0).total_memory / 2**30, "GiB")
        row("bfloat16 instructions", str(torch.cuda.is_bf16_supported(including_emulation=False)))
        images, began = torch.rand(1, device="cuda"), time.perf_counter()
        network_of(compact.object_(), setup.device)
        setup.wait()
        row("seconds until a network is there", time.perf_counter() - began, "s")
        row("driver works", str(bool((images + 1 > images).all())))


def corruption_equals_the_cpus(setup: Setup) -> None:
    """One generator state, two devices; but for white noise, which is drawn where images are."""
    side = setup.scaled(256, 32)
    images = torch.rand(16, 3, side, side)
    for name, recipe in (("texture", compact.texture()), ("object", compact.object_())):
        settings = [f"corruption.mix.{kind}=1" for kind in KINDS if kind != "pattern"]
        settings += ["corruption.mix.pattern=0", "corruption.rotated=0.3"]
        corruption = override(recipe, settings).corruption
        found = [
            corrupt(images.to(device), corruption, side, torch.Generator().manual_seed(1))
            for device in (CPU, setup.device)
        ]
        for part in ("images", "mask"):
            here, there = (getattr(each, part).cpu() for each in found)
            share = float(((here - there).abs() > 1e-3).float().mean())
            row(f"{name}: share of the {part} that differs by 0.001", share, most=1e-3)


def a_step_equals_the_cpus(setup: Setup) -> None:
    """Loss and gradients of one step from the same weights and images."""
    recipe = setup.recipe(compact.object_())
    images = torch.rand(4, 3, recipe.image_size, recipe.image_size)
    batch = corrupt(images, recipe.corruption, recipe.image_size, torch.Generator().manual_seed(1))

    def learned(device: torch.device, precision: torch.dtype) -> tuple[float, Tensor]:
        network = network_of(recipe, CPU).to(device)
        corrupted, target, mask = (
            each.to(device) for each in (batch.images, batch.target, batch.mask)
        )
        with autocast(device, precision):
            reconstruction = network(corrupted)
        loss = reconstruction_objective(reconstruction, target, mask, 0.5)
        loss.backward()
        gradients = [p.grad.flatten().cpu() for p in network.parameters() if p.grad is not None]
        return float(loss), torch.cat(gradients)

    loss, gradient = learned(CPU, torch.float32)
    tf32 = torch.backends.cudnn.allow_tf32
    for name, precision, allowed, most in (
        ("float32 without TF32", torch.float32, False, 1e-4),
        ("float32", torch.float32, tf32, 1e-2),
        ("bfloat16", torch.bfloat16, tf32, 5e-2),
    ):
        torch.backends.cudnn.allow_tf32 = allowed
        found, slope = learned(setup.device, precision)
        row(f"loss in {name}, relative difference", abs(found / loss - 1), most=most)
        off = float((slope - gradient).norm() / gradient.norm())
        what = f"gradient in {name}, relative difference"
        if allowed:
            row(what, off)  # rounding alone moves the small ones in front of a normalisation far
        else:
            row(what, off, most=1e-2)


def bare_steps(setup: Setup) -> None:
    """Images a second of bare steps by the images they take, and how far steps grow."""
    for name, recipe in recipes(setup).items():
        network = network_of(recipe, setup.device)
        for batch in (4, 16, 64):
            if setup.small and batch > 4:
                continue
            try:
                images = random_images(setup, batch, recipe.image_size)
                step = bare_step(network, images, setup.precision)
                seconds = setup.seconds(step, rounds=5)
            except torch.cuda.OutOfMemoryError:
                break
            row(f"{name}: {batch} images a step", batch / seconds, "images/s")
        began = time.perf_counter()
        growth = growth_of(setup, recipe)
        row(f"{name}: images a step that fill the card", growth * recipe.schedule.batch)
        row(f"{name}: seconds to find that out", time.perf_counter() - began, "s")


def training_against_bare_steps(setup: Setup) -> None:
    """All that a training does in a step, at the images that fill the card."""
    for name, recipe in recipes(setup).items():
        _training_against_bare_steps(setup, name, recipe)


def _training_against_bare_steps(setup: Setup, name: str, recipe: Recipe) -> None:
    larger = grown(recipe, growth_of(setup, recipe))
    batch, side = larger.schedule.batch, recipe.image_size
    images = torch.randint(256, (setup.scaled(72, 10), side, side, 3), dtype=torch.uint8)
    ready = random_images(setup, batch, side)
    generator = torch.Generator().manual_seed(0)
    bare = bare_step(network_of(recipe, setup.device), ready, setup.precision)
    numerics = Numerics(setup.device, setup.precision)
    run = TrainingRun(Feed(images[8:], images[:8]), larger, numerics)
    if setup.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    works: dict[str, Callable[[], object]] = {
        "bare": bare,
        "ours": run.step,
        "drawing": lambda: corrupt(ready, recipe.corruption, side, generator),
    }
    rounds = 2 if setup.small else max(6, round(600 / batch))
    seconds = {
        what: statistics.median(setup.seconds(work, rounds) for _ in range(3))
        for what, work in works.items()
    }
    row(f"{name}: {batch} images a step", batch / seconds["ours"], "images/s")
    ratio = seconds["bare"] / seconds["ours"]
    row(f"{name}: over bare steps", ratio, least=0.0 if setup.small else 0.92)
    share = seconds["drawing"] / seconds["ours"]
    row(f"{name}: corruption alone, share of a step", share, most=1.0 if setup.small else 0.05)
    row(f"{name}: memory", setup.memory_mib(), "MiB")


def scoring_against_bare_passes(setup: Setup) -> None:
    """Decoded images in, maps and scores out, against forward passes on images that are there."""
    for base, side in ((compact.texture(), 256), (paper.texture(), 512), (paper.object_(), 256)):
        recipe = setup.recipe(base)
        sized = override(recipe, [f"image_size={setup.scaled(side, 32)}"])
        _scoring_against_bare_passes(setup, f"{recipe.name}, {side} px", sized)


def _scoring_against_bare_passes(setup: Setup, name: str, recipe: Recipe) -> None:
    model = quick_model(setup, recipe)
    batch = setup.scaled(32)
    draws = np.random.default_rng(0)
    images = draws.integers(0, 256, (batch, *model.input_shape, 3), dtype=np.uint8)
    scorer = Scorer(model, setup.device, setup.precision)
    network = model.build(setup.device)
    ready = to_network(torch.from_numpy(images), setup.device)

    def forward() -> None:
        with torch.inference_mode(), autocast(setup.device, setup.precision):
            network(ready)

    rounds = setup.scaled(20)
    passes = statistics.median(setup.seconds(forward, rounds) for _ in range(3))
    scored = statistics.median(setup.seconds(lambda: scorer(images), rounds) for _ in range(3))
    row(f"{name}: scoring", batch / scored, "images/s")
    row(f"{name}: over bare passes", passes / scored, least=0.0 if setup.small else 0.9)


def quick_model(setup: Setup, recipe: Recipe) -> ModelArtifact:
    """A model of a recipe's size after a few steps; which images it has seen does not matter."""
    fixed = ["anomaly_map.difference=squared", "anomaly_map.kernel=7", "schedule.crops=[1]"]
    few = override(recipe, [*fixed, "schedule.images=16", "schedule.epochs=null"])
    with tempfile.TemporaryDirectory() as folder:
        size = max(64, few.image_size)
        [name] = write_demo_data(Path(folder), categories=1, images=20, size=size)
        uris = sorted(str(p) for p in Path(folder, name, "train/good").iterdir())
        compute = Compute(images_per_step=4, precision="float32" if setup.small else "bfloat16")
        model = build_model(BuildRequest(uris, name, "v", few, compute), setup.device, threads=2)
    assert model is not None  # this process is alone
    return model


def maps_equal_the_cpus(setup: Setup) -> None:
    """Anomaly maps of a texture's and an object's autoencoders on both devices."""
    for kind, recipe in (("texture", compact.texture()), ("object", compact.object_())):
        model = quick_model(setup, setup.recipe(recipe))
        shape = (4, *model.input_shape, 3)
        images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        expected = Scorer(model, CPU, torch.float32)(images).maps
        for precision, most in MAP_TOLERANCE.items():
            for name, allowed in (("", True), (" without TF32", False)):
                if precision == "bfloat16" and name:
                    continue
                torch.backends.cudnn.allow_tf32 = allowed
                found = Scorer(model, setup.device, PRECISIONS[precision])(images).maps
                off = float(np.abs(found - expected).max() / expected.max())
                bound = 10 * most if precision == "float32" and allowed else most
                row(f"{kind}: maps in {precision}{name}, largest difference", off, most=bound)


METRICS = ("image AUROC", "pixel AUROC")


def trained_quality_equals_the_cpus(setup: Setup) -> None:
    """Networks trained on the CPU and on the device, in both precisions, judged alike."""
    torch.set_num_threads(1 if setup.small else 2)  # more wait for each other at this size
    with tempfile.TemporaryDirectory() as folder:
        [name] = write_demo_data(Path(folder), categories=1, images=60, size=64)
        manifest = index_dataset(Location.parse(folder), [name])
        uris = manifest.filter(pc.equal(manifest["split"], "train"))["uri"].to_pylist()
        images = 400 if setup.small else 8000
        recipe = override(
            compact.demo(),
            ["image_size=64", f"schedule.images={images}", "schedule.epochs=null"],
        )
        test_set = TestSet.read(manifest, Framing((64, 64)))
        feed = load_feed(uris, recipe, threads=2, seed=0)

        def judged(
            device: torch.device, precision: torch.dtype, growth: float = 1
        ) -> tuple[float, float, float]:
            fitted = fit(feed, grown(recipe, growth), Numerics(device, precision))
            calibration, average = calibrate(
                Reconstructor([fitted.model], precision),
                feed.held_out,
                feed.sample(MAX_TRAINING),
                recipe,
                0,
            )
            loss = fitted.history[-1].validation_loss
            network = fitted.model.cpu()
            return loss, *judge([network], calibration, average, test_set, torch.float32)

        reference = judged(CPU, torch.float32)
        for what, value in zip(("validation loss", *METRICS), reference, strict=True):
            row(f"CPU: {what}", value)
        for name, precision, growth in (
            ("float32", torch.float32, 1),
            ("bfloat16", torch.bfloat16, 1),
            ("bfloat16, steps of 2 x the images", torch.bfloat16, 2),
        ):
            loss, *aurocs = judged(setup.device, precision, growth)
            off = abs(loss / reference[0] - 1)
            if growth == 1:
                row(f"{name}: loss, relative difference", off, most=LOSS_TOLERANCE)
            else:
                row(f"{name}: loss, relative difference", off)  # another course
            for metric, value, expected in zip(METRICS, aurocs, reference[1:], strict=True):
                bound = 1.0 if setup.small else AUROC_TOLERANCE
                row(f"{name}: {metric} lost", expected - value, most=bound)


def variants_of_the_step(setup: Setup) -> None:
    """What pays beside channels-last: cuDNN's search, CUDA graphs, and last, as that takes longest,
    torch.compile at the images that fill the card.
    """
    to_compile = []
    for name in ("compact, 128 px", "paper, 256 px, f 3"):
        recipe = recipes(setup)[name]
        batch = recipe.schedule.batch
        filling = round(growth_of(setup, recipe) * batch)
        for count in sorted({batch, filling}):
            images = random_images(setup, count, recipe.image_size)
            for variant, make in VARIANTS.items():
                _variant(setup, f"{name}, {count} a step, {variant}", recipe, images, make)
        to_compile.append((f"{name}, {filling} a step, compiled", recipe, images))
    for what, recipe, images in to_compile:
        _variant(setup, what, recipe, images, compiled)


Step = Callable[[], object]
Maker = Callable[[Setup, Recipe, Tensor], Step]


def _variant(setup: Setup, what: str, recipe: Recipe, images: Tensor, make: Maker) -> None:
    began = time.perf_counter()
    try:
        step = make(setup, recipe, images)
        step()
        setup.wait()
        until = time.perf_counter() - began
        seconds = setup.seconds(step, rounds=setup.scaled(16))
    except Exception as error:  # one variant that does not run must not hide the others
        reason = str(error).strip().splitlines() or [""]
        row(what, f"{type(error).__name__}: {reason[0][:120]}")
        return
    finally:
        torch.backends.cudnn.benchmark = False
    row(what, len(images) / seconds, "images/s")
    row(f"{what}: until the first step", until, "s")


def eager(setup: Setup, recipe: Recipe, images: Tensor) -> Step:
    """As trainings run."""
    return bare_step(network_of(recipe, setup.device), images, setup.precision)


def contiguous(setup: Setup, recipe: Recipe, images: Tensor) -> Step:
    """Without channels-last."""
    network = network_of(recipe, setup.device)
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return bare_step(network, images.contiguous(), setup.precision)


def searched(setup: Setup, recipe: Recipe, images: Tensor) -> Step:
    """With cuDNN trying its algorithms on each new shape."""
    torch.backends.cudnn.benchmark = True
    return eager(setup, recipe, images)


def compiled(setup: Setup, recipe: Recipe, images: Tensor) -> Step:
    """As ``--compile`` does."""
    network = network_of(recipe, setup.device)
    network.compile(dynamic=False)
    return bare_step(network, images, setup.precision)


def graphed(setup: Setup, recipe: Recipe, images: Tensor) -> Step:
    """Forward, backward and Adam, recorded once and replayed."""
    network = network_of(recipe, setup.device)
    optimizer = torch.optim.Adam(network.parameters(), fused=True, capturable=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(
            images.device.type,
            dtype=setup.precision,
            enabled=setup.precision != torch.float32,
            cache_enabled=False,
        ):
            loss = F.mse_loss(network(images), images)
        loss.backward()
        optimizer.step()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def replay(network: nn.Module = network, optimizer: torch.optim.Adam = optimizer) -> None:
        graph.replay()  # writes into the memory of both, which must live as long

    return replay


VARIANTS: dict[str, Maker] = {
    "eager": eager,
    "contiguous": contiguous,
    "cuDNN's search": searched,
    "CUDA graph": graphed,
}


def export(setup: Setup) -> None:
    """A model trained on the device, exported on the CPU."""
    model = quick_model(setup, setup.recipe(compact.object_()))
    with tempfile.TemporaryDirectory() as folder:
        off = export_model(model, "torch", Location.parse(folder))
        size = sum(p.stat().st_size for p in Path(folder).iterdir())
    row("torch.export, difference over thresholds", off, most=1e-3)
    row("torch.export, size", size / 2**20, "MiB")


@dataclass
class Watch:
    """How busy the card is while a block runs; nothing where there is no nvidia-smi.

    Attributes:
        busy: percent, sampled twice a second.
        memory: MiB in use.
    """

    busy: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Samples while the block runs."""
        done = threading.Event()
        thread = threading.Thread(target=self._sample, args=[done], daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _sample(self, done: threading.Event) -> None:
        query = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--id=0"]
        while not done.wait(0.5):
            with contextlib.suppress(OSError, ValueError, subprocess.CalledProcessError):
                answer = subprocess.run(
                    [*query, "--format=csv,noheader,nounits"],
                    capture_output=True,
                    text=True,
                    check=True,
                )
                busy, memory = answer.stdout.split(",")
                self.busy.append(float(busy))
                self.memory.append(float(memory))

    def rows(self, name: str) -> None:
        """Prints what was seen."""
        busy: Sequence[float] = [each for each in self.busy if each > 0]
        row(f"{name}: card busy, median while at work", statistics.median(busy or [math.nan]), "%")
        row(f"{name}: memory of the card", max(self.memory, default=math.nan), "MiB")
