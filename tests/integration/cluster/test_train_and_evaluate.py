"""Training and scoring on a real Ray with two CPUs, as on the smallest machine supported."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from ssray.config import Compute, Recipe, override
from ssray.data.dataset import index_dataset, index_images
from ssray.data.decode import read_image
from ssray.data.demo.dataset import write_demo_data
from ssray.data.masks import read_masks
from ssray.errors import ConfigError, DataError, PoorModelError, ScoringError, TrainingError
from ssray.metrics.pixels import PixelCounts
from ssray.models import artifact
from ssray.models import store as model_store
from ssray.models.artifact import ModelArtifact
from ssray.recipes.request import RecipeRequest
from ssray.scoring.heatmap import png_to_levels
from ssray.scoring.judge import Judge
from ssray.scoring.labelled import LabelledImage, judge_labelled, prepare_labelled
from ssray.scoring.scorer import Scorer, resize_map
from ssray.storage.fetch import Fetcher
from ssray.storage.fingerprint import fingerprint
from ssray.storage.location import Location
from ssray.training.progress import ProgressRow
from tests.helpers import TINY_FAMILY, Ended

pytestmark = pytest.mark.usefixtures("ray_local")

FLOAT32 = Compute(precision="float32")


def training_uris(root: Path, category: str = "weave") -> list[str]:
    return sorted(str(path) for path in (root / category / "train/good").iterdir())


@pytest.fixture(scope="module")
def store(ray_local: None, demo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Location:
    """A store with a model of each demo category."""
    from ssray.cluster.categories import train_categories

    place = Location.parse(tmp_path_factory.mktemp("store"))
    request = RecipeRequest("demo", TINY_FAMILY)
    failed = train_categories(Location.parse(demo_root), [], request, FLOAT32, place, force=True)
    assert failed == {}
    return place


def test_training_publishes_a_model_and_its_log(store: Location) -> None:
    versions = model_store.published(store)
    assert sorted(versions) == ["grain", "weave"]
    model = artifact.load(store, "weave", versions["weave"])
    assert model.facts.images_seen >= 24
    log = pq.read_table(f"{store}/weave/{versions['weave']}/epochs.parquet").to_pylist()
    assert log[-1]["budget_spent"] == 1.0
    assert log == model.history


def test_a_model_that_guesses_is_kept_out_of_use(demo_root: Path, tmp_path: Path) -> None:
    """A map that is smoothed over the whole image tells nothing. Trained once, forced by the same
    request.
    """
    from ssray.cluster.categories import train_categories

    request = RecipeRequest(
        "demo",
        (*TINY_FAMILY, "anomaly_map.kernel=63", "anomaly_map.experts=autoencoders"),
    )
    root, store = Location.parse(demo_root), Location.parse(tmp_path)
    failed = train_categories(root, ["weave"], request, FLOAT32, store)
    assert isinstance(failed["weave"], PoorModelError), failed
    assert model_store.published(store) == {}
    [version] = model_store.versions(store, "weave")
    assert train_categories(root, ["weave"], request, FLOAT32, store, force=True) == {}
    assert model_store.published(store) == {"weave": version.version}


def test_a_run_can_be_repeated_from_its_artifact(store: Location, demo_root: Path) -> None:
    """Without Ray, from what the artifact says of its origin: the same to the last bit."""
    from ssray.training.build import BuildRequest, build_model

    model = artifact.load(store, "weave", model_store.published_version(store, "weave"))
    uris, facts = training_uris(demo_root), model.facts
    assert fingerprint(uris) == facts.data_fingerprint
    compute = Compute(seed=facts.seed, precision=facts.precision, max_minutes=facts.max_minutes)
    repeated = build_model(
        BuildRequest(uris, "weave", "v", model.recipe, compute),
        torch.device("cpu"),
        threads=facts.threads,
    )
    assert repeated is not None
    [weights], [found] = repeated.weights, model.weights
    for name, weight in weights.items():
        assert torch.equal(found[name], weight), name
    assert repeated.calibration == model.calibration
    assert facts.peak_memory_gib["resident"] > 0.1


def test_two_workers_agree_on_one_model(demo_root: Path, tiny: Recipe, tmp_path: Path) -> None:
    from ssray.cluster.train import train_category

    place, epochs = Location.parse(tmp_path), list[ProgressRow]()
    trained = train_category(
        training_uris(demo_root),
        "weave",
        tiny,
        Compute(precision="float32", workers=2),
        place,
        on_row=epochs.append,
    )
    model = artifact.load(place, "weave", trained.version)
    assert model.facts.workers == 2
    assert epochs[-1].images_seen >= 24
    assert epochs[-1].validation_loss == model.facts.validation_loss


def test_a_workers_own_error_reaches_the_driver(tiny: Recipe, tmp_path: Path) -> None:
    from ssray.cluster.train import train_category

    uris = []
    for i in range(3):
        Image.linear_gradient("L").save(tmp_path / f"{i}.png")
        uris.append(str(tmp_path / f"{i}.png"))
    with pytest.raises(TrainingError, match=r"^nut: 3 usable training images; at least 4"):
        train_category(uris, "nut", tiny, FLOAT32, Location.parse(tmp_path / "store"))
    assert model_store.published(Location.parse(tmp_path / "store")) == {}


def test_more_workers_than_cpus_are_refused_at_once(tiny: Recipe, tmp_path: Path) -> None:
    from ssray.cluster.train import train_category

    with pytest.raises(ConfigError, match=r"3 workers with 1 CPUs each need 3 CPUs.* has 2"):
        train_category([], "nut", tiny, Compute(workers=3), Location.parse(tmp_path))


@pytest.fixture(scope="module")
def evaluated(store: Location, demo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of a copy of the demo data in which one test image is broken."""
    from ssray.cluster.categories import evaluate_categories

    root = tmp_path_factory.mktemp("broken") / "data"
    shutil.copytree(demo_root, root)
    (root / "weave/test/good/000.png").write_bytes(b"not an image")
    out = tmp_path_factory.mktemp("out")
    maps = Location.parse(out / "maps")
    evaluate_categories(Location.parse(root), [], store, FLOAT32, Location.parse(out), maps)
    return out


