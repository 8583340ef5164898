"""How near a night comes to what its cores allow, and to what memory it needs: ``make bench``."""

from __future__ import annotations

import dataclasses
import io
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssray.config import Compute, Recipe, override
from ssray.models import artifact
from ssray.models.store import publish
from ssray.nightly.batch import BatchScorer
from ssray.nightly.run import Places, write_part
from ssray.nightly.sources import Source
from ssray.recipes import paper
from ssray.recipes.compact import texture
from ssray.storage.location import Location
from ssray.training.build import BuildRequest, build_model
from tests.helpers import large_png

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

CATEGORY = "weave"
SIDE = 512
CPU = torch.device("cpu")


def photographs() -> Iterator[bytes]:
    """PNGs of 512 x 512 and about 150 kB, no two alike."""
    generator = np.random.default_rng(0)
    rows = np.arange(SIDE)
    pattern = 110 + 60 * np.sin(rows[:, None] / 5) * np.sin(rows[None, :] / 7)
    while True:
        noise = generator.integers(-2, 3, (SIDE, SIDE))
        grey = (pattern + noise).clip(0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(np.stack([grey] * 3, axis=2)).save(buffer, "PNG")
        yield buffer.getvalue()


@dataclasses.dataclass(frozen=True)
class Plant:
    images: Location
    models: Location
    sources: list[Source]


def plant(place: Location, recipe: Recipe, count: int, folder: Path) -> Plant:
    """Images on a store, and a model that was trained for a few steps only."""
    pictures = photographs()
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.png").write_bytes(next(pictures))
    short = override(recipe, ["schedule.images=4", "schedule.crops=[1]", "schedule.batch=1"])
    uris = sorted(str(path) for path in folder.iterdir())
    model = build_model(
        BuildRequest(uris, CATEGORY, "v1", short, Compute(precision="bfloat16")),
        CPU,
        threads=os.cpu_count() or 1,
    )
    assert model is not None
    artifact.save(model, place / "models")
    publish(place / "models", CATEGORY, "v1", None)
    images = place / "images"
    sources = []
    contents = []
    for number in range(count):
        content = next(pictures)
        contents.append((images / f"{CATEGORY}/{number:06}.png", content))
        sources.append(Source(contents[-1][0].uri, CATEGORY, len(content)))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda pair: pair[0].write(pair[1]), contents))
    return Plant(images, place / "models", sources)


def seconds_on_one_core(plant: Plant, out: Location, count: int) -> float:
    """Fetch, decode, model and encode of an image, one after the other on one core."""
    torch.set_num_threads(1)
    scorer = BatchScorer(
        plant.models, {CATEGORY: "v1"}, CPU, "auto", "auto", readers=1, heatmaps="flagged"
    )
    places = Places(out, "2026-01-01")
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        write_part(places, 0, CATEGORY, (), scorer(plant.sources[:16]), "cpu")
        begun = time.perf_counter()
        write_part(places, 1, CATEGORY, (), scorer(plant.sources[16 : 16 + count]), "cpu")
        return (time.perf_counter() - begun) / count
    finally:
        os.sched_setaffinity(0, cores)


def images_a_second(plant: Plant, out: Location, batch: int) -> float:
    """Of a night, from the first batch that is done to the last."""
    from ssray.cluster.nightly import score_night
    from ssray.nightly.protocol import NightRequest
    from ssray.nightly.sources import CategoryRule

    seen: list[tuple[float, int]] = []
    request = NightRequest(
        images=[plant.images],
        rule=CategoryRule(),
        models=plant.models,
        out=out,
        date="2026-01-02",
        batch=batch,
    )
    score_night(
        request, Compute(), on_scored=lambda done, _: seen.append((time.perf_counter(), done))
    )
    (begun, first), (ended, last) = seen[1], seen[-1]
    return (last - first) / (ended - begun)


@pytest.mark.parametrize(
    ("recipe", "count", "batch", "least"),
    [(texture(), 2000, 64, 0.8), (paper.of_category("grid"), 96, 8, 0.95)],
    ids=["compact", "paper"],
)
def test_a_night_is_as_fast_as_its_cores(
    s3_server: str,
    ray_local: None,
    tmp_path: Path,
    recipe: Recipe,
    count: int,
    batch: int,
    least: float,
) -> None:
    place = Location.parse(f"s3://{s3_server}/bench-{recipe.name}")
    night = plant(place, recipe, count, tmp_path / "train")
    sample = min(count - 16, 160)
    before = seconds_on_one_core(night, place / "alone", sample)
    rate = images_a_second(night, place / "out", batch)
    after = seconds_on_one_core(night, place / "alone", sample)
    limit = (os.cpu_count() or 1) / statistics.mean([before, after])
    print(f"\n{recipe.name}: {rate:.2f} images/s, {rate / limit:.3f} of the limit {limit:.2f}")
    assert rate >= least * limit


def test_memory_does_not_grow_with_the_night(s3_server: str, tmp_path: Path) -> None:
    """Summed peak of all processes with 2,000 and 20,000 images, and with one of 400 megapixels."""
    place = Location.parse(f"s3://{s3_server}/memory")
    small = override(texture(), ["image_size=64", "network.width=4"])
    night = plant(place, small, 1, tmp_path / "train")
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    peaks = {}
    nights = {"small": 2_000, "large": 20_000, "with a large image": 2_000}
    for name, count in nights.items():
        images = place / name.replace(" ", "-")

        def put(number: int, images: Location = images) -> None:
            buffer = io.BytesIO()
            Image.fromarray(pixels ^ np.uint8(number % 251)).save(buffer, "PNG")
            (images / f"{CATEGORY}/{number:06}.png").write(buffer.getvalue())

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(put, range(count)))
        if name == "with a large image":
            (images / f"{CATEGORY}/large.png").write(large_png(20_000))
        command = [
            *(sys.executable, "-m", "ssray", "nightly", "--images", f"{images}"),
            *("--models", f"{night.models}", "--out", f"{images}-out"),
        ]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as driver:
            peaks[name] = peak_memory(driver)
            assert driver.returncode == 0
        print(f"\n{name}: {peaks[name] / 1024**2:.0f} MiB", end="")
    assert peaks["large"] < 1.1 * peaks["small"]
    assert peaks["with a large image"] < 1.1 * peaks["small"]


def peak_memory(driver: subprocess.Popen[bytes]) -> float:
    """Largest sum of the proportional set sizes of a process and all below it, bytes."""
    peak = 0.0
    while driver.poll() is None:
        peak = max(peak, sum(map(proportional_size, descendants(driver.pid))))
        time.sleep(0.2)
    return peak


def descendants(root: int) -> list[int]:
    parents = {}
    for place in Path("/proc").iterdir():
        if place.name.isdecimal():
            try:
                stat = (place / "stat").read_text()
            except OSError:
                continue
            parents[int(place.name)] = int(stat.rpartition(")")[2].split()[1])
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def proportional_size(pid: int) -> float:
    """Memory of a process, where pages that n share count as an nth each."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(1024.0 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
