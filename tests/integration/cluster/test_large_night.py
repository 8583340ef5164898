"""A night of 20,000 images in five categories, 1 % of them broken, killed three times."""

from __future__ import annotations

import dataclasses
import io
import os
import signal
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ssray.config import Compute, Recipe
from ssray.models import artifact
from ssray.models.store import publish
from ssray.storage.location import Location
from ssray.training.build import BuildRequest, build_model
from tests.integration.cluster.faulty_proxy import between
from tests.integration.cluster.test_nightly import DATE, committed, rows_of, same, wait_for
from tests.integration.cluster.three_nodes import processes
from tests.unit.nightly.test_batch import PECULIAR

IMAGES = 20_000
BATCH = 256
ACTORS = 2
CATEGORIES = ("ape", "bee", "cow", "dog", "elk")
PACKED = ("dog", "elk")
"""Categories whose images are in tars."""
BROKEN_EVERY = 101
ACTOR = "_NightActor"
ROOT = Path(__file__).parents[3]


@dataclasses.dataclass(frozen=True)
class Large:
    place: Location
    expected: dict[str, tuple[str, str | None, str | None]]

    def command(self, out: Location) -> list[str]:
        return [
            *(sys.executable, "-m", "ssray", "nightly"),
            *("--images", f"{self.place}/images", "--images", f"{self.place}/list.parquet"),
            *("--models", f"{self.place}/models", "--out", f"{out}", "--date", DATE),
            *("--precision", "float32", "--workers", str(ACTORS), "--batch", str(BATCH)),
        ]


def images() -> Iterator[bytes]:
    """Endlessly many, no two alike."""
    generator = np.random.default_rng(0)
    stripes = np.arange(64)[:, None, None] * 23 % 200
    while True:
        noise = generator.integers(0, 40, (64, 64, 3))
        buffer = io.BytesIO()
        Image.fromarray((stripes + noise).astype(np.uint8)).save(buffer, "PNG", compress_level=1)
        yield buffer.getvalue()


@pytest.fixture(scope="module")
def large(s3_server: str, demo_root: Path, tiny: Recipe) -> Large:
    place = Location.parse(f"s3://{s3_server}/large")
    uris = sorted(str(path) for path in (demo_root / "weave/train/good").iterdir())
    compute, device = Compute(precision="float32"), torch.device("cpu")
    model = build_model(BuildRequest(uris, "ape", "v1", tiny, compute), device, threads=1)
    assert model is not None
    for category in CATEGORIES:
        artifact.save(dataclasses.replace(model, category=category), place / "models")
        publish(place / "models", category, "v1", None)
    expected: dict[str, tuple[str, str | None, str | None]] = {}
    kinds = [(name, *rest) for name, rest in PECULIAR.items()]
    missing: list[str] = []
    content = images()
    loose: list[tuple[Location, bytes]] = []
    packed: dict[str, list[tuple[str, bytes]]] = {category: [] for category in PACKED}
    for number in range(IMAGES):
        category = CATEGORIES[number % len(CATEGORIES)]
        name, own, error, note = f"{number:05}.png", next(content), None, None
        if number % BROKEN_EVERY == 0:
            kind = number // BROKEN_EVERY % (len(kinds) + 2)
            if kind < len(kinds):
                suffix, own, error, note = kinds[kind]
                name = f"{number:05}-{suffix}"
            elif kind == len(kinds):
                uri = f"{place}/images/ape/{number:05}-gone.png"
                missing.append(uri)
                expected[uri] = ("ape", "missing", None)
                continue
            else:
                category, error = "fox", "unknown_category"
        if category in PACKED:
            packed[category].append((name, own))
            uri = f"{place}/images/{category}.tar#{name}"
        else:
            loose.append((place / f"images/{category}/{name}", own))
            uri = f"{place}/images/{category}/{name}"
        expected[uri] = (category, error, note)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda pair: pair[0].write(pair[1]), loose))
    for category, members in packed.items():
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name, own in members:
                info = tarfile.TarInfo(name)
                info.size = len(own)
                tar.addfile(info, io.BytesIO(own))
        (place / f"images/{category}.tar").write(buffer.getvalue())
    buffer = io.BytesIO()
    pq.write_table(pa.table({"uri": missing, "category": ["ape"] * len(missing)}), buffer)
    (place / "list.parquet").write(buffer.getvalue())
    return Large(place, expected)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_twenty_thousand_images_killed_three_times(
    large: Large, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Driver, actor and node: the same rows as without, and little is fetched twice."""
    calm, killed = large.place / "calm", large.place / "killed"
    with (tmp_path / "calm.txt").open("w") as log:
        subprocess.run(large.command(calm), check=True, timeout=1200, stdout=log)
    program = [sys.executable, "-m", "tests.integration.cluster.three_nodes", ACTOR]
    with (
        between() as traffic,
        monkeypatch.context() as patch,
        subprocess.Popen(
            program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        ) as cluster,
    ):
        assert cluster.stdin is not None
        assert cluster.stdout is not None
        patch.setenv("RAY_ADDRESS", cluster.stdout.readline().strip())
        with subprocess.Popen(large.command(killed), stdout=subprocess.DEVNULL) as driver:
            wait_for(killed, 15, driver)
            os.kill(driver.pid, signal.SIGKILL)
        with subprocess.Popen(large.command(killed), stdout=subprocess.DEVNULL) as driver:
            wait_for(killed, 35, driver)
            os.kill(next(processes(ACTOR)), signal.SIGKILL)
            wait_for(killed, 55, driver)
            cluster.stdin.write("lose\n")
            cluster.stdin.flush()
            assert cluster.stdout.readline() == "lost\n"
            assert driver.wait(timeout=1200) == 0
        cluster.stdin.close()
    rows = rows_of(killed)
    assert same(rows, rows_of(calm))
    assert {row["uri"]: (row["category"], row["error"], row["note"]) for row in rows} == (
        large.expected
    )
    assert len(rows) == IMAGES
    summary = committed(killed).summary
    assert summary.errors == dict(
        Counter(error for _, error, _ in large.expected.values() if error).most_common()
    )
    again = Counter(
        {
            what: times
            for what, times in traffic.read.items()
            if "/large/images/" in what and times > 1
        }
    )
    fetched_twice = sum(times - 1 for times in again.values())
    print(f"{fetched_twice} images fetched twice, {ACTORS} actors, batches of {BATCH}")
    assert fetched_twice < 3 * ACTORS * BATCH