def test_evaluation_equals_scoring_by_hand(
    evaluated: Path, store: Location, demo_root: Path
) -> None:
    model = artifact.load(store, "grain", model_store.published_version(store, "grain"))
    scorer = Scorer(model, torch.device("cpu"), torch.float32)
    labels, scores, pixels, truths = [], [], [], []
    for row in index_dataset(Location.parse(demo_root), ["grain"]).to_pylist():
        if row["split"] == "test":
            image = read_image(row["uri"])
            truth = read_masks(row["mask_uris"]) if row["mask_uris"] else np.zeros(image.shape[:2])
            result = scorer(model.framing(image)[0][None])
            labels.append(row["label"])
            scores.append(result.scores[0])
            pixels.append(resize_map(result.maps[0], truth.shape).ravel())
            truths.append(truth.ravel())
    metrics = pq.read_table(evaluated / "metrics.parquet").to_pylist()
    grain = next(row for row in metrics if row["category"] == "grain")
    assert grain["n_good"] == labels.count(0)
    assert grain["n_defect"] == labels.count(1)
    assert grain["image_auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-3)
    exact = roc_auc_score(np.concatenate(truths).astype(bool), np.concatenate(pixels))
    assert grain["pixel_auroc"] == pytest.approx(exact, abs=1e-4)


def test_other_tools_find_our_figures_in_the_kept_maps(evaluated: Path, demo_root: Path) -> None:
    manifest = [
        row
        for row in index_dataset(Location.parse(demo_root), ["grain"]).to_pylist()
        if row["split"] == "test"
    ]
    maps, masks = [], []
    for row in manifest:
        place = evaluated / "maps/grain" / row["split_type"] / f"{Path(row['uri']).stem}.npy"
        maps.append(np.load(place))
        mask = read_masks(row["mask_uris"]) if row["mask_uris"] else np.zeros(maps[-1].shape, bool)
        assert maps[-1].dtype == np.float32
        assert maps[-1].shape == mask.shape
        masks.append(mask)
    truth, values = np.stack(masks).ravel(), np.stack(maps).ravel()
    [grain] = figures(evaluated / "metrics.parquet", category="grain")
    assert grain["pixel_auroc"] == pytest.approx(roc_auc_score(truth, values), abs=1e-6)
    assert grain["pixel_ap"] == pytest.approx(average_precision_score(truth, values), abs=1e-3)
    assert grain["n_pixels_good"] + grain["n_pixels_defect"] == truth.size
    assert grain["n_pixels_defect"] == truth.sum()
    kinds = np.array([row["split_type"] for row in manifest])
    for name in set(kinds) - {"good"}:
        chosen = np.isin(kinds, ["good", name])
        truth, values = (np.stack(each)[chosen].ravel() for each in (masks, maps))
        [of_type] = figures(
            evaluated / "metrics_by_type.parquet", category="grain", defect_type=name
        )
        # Of so few pixels a pair that shares a bin counts for a tenth of a millionth, and there
        # are some.
        bound = 1e-6 + 6 / (truth.sum() * (~truth).sum())
        assert of_type["pixel_auroc"] == pytest.approx(roc_auc_score(truth, values), abs=bound)
        assert of_type["n_defect"] == (kinds == name).sum()


def test_markdown_stands_beside_the_paper(evaluated: Path) -> None:
    text = (evaluated / "metrics.md").read_text()
    [grain] = figures(evaluated / "metrics.parquet", category="grain")
    assert f"{100 * grain['pixel_auroc']:.2f}".rstrip("0").rstrip(".") in text
    assert "| **all (2)** |" in text
    assert "MVTec AD (" not in text  # neither category is of it


def test_maps_of_one_name_are_refused_before_any_work(store: Location, tmp_path: Path) -> None:
    from ssray.cluster.evaluate import evaluate

    uris = [str(tmp_path / f"weave/test/good/000.{kind}") for kind in ("png", "jpg")]
    for uri in uris:
        Path(uri).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64)).save(uri)
    manifest = index_dataset(Location.parse(tmp_path), ["weave"])
    place = Location.parse(tmp_path / "out")
    with pytest.raises(DataError, match=r"000.* would share .*weave/good/000.npy"):
        evaluate(manifest, store, model_store.published(store), FLOAT32, place, place / "maps")
    assert not place.exists()


