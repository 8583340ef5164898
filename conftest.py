"""Doctests of the package run in a folder with a trained model and photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

DOCTESTS = {"ssray", "ssray.load", "ssray.scoring.model.Model"}


@pytest.fixture(scope="session")
def hazelnut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``store``, which has a model of ``hazelnut``, and two photographs:
    ``good.png`` and ``photograph.png``, which is of something else.
    """
    from ssray.config import Compute, override
    from ssray.data.demo.dataset import write_demo_data
    from ssray.models.artifact import save
    from ssray.models.store import publish
    from ssray.recipes.compact import demo
    from ssray.scoring.judge import Judge, prepare
    from ssray.storage.location import Location
    from ssray.training.build import BuildRequest, build_model

    folder = tmp_path_factory.mktemp("hazelnut")
    write_demo_data(folder / "data", categories=1, images=12, size=64)
    images = sorted((folder / "data").glob("*/train/good/*.png"))
    settings = ["image_size=64", "network.width=4", "schedule.images=200", "schedule.holdout=0.3"]
    settings.append("anomaly_map.kernel=3")
    recipe = override(demo(), settings)
    uris, compute = [str(path) for path in images], Compute(precision="float32")
    request = BuildRequest(uris, "hazelnut", "v1", recipe, compute)
    model = build_model(request, torch.device("cpu"), threads=1)
    assert model is not None
    store = Location.parse(folder / "store")
    save(model, store)
    publish(store, "hazelnut", "v1", None)
    judge = Judge(model, torch.device("cpu"), "float32", "torch")
    rows = [j.row() for j in judge([prepare(p.read_bytes, model.framing) for p in images])]
    most_usual = min(range(len(images)), key=lambda number: rows[number]["score"])
    (folder / "good.png").write_bytes(images[most_usual].read_bytes())
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "photograph.png")
    return folder


@pytest.fixture(autouse=True)
def _beside_a_store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the doctests of the Python API where there is something to load."""
    node = request.node
    if isinstance(node, pytest.DoctestItem) and node.name in DOCTESTS:
        monkeypatch.chdir(request.getfixturevalue("hazelnut"))
