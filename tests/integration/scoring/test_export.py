"""Exported models give in other runtimes what they give here."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from ssray.cli.main import cli
from ssray.config import (
    Compute,
    Difference,
    ExportFormat,
    ImageScore,
    Light,
    Linear,
    MapSettings,
    Recipe,
)
from ssray.errors import ArtifactError, ConfigError
from ssray.models import artifact
from ssray.models.artifact import ModelArtifact
from ssray.models.store import publish
from ssray.scoring.export import AnomalyModel, export
from ssray.scoring.scorer import Scorer
from ssray.storage.location import Location
from ssray.training.build import BuildRequest, build_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(demo_root: Path, tiny: Recipe) -> ModelArtifact:
    uris = sorted(str(path) for path in (demo_root / "weave/train/good").iterdir())
    recipe = tiny.model_copy(
        update={
            "anomaly_map": tiny.anomaly_map.model_copy(
                update={"average_power": 1.0, "difference": "squared", "join": "mean"}
            ),
            "linear": Linear(image_size=24),
            "light": Light(mean=0.5, deviation=0.2, slope=(0.05, 0.0)),
        }
    )
    model = build_model(
        BuildRequest(uris, "weave", "v1", recipe, Compute(precision="float32")), CPU, threads=1
    )
    assert model is not None
    assert model.places.average is not None
    return model


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (1, 64, 64, 3), np.uint8)


def test_the_module_is_the_scorer(model: ModelArtifact, image: np.ndarray) -> None:
    experts = model.reconstructor(CPU, torch.float32)
    module = AnomalyModel(experts, model.map_maker(CPU), model.recipe.light).eval()
    with torch.no_grad():
        anomaly_map, score = module(torch.from_numpy(image).permute(0, 3, 1, 2) / 255)
    own = Scorer(model, CPU, torch.float32)(model.framing.lit(image[0])[None])
    assert np.allclose(anomaly_map[:, 0].numpy(), own.maps, atol=1e-6)
    assert np.allclose(score.numpy(), own.scores, atol=1e-6)


@pytest.mark.parametrize("kind", ["torch", "onnx", "openvino"])
def test_each_runtime_gives_the_same_map_and_score(
    model: ModelArtifact, image: np.ndarray, tmp_path: Path, kind: ExportFormat
) -> None:
    off = export(model, kind, Location.parse(tmp_path))
    assert 0 <= off < 1e-3
    facts = json.loads((tmp_path / "model.json").read_text())
    assert facts["input"]["shape"] == [1, 3, 64, 64]
    assert facts["pixel_threshold"] == model.calibration.pixel_threshold
    given = np.ascontiguousarray(image.transpose(0, 3, 1, 2), np.float32) / 255
    anomaly_map, score = run(kind, tmp_path, given)
    own = Scorer(model, CPU, torch.float32)(model.framing.lit(image[0])[None])
    limit = 1e-3 * model.calibration.pixel_threshold
    assert np.abs(np.asarray(anomaly_map)[:, 0] - own.maps).max() < limit
    assert np.abs(np.asarray(score) - own.scores).max() < limit


@pytest.mark.parametrize(
    ("difference", "reduction", "share"),
    [("squared", "max", 1.0), ("ssim", "topk", 0.01), ("both", "sum", 1.0)],
)
def test_every_choice_of_the_map_is_exported(
    model: ModelArtifact,
    tmp_path: Path,
    difference: Difference,
    reduction: ImageScore,
    share: float,
) -> None:
    settings = MapSettings(
        difference=difference,
        kernel=5,
        repeats=2,
        average_power=0.5,
        image_score=reduction,
        top_fraction=share,
    )
    calibration = model.calibration.model_copy(update={"anomaly_map": settings})
    changed = dataclasses.replace(model, calibration=calibration)
    assert export(changed, "openvino", Location.parse(tmp_path)) < 1e-3


def run(kind: str, folder: Path, image: np.ndarray) -> list[np.ndarray]:
    """As a user who has nothing but the file."""
    if kind == "torch":
        loaded = torch.export.load(folder / "model.pt2").module()
        return [found.detach().numpy() for found in loaded(torch.from_numpy(image))]
    if kind == "onnx":
        session = onnxruntime.InferenceSession(folder / "model.onnx")
        return list(session.run(["anomaly_map", "score"], {"image": image}))
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(folder / "model.xml", "CPU", settings)
    return [compiled(image)[name] for name in ("anomaly_map", "score")]


def test_an_export_that_differs_is_not_written(
    model: ModelArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ssray.scoring import export as exporting

    def wrong(module: torch.nn.Module, image: Tensor, folder: Path) -> object:
        (folder / "model.xml").write_text("wrong")
        with torch.no_grad():
            found = [each.numpy() + 1 for each in module(image)]
        return lambda images: found

    monkeypatch.setitem(exporting._EXPORTERS, "openvino", wrong)
    with pytest.raises(ArtifactError, match="nothing was written"):
        export(model, "openvino", Location.parse(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_model_that_sees_tiles_is_not_exported(model: ModelArtifact, tmp_path: Path) -> None:
    facts = model.facts.model_copy(update={"input_shape": (800, 1032)})
    with pytest.raises(ConfigError, match="1032 pixels in tiles of 1024"):
        export(dataclasses.replace(model, facts=facts), "onnx", Location.parse(tmp_path))


def test_the_command_says_what_was_checked(model: ModelArtifact, tmp_path: Path) -> None:
    store = Location.parse(tmp_path / "store")
    artifact.save(model, store)
    publish(store, "weave", "v1", None)
    command = ["models", "export", "--models", str(store), "--category", "weave"]
    ended = CliRunner().invoke(
        cli, [*command, "--format", "openvino", "--out", str(tmp_path / "out")]
    )
    assert ended.exit_code == 0, ended.output
    assert "weave: v1 as openvino" in ended.output
    assert "equal ssray's to" in ended.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "model.bin",
        "model.json",
        "model.xml",
    ]