@pytest.fixture
def cut(demo_root: Path, tmp_path: Path) -> pa.Table:
    """A manifest of three defective images whose masks are larger than they are; one is empty."""
    source, target = demo_root / "grain", tmp_path / "data/grain"
    for folder in ("test", "ground_truth"):
        (target / folder / "cut").mkdir(parents=True)
    for number, mask in enumerate(sorted((source / "ground_truth").rglob("*.png"))[:3]):
        image = source / "test" / mask.parent.name / mask.name.replace("_mask", "")
        shutil.copy(image, target / f"test/cut/{number}.png")
        large = Image.new("L", (96, 96))
        if number < 2:
            large = Image.open(mask).resize(large.size, Image.Resampling.NEAREST)
        large.save(target / f"ground_truth/cut/{number}_mask.png")
    return index_dataset(Location.parse(tmp_path / "data"), ["grain"])


def prepared(images: pa.Table, model: ModelArtifact) -> list[LabelledImage]:
    """Images of a table, ready for a model."""
    return [prepare_labelled(row, model.framing, Fetcher()) for row in images.to_pylist()]


def test_maps_are_resampled_to_masks_of_another_size_and_empty_ones_are_left_out(
    cut: pa.Table, store: Location, tmp_path: Path
) -> None:
    model = artifact.load(store, "grain", model_store.published_version(store, "grain"))
    judge = Judge(model, torch.device("cpu"), "float32", "torch")
    rows = judge_labelled(judge, prepared(cut, model), Location.parse(tmp_path / "maps"))
    assert [row["error"] for row in rows] == [None, None, None]
    assert [row["mask_error"] for row in rows] == [None, None, "mask_empty"]
    kept = sorted((tmp_path / "maps/grain/cut").iterdir())
    assert [np.load(path).shape for path in kept] == [(96, 96), (96, 96), (64, 64)]
    counts = PixelCounts()
    counts.merge_bytes(rows[0]["pixel_counts"])
    masks = [read_masks(row["mask_uris"]) for row in cut.to_pylist()[:2]]
    assert counts.defective_pixels == sum(mask.sum() for mask in masks)
    assert counts.good_pixels + counts.defective_pixels == 2 * 96 * 96


