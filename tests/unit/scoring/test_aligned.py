"""A model of parts that lie at any angle, from its training to every way of scoring."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssray.cluster.score import _packed, _unpacked
from ssray.config import Compute, override
from ssray.data.decode import read_image
from ssray.data.demo.category import Category
from ssray.errors import ConfigError
from ssray.models import artifact
from ssray.models.artifact import ModelArtifact, load_framing
from ssray.nightly.batch import BatchScorer
from ssray.nightly.sources import Source
from ssray.recipes.request import RecipeRequest
from ssray.recipes.survey import Survey
from ssray.scoring.export import export
from ssray.scoring.judge import Judge, prepare, prepare_pixels
from ssray.scoring.labelled import judge_labelled, prepare_labelled
from ssray.storage.fetch import Fetcher
from ssray.storage.location import Location
from ssray.training.build import BuildRequest, build_model

CPU = torch.device("cpu")
SIDE = 96
SMALL = (
    "image_size=48",
    "network.width=4",
    "schedule.images=400",
    "schedule.holdout=0.25",
    "anomaly_map.kernel=3",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of brackets: ``good-N.png``, ``missing.png`` with ``mask.png``, ``empty.png``."""
    place = tmp_path_factory.mktemp("brackets")
    bracket = Category(4, seed=0, size=SIDE)
    assert bracket.name == "bracket"
    for number in range(16):
        Image.fromarray(bracket.train(number).image).save(place / f"good-{number:02}.png")
    sample = bracket.test(1, "missing")
    Image.fromarray(sample.image).save(place / "missing.png")
    Image.fromarray(sample.mask).save(place / "mask.png")
    Image.new("L", (SIDE, SIDE), 80).save(place / "empty.png")
    return place


@pytest.fixture(scope="module")
def model(folder: Path) -> ModelArtifact:
    uris = [str(path) for path in sorted(folder.glob("good-*.png"))]
    survey = Survey.of(np.stack([read_image(uri) for uri in uris]))
    recipe = RecipeRequest("compact", SMALL).resolve("bracket", lambda: survey)
    assert recipe.name == "compact-aligned"
    request = BuildRequest(uris, "bracket", "v1", recipe, Compute(precision="float32"))
    built = build_model(request, CPU, threads=1)
    assert built is not None
    return built


@pytest.fixture(scope="module")
def judge(model: ModelArtifact) -> Judge:
    return Judge(model, CPU, "float32", "torch")


def test_it_sees_the_part_and_not_the_table(model: ModelArtifact) -> None:
    rows, columns = model.input_shape
    assert columns > 1.7 * rows
    assert rows * columns == pytest.approx(48**2, rel=0.03)
    assert model.facts.skipped_images == 0
    assert model.places.usual is not None
    assert model.places.usual.shape == (3, rows, columns), "network, linear autoencoder, neighbours"
    assert model.calibration.anomaly_map.relative


def test_maps_lie_over_the_photograph(model: ModelArtifact, judge: Judge, folder: Path) -> None:
    prepared = prepare((folder / "missing.png").read_bytes, model.framing)
    [judged] = judge([prepared])
    verdict = judged.verdict
    assert verdict is not None
    assert prepared.image is not None
    assert prepared.image.shape[:2] == model.input_shape
    rows, columns = verdict.anomaly_map.shape
    assert rows == columns, "as the photograph"
    assert verdict.shape == (SIDE, SIDE)
    assert verdict.anomaly_map[0, 0] == 0
    part = read_image(str(folder / "missing.png"))[..., 0] > 110
    there = np.asarray(
        Image.fromarray(part).resize((columns, rows), Image.Resampling.NEAREST)
    ).astype(bool)
    assert (verdict.anomaly_map[there] > 0).mean() > 0.97
    assert verdict.anomaly_map.max() == pytest.approx(verdict.score, rel=0.3)
    for left, top, width, height in verdict.boxes:
        assert left >= 0 and top >= 0 and left + width <= SIDE and top + height <= SIDE


def test_every_way_gives_the_same_score(
    model: ModelArtifact, judge: Judge, folder: Path, tmp_path: Path
) -> None:
    file = folder / "missing.png"
    store = Location.parse(tmp_path)
    artifact.save(model, store)
    assert load_framing(store, "bracket", "v1") == model.framing
    again = artifact.load(store, "bracket", "v1")
    assert again.framing == model.framing
    from_bytes = prepare(file.read_bytes, model.framing)
    from_pixels = prepare_pixels(read_image(str(file)), again.framing)
    stored = Judge(again, CPU, "float32", "torch")
    rows = [each.row() for each in (*judge([from_bytes]), *stored([from_pixels]))]
    night = BatchScorer(store, {"bracket": "v1"}, CPU, "float32", "torch", readers=2)
    sources = [Source(str(file), "bracket"), Source(str(folder / "empty.png"), "bracket")]
    at_night, empty = night(sources).rows.to_pylist()
    for row in (*rows, at_night):
        assert row["score"] == pytest.approx(rows[0]["score"], rel=1e-6)
        assert row["defect_share"] == pytest.approx(rows[0]["defect_share"], rel=1e-6)
    assert empty["error"] == "part_not_found"
    assert empty["score"] is None


def test_pixels_are_counted_in_the_photograph(
    model: ModelArtifact, judge: Judge, folder: Path
) -> None:
    row = {
        "uri": str(folder / "missing.png"),
        "mask_uris": [str(folder / "mask.png")],
        "mask_conflict": None,
        "mask_level": None,
        "category": "bracket",
        "split_type": "missing",
        "label": 1,
        "size_bytes": None,
    }
    image = prepare_labelled(row, model.framing, Fetcher())
    carried = _unpacked(_packed(image), model.input_shape)
    assert carried.prepared.placement == image.prepared.placement
    assert image.prepared.placement is not None
    [here] = judge_labelled(judge, [image])
    [there] = judge_labelled(judge, [carried])
    assert here["score"] == there["score"]
    assert here["pixel_counts"] == there["pixel_counts"]
    assert here["heatmap"] == there["heatmap"]


def test_the_map_is_highest_where_the_stain_is(
    model: ModelArtifact, judge: Judge, folder: Path
) -> None:
    for number in range(4):
        image = read_image(str(folder / f"good-{number:02}.png")).copy()
        solid = np.argwhere(image[..., 0] > 130)
        top, left = solid[len(solid) // 3]
        image[top - 3 : top + 4, left - 3 : left + 4] = 255
        [judged] = judge([prepare_pixels(image, model.framing)])
        assert judged.verdict is not None
        found = judged.verdict.anomaly_map
        place = np.array(np.unravel_index(found.argmax(), found.shape)) + 0.5
        place *= SIDE / np.array(found.shape)
        assert np.abs(place - (top + 0.5, left + 0.5)).max() < 6, number


def test_it_cannot_be_exported(model: ModelArtifact, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--set alignment=null"):
        export(model, "torch", Location.parse(tmp_path))


def test_photographs_may_be_taken_as_they_are(folder: Path) -> None:
    uris = sorted(folder.glob("good-*.png"))
    survey = Survey.of(np.stack([read_image(str(path)) for path in uris]))
    request = RecipeRequest("compact", (*SMALL, "alignment=null"))
    recipe = request.resolve("bracket", lambda: survey)
    assert recipe.name == "compact-object"
    assert recipe.alignment is None
    stated = {"frame": [-0.4, -0.2, 0.4, 0.2], "turned": False}
    text = str(stated).replace("'", '"').replace("False", "false")
    assert override(recipe, [f"alignment={text}"]).alignment is not None
