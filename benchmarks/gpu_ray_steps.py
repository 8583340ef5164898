"""The steps of ``gpu_check.py`` that need Ray, through the functions that the commands call.

In a dry run Ray is told of a GPU that is not there, and workers that reserve it compute on the CPU.
"""

from __future__ import annotations

import io
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from gpu_steps import Setup, Watch, quick_model, row
from PIL import Image
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ssray.cluster.categories import survey_of
from ssray.cluster.environment import quiet_local_ray

quiet_local_ray()

from ssray.cluster.categories import (  # noqa: E402  Ray reads its settings when imported
    evaluate_categories,
    train_categories,
)
from ssray.cluster.nightly import score_night  # noqa: E402
from ssray.cluster.session import ray_session  # noqa: E402
from ssray.cluster.train import train_category  # noqa: E402
from ssray.config import Compute, Recipe, override  # noqa: E402
from ssray.data.dataset import training_uris  # noqa: E402
from ssray.data.demo.dataset import write_demo_data  # noqa: E402
from ssray.data.mvtec_ad import CATEGORIES  # noqa: E402
from ssray.method.autoencoder import Autoencoder  # noqa: E402
from ssray.models import artifact  # noqa: E402
from ssray.models import store as model_store  # noqa: E402
from ssray.nightly.protocol import NightRequest  # noqa: E402
from ssray.nightly.sources import CategoryRule  # noqa: E402
from ssray.recipes import compact, paper_as_published  # noqa: E402
from ssray.recipes.request import RecipeRequest  # noqa: E402
from ssray.storage.location import Location  # noqa: E402
from ssray.training.distributed import BACKENDS, ProcessGroup  # noqa: E402
from ssray.training.progress import ProgressRow  # noqa: E402

EARLIER_NIGHT = 280.0
"""Images a second of a night on one H100 with 16 cores, at commit 6638c20: Model I, f = 5."""


