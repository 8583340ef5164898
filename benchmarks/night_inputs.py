"""A night of camera images: by ssray, by a plain Ray script, and as fast as one core allows.

    python benchmarks/night_inputs.py --root s3://BUCKET/PREFIX --images 200
    python benchmarks/night_inputs.py --root DIR --models STORE --category C
    PYTHONPATH=OTHER_TREE python benchmarks/night_inputs.py --root s3://BUCKET/PREFIX --images 200

makes JPEG photographs of 2448 x 2048 pixels and PNG images of 512 x 512 below ROOT, if they aren't
there yet, and scores each kind in three ways, in turn:

- ``limit``: fetch, decode, model and encode of some images, each stage by itself in one thread and
  added up: what a core can do at most;
- ``night``: ``ssray nightly``, through the function that the command calls;
- ``plain``: a script of Ray Data: ``read_images``, which resizes, ``map_batches`` with the network
  of the same model in torch, ``write_parquet``.

Start and end of a run are not counted: it is timed over all images and over a few, and the rate is
that of the others. Without a model, one is trained for a moment, of 256 pixels: it finds nothing,
but takes as long as one that does.
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image

import ssray
from ssray.cluster.environment import quiet_local_ray

quiet_local_ray()

import ray.data  # noqa: E402  Ray reads its settings when imported

from ssray.cluster.nightly import score_night  # noqa: E402
from ssray.cluster.session import ray_session  # noqa: E402
from ssray.config import Compute, override  # noqa: E402
from ssray.data.demo.category import Category  # noqa: E402
from ssray.models import artifact  # noqa: E402
from ssray.models.device import resolve_device, use_cores  # noqa: E402
from ssray.models.store import publish, published_version  # noqa: E402
from ssray.nightly.batch import BatchScorer  # noqa: E402
from ssray.nightly.protocol import NightRequest  # noqa: E402
from ssray.nightly.run import Places, write_part  # noqa: E402
from ssray.nightly.sources import CategoryRule, Source  # noqa: E402
from ssray.recipes.compact import texture  # noqa: E402
from ssray.scoring.heatmap import levels_to_png  # noqa: E402
from ssray.scoring.judge import SCORE_BATCH, Judge, prepare  # noqa: E402
from ssray.storage.fetch import Fetcher  # noqa: E402
from ssray.storage.location import Location  # noqa: E402
from ssray.training.build import BuildRequest, build_model  # noqa: E402

Kind = Literal["JPEG", "PNG"]
SHAPES: dict[Kind, tuple[int, int]] = {"JPEG": (2048, 2448), "PNG": (512, 512)}
"""Rows and columns of the images."""
PRODUCT = 1
"""The index of the demo's category whose photographs are taken: grain, a texture in colour."""
SPECIMENS = 8
DRAWN_SIDE = 612
"""Width of the demo's images before they are enlarged to a camera's, pixels."""
TRAINING_IMAGES = 8
FEW = 8
"""Images of the short run that is subtracted."""
MOST_ALONE = 32
"""Images of which each stage is timed by itself."""
SHARE = 0.5
"""Of a CPU, for each task of the plain script, so that one that reads and one that scores fit."""


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True, help="a folder or s3://BUCKET/PREFIX")
    parser.add_argument("--images", type=int, default=200, help="of each kind")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpus", type=int, default=1, help="cores to use, of those there are")
    parser.add_argument("--models", help="a model store; default: a model is made")
    parser.add_argument("--category", help="of the model")
    options = parser.parse_args()
    if options.images <= FEW or (options.models is None) != (options.category is None):
        parser.error(f"--images must be more than {FEW}; --models and --category go together")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cpus])
    root, tree = Location.parse(options.root), Path(ssray.__file__).parent
    describe = ["git", "-C", str(tree), "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip()
    print(f"ssray {commit or tree}, {options.images} images of each kind, {options.cpus} cores")
    print("| images | way | images/s | of the limit | times the plain script's |")
    print("|---|---|---|---|---|")
    with ray_session(num_cpus=options.cpus):
        for kind in get_args(Kind):
            series = images(root, kind, options.images)
            if options.models:
                model = Model(Location.parse(options.models), options.category)
            else:
                model = quick_model(root / f"models-{secrets.token_hex(4)}", kind)
            rates = measure(series, model, root, options.rounds, options.cpus)
            for way in rates[0]:
                figures = [median(rates, way, to) for to in (None, "limit", "plain")]
                print(f"| {kind} | {way} | " + " | ".join(f"{x:.2f}" for x in figures) + " |")


@dataclass(frozen=True)
class Series:
    """Images of one kind: the first few of them, and all."""

    few: Location
    all: Location
    count: int


@dataclass(frozen=True)
class Model:
    """The version in use of a category of a model store."""

    store: Location
    category: str

    def load(self) -> artifact.ModelArtifact:
        """The stored model."""
        return artifact.load(self.store, self.category, self.version)

    @property
    def version(self) -> str:
        """The name of the version."""
        return published_version(self.store, self.category)


Rates = dict[str, float]
"""Images a second of each way; ``limit`` and ``plain`` are among them."""


def median(rates: Sequence[Rates], way: str, to: str | None = None) -> float:
    """The median over rounds of a way's rate, or of its ratio to another's in the same round."""
    return statistics.median(each[way] / (each[to] if to else 1) for each in rates)


def measure(series: Series, model: Model, root: Location, rounds: int, cpus: int) -> list[Rates]:
    """Times the three ways in turn, on the Ray that is there; results are kept below ``root``."""
    by_night, by_script = partial(run_night, model), partial(run_plain, model, cpus)
    out = root / f"out-{secrets.token_hex(4)}"
    for name, run in (("night", by_night), ("plain", by_script)):
        run(series.few, out / f"untimed-{name}")  # the first start reads its libraries from disk
    found = []
    for number in range(rounds):
        seconds = seconds_alone(series, model, out / f"{number}/limit")
        stages = ", ".join(f"{stage} {1000 * spent:.1f} ms" for stage, spent in seconds.items())
        night = rate(series, by_night, out / f"{number}/night")
        plain = rate(series, by_script, out / f"{number}/plain")
        found.append({"limit": cpus / sum(seconds.values()), "night": night, "plain": plain})
        print(f"{stages}; night {night:.2f}, plain {plain:.2f} images/s", file=sys.stderr)
    return found


def rate(series: Series, run: Callable[[Location, Location], None], out: Location) -> float:
    """Images a second of a run, start and end not counted."""
    seconds = []
    for name, images in (("few", series.few), ("all", series.all)):
        begun = time.perf_counter()
        run(images, out / name)
        seconds.append(time.perf_counter() - begun)
    if seconds[1] <= seconds[0]:
        raise RuntimeError(
            f"{series.count} images took no longer than {FEW}: too few images, or too much else "
            "runs on this machine."
        )
    return (series.count - FEW) / (seconds[1] - seconds[0])


def seconds_alone(series: Series, model: Model, out: Location) -> dict[str, float]:
    """Seconds an image of each stage by itself, in one thread, on the device that nights use.

    What runs on a GPU is not counted: there the cores do the rest.
    """
    use_cores(1)
    device = resolve_device("auto")
    listed = [
        Source(series.all.at(info).uri, model.category, info.size)
        for info in series.all.files()[:MOST_ALONE]
    ]
    chunks = [listed[first : first + SCORE_BATCH] for first in range(0, len(listed), SCORE_BATCH)]
    scorer = BatchScorer(
        model.store, {model.category: model.version}, device, "auto", "auto", readers=1
    )
    results = [scorer(chunk) for chunk in chunks]
    judge = Judge(model.load(), device, "auto", "auto")
    fetch, framing = Fetcher(), judge.artifact.framing
    places = Places(out, "2026-01-01")
    seconds = dict.fromkeys(("fetch", "decode", "model", "encode"), 0.0)

    @contextmanager
    def timed(stage: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        seconds[stage] += time.perf_counter() - begun

    for number, chunk in enumerate(chunks):
        with timed("fetch"):
            files = [fetch(source.uri, source.size) for source in chunk]
        with timed("decode"):
            prepared = [prepare(partial(bytes, content), framing) for content in files]
        if number == 0:
            judge(prepared)  # compiles
        with timed("model"):
            judged = judge(prepared)
        with timed("encode"):
            for each in judged:
                each.row()
                if each.verdict and each.verdict.flagged:
                    levels_to_png(each.verdict.levels)
            write_part(places, number, model.category, (), results[number], device.type)
    if device.type == "cuda":
        del seconds["model"]
    return {stage: spent / len(listed) for stage, spent in seconds.items()}


def run_night(model: Model, images: Location, out: Location) -> None:
    """Scores a night as ``ssray nightly`` does; every image must get a score."""
    request = NightRequest(
        images=[images],
        rule=CategoryRule(fixed=model.category),
        models=model.store,
        out=out,
        date="2026-01-01",
    )
    outcome = score_night(request, Compute())
    if outcome.errors or outcome.missing:
        raise RuntimeError(f"{images}: {outcome.errors}, {outcome.missing} were not scored")


class PlainScorer:
    """What a user would write: the network as it comes, a batch at a time."""

    def __init__(self, model: Model) -> None:
        self._device = resolve_device("auto")
        self._network = model.load().build(self._device)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Paths and (B, H, W, 3) uint8 images to paths and scores."""
        pixels = torch.from_numpy(np.stack([*batch["image"]])).to(self._device)
        images = pixels.permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode():
            difference = (self._network(images) - images).square().mean(dim=1)
        return {"path": batch["path"], "score": difference.amax(dim=(1, 2)).cpu().numpy()}


def run_plain(model: Model, cpus: int, images: Location, out: Location) -> None:
    """Scores images with Ray Data alone."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[PlainScorer.__module__])
    ray.data.DataContext.get_current().enable_progress_bars = False
    shape = model.load().framing.shape
    ray.data.read_images(
        images.path,
        filesystem=images.filesystem,
        include_paths=True,
        size=shape,
        mode="RGB",
        num_cpus=SHARE,
    ).map_batches(
        PlainScorer,
        batch_size=SCORE_BATCH,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=cpus),
        num_cpus=SHARE,
        num_gpus=1 if torch.cuda.is_available() else None,
        fn_constructor_kwargs={"model": model},
    ).write_parquet(out.path, filesystem=out.filesystem, ray_remote_args={"num_cpus": SHARE})


def images(root: Location, kind: Kind, count: int) -> Series:
    """Makes so many images of a kind below ``root``, if they are not there."""
    series = Series(root / f"{kind}-{FEW}", root / f"{kind}-{count}", count)
    for folder, number in ((series.few, FEW), (series.all, count)):
        places = [folder / f"{each:06}.{kind.lower()}" for each in range(number)]
        if not places[-1].exists():
            with ThreadPoolExecutor(1) as pool:  # draws one while another is written
                written = [
                    pool.submit(place.write, content)
                    for place, content in zip(places, contents(kind), strict=False)
                ]
            for each in written:
                each.result()
    return series


def contents(kind: Kind) -> Iterator[bytes]:
    """Files of photographs of a few specimens, each with grain of its own; always the same."""
    rows, columns = SHAPES[kind]
    pictures = [
        np.asarray(image.resize((columns, columns), Image.Resampling.BICUBIC), np.int16)[:rows]
        for image in specimens()
    ]
    generator = np.random.default_rng(0)
    for picture in itertools.cycle(pictures):
        grain = generator.integers(-4, 5, (rows, columns, 1), np.int16)
        buffer = io.BytesIO()
        image = Image.fromarray((picture + grain).clip(0, 255).astype(np.uint8))
        image.save(buffer, kind, **({"quality": 90} if kind == "JPEG" else {}))
        yield buffer.getvalue()


@cache
def specimens() -> list[Image.Image]:
    """Square photographs without defects, smaller than a camera's."""
    product = Category(PRODUCT, 0, DRAWN_SIDE)
    return [Image.fromarray(product.train(number).image) for number in range(SPECIMENS)]


def quick_model(store: Location, kind: Kind) -> Model:
    """A model of the compact recipe for textures, that saw a handful of images."""
    recipe = override(texture(), ["schedule.images=4", "schedule.crops=[1]", "schedule.batch=1"])
    folder = store / "training"
    for number, content in zip(range(TRAINING_IMAGES), contents(kind), strict=False):
        (folder / f"{number}.{kind.lower()}").write(content)
    uris = [folder.at(info).uri for info in folder.files()]
    request = BuildRequest(uris, "grain", "v1", recipe, Compute())
    model = build_model(request, resolve_device("auto"), threads=1)
    assert model is not None
    artifact.save(model, store)
    publish(store, "grain", "v1", None)
    return Model(store, "grain")


if __name__ == "__main__":
    main()
