"""What other light does to a model's verdicts."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from ssray.config import Alignment, Compute, MapSettings, override
from ssray.data.dataset import training_uris
from ssray.data.demo.dataset import write_demo_data
from ssray.data.pose import Framing
from ssray.method.anomaly_map import MapMaker
from ssray.models import artifact
from ssray.models.store import publish
from ssray.recipes.compact import demo
from ssray.storage.location import Location
from ssray.training.build import BuildRequest, build_model
from tests.helpers import TINY

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

UInt8Image = npt.NDArray[np.uint8]


@pytest.fixture
def lighting(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import lighting

    return lighting


def grey(level: int, shape: tuple[int, int] = (8, 8)) -> UInt8Image:
    return np.full((*shape, 3), level, np.uint8)


def brightness(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    means: npt.NDArray[np.float32] = images.mean(axis=(1, 2, 3), dtype=np.float32)
    return means


def test_each_light_changes_what_its_name_says(lighting: ModuleType) -> None:
    photograph = grey(100, (4, 6))
    photograph[2:] = 200
    lit = {name: light(photograph) for name, light in lighting.CHANGES.items()}
    values = {name: np.unique(image).tolist() for name, image in lit.items()}
    assert values["brightness -20 %"] == [80, 160]
    assert values["brightness +20 %"] == [120, 240]
    assert values["contrast -20 %"] == [110, 190]
    assert values["contrast +20 %"] == [90, 210]
    right, left, down, up = (lit[f"gradient of 20 % {to}"] for to in
                             ("to the right", "to the left", "downwards", "upwards"))  # fmt: skip
    assert right[0, [0, -1], 0].tolist() == [90, 110]
    assert np.array_equal(left, right[:, ::-1])
    assert down[[0, -1], 3, 1].tolist() == [90, 220]
    assert up[[0, -1], 3, 1].tolist() == [110, 180]
    assert lit["warmer by 20 %"][0, 0].tolist() == [110, 100, 90]
    assert lit["colder by 20 %"][0, 0].tolist() == [90, 100, 110]
    assert {image.dtype for image in lit.values()} == {np.dtype(np.uint8)}
    assert lighting.even(0.5)["brightness +50 %"](photograph).max() == 255


def test_only_good_images_are_lit_and_all_else_is_as_photographed(lighting: ModuleType) -> None:
    found = lighting.in_each_light(
        [grey(100), grey(104)], [grey(115)], lighting.CHANGES, Framing((8, 8)), brightness
    )
    auroc = {name: row.image_auroc for name, row in found.items()}
    assert auroc.pop("brightness +20 %") == 0
    assert set(auroc.values()) == {1.0}
    assert found["none"].scores.tolist() == [100, 104]
    assert found["brightness -20 %"].scores.tolist() == [80, 83]
    assert len(found) == 11


def test_an_image_whose_part_is_not_found_is_counted_and_has_no_score(
    lighting: ModuleType,
) -> None:
    framing = Framing.around(Alignment(frame=(-0.3, -0.2, 0.3, 0.2)), 16)
    part = grey(200, (64, 64))
    part[24:40, 16:48] = 40
    other = np.roll(part, 4, axis=0)

    def dark_at(photograph: UInt8Image) -> UInt8Image:
        return grey(0, (64, 64)) if np.array_equal(photograph, other) else photograph

    found = lighting.in_each_light([part, other], [part], {"out": dark_at}, framing, brightness)
    assert [(row.lost, len(row.scores)) for row in found.values()] == [(0, 2), (1, 1)]


class Grey(nn.Module):
    """Reconstructs everything as middle grey."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(0.5))

    def forward(self, images: Tensor) -> Tensor:
        return self.level.expand_as(images)


def test_networks_see_framed_images_in_the_lights_of_the_ablation(lighting: ModuleType) -> None:
    from labelled import TestSet

    images = torch.stack([torch.full((8, 8, 3), level, dtype=torch.uint8) for level in (128, 150)])
    masks = [np.zeros((8, 8), bool)] * 2
    test_set = TestSet(images, np.array([0, 1]), masks, Framing((8, 8)), [None, None])
    settings = MapSettings(difference="squared", kernel=1)
    maker = MapMaker(settings, torch.ones(1))
    with torch.inference_mode():
        tenth = lighting.under_light([Grey()], maker, test_set, torch.float32)
        fifth = lighting.under_light([Grey()], maker, test_set, torch.float32, lighting.CHANGES)
    assert list(tenth) == ["none", *lighting.even(0.1)]
    assert set(tenth.values()) == {1.0}
    assert fifth["brightness +20 %"] == fifth["brightness -20 %"] == 0
    assert fifth["contrast +20 %"] == 1


def test_a_stored_model_gets_a_row_for_each_light(
    lighting: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_demo_data(tmp_path / "data", categories=1, images=20, size=64)
    data, store = (Location.parse(tmp_path / name) for name in ("data", "store"))
    recipe = override(demo(), [*TINY])
    request = BuildRequest(
        training_uris(data, "weave"), "weave", artifact.new_version(), recipe, Compute()
    )
    model = build_model(request, torch.device("cpu"), threads=1)
    assert model is not None
    artifact.save(model, store)
    publish(store, "weave", model.version, None)
    words = ["--data", str(data), "--category", "weave", "--models", str(store), "--change", "0.1"]
    monkeypatch.setattr(sys, "argv", ["lighting.py", *words])
    lighting.main()
    *table, blank, last = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]
    assert [row[0] for row in rows] == [
        *("none", *lighting.even(0.1), *lighting.gradients(0.1), *lighting.colours(0.1))
    ]
    aurocs = [float(row[1]) for row in rows]
    assert blank == ""
    assert last.startswith(f"lowest {min(aurocs):.4f}, ")
    assert float(last.split()[2]) == pytest.approx(aurocs[0] - min(aurocs), abs=1e-4)
    assert all(0 <= float(row[2].removesuffix(" %")) <= 100 for row in rows)