def test_a_map_that_is_not_finite_costs_its_image_and_no_other(
    cut: pa.Table, store: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = artifact.load(store, "grain", model_store.published_version(store, "grain"))
    scorer = Scorer(model, torch.device("cpu"), torch.float32)
    scored = scorer(np.zeros((2, *model.input_shape, 3), np.uint8))
    scored.maps[0, 3, 3] = np.nan
    monkeypatch.setattr(Scorer, "__call__", lambda self, images: scored)
    judge = Judge(model, torch.device("cpu"), "float32", "torch")
    broken, sound = judge_labelled(judge, prepared(cut, model)[:2])
    assert (broken["error"], broken.get("score")) == ("not_finite", None)
    assert sound["score"] == pytest.approx(scored.scores[1])
    counts = PixelCounts()
    counts.merge_bytes(broken["pixel_counts"])  # the batch's first row carries them
    assert (counts.images, counts.good_pixels + counts.defective_pixels) == (1, 96 * 96)


def figures(table: Path, **wanted: str) -> list[dict[str, Any]]:
    """The rows of a table that have these values."""
    rows = pq.read_table(table).to_pylist()
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def test_the_score_table_has_the_contracts_columns(evaluated: Path, demo_root: Path) -> None:
    table = pq.read_table(evaluated / "scores.parquet")
    columns = ["uri", "category", "split_type", "label", "model_version", "score"]
    of_masks = ["mask_error", "mask_detail"]
    of_experts = ["seen_by", "autoencoders_score", "neighbours_score"]
    assert table.column_names == [*columns, "p_value", "flagged", *of_experts, "error", *of_masks]
    for row in table.to_pylist():
        known = row["error"] is None
        assert [row[name] is not None for name in ("score", "p_value", "flagged")] == [known] * 3
        # Two held-out images support a rate of a third, and no p-value below.
        assert not known or 1 / 3 <= row["p_value"] <= 1
        assert not row["flagged"] or row["p_value"] == pytest.approx(1 / 3)
        assert (row["seen_by"] is not None) == bool(row["flagged"])
    manifest = index_dataset(Location.parse(demo_root)).to_pylist()
    expected = sum(row["split"] == "test" for row in manifest)
    assert len(set(table["uri"].to_pylist())) == len(table) == expected


def test_a_broken_image_is_a_row_with_a_reason(evaluated: Path) -> None:
    rows = pq.read_table(evaluated / "scores.parquet").to_pylist()
    [broken] = [row for row in rows if row["error"]]
    assert broken["error"] == "unknown_format"
    assert broken["uri"].endswith("weave/test/good/000.png")
    assert broken["score"] is None
    metrics = pq.read_table(evaluated / "metrics.parquet").to_pylist()
    assert {row["category"]: row["n_error"] for row in metrics} == {"grain": 0, "weave": 1}


def test_masks_that_cannot_be_used_are_named_and_the_exit_code_tells(
    store: Location, demo_root: Path, tmp_path: Path, program: Callable[..., Ended]
) -> None:
    root = tmp_path / "data"
    shutil.copytree(demo_root / "grain", root / "grain")
    masks = sorted((root / "grain/ground_truth").rglob("*.png"))
    for mask in masks:
        Image.fromarray(np.asarray(Image.open(mask)) // 255).save(mask)
    chosen = ("--data", root, "--models", store, "--precision", "float32")
    sound = program("evaluate", *chosen, "--out", tmp_path / "sound")
    assert sound.code == 0, sound.err
    assert "grain: Masks have low values alone; those from 1 on are read as defective." in sound.out
    Image.fromarray(np.asarray(Image.open(masks[0]))[:32]).save(masks[0])
    shutil.copy(masks[1], masks[1].with_name(masks[1].name.replace("_mask", "")))
    found = program("evaluate", *chosen, "--out", tmp_path / "out")
    assert found.code == 1
    assert "2 images count for no figure of pixels" in found.out
    assert f"{masks[0]}: 32 rows x 64 columns" in found.out
    assert f" and {masks[1]}: masks of one image" in found.out
    before, after = (
        figures(tmp_path / out / "metrics.parquet", category="grain")[0] for out in ("sound", "out")
    )
    for name in ("image_auroc", "image_ap", "defects_flagged", "n_defect", "n_error", "mask_level"):
        assert after[name] == before[name], name
    assert (before["n_mask_error"], after["n_mask_error"]) == (0, 2)
    assert after["n_pixels_defect"] < before["n_pixels_defect"]
    rows = pq.read_table(tmp_path / "out/scores.parquet").to_pylist()
    assert sorted(filter(None, (row["mask_error"] for row in rows))) == ["mask_shape", "mask_twice"]
    assert {row["error"] for row in rows} == {None}
    assert "32 rows x 64 columns" in (tmp_path / "out/report.html").read_text()
    assert (
        "figure of pixels, named in `scores.parquet`: grain 2."
        in (tmp_path / "out/metrics.md").read_text()
    )


def test_report_and_heatmaps_are_written(evaluated: Path) -> None:
    page = (evaluated / "report.html").read_text()
    assert "unknown_format" in page
    assert "weave" in page
    pictures = list((evaluated / "heatmaps/grain").rglob("*.png"))
    assert len(pictures) >= 6
    with Image.open(pictures[0]) as picture:
        assert picture.size == (64, 64)
    parts = pq.read_table(evaluated / "scored_parts").to_pylist()
    heatmap = next(row["heatmap"] for row in parts if row["heatmap"])
    assert png_to_levels(heatmap).shape == (64, 64)


def test_a_map_that_cannot_be_written_ends_the_run_with_the_reason(
    store: Location, demo_root: Path, tmp_path: Path
) -> None:
    from ssray.cluster.categories import evaluate_categories

    root, out = Location.parse(demo_root), Location.parse(tmp_path / "out")
    taken = tmp_path / "maps/grain"
    taken.parent.mkdir()
    taken.write_text("a file where a folder should be")
    with pytest.raises(ScoringError, match=r"scoring failed: .*Error: .*maps/grain"):
        evaluate_categories(root, ["grain"], store, FLOAT32, out, Location.parse(taken.parent))
    with pytest.raises(DataError, match=r"maps/grain: can't be created. Expected a folder"):
        evaluate_categories(root, ["grain"], store, FLOAT32, out, Location.parse(taken))


def test_evaluating_again_replaces_the_result(
    evaluated: Path, store: Location, demo_root: Path
) -> None:
    from ssray.cluster.categories import evaluate_categories

    out = Location.parse(evaluated.parent / "twice")
    for _ in range(2):
        evaluate_categories(Location.parse(demo_root), ["grain"], store, FLOAT32, out)
    table = pq.read_table(f"{out}/scores.parquet")
    assert len(set(table["uri"].to_pylist())) == len(table)


def test_runs_into_one_folder_get_their_own_rows_and_leave_those_of_one(
    store: Location, demo_root: Path, tmp_path: Path
) -> None:
    """Two at once, and a third one after them."""
    from ssray.cluster.evaluate import score

    versions = {"grain": model_store.published_version(store, "grain")}
    kinds = sorted(path.name for path in (demo_root / "grain/test").iterdir())[:3]

    def work(kind: str) -> tuple[pa.Table, pa.Table]:
        images = index_images(Location.parse(demo_root / "grain/test" / kind), "grain")
        return images, score(images, store, versions, FLOAT32, Location.parse(tmp_path))

    with ThreadPoolExecutor(2) as pool:
        runs = [*pool.map(work, kinds[:2]), work(kinds[2])]
    for images, scores in runs:
        assert scores["uri"].to_pylist() == sorted(images["uri"].to_pylist())
        assert scores["error"].null_count == len(scores)
    last = runs[-1][1]
    assert pq.read_table(tmp_path / "scores.parquet").equals(last)
    parts = pq.read_table(tmp_path / "scored_parts")
    assert sorted(parts["uri"].to_pylist()) == last["uri"].to_pylist()
    shown = {path.name.partition("-")[2] for path in (tmp_path / "heatmaps").rglob("*.png")}
    assert shown <= {Path(uri).name for uri in last["uri"].to_pylist()}


@pytest.mark.parametrize("order", [("evaluate", "score"), ("score", "evaluate")])
def test_scores_without_labels_leave_no_figures_of_an_evaluation(
    store: Location, demo_root: Path, tmp_path: Path, order: tuple[str, str]
) -> None:
    from ssray.cluster.evaluate import evaluate, score

    versions = {"grain": model_store.published_version(store, "grain")}
    for what in order:
        if what == "score":
            images = index_images(Location.parse(demo_root / "grain/test/good"), "grain")
            score(images, store, versions, FLOAT32, Location.parse(tmp_path))
        else:
            images = index_dataset(Location.parse(demo_root), ["grain"])
            evaluate(images, store, versions, FLOAT32, Location.parse(tmp_path))
    assert (tmp_path / "metrics.md").exists() == (order[-1] == "evaluate")
    assert (tmp_path / "metrics.parquet").exists() == (order[-1] == "evaluate")
    assert (tmp_path / "report.html").exists()


def test_unlabelled_images_get_scores(store: Location, demo_root: Path, tmp_path: Path) -> None:
    from ssray.cluster.evaluate import score

    images = demo_root / "grain/test"
    manifest = index_images(Location.parse(images), "grain")
    versions = {"grain": model_store.published_version(store, "grain")}
    table = score(manifest, store, versions, FLOAT32, Location.parse(tmp_path))
    assert table["label"].null_count == len(table) == len(manifest)
    assert table["error"].null_count == len(table)
    assert (tmp_path / "report.html").exists()


def test_a_model_that_overflows_gives_rows_not_a_crash(
    store: Location, demo_root: Path, tmp_path: Path
) -> None:
    from ssray.cluster.evaluate import score

    model = artifact.load(store, "grain", model_store.published_version(store, "grain"))
    model.weights[0]["to_image.bias"].fill_(float("nan"))
    place = Location.parse(tmp_path / "store")
    artifact.save(model, place)
    manifest = index_images(Location.parse(demo_root / "grain/test/good"), "grain")
    table = score(manifest, place, {"grain": model.version}, FLOAT32, Location.parse(tmp_path))
    assert set(table["error"].to_pylist()) == {"not_finite"}


def test_no_number_of_actors_lets_decoding_be_fused_into_them() -> None:
    from ssray.cluster import score

    shares = [score._ALL_SCORING_CPUS / workers for workers in range(1, 65)]
    assert score._DECODE_CPUS not in shares
    assert score._DECODE_CPUS + score._ALL_SCORING_CPUS + score._WRITE_CPUS <= 1


@pytest.mark.slow
def test_images_beyond_the_memory_stream_through_ray_data(
    ray_local: None, tiny: Recipe, tmp_path: Path
) -> None:
    """Two workers that would hold both CPUs, one damaged image, three passes over all."""
    from ssray.cluster.train import train_category

    write_demo_data(tmp_path / "data", categories=1, images=40, size=64)
    uris = training_uris(tmp_path / "data")
    Path(uris[5]).write_bytes(b"not an image")
    place = Location.parse(tmp_path / "store")
    compute = Compute(
        precision="float32", workers=2, memory_gib=20 * 3 * 64**2 / 1024**3, checkpoint_minutes=0
    )
    trained = train_category(uris, "weave", override(tiny, ["schedule.images=600"]), compute, place)
    facts = artifact.load(place, "weave", trained.version).facts
    assert facts.held_out_images == 4
    assert facts.training_images == 35
    assert facts.skipped_images == 1
    assert facts.workers == 2
