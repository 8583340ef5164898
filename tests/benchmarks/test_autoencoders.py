"""The comparison of ways to train one network."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pyarrow.compute as pc
import pytest
import torch
from torch import Tensor

from ssray.config import override
from ssray.data.dataset import index_dataset
from ssray.data.demo.dataset import write_demo_data
from ssray.recipes.compact import demo
from ssray.storage.location import Location
from ssray.training.fit import fit
from ssray.training.images import load_feed
from ssray.training.trainer import Numerics
from tests.helpers import TINY

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def autoencoders(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import autoencoders

    return autoencoders


@pytest.fixture
def data(tmp_path: Path) -> Location:
    write_demo_data(tmp_path / "data", categories=1, images=20, size=64)
    return Location.parse(tmp_path / "data")


def test_the_jacobian_of_a_linear_map_is_estimated_without_bias(autoencoders: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(6, 4, generator=generator)
    inputs = torch.randn(4, requires_grad=True)
    draws = torch.stack(
        [autoencoders.squared_jacobian(matrix @ inputs, inputs, generator) for _ in range(4000)]
    ).detach()
    norm = float(matrix.square().sum())
    error = float(draws.std()) / math.sqrt(len(draws))
    assert error < 0.02 * norm
    assert float(draws.mean()) == pytest.approx(norm, abs=4 * error)


def test_contracting_weighs_the_jacobian_as_much_as_noise_would(autoencoders: ModuleType) -> None:
    """Of the map x -> a x the Jacobian's squared norm is a² for each value of the output."""
    images = torch.full((4, 3, 32, 32), 0.5)
    loss, generator = autoencoders.contractive, torch.Generator().manual_seed(0)
    found = loss(lambda x: 3 * x, images, generator).item()
    assert found == pytest.approx(1.0**2 + autoencoders.NOISE**2 * 9, rel=0.01)
    noisy = autoencoders.denoising(lambda x: 3 * x, images, generator).item()
    assert noisy == pytest.approx(found, rel=0.02)


def test_the_penalty_has_a_gradient_that_contracts(autoencoders: ModuleType) -> None:
    scale = torch.ones((), requires_grad=True)
    images = torch.rand(1, 3, 16, 16)
    generator = torch.Generator().manual_seed(0)
    autoencoders.contractive(lambda x: scale * x, images, generator).backward()
    assert scale.grad is not None
    assert float(scale.grad) == pytest.approx(2 * autoencoders.NOISE**2, rel=0.2)


def test_only_plain_and_contractive_networks_get_images_as_they_are(
    autoencoders: ModuleType,
) -> None:
    recipe = override(demo(), [*TINY])
    images = torch.full((4, 3, 64, 64), 0.5) + 0.2 * torch.rand(1, 3, 64, 64)
    given: dict[str, Tensor] = {}
    for way, loss in autoencoders.losses(recipe, 64).items():

        def network(x: Tensor, way: str = way) -> Tensor:
            given[way] = x.detach()
            return x

        loss(network, images, torch.Generator().manual_seed(0))
    assert torch.equal(given["plain"], images)
    assert torch.equal(given["contractive"], images)
    noise = given["denoising"] - images
    assert float(noise.std()) == pytest.approx(autoencoders.NOISE, rel=0.02)
    changed = (given["ours"] != images).float().mean(dim=(1, 2, 3))
    assert (changed > 0).all()
    assert float(changed.mean()) < 0.9


def test_ours_is_what_the_product_trains(autoencoders: ModuleType, data: Location) -> None:
    recipe = override(demo(), [*TINY])
    manifest = index_dataset(data, ["weave"])
    uris = manifest.filter(pc.equal(manifest["split"], "train"))["uri"].to_pylist()
    feed = load_feed(uris, recipe, threads=1, seed=2)
    numerics = Numerics(torch.device("cpu"), torch.float32)
    loss = autoencoders.losses(recipe, min(feed.shape))["ours"]
    network, seen = autoencoders.train(feed, recipe, loss, seed=2)
    fitted = fit(feed, recipe, numerics, seed=2)
    assert seen == fitted.history[-1].images_seen
    assert not network.training
    for name, value in fitted.model.state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name


def test_every_way_has_a_row_and_its_figures_are_kept(
    autoencoders: ModuleType,
    data: Location,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "history.jsonl"
    monkeypatch.setattr(
        sys,
        "argv",
        ["autoencoders.py", "--data", str(data), "--category", "weave", "--images", "8",
         "--skip-connections", "--out", str(out)]
        + [word for setting in TINY for word in ("--set", setting)],
    )  # fmt: skip
    autoencoders.main()
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [tuple(row[:2]) for row in rows] == [
        *(("| Model I", way) for way in ("plain", "denoising", "contractive", "ours")),
        *(("| blend pixel", way) for way in ("plain", "ours")),
    ]
    assert len({row[2] for row in rows}) == 1
    records = [json.loads(line) for line in out.read_text().splitlines()]
    figures = [record["value"] for record in records]
    assert figures == [float(cell.strip(" |")) for row in rows for cell in row[4:6]]
    assert records[2]["what"] == "weave, Model I, denoising: image AUROC"
    assert "recipe compact-texture" in records[0]["conditions"]
    assert "--set network.width=4" in records[0]["command"]
