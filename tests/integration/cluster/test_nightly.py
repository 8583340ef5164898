"""A night on S3 as users score it: each image has one row, whatever is killed or fails."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

from ssray.config import Compute, Recipe
from ssray.models import artifact
from ssray.models.store import publish
from ssray.nightly.protocol import NightRequest
from ssray.nightly.run import Committed, Places
from ssray.nightly.sources import CategoryRule
from ssray.nightly.table import ScoreTable
from ssray.storage.location import Location
from ssray.training.build import BuildRequest, build_model
from tests.integration.cluster.faulty_proxy import FAULTS, between

DATE = "2026-11-21"
SHARED = ("fetch", "decode", "model", "pack", "write", "list")


@dataclass(frozen=True)
class Plant:
    """A bucket with models and a day's images.

    Attributes:
        expected: category and error of every image, by uri.
    """

    images: Location
    models: Location
    expected: dict[str, tuple[str, str | None]]

    def command(self, out: Location, *options: str) -> list[str]:
        return [
            *(sys.executable, "-m", "ssray", "nightly", "--images", f"{self.images}"),
            *("--models", f"{self.models}", "--out", f"{out}", "--date", DATE),
            *("--batch", "8", "--precision", "float32", "--max-error-share", "0.5", *options),
        ]

    def score(self, out: Location, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(out, *options), capture_output=True, text=True, timeout=600
        )


@pytest.fixture(scope="module")
def plant(
    s3_server: str, demo_root: Path, tiny: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> Plant:
    place = Location.parse(f"s3://{s3_server}/plant")
    names = sorted(folder.name for folder in demo_root.iterdir() if folder.is_dir())
    expected: dict[str, tuple[str, str | None]] = {}
    for name in names:
        uris = sorted(str(path) for path in (demo_root / name / "train/good").iterdir())
        compute, device = Compute(precision="float32"), torch.device("cpu")
        model = build_model(BuildRequest(uris, name, "v1", tiny, compute), device, threads=1)
        assert model is not None
        artifact.save(model, place / "models")
        publish(place / "models", name, "v1", None)
    loose, packed = names
    contents = [path.read_bytes() for path in sorted((demo_root / loose).glob("test/*/*.png"))]

    def put(path: str, content: bytes, category: str, error: str | None = None) -> None:
        (place / "images" / path).write(content)
        expected[(place / "images" / path).uri] = (category, error)

    for number in range(60):
        put(f"{loose}/{number:03}.png", varied(contents, number), loose)
    put(f"{loose}/empty.png", b"", loose, "empty")
    put(f"{loose}/cut.png", contents[0][:-30], loose, "truncated")
    put("bolt/0.png", contents[0], "bolt", "unknown_category")
    put("loose.png", contents[0], "unmatched", "unknown_category")
    (place / "images/readme.txt").write(b"not an image")
    modes: dict[str, Literal["w", "w:gz"]] = {".tar": "w", ".tgz": "w:gz"}
    for suffix, mode in modes.items():
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=mode) as tar:
            for number in range(20):
                content = varied(contents, number) if number else b""
                info = tarfile.TarInfo(f"{suffix[1:]}/{number:03}.png")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
                uri = f"{place}/images/{packed}{suffix}#{info.name}"
                expected[uri] = (packed, None if number else "empty")
        (place / f"images/{packed}{suffix}").write(buffer.getvalue())
    return Plant(place / "images", place / "models", expected)


def varied(contents: list[bytes], number: int) -> bytes:
    """One of some images, a little brighter each time."""
    image = np.asarray(Image.open(io.BytesIO(contents[number % len(contents)])).convert("RGB"))
    buffer = io.BytesIO()
    Image.fromarray((image * (1 - 0.002 * number)).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def rows_of(out: Location) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = ScoreTable(out).night(DATE).sort_by("uri").to_pylist()
    return rows


def kept_files(out: Location) -> set[str]:
    """Paths of the files of rows that a night has written."""
    return {info.path for info in Places(out, DATE).results.files()}


def runs(out: Location) -> list[str]:
    """The files that are kept of runs that may go on."""
    night = Places(out, DATE).night
    return [info.path for info in night.files() if info.path.count("/") > night.path.count("/") + 1]


def wait_for(out: Location, count: int, driver: subprocess.Popen[Any]) -> None:
    """Until so many batches are kept."""
    while len(kept_files(out)) < count:
        assert driver.poll() is None
        time.sleep(0.05)


def committed(out: Location) -> Committed:
    found = Places(out, DATE).committed()
    assert found is not None
    return found


@pytest.fixture(scope="module")
def undisturbed(plant: Plant) -> tuple[Location, str]:
    """Where the results of a run without any fault are, and what it said."""
    out = Location.parse(f"{plant.images}".replace("images", "out"))
    ended = plant.score(out)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return out, ended.stdout


def test_every_image_has_one_row(plant: Plant, undisturbed: tuple[Location, str]) -> None:
    out, said = undisturbed
    rows = rows_of(out)
    assert [row["uri"] for row in rows] == sorted(plant.expected)
    for row in rows:
        category, error = plant.expected[row["uri"]]
        assert (row["category"], row["error"]) == (category, error)
        assert (row["score"] is None) == (error is not None)
        assert row["model_version"] == (None if error == "unknown_category" else "v1")
        assert (row["heatmap"] is not None) == bool(row["flagged"])
    assert runs(out) == [], "what a restart would have needed is gone"
    summary = committed(out).summary
    assert summary.images == len(plant.expected)
    assert summary.errors == {"empty": 3, "unknown_category": 2, "truncated": 1}
    assert summary.passed_over == {".txt": 1}
    assert set(summary.seconds) == set(SHARED)
    assert summary.worker_hours_per_million is None, "too few images to tell"
    assert "empty: 3" in said
    assert f"{len(plant.expected)} images in" in said


def test_a_complete_night_is_left_alone(plant: Plant, undisturbed: tuple[Location, str]) -> None:
    out, _ = undisturbed
    ended = plant.score(out)
    assert ended.returncode == 0, ended.stderr
    assert f"complete already, {len(plant.expected)} images; nothing was done" in ended.stdout
    assert ScoreTable(out).number(DATE) == 1
    rounded = plant.score(out, "--precision", "bfloat16")
    assert "with precision float32, now it is bfloat16" in rounded.stderr
    other = plant.score(out, "--heatmaps", "all")
    assert other.returncode == 2
    assert "with heatmaps flagged, now it is all" in other.stderr
    strict = plant.score(out, "--max-error-share", "0.01")
    assert strict.returncode == 1
    assert "could not be scored, more than the 1 %" in strict.stdout


def test_a_kept_heatmap_is_drawn(
    plant: Plant, undisturbed: tuple[Location, str], tmp_path: Path
) -> None:
    out, _ = undisturbed
    flagged = next(row for row in rows_of(out) if row["heatmap"])
    picture = tmp_path / "x.png"

    def draw(uri: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ssray", "heatmap", "--scores", f"{out}"]
        return subprocess.run(
            [*command, "--image", uri, "--out", str(picture)], capture_output=True, text=True
        )

    assert "over the image" in draw(flagged["uri"]).stdout
    drawn = Image.open(picture)
    assert drawn.size == (flagged["width"], flagged["height"])
    broken = next(uri for uri, (_, error) in plant.expected.items() if error == "truncated")
    refused = draw(broken)
    assert refused.returncode == 2
    assert "no heatmap was kept (truncated" in refused.stderr
    assert "is not in any night" in draw("s3://factory/else.png").stderr


def test_killed_on_the_way_it_goes_on(plant: Plant, undisturbed: tuple[Location, str]) -> None:
    """SIGKILL of the driver; what Ray leaves behind ends by itself."""
    out = Location.parse(f"{plant.images}".replace("images", "killed"))
    with subprocess.Popen(
        plant.command(out, "--workers", "1"), stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    ) as driver:
        wait_for(out, 3, driver)
        os.kill(driver.pid, signal.SIGKILL)
    time.sleep(1)
    kept = kept_files(out)
    assert len(kept) >= 3
    assert ScoreTable(out).count(DATE) == 0, "nobody sees half a night"
    ended = plant.score(out, "--workers", "1")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert same(rows_of(out), rows_of(undisturbed[0]))
    summary = committed(out).summary
    scored_now = round(summary.images_per_second * summary.wall_seconds)
    assert scored_now <= len(plant.expected) - 8 * len(kept) + 8 * 2


@pytest.mark.slow
def test_a_driver_that_wakes_up_later_spoils_nothing(
    plant: Plant, undisturbed: tuple[Location, str]
) -> None:
    """SIGSTOP while it scores; another one takes over and ends; then SIGCONT."""
    out = Location.parse(f"{plant.images}".replace("images", "asleep"))
    with subprocess.Popen(
        plant.command(out, "--workers", "1"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as sleeper:
        wait_for(out, 2, sleeper)
        os.kill(sleeper.pid, signal.SIGSTOP)
        assert plant.score(out, "--workers", "1").returncode == 0
        os.kill(sleeper.pid, signal.SIGCONT)
        assert sleeper.stdout is not None
        said = sleeper.stdout.read().decode()
    assert sleeper.returncode == 2
    assert "was committed by another process" in said
    assert ScoreTable(out).number(DATE) == 1
    assert same(rows_of(out), rows_of(undisturbed[0]))
    assert "nothing was done" in plant.score(out).stdout


def test_two_at_once_end_with_one_result(plant: Plant, undisturbed: tuple[Location, str]) -> None:
    out = Location.parse(f"{plant.images}".replace("images", "race"))
    command = plant.command(out, "--workers", "1")
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=600)[0] for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes in ([0, 2], [0, 0]), said
    if codes == [0, 2]:
        assert any("is under way elsewhere" in each for each in said)
    assert same(rows_of(out), rows_of(undisturbed[0]))


def test_a_faulty_network_costs_time_and_no_row(
    plant: Plant, undisturbed: tuple[Location, str]
) -> None:
    out = Location.parse(f"{plant.images}".replace("images", "faulty"))
    with between(0.1) as traffic:
        ended = plant.score(out)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert set(traffic.faults) == {*FAULTS, "none"}
    assert same(rows_of(out), rows_of(undisturbed[0]))
    assert committed(out).summary.retries > 0


def test_a_storage_that_is_down_for_a_while_costs_no_row(
    plant: Plant, undisturbed: tuple[Location, str]
) -> None:
    """Whatever the actors ask for: first there is no answer, then a refusal."""
    out = Location.parse(f"{plant.images}".replace("images", "down"))
    first: list[float] = []

    def down(path: str) -> int | None:
        listed_by_more_than_its_name = (".tar", ".tgz", "empty.png")
        if "/plant/images/" not in path or path.endswith(listed_by_more_than_its_name):
            return None
        first.append(time.monotonic())
        passed = time.monotonic() - first[0]
        return 503 if passed < 6 else 403 if passed < 20 else None

    with between(refused=down):
        ended = plant.score(out, "--patience", "10")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "images without an answer" in ended.stdout
    assert same(rows_of(out), rows_of(undisturbed[0]))


def test_what_stays_refused_leaves_the_night_incomplete(plant: Plant) -> None:
    out = Location.parse(f"{plant.images}".replace("images", "shut"))
    shut = next(uri for uri, (_, error) in plant.expected.items() if "#" not in uri and not error)

    def refused(path: str) -> int | None:
        return 403 if path.endswith(shut.removeprefix("s3://")) else None

    with between(refused=refused):
        ended = plant.score(out, "--patience", "0")
    assert ended.returncode == 3, ended.stdout + ended.stderr
    assert "Missing, forbidden: 1 images have no row" in ended.stdout
    assert {row["uri"] for row in rows_of(out)} == plant.expected.keys() - {shut}


GPU_NODE, CPU_NODE, HEAD = {"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0}, {"CPU": 0.0}


@pytest.mark.parametrize(
    ("nodes", "options", "batches", "expected"),
    [
        ([HEAD, CPU_NODE, CPU_NODE], {}, 100, (1, 100, 1, 0.0)),
        ([HEAD, GPU_NODE, CPU_NODE], {"device": "cuda"}, 100, (1, 100, 4, 1.0)),
        ([HEAD, GPU_NODE], {"device": "cuda", "gpus_per_worker": 0.5}, 100, (1, 100, 2, 0.5)),
        ([HEAD, GPU_NODE, {"CPU": 2.0, "GPU": 1.0}], {"device": "cuda"}, 3, (1, 3, 2, 1.0)),
        ([HEAD, GPU_NODE], {"device": "cpu", "gpus_per_worker": 0.5}, 100, (1, 100, 2, 0.5)),
        ([HEAD], {"device": "cuda"}, 100, (1, 100, 1, 1.0)),
        ([HEAD], {"cpus_per_worker": 4}, 0, (1, 1, 4, 0.0)),
    ],
)
def test_actors_of_a_cluster_fit_its_nodes_and_grow_with_it(
    nodes: list[dict[str, float]],
    options: dict[str, Any],
    batches: int,
    expected: tuple[int, int, int, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ssray.cluster import night_stages

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    found = [{"Alive": True, "Resources": node} for node in nodes]
    monkeypatch.setattr("ray.nodes", lambda: found)
    here = Location.parse(".")
    request = NightRequest(
        images=[here / "images"],
        rule=CategoryRule(),
        models=here / "models",
        out=here / "out",
        date=DATE,
    )
    pool = night_stages._Pool.of(request, Compute(**({"device": "cpu"} | options)), batches)
    assert (pool.min_actors, pool.max_actors, pool.each.cpus, pool.each.gpus) == expected
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 8, "GPU": 8})
    alone = night_stages._Pool.of(request, Compute(**({"device": "cpu"} | options)), batches)
    fit = sum(
        int(n.get("GPU", 0) / pool.each.gpus) if pool.each.gpus else int(n["CPU"] / pool.each.cpus)
        for n in nodes
    )
    assert alone.max_actors == max(1, min(fit, batches)), "a private Ray does not grow"


def same(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> bool:
    """Equal but for the rounding of scores that were computed in other company."""
    assert len(rows) == len(others)
    for row, other in zip(rows, others, strict=True):
        for name in row:
            if name in ("score", "defect_share") and row[name] is not None:
                assert row[name] == pytest.approx(other[name], rel=1e-3, abs=1e-6)
            elif name not in ("heatmap", "boxes", "p_value"):
                assert row[name] == other[name], name
    return True