@contextmanager
def session(setup: Setup) -> Iterator[Location]:
    """Ray as the commands start it, and a folder; where there is no GPU, Ray pretends."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        with ray_session(4, 1) if setup.small else ray_session():
            row("seconds until Ray is there", time.perf_counter() - began, "s")
            yield Location.parse(folder)


def on_card(setup: Setup, **values: object) -> Compute:
    """What computes on the GPU, or pretends to."""
    if not setup.small:
        return Compute.model_validate({"device": "cuda"} | values)
    pretended = {"device": "cpu", "precision": "float32", "gpus_per_worker": 1, "backend": "torch"}
    return Compute.model_validate(pretended | {"cpus_per_worker": 1} | values)


def process_group(setup: Setup) -> None:
    """The process group of Ray Train's workers: numbers over gloo, gradients over NCCL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    dist.init_process_group(
        BACKENDS[setup.device.type], init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1
    )
    row("backends", BACKENDS[setup.device.type])
    network: nn.Module = Autoencoder(setup.recipe(compact.object_()).network)
    network.to(setup.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    parallel = DistributedDataParallel(
        network, broadcast_buffers=False, gradient_as_bucket_view=True
    )
    images = torch.rand(4, 3, 64, 64, device=setup.device)
    optimizer = torch.optim.Adam(parallel.parameters(), fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        (parallel(images) - images).square().mean().backward()
        optimizer.step()

    row("a step with DDP", setup.seconds(step, rounds=5), "s")
    pair = ProcessGroup(
        rank=0, size=2
    )  # says that there is somebody to ask; the group has one process

    def agree() -> None:
        pair.first(0.5, 1.0, 0.0)

    began = time.perf_counter()
    for _ in range(50):
        agree()
    row("agreeing on a step's numbers", (time.perf_counter() - began) / 50, "s")
    statistics = [torch.ones(3, device=setup.device), torch.ones(4, device=setup.device)]
    pair.add(statistics)
    total = float(sum(each.sum() for each in statistics))
    row("statistics added where they are", total, least=7)
    dist.destroy_process_group()


def night(setup: Setup) -> None:
    """PNGs of 512 x 160 px through one GPU actor, with the network of ``EARLIER_NIGHT``."""
    recipe = override(
        setup.recipe(paper_as_published.object_(), "network.kernel=5"),
        [f"image_size={setup.scaled(512, 64)}"],
    )
    count = setup.scaled(4800, 64)
    with session(setup) as place:
        model = strip_model(setup, recipe)
        artifact.save(model, place / "models")
        model_store.publish(place / "models", model.category, model.version, None)
        contents = strips(32)
        for number in range(count):
            (place / "images" / f"{number:06}.png").write(contents[number % len(contents)])
        request = NightRequest(
            images=[place / "images"],
            rule=CategoryRule(fixed=model.category),
            models=place / "models",
            out=place / "out",
            date="2026-11-21",
            batch=setup.scaled(400, 16),
        )
        first: list[float] = []
        watch, began = Watch(), time.perf_counter()

        def scored(done: int, total: int) -> None:
            if done and not first:
                first.append(time.perf_counter() - began)

        with watch.watching():
            outcome = score_night(request, on_card(setup), on_scored=scored)
        seconds = time.perf_counter() - began
    row("images without a row", count - outcome.images + sum(outcome.errors.values()), most=0)
    if not first:
        return
    row("seconds until the first batch", first[0], "s")
    row("images a second, all in", count / seconds, "images/s")
    batch = request.batch
    after = (count - batch) / max(seconds - first[0], 1e-9)
    least = 0 if setup.small else EARLIER_NIGHT
    row("images a second, after the first batch", after, "images/s", least=least)
    assert outcome.committed is not None
    for stage, spent in outcome.committed.summary.seconds.items():
        row(f"seconds on {stage}, of all threads", spent, "s")
    watch.rows("night")


def strips(count: int) -> list[bytes]:
    """PNGs of 512 x 160 px that do not compress to nothing."""
    draws = np.random.default_rng(0)
    contents = []
    for _ in range(count):
        coarse = Image.fromarray(draws.integers(0, 256, (20, 64, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((512, 160), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = (smooth + draws.integers(-6, 7, smooth.shape)).clip(0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noisy).save(buffer, "PNG")
        contents.append(buffer.getvalue())
    return contents


def strip_model(setup: Setup, recipe: Recipe) -> artifact.ModelArtifact:
    """A model for such images."""
    from ssray.training.build import BuildRequest, build_model

    few = override(
        recipe,
        [
            "anomaly_map.difference=squared",
            "anomaly_map.kernel=7",
            "schedule.crops=[1]",
            "schedule.images=16",
            "schedule.epochs=null",
        ],
    )
    with tempfile.TemporaryDirectory() as folder:
        uris = []
        for number, content in enumerate(strips(12)):
            path = Path(folder, f"{number}.png")
            path.write_bytes(content)
            uris.append(str(path))
        compute = Compute(images_per_step=4, precision="float32" if setup.small else "bfloat16")
        model = build_model(
            BuildRequest(uris, "strip", "v1", few, compute), setup.device, threads=2
        )
    assert model is not None  # this process is alone
    return model


def trainings_on_one_card(setup: Setup) -> None:
    """One training by itself, then three at once on thirds of the card."""
    with session(setup) as place:
        write_demo_data(Path((place / "data").path), categories=3, images=60, size=128)
        images = 400 if setup.small else 10**6
        limit = {} if setup.small else {"max_minutes": 0.3}
        settings = [f"schedule.images={images}", "schedule.epochs=null"]
        if setup.small:
            settings += ["image_size=64", "network.width=4"]
        request = RecipeRequest("compact-object", tuple(settings))
        rows: list[ProgressRow] = []
        began, first = time.perf_counter(), list[float]()

        def seen(epoch: ProgressRow) -> None:
            rows.append(epoch)
            if len(rows) == 1:
                first.append(time.perf_counter() - began - epoch.seconds)

        uris = training_uris(place / "data", "weave")
        recipe = request.resolve("weave", lambda: survey_of(uris))
        watch = Watch()
        with watch.watching():
            train_category(
                uris, "weave", recipe, on_card(setup, **limit), place / "one", on_row=seen
            )
        row("one training: seconds until its first step", first[0], "s")
        row("one training", rows[-1].images_seen / rows[-1].seconds, "images/s")
        watch.rows("one training")
        watch, began = Watch(), time.perf_counter()
        with watch.watching():
            failed = train_categories(
                place / "data",
                [],
                request,
                on_card(setup, gpus_per_worker=0.33, **limit),
                place / "three",
                force=True,
            )
        row("three trainings at once that failed", len(failed), most=0)
        versions = model_store.published(place / "three")
        facts = [artifact.load_facts(place / "three", *named) for named in versions.items()]
        together = sum(each.images_seen / each.seconds for each in facts)
        row("three trainings at once, images a second", together, "images/s")
        row("three trainings at once, all in", time.perf_counter() - began, "s")
        row("images a step", facts[0].images_per_step or 0)
        watch.rows("three trainings at once")


def evaluation(setup: Setup) -> None:
    """Labelled images through GPU actors."""
    with session(setup) as place:
        [name] = write_demo_data(Path((place / "data").path), categories=1, images=20, size=64)
        model = quick_model(setup, setup.recipe(compact.object_()))
        artifact.save(model, place / "models")
        model_store.publish(place / "models", model.category, model.version, None)
        began = time.perf_counter()
        metrics, scores = evaluate_categories(
            place / "data", [name], place / "models", on_card(setup), place / "out"
        )
        seconds = time.perf_counter() - began
        found = metrics.to_pylist()[0]
        expected = found["n_good"] + found["n_defect"]
        row("images without a score", expected - len(scores), most=0)
        row("images a second, all in", len(scores) / seconds, "images/s")


def two_cards(setup: Setup) -> None:
    """DDP over NCCL between two cards, where there are two."""
    if not setup.small and torch.cuda.device_count() < 2:
        row("cards", torch.cuda.device_count(), "there is no second one to train on")
        return
    with session(setup) as place:
        [name] = write_demo_data(Path((place / "data").path), categories=1, images=60, size=64)
        images = 400 if setup.small else 20_000
        settings = (f"schedule.images={images}", "schedule.epochs=null", "image_size=64")
        request = RecipeRequest("demo", settings)
        half = {"gpus_per_worker": 0.5} if setup.small else {}  # one is pretended, not two
        compute = on_card(setup, workers=2, **half)
        failed = train_categories(
            place / "data", [name], request, compute, place / "models", force=True
        )
        row("trainings with two workers that failed", len(failed), most=0)
        version = model_store.published_version(place / "models", name)
        facts = artifact.load_facts(place / "models", name, version)
        row("workers", facts.workers, least=2)
        row("two workers", facts.images_seen / facts.seconds, "images/s")


def cpu_cores(setup: Setup) -> None:
    """One training on all cores of the machine, against one on two of them."""
    cores = len(os.sched_getaffinity(0))
    with session(setup) as place:
        [name] = write_demo_data(Path((place / "data").path), categories=1, images=60, size=128)
        uris = training_uris(place / "data", name)
        settings = ["schedule.images=1000000", "schedule.epochs=null"]
        if setup.small:
            settings += ["image_size=64", "network.width=4"]
        recipe = override(compact.object_(), settings)
        minutes = 0.1 if setup.small else 0.3
        rates: dict[str, float] = {}
        for label, compute in (
            ("two cores", Compute(device="cpu", workers=1, cpus_per_worker=min(2, cores))),
            ("all cores", Compute(device="cpu")),
        ):
            rows: list[ProgressRow] = []
            store = place / label.replace(" ", "-")
            limited = compute.model_copy(update={"max_minutes": minutes, "precision": "float32"})
            done = train_category(uris, name, recipe, limited, store, on_row=rows.append)
            rates[label] = rows[-1].images_seen / rows[-1].seconds
            facts = artifact.load_facts(store, name, done.version)
            row(f"{label}: {facts.workers} workers of {facts.threads}", rates[label], "images/s")
        ratio = rates["all cores"] / rates["two cores"]
        least = 6 * cores / 16 if cores >= 16 else 0
        row(f"{cores} cores over two", ratio, least=least)


def accuracy(setup: Setup) -> None:
    """The recipes ``paper`` on MVTec AD, in turn, in equal shares of the time; AUROC in percent."""
    assert setup.data is not None  # the step is chosen only with it
    root = Location.parse(setup.data)
    names = [n for n in ("screw", "grid", "transistor") if (root / n / "train").exists()]
    minutes = (setup.minutes - 1) / max(1, len(names)) - 0.7
    with session(setup) as place:
        for name in names:
            recipe = RecipeRequest("compact-object" if setup.small else "paper")
            compute = on_card(setup, max_minutes=0.2 if setup.small else minutes)
            failed = train_categories(root, [name], recipe, compute, place / "models", force=True)
            if failed:
                row(f"{name}: {failed[name]}", "failed")
                continue
            facts = artifact.load_facts(
                place / "models",
                name,
                model_store.published_version(place / "models", name),
            )
            row(f"{name}: minutes of training", facts.seconds / 60, "min")
            row(f"{name}: images seen", facts.images_seen)
            metrics, _ = evaluate_categories(
                root, [name], place / "models", on_card(setup), place / "out"
            )
            [found] = metrics.to_pylist()
            published = CATEGORIES[name].published
            for metric, expected in zip(("image", "pixel"), published, strict=True):
                value = 100 * found[f"{metric}_auroc"]
                row(f"{name}: {metric} AUROC (the paper: {expected})", value, "%")
