"""The training loop, its schedule, and what follows it, without Ray."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ssray.calibration.calibrate import calibrate
from ssray.config import Augmentation, Compute, Objective, Recipe, Schedule, override
from ssray.data.decode import resize
from ssray.data.pretrained_weights import read_weights
from ssray.errors import ArtifactError, ConfigError, TrainingError
from ssray.method.anomaly_map import smooth
from ssray.method.augmentation import draw_crops, random_light, relight
from ssray.method.inference import Reconstructor, to_network
from ssray.method.linear import LinearAutoencoder
from ssray.method.neighbours import MemoryBank
from ssray.method.pretrained import FeatureNetwork
from ssray.models import artifact
from ssray.models.artifact import ModelArtifact
from ssray.models.device import kept_precision, resolve_device, resolve_precision
from ssray.scoring.export import export
from ssray.scoring.scorer import Scorer, resize_map
from ssray.storage.location import Location
from ssray.training.build import BuildRequest, Callbacks, build_model
from ssray.training.checkpoint import Checkpoint
from ssray.training.early_stopping import separation
from ssray.training.execution import Snapshot
from ssray.training.fit import Checkpointing, Fitted, fit
from ssray.training.images import Feed, load_feed, split_uris
from ssray.training.plan import ensemble_parts
from ssray.training.progress import ProgressRow
from ssray.training.schedule import batch_size, crop_shape, learning_rate
from ssray.training.trainer import Numerics
from tests.helpers import write_images
from tests.pretrained import tiny_resnet

CPU = torch.device("cpu")


def test_learning_rate_rises_then_anneals_to_zero() -> None:
    schedule = Schedule(warmup=0.1, learning_rate=1.0)
    rates = [learning_rate(spent, schedule) for spent in np.linspace(0, 1, 101)]
    assert 0 < rates[0] < 0.02
    assert max(rates) == pytest.approx(1.0)
    assert np.argmax(rates) == 10
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0, abs=1e-12)


def test_crops_grow_over_equal_shares_and_fit_the_image() -> None:
    schedule = Schedule(crops=(0.25, 0.5, 1))
    shapes = [crop_shape(spent, schedule, (256, 256)) for spent in (0, 0.33, 0.34, 0.66, 0.67, 1)]
    assert [rows for rows, _ in shapes] == [64, 64, 128, 128, 256, 256]
    assert crop_shape(0, schedule, (190, 256)) == (48, 64)
    assert crop_shape(0, schedule, (30, 80)) == (30, 32)
    assert crop_shape(1, schedule, (190, 251)) == (190, 251)
    turning = Schedule(crops=(1,), augmentation="turn")
    assert crop_shape(1, turning, (190, 251)) == (190, 190)


def test_batches_hold_the_same_number_of_pixels() -> None:
    schedule, image = Schedule(batch=8), (256, 256)
    assert batch_size((256, 256), image, schedule, workers=1) == 8
    assert batch_size((64, 64), image, schedule, workers=1) == 128
    assert batch_size((128, 256), image, schedule, workers=1) == 16
    assert batch_size((256, 256), image, schedule, workers=2) == 4
    assert batch_size((256, 256), image, schedule, workers=64) == 2


def test_crops_are_parts_of_images() -> None:
    images = torch.arange(2 * 16 * 16 * 3).view(2, 16, 16, 3).remainder(251).to(torch.uint8)
    crops = draw_crops(images, 20, (8, 8), "none", torch.Generator().manual_seed(0))
    assert crops.shape == (20, 3, 8, 8)
    assert crops.is_contiguous(memory_format=torch.channels_last)
    windows = images.unfold(1, 8, 1).unfold(2, 8, 1).reshape(-1, 3, 8, 8).float() / 255
    for crop in crops:
        assert (windows == crop).flatten(1).all(1).any()


@pytest.mark.parametrize(
    ("augmentation", "orientations"),
    [("none", 1), ("flip_horizontal", 2), ("flip", 4), ("turn", 4), ("dihedral", 8)],
)
def test_augmentation_draws_every_orientation(
    augmentation: Augmentation, orientations: int
) -> None:
    image = torch.rand(1, 8, 8, 3).mul(255).to(torch.uint8)
    crops = draw_crops(image, 200, (8, 8), augmentation, torch.Generator().manual_seed(0))
    upright = to_network(image, CPU)[0]
    turned = [torch.rot90(base, k, (1, 2)) for base in (upright, upright.flip(2)) for k in range(4)]
    seen = {i for crop in crops for i, expected in enumerate(turned) if torch.equal(crop, expected)}
    assert len(seen) == orientations
    if augmentation == "turn":
        assert seen == {0, 1, 2, 3}


def test_relighting_is_the_formula_and_keeps_within_what_was_asked() -> None:
    image = torch.rand(1, 3, 6, 7) * 0.5 + 0.2
    mean = float(image.mean())
    expected = (0.9 * (mean + 1.1 * (image - mean))).clamp(0, 1)
    torch.testing.assert_close(relight(image, 0.9, 1.1), expected)
    images = image.expand(200, -1, -1, -1)
    found = random_light(images, 0.1, torch.Generator().manual_seed(0))
    gain = found.mean(dim=(1, 2, 3)) / mean
    contrast = found.flatten(1).std(dim=1) / image.std() / gain
    for change in (gain, contrast):
        assert 0.9 - 1e-3 <= change.min() < 0.91
        assert 1.09 < change.max() <= 1.1 + 1e-3
    assert float(torch.corrcoef(torch.stack([gain, contrast]))[0, 1]) == pytest.approx(0, abs=0.2)


def fitted_to(
    stripes: torch.Tensor,
    recipe: Recipe,
    precision: torch.dtype = torch.float32,
    *,
    compiled: bool = False,
    parts: int | None = None,
    **options: Any,
) -> Fitted:
    feed = Feed(stripes[:8], stripes[8:])
    return fit(feed, recipe, Numerics(CPU, precision, compiled, parts), **options)


def run(stripes: torch.Tensor, recipe: Recipe, **options: Any) -> list[ProgressRow]:
    fitted = fitted_to(stripes, recipe, **options)
    assert not fitted.model.training
    return fitted.history


@pytest.fixture
def small(tiny: Recipe) -> Recipe:
    return override(tiny, ["schedule.crops=[0.5,1]", "schedule.images=40"])


def test_training_lowers_the_loss(stripes: torch.Tensor, small: Recipe) -> None:
    same = stripes[:1].expand(len(stripes), -1, -1, -1)
    recipe = override(small, ["schedule.crops=[1]"])
    first = run(same, override(recipe, ["schedule.images=1"]))[-1]
    last = run(same, override(recipe, ["schedule.images=240"]))[-1]
    assert last.validation_loss < 0.5 * first.validation_loss
    assert last.budget_spent == 1.0


def test_a_golden_run(stripes: torch.Tensor, small: Recipe) -> None:
    """What a change of corruption, schedule, network or maps moves, wanted or not; then anew."""
    everything = [
        *("corruption.mix.pattern=1", "corruption.mix.occlusion=1", "corruption.rotated=0.2"),
        *("anomaly_map.difference=both", "anomaly_map.kernel=5"),
    ]
    recipe = override(small, everything)
    fitted = fitted_to(stripes, recipe, seed=3)
    last = fitted.history[-1]
    reconstructor = Reconstructor([fitted.model], torch.float32)
    found, _ = calibrate(reconstructor, stripes[8:], stripes[:8], recipe, seed=3)
    figures = [last.train_loss, last.validation_loss, *found.scale, found.pixel_threshold]
    assert figures == pytest.approx([0.078538, 0.044684, 0.188695, 1.037215], rel=5e-3)


def test_the_image_budget_is_kept(stripes: torch.Tensor, small: Recipe) -> None:
    last = run(stripes, small)[-1]
    assert 40 <= last.images_seen < 50
    assert last.epoch == pytest.approx(last.images_seen / 8)
    assert (last.crop_rows, last.crop_columns) == (32, 32)
    assert last.seconds_left == 0


def test_the_time_budget_is_kept(stripes: torch.Tensor, small: Recipe) -> None:
    endless = override(small, ["schedule.images=100000000"])
    started = time.monotonic()
    last = run(stripes, endless, max_minutes=2 / 60)[-1]
    assert 2 <= last.seconds < 4
    assert time.monotonic() - started < 6
    assert last.learning_rate < 0.05 * endless.schedule.learning_rate


def test_same_seed_same_weights(stripes: torch.Tensor, small: Recipe) -> None:
    weights = [fitted_to(stripes, small, seed=seed).model.state_dict() for seed in (1, 1, 2)]
    assert all(torch.equal(a, b) for a, b in zip(*(w.values() for w in weights[:2]), strict=True))
    assert not torch.equal(weights[0]["to_image.weight"], weights[2]["to_image.weight"])


@pytest.mark.parametrize(
    "objective",
    [["objective.kind=amplify"], ["objective.early_stopping=true"]],
    ids=["amplify", "where asked for"],
)
def test_the_weights_that_separate_best_are_kept(
    stripes: torch.Tensor, small: Recipe, monkeypatch: pytest.MonkeyPatch, objective: list[str]
) -> None:
    """Separation rises, then falls: training stops early and the weights of the peak return."""
    seen: list[dict[str, torch.Tensor]] = []
    values: Iterator[float] = iter([0.5, 0.7, 0.9, *np.linspace(0.8, 0.1, 60).tolist()])

    def measured(model: torch.nn.Module, *_: object) -> float:
        seen.append({name: weight.clone() for name, weight in model.state_dict().items()})
        return next(values)

    monkeypatch.setattr("ssray.training.early_stopping.separation", measured)
    recipe = override(small, [*objective, "objective.patience=0.2", "schedule.images=240"])
    fitted = fitted_to(stripes, recipe)
    last = fitted.history[-1]
    assert last.images_seen < 0.5 * 400
    assert (last.budget_spent, last.seconds_left) == (1.0, 0.0)
    for name, weight in fitted.model.state_dict().items():
        assert torch.equal(weight, seen[2][name])
    assert not torch.equal(weight, seen[-1][name])


def test_early_stopping_needs_something_to_see(stripes: torch.Tensor, small: Recipe) -> None:
    """On white images no synthetic defect is perceptible, so that nothing tells when to stop."""
    white = torch.full_like(stripes, 255)
    recipe = override(small, ["objective.kind=amplify", "objective.patience=0.1"])
    last = fitted_to(white, recipe).history[-1]
    assert last.images_seen >= small.schedule.images


@pytest.mark.slow
def test_a_compiled_network_trains_to_the_same_loss(stripes: torch.Tensor, small: Recipe) -> None:
    losses = [
        fitted_to(stripes, small, compiled=compiled).history[-1].validation_loss
        for compiled in (False, True)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


def test_one_network_is_not_an_ensemble(stripes: torch.Tensor, small: Recipe) -> None:
    recipe = override(small, ["objective.kind=ensemble"])
    with pytest.raises(ValueError, match="ensemble_parts"):
        fitted_to(stripes, recipe)


@pytest.mark.parametrize("kind", ["reconstruct", "amplify"])
def test_a_training_that_explodes_says_so(stripes: torch.Tensor, small: Recipe, kind: str) -> None:
    wild = override(small, [f"objective.kind={kind}", "schedule.learning_rate=1e30"])
    with pytest.raises(TrainingError, match="learning_rate"):
        fitted_to(stripes, wild)


def test_separation_is_high_where_reconstruction_repairs(stripes: torch.Tensor) -> None:
    """A network that gives back the undistorted image separates; one that copies does not."""

    class Repair(torch.nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.median(dim=2, keepdim=True).values.expand_as(x)  # stripes are upright

    class Copy(torch.nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    repaired = separation(Repair(1, 1, 1), stripes, torch.float32)
    copied = separation(Copy(1, 1, 1), stripes, torch.float32)
    assert repaired > 0.9
    assert copied == 0.5


@pytest.mark.parametrize("kind", ["amplify", "ensemble"])
def test_every_objective_builds_a_model(
    stripes: torch.Tensor, small: Recipe, tmp_path: Path, kind: str
) -> None:
    uris = write_images(stripes, tmp_path)
    recipe = override(small, ["image_size=32", f"objective.kind={kind}"])
    epochs: list[ProgressRow] = []
    built = build_model(
        BuildRequest(uris, "s", "v1", recipe, Compute()),
        CPU,
        threads=1,
        callbacks=Callbacks(on_row=lambda progress: epochs.append(progress.history[-1])),
    )
    assert built is not None
    assert len(built.weights) == (2 if kind == "ensemble" else 1)
    assert epochs[-1].budget_spent == 1.0
    for name in ("budget_spent", "epoch", "images_seen", "seconds"):
        values = [getattr(epoch, name) for epoch in epochs]
        assert values == sorted(values)
    objectives = ["amplify"] if kind == "amplify" else ["reconstruct", "amplify"]
    assert sorted({epoch.objective for epoch in epochs}, reverse=True) == objectives
    store = Location.parse(tmp_path / "store")
    artifact.save(built, store)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    scored = Scorer(artifact.load(store, "s", "v1"), CPU, torch.float32)(images)
    x = to_network(torch.from_numpy(images), CPU)
    networks = built.build_all(CPU)
    maps = built.map_maker(CPU)(
        Reconstructor(networks, torch.float32).differences(
            x, built.calibration.anomaly_map.difference
        )
    )
    np.testing.assert_allclose(scored.maps, maps[:, 0], rtol=1e-5)


def test_the_linear_autoencoder_is_part_of_the_model(
    stripes: torch.Tensor, small: Recipe, tmp_path: Path
) -> None:
    """Fitted to the images that were trained on, stored, and one of two maps that are joined."""
    uris = write_images(stripes, tmp_path)
    joined = ["anomaly_map.join=mean", "anomaly_map.relative=false"]
    recipe = override(small, ["image_size=32", 'linear={"image_size": 16}', *joined])
    built = build_model(BuildRequest(uris, "s", "v1", recipe, Compute()), CPU, threads=1)
    assert built is not None and built.linear is not None
    assert len(built.weights) == 1 and len(built.calibration.scale) == 2
    feed = load_feed(uris, recipe, 1, built.facts.seed)
    assert recipe.linear is not None
    expected = LinearAutoencoder.fitted(feed.sample(99), recipe.linear)
    assert torch.equal(built.linear["basis"], expected.basis)
    store = Location.parse(tmp_path / "store")
    artifact.save(built, store)
    read = artifact.load(store, "s", "v1")
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    for backend in ("torch", "openvino"):
        scored = Scorer(read, CPU, torch.float32, backend)(images)
        x = to_network(torch.from_numpy(images), CPU)
        settings = built.calibration.anomaly_map
        both = Reconstructor(built.build_all(CPU), torch.float32).differences(
            x, settings.difference
        )
        each = smooth(both, settings.kernel, settings.repeats)
        scale = torch.tensor(built.calibration.scale).view(1, 2, 1, 1)
        np.testing.assert_allclose(scored.maps, (each / scale).mean(dim=1), rtol=1e-3)


@pytest.fixture
def with_neighbours(stripes: torch.Tensor, small: Recipe, tmp_path: Path) -> BuildRequest:
    """A training of a network, a linear autoencoder and a memory bank."""
    weights = tmp_path / "resnet.pth"
    torch.save(tiny_resnet(), weights)
    features = {"weights": str(weights), "image_size": 64, "memory_mib": 0.02}
    recipe = override(
        small,
        [
            "image_size=32",
            'linear={"image_size": 16}',
            "anomaly_map.join=mean",
            f"features={json.dumps(features)}",
        ],
    )
    return BuildRequest(write_images(stripes, tmp_path), "s", "v1", recipe, Compute())


@pytest.mark.parametrize("experts", ["joined", "autoencoders", "neighbours"])
def test_the_memory_bank_is_part_of_the_model(
    with_neighbours: BuildRequest, experts: str, tmp_path: Path
) -> None:
    """Fitted to the images that were trained on, stored, and one of the experts that count."""
    request = dataclasses.replace(
        with_neighbours,
        recipe=override(with_neighbours.recipe, [f"anomaly_map.experts={experts}"]),
    )
    built = build_model(request, CPU, threads=1)
    assert built is not None and built.neighbours is not None
    assert built.calibration.anomaly_map.experts == experts
    wanted = request.recipe.features
    assert wanted is not None
    network = FeatureNetwork.of(read_weights(wanted.weights), wanted.weights)
    seen = load_feed(request.uris, request.recipe, 1, built.facts.seed).sample(99)
    expected = MemoryBank.fitted(network, seen, wanted, built.facts.seed)
    assert torch.equal(built.neighbours["bank"].float(), expected.bank)
    store = Location.parse(tmp_path / "store")
    artifact.save(built, store)
    read = artifact.load(store, "s", "v1")
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    x = to_network(torch.from_numpy(images), CPU)
    settings, maker = built.calibration.anomaly_map, built.map_maker(CPU)
    autoencoders = Reconstructor(built.build_all(CPU), torch.float32)
    channels = {
        "autoencoders": [autoencoders.differences(x, settings.difference)],
        "neighbours": [expected(x)],
    }
    channels["joined"] = [*channels["autoencoders"], *channels["neighbours"]]
    stack = torch.cat(channels[experts], dim=1)
    for backend in ("torch", "openvino"):
        scored = Scorer(read, CPU, torch.float32, backend)(images)
        np.testing.assert_allclose(scored.maps, maker(stack)[:, 0], rtol=2e-3)
        parts = maker.by_expert(stack)
        np.testing.assert_allclose(scored.by_expert, maker.scores_by_expert(parts), rtol=2e-3)
    assert scored.by_expert.shape == (2, len(built.calibration.experts))


def test_a_model_may_compare_features(with_neighbours: BuildRequest, tmp_path: Path) -> None:
    """The same in torch, in OpenVINO, and exported."""
    settings = ["anomaly_map.difference=features", "anomaly_map.experts=joined"]
    request = dataclasses.replace(
        with_neighbours, recipe=override(with_neighbours.recipe, settings)
    )
    built = build_model(request, CPU, threads=1)
    assert built is not None and built.by_features is not None
    assert built.calibration.anomaly_map.difference == "features"
    store = Location.parse(tmp_path / "store")
    artifact.save(built, store)
    read = artifact.load(store, "s", "v1")
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    x = to_network(torch.from_numpy(images), CPU)
    compare, bank = built.build_comparers(CPU)["features"], built.build_neighbours(CPU)
    assert compare is not None and bank is not None
    pairs = [
        torch.cat([x, reconstruction], dim=1)
        for reconstruction in Reconstructor(built.build_all(CPU), torch.float32).reconstruct(x)
    ]
    maker = built.map_maker(CPU)
    expected = maker(torch.cat([*map(compare, pairs), bank(x)], dim=1))[:, 0]
    for backend in ("torch", "openvino"):
        scored = Scorer(read, CPU, torch.float32, backend)(images)
        np.testing.assert_allclose(scored.maps, expected, rtol=2e-3)
    for kind in ("torch", "openvino"):
        assert export(read, kind, Location.parse(tmp_path / kind)) < 1e-3


def test_features_take_a_network(small: Recipe) -> None:
    with pytest.raises(ConfigError, match=r"ssray\[features\]"):
        override(small, ["anomaly_map.difference=features"])


def test_experts_are_chosen_by_synthetic_defects(with_neighbours: BuildRequest) -> None:
    built = build_model(with_neighbours, CPU, threads=1)
    assert built is not None
    chosen, found = built.calibration.selection, built.calibration
    assert chosen.tried == 3 and chosen.basis == "synthetic defects"
    assert found.anomaly_map.experts in ("joined", "autoencoders", "neighbours")
    assert len(found.expert_limits) == len(found.experts)


def test_neighbours_do_not_recognise_the_images_they_are_judged_on(
    with_neighbours: BuildRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two held-out images are too few, so training images join them, and the bank that is judged
    must not have these.
    """
    fitted_to: list[int] = []
    whole = MemoryBank.fitted.__func__  # type: ignore[attr-defined]

    def fitted(cls: type[MemoryBank], network: Any, images: torch.Tensor, *others: Any) -> Any:
        fitted_to.append(len(images))
        return whole(cls, network, images, *others)

    monkeypatch.setattr(MemoryBank, "fitted", classmethod(fitted))
    built = build_model(with_neighbours, CPU, threads=1)
    assert built is not None
    assert (built.facts.training_images, built.facts.held_out_images) == (10, 2)
    assert fitted_to == [10, 5]
    assert built.calibration.reference_images == 7


