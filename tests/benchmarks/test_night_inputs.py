"""A night of camera images, against what a core allows and against a plain Ray script."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image

from ssray.storage.location import Location

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def night_inputs(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import night_inputs

    yield night_inputs
    sys.modules.pop("night_inputs")


def test_the_same_images_are_made_each_time_and_no_two_are_alike(
    night_inputs: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(night_inputs, "DRAWN_SIDE", 64)
    first, second = (night_inputs.contents("PNG") for _ in range(2))
    files = [next(first) for _ in range(night_inputs.SPECIMENS + 1)]
    assert [next(second) for _ in files] == files
    assert len(set(files)) == len(files)
    for kind, (rows, columns) in night_inputs.SHAPES.items():
        image = Image.open(io.BytesIO(next(night_inputs.contents(kind))))
        assert (image.format, image.mode, image.size) == (kind, "RGB", (columns, rows))


def test_start_and_end_are_not_counted(
    night_inputs: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place, now = Location.parse(tmp_path), [0.0]
    series = night_inputs.Series(place / "few", place / "all", 100 + night_inputs.FEW)

    def run(images: Location, out: Location) -> None:
        now[0] += 30 + (longer if images == series.all else 0)

    clock = SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr(night_inputs, "time", clock)
    longer = 50
    assert night_inputs.rate(series, run, place / "out") == 2
    longer = -1
    with pytest.raises(RuntimeError, match="108 images took no longer than 8"):
        night_inputs.rate(series, run, place / "out")


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_night_of_camera_images_is_faster_than_a_plain_script(
    night_inputs: ModuleType, s3_server: str, ray_local: None, kind: str
) -> None:
    root = Location.parse(f"s3://{s3_server}/night-inputs")
    series = night_inputs.images(root, kind, 300)
    model = night_inputs.quick_model(root / f"models-{kind}", kind)
    rates = night_inputs.measure(series, model, root, rounds=3, cpus=2)
    of_limit, of_plain = (night_inputs.median(rates, "night", to) for to in ("limit", "plain"))
    print(f"\n{kind}: {of_limit:.2f} of the limit, {of_plain:.2f} times a plain script's rate")
    assert of_limit >= 0.8
    assert of_plain >= 1