def test_weights_that_are_missing_are_found_out_before_the_training(
    with_neighbours: BuildRequest,
) -> None:
    assert with_neighbours.recipe.features is not None
    Path(with_neighbours.recipe.features.weights).unlink()
    rows: list[Snapshot] = []
    with pytest.raises(ConfigError, match="no file with the weights"):
        build_model(with_neighbours, CPU, threads=1, callbacks=Callbacks(on_row=rows.append))
    assert not rows


def test_folds_have_banks_of_their_own(with_neighbours: BuildRequest) -> None:
    recipe = override(
        with_neighbours.recipe, ["decision.folds=2", "anomaly_map.experts=neighbours"]
    )
    built = build_model(dataclasses.replace(with_neighbours, recipe=recipe), CPU, threads=1)
    assert built is not None and len(built.calibration.image_scores) == 12
    scores = built.calibration.image_scores
    assert np.median(scores) > 0.2, "no image is its own neighbour, but two are the same"


def test_on_the_way_a_model_is_what_would_be_published_now(
    stripes: torch.Tensor, small: Recipe, tmp_path: Path
) -> None:
    """So that a trial of a search is judged by that: with its linear autoencoder, fitted once."""
    uris = write_images(stripes, tmp_path)
    settings = ["image_size=32", "objective.kind=ensemble", 'linear={"image_size": 16}']
    recipe = override(small, settings)
    seen: list[tuple[float, list[nn.Module]]] = []

    def on_row(snapshot: Snapshot) -> None:
        seen.append((snapshot.history[-1].budget_spent, [*snapshot.model().networks]))

    built = build_model(
        BuildRequest(uris, "s", "v1", recipe, Compute()),
        CPU,
        threads=1,
        callbacks=Callbacks(on_row=on_row),
    )
    assert built is not None and built.linear is not None
    for spent, networks in seen:
        assert len(networks) == (2 if spent <= 0.5 else 3), "a second network from half on"
        assert networks[-1] is seen[0][1][-1]
    last = seen[-1][1]
    for network, weights in zip(last, [*built.weights, built.linear], strict=True):
        for name, value in network.state_dict().items():
            assert torch.equal(value, weights[name])


def test_images_of_any_shape_train_and_score_at_it(small: Recipe, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for i in range(6):
        image = generator.integers(0, 256, (45, 61, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    uris = sorted(str(path) for path in tmp_path.glob("*.png"))
    recipe = override(small, ["image_size=51", "schedule.images=8"])
    built = build_model(BuildRequest(uris, "noise", "v1", recipe, Compute()), CPU, threads=1)
    assert built is not None
    assert built.input_shape == (44, 59)
    scorer = Scorer(built, CPU, torch.float32)
    prepared = resize(np.asarray(Image.open(uris[0])), built.input_shape)
    scored = scorer(prepared[None])
    assert scored.maps.shape == (1, 44, 59)
    assert np.isfinite(scored.maps).all()


def test_four_images_are_enough_to_build_a_model(
    stripes: torch.Tensor, small: Recipe, tmp_path: Path
) -> None:
    for i, image in enumerate(stripes[:4]):
        Image.fromarray(image.numpy()).save(tmp_path / f"{i}.png")
    uris = sorted(str(path) for path in tmp_path.glob("*.png"))
    recipe = override(small, ["image_size=32", "anomaly_map.average_power=1"])
    built = build_model(BuildRequest(uris, "s", "v1", recipe, Compute()), CPU, threads=1)
    assert built is not None
    assert (built.facts.training_images, built.facts.held_out_images) == (2, 2)
    assert built.calibration.reference_images == 4
    assert built.places.average is not None


def test_an_ensemble_has_both_objectives_and_shares_the_budget() -> None:
    whole = Recipe(objective=Objective(kind="ensemble"), schedule=Schedule(images=1001))
    parts = ensemble_parts(whole)
    assert [part.objective.kind for part in parts] == ["reconstruct", "amplify"]
    assert [part.schedule.images for part in parts] == [500, 500]
    assert ensemble_parts(parts[0]) == [parts[0]]


def test_textures_from_a_folder_reach_the_corruption(
    stripes: torch.Tensor, small: Recipe, tmp_path: Path
) -> None:
    uris = write_images(stripes, tmp_path)
    (tmp_path / "textures").mkdir()
    Image.new("RGB", (20, 20), (255, 0, 0)).save(tmp_path / "textures/red.png")
    mix = '{"elastic": 0, "occlusion": 1}'
    recipe = override(
        small,
        [
            "image_size=32",
            'corruption.foreign=["textures"]',
            f"corruption.textures={tmp_path / 'textures'}",
            f"corruption.mix={mix}",
        ],
    )
    built = build_model(BuildRequest(uris, "s", "v1", recipe, Compute()), CPU, threads=1)
    assert built is not None
    with pytest.raises(ConfigError, match="go together"):
        override(small, ["corruption.textures=somewhere"])


def test_bfloat16_trains_to_about_the_same_loss(stripes: torch.Tensor, small: Recipe) -> None:
    recipe = override(small, ["schedule.images=100"])
    losses = [
        fitted_to(stripes, recipe, precision).history[-1].validation_loss
        for precision in (torch.float32, torch.bfloat16)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.5)


def test_held_out_images_are_apart_and_at_least_two() -> None:
    uris = [str(number) for number in range(100)]
    held_out, training = split_uris(uris, 0.05, seed=0)
    assert len(held_out) == 5
    assert sorted(held_out + training) == sorted(uris)
    assert split_uris(uris, 0.05, seed=1)[0] != held_out
    assert len(split_uris(uris[:6], 0.05, seed=0)[0]) == 2
    assert len(split_uris(uris * 200, 0.1, seed=0)[0]) == 1024


def test_no_held_out_pixel_exceeds_the_threshold(stripes: torch.Tensor, small: Recipe) -> None:
    fitted = fitted_to(stripes, small)
    networks = [fitted.model]
    reconstructor = Reconstructor(networks, torch.float32)
    found, places = calibrate(reconstructor, stripes[8:], stripes[:0], small, seed=0)
    x = to_network(stripes[8:], CPU)
    maker = found.map_maker(places, CPU)
    maps = maker(reconstructor.differences(x, found.anomaly_map.difference))
    assert float(maps.max()) == pytest.approx(found.pixel_threshold, rel=1e-5)
    settings = {"difference": "squared", "kernel": 5, "repeats": 2, "image_score": "max"}
    fixed = override(small, [f"anomaly_map.{name}={value}" for name, value in settings.items()])
    kept, _ = calibrate(reconstructor, stripes[8:], stripes[:8], fixed, seed=0)
    assert (kept.reference_images, kept.held_out_references) == (12, 4)
    assert kept.anomaly_map.model_dump() == fixed.anomaly_map.model_dump()
    assert kept.selection.image_auroc is not None, "it is judged all the same"
    squared = reconstructor.differences(x, "squared")
    highest = smooth(squared, 5, 2).amax(dim=(1, 2, 3))
    assert kept.scale == pytest.approx([float(highest.mean())], rel=1e-4)
    assert kept.pixel_threshold == pytest.approx(float(highest.max() / highest.mean()), rel=1e-4)


@pytest.fixture
def model(tmp_path: Path, stripes: torch.Tensor, small: Recipe) -> ModelArtifact:
    for i, image in enumerate(stripes):
        Image.fromarray(image.numpy()).save(tmp_path / f"{i:02}.png")
    (tmp_path / "broken.png").write_bytes(b"")
    uris = sorted(str(path) for path in tmp_path.glob("*.png"))
    recipe = override(small, ["image_size=32"])
    built = build_model(BuildRequest(uris, "stripes", "v1", recipe, Compute()), CPU, threads=1)
    assert built is not None
    return built


def test_a_built_model_knows_its_origin(model: ModelArtifact) -> None:
    assert (model.facts.training_images, model.facts.held_out_images) == (10, 2)
    assert model.facts.skipped_images == 1
    assert model.input_shape == (32, 32)
    assert model.facts.precision in ("float32", "bfloat16")


def test_a_training_needs_no_package_that_it_only_names(
    stripes: torch.Tensor, small: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end of hours it is too late to find that Ray is not installed here."""
    known = importlib.metadata.version

    def version(name: str) -> str:
        if name == "ray":
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    uris = []
    for number, image in enumerate(stripes):
        Image.fromarray(image.numpy()).save(tmp_path / f"{number}.png")
        uris.append(str(tmp_path / f"{number}.png"))
    request = BuildRequest(uris, "stripes", "v1", small, Compute(precision="float32"))
    built = build_model(request, CPU, threads=1)
    assert built is not None
    assert "ray" not in built.facts.packages
    assert built.facts.packages["torch"] == known("torch")


def test_a_stored_model_scores_the_same(model: ModelArtifact, tmp_path: Path) -> None:
    store = Location.parse(tmp_path / "store")
    artifact.save(model, store)
    loaded = artifact.load(store, "stripes", "v1")
    assert loaded.recipe == model.recipe
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    before, after = (Scorer(m, CPU, torch.float32)(images) for m in (model, loaded))
    np.testing.assert_array_equal(before.maps, after.maps)
    np.testing.assert_array_equal(before.scores, after.scores)
    assert before.maps.shape == (3, 32, 32)


def test_the_scorer_is_the_method(model: ModelArtifact) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    scored = Scorer(model, CPU, torch.float32)(images)
    x = to_network(torch.from_numpy(images), CPU)
    maker = model.map_maker(CPU)
    reconstructor = Reconstructor(model.build_all(CPU), torch.float32)
    maps = maker(reconstructor.differences(x, maker.settings.difference))
    np.testing.assert_allclose(scored.maps, maps[:, 0], rtol=1e-5)
    np.testing.assert_allclose(scored.scores, maker.scores(maps), rtol=1e-5)


def test_a_changed_or_incomplete_model_is_refused(model: ModelArtifact, tmp_path: Path) -> None:
    store = Location.parse(tmp_path / "store")
    artifact.save(model, store)
    place = tmp_path / "store/stripes/v1"
    with pytest.raises(ArtifactError, match="never overwritten"):
        artifact.save(model, store)
    content = (place / "weights.safetensors").read_bytes()
    (place / "weights.safetensors").write_bytes(content[:-1])
    with pytest.raises(ArtifactError, match="checksum differs"):
        artifact.load(store, "stripes", "v1")
    (place / "weights.safetensors").unlink()
    with pytest.raises(ArtifactError, match="missing"):
        artifact.load(store, "stripes", "v1")
    manifest = (place / "manifest.json").read_text()
    (place / "manifest.json").write_text(
        manifest.replace('"format_version": 11', '"format_version": 12')
    )
    with pytest.raises(ArtifactError, match="format version 12"):
        artifact.load(store, "stripes", "v1")
    (place / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="no complete model"):
        artifact.load(store, "stripes", "v1")


def test_maps_are_resampled_without_new_extremes() -> None:
    values = np.random.default_rng(0).random((8, 8), dtype=np.float32)
    resized = resize_map(values, (20, 30))
    assert resized.shape == (20, 30)
    assert values.min() <= resized.min() <= resized.max() <= values.max()


def test_device_and_precision_are_settings(tiny: Recipe) -> None:
    assert resolve_precision("float32", CPU, tiny.network) == torch.float32
    assert resolve_precision("bfloat16", CPU, tiny.network) == torch.bfloat16


def test_a_gpu_that_only_emulates_bfloat16_trains_in_float32(
    tiny: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = {"value": False}

    def supported(including_emulation: bool = True) -> bool:
        return including_emulation or native["value"]

    monkeypatch.setattr("torch.cuda.is_bf16_supported", supported)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "an old card")
    gpu = torch.device("cuda")
    assert resolve_precision("auto", gpu, tiny.network) == torch.float32
    assert kept_precision("bfloat16", gpu) == torch.float32, "however it was trained so far"
    assert kept_precision("bfloat16", CPU) == torch.bfloat16
    with pytest.raises(ConfigError, match=r"an old card has no instructions.*--precision auto"):
        resolve_precision("bfloat16", gpu, tiny.network)
    native["value"] = True
    assert resolve_precision("auto", gpu, tiny.network) == torch.bfloat16
    assert resolve_precision("bfloat16", gpu, tiny.network) == torch.bfloat16
    assert kept_precision("bfloat16", gpu) == torch.bfloat16
    assert kept_precision("float32", gpu) == torch.float32
    assert resolve_precision("auto", CPU, tiny.network) is resolve_precision(
        "auto", CPU, tiny.network
    )
    if not torch.cuda.is_available():
        assert resolve_device("auto") == CPU
        with pytest.raises(ConfigError, match="no CUDA device"):
            resolve_device("cuda")


def test_accumulated_parts_are_one_step(stripes: torch.Tensor, small: Recipe) -> None:
    """As many images and updates as in whole steps; only the batch statistics differ."""
    recipe = override(small, ["schedule.batch=8", "schedule.crops=[1]", "schedule.images=80"])
    losses = []
    for parts in (1, 4):
        taken: list[Checkpoint] = []
        fitted = fitted_to(
            stripes,
            recipe,
            parts=parts,
            checkpointing=Checkpointing(every_minutes=0, callback=taken.append),
        )
        assert taken[-1].facts["images_seen"] == 72
        assert taken[-1].facts["averaged_steps"] == 9
        losses.append(fitted.history[-1].validation_loss)
    assert losses[1] == pytest.approx(losses[0], rel=0.3)


def test_a_run_ends_after_so_many_passes_over_its_images(
    stripes: torch.Tensor, small: Recipe
) -> None:
    recipe = override(small, ["schedule.images=100000", "schedule.epochs=5"])
    last = fitted_to(stripes, recipe).history[-1]
    assert last.epoch == pytest.approx(5, abs=0.5)
    assert last.learning_rate < recipe.schedule.learning_rate / 50
