"""The page holds everything, and escapes everything."""

import base64
import io
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from ssray.config import Decoding
from ssray.data.dataset import index_images
from ssray.metrics.images import best_threshold, image_auroc, image_metrics, roc_points
from ssray.models.artifact import ModelArtifact
from ssray.report import charts, page
from ssray.report.charts import thin_roc
from ssray.report.evaluation import names_for_people, write_report
from ssray.report.gallery import GalleryImage, choose_gallery
from ssray.report.page import CategoryReport, render_page
from ssray.scoring.evaluation import Figures
from ssray.scoring.heatmap import encode_levels, overlay, png_to_levels
from ssray.scoring.judge import Judge
from ssray.scoring.labelled import judge_labelled, prepare_labelled
from ssray.scoring.results import collect
from ssray.scoring.tables import SCORED_PARTS
from ssray.storage.fetch import Fetcher
from ssray.storage.location import Location
from ssray.storage.parquet import as_parquet

NAN = math.nan
UNDEFINED = {"image_auroc": NAN, "pixel_auroc": NAN}
HOSTILE = '<script>alert("x")</script> & "quoted" \'name\' <img src=x onerror=alert(1)>.png'
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Document(HTMLParser):
    """Elements, visible text and unclosed tags of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += f" {data}"

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def gallery_image(label: int | None, seed: int = 0, side: int = 96) -> GalleryImage:
    rng = np.random.default_rng(seed)
    truth = np.zeros((side, side), bool)
    if label == 1:
        truth[20:50, 30:60] = True
    anomaly_map = rng.random((32, 32), dtype=np.float32) / np.float32(2)
    anomaly_map[8:18, 12:22] = 3
    return GalleryImage(
        name=f"scratch/{seed:03}.png",
        uri=f"s3://factory/scratch/{seed:03}.png",
        split_type="scratch" if label == 1 else "good" if label == 0 else "",
        label=label,
        score=0.25,
        why="Worst: a reason.",
        image=rng.integers(90, 160, (side, side, 3), dtype=np.uint8),
        levels=encode_levels(anomaly_map, 1.0),
        truth=truth if label is not None else None,
    )


def labelled_report(category: str = "bolts", seed: int = 0) -> CategoryReport:
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], [20, 40])
    scores = rng.normal(1 + labels, 0.6).clip(0.01)
    return CategoryReport(
        category=category,
        model_version="bolts-0001",
        labels=labels,
        scores=scores,
        split_types=["good"] * 20 + ["scratch"] * 25 + ["dent"] * 15,
        errors=[("s3://factory/a_rather_long_name/" + "x" * 90 + ".png", "truncated: cut short")],
        metrics=image_metrics(labels, scores).values
        | {"pixel_auroc": 0.9712, "aupimo": NAN}
        | {"undefined": "aupimo: too few pixels"},
        metrics_by_type={"dent": {"image_auroc": 0.876, "pixel_auroc": 0.912, "aupro_30": NAN}},
        facts=[("training images", "251"), ("smoothing", "k = 11, n = 3")],
        notes=["The settings were chosen on synthetic defects."],
        gallery=[gallery_image(1), gallery_image(0, seed=1), gallery_image(None, seed=2)],
    )


def unlabelled_report() -> CategoryReport:
    return CategoryReport(
        category="line 3",
        model_version="line-3",
        labels=np.full(30, -1),
        scores=np.random.default_rng(1).random(30),
        split_types=["unlabelled"] * 30,
        metrics=UNDEFINED,
        gallery=[gallery_image(None, seed=3)],
    )


def render(*reports: CategoryReport) -> str:
    return render_page("Inspection report", list(reports), "2026-06-14 09:30 UTC", "1.2.3")


def test_gallery_shows_the_least_convincing_of_both_classes_first() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    scores = np.array([1.0, 2.0, 3.0, 6.5, 2.5, 6.0, 7.0, 8.0])
    chosen = choose_gallery(labels, scores, worst=2, borderline=0)
    assert [index for index, _ in chosen] == [4, 3]
    assert "no higher than 2 of 4 good" in chosen[0][1]
    assert "no lower than 2 of 4 defects" in chosen[1][1]


def test_gallery_sorts_mistakes_by_how_wrong_they_are() -> None:
    labels = np.array([0, 0, 1, 1, 1, 1])
    scores = np.array([1.0, 9.0, 2.0, 3.0, 4.0, 10.0])
    chosen = choose_gallery(labels, scores, worst=4, borderline=0)
    assert [index for index, _ in chosen] == [1, 2, 3, 0]
    assert "yet below all 4 defects" in dict(chosen)[0]


def test_borderline_images_are_those_nearest_to_the_best_threshold() -> None:
    labels = np.repeat([0, 1], 5)
    scores = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 5.5, 7.0, 8.0, 9.0, 10.0])
    assert best_threshold(labels, scores) == 5.25
    chosen = choose_gallery(labels, scores, worst=2, borderline=2)
    assert [index for index, _ in chosen] == [5, 4, 3, 6]
    assert "nearest to 5.25" in chosen[2][1] and "below it" in chosen[2][1]
    assert "above it" in chosen[3][1]


def test_gallery_shows_each_image_once_and_repeats_itself() -> None:
    rng = np.random.default_rng(5)
    labels = rng.integers(-1, 2, 40)
    scores = rng.random(40).round(1)
    chosen = choose_gallery(labels, scores)
    indices = [index for index, _ in chosen]
    assert len(indices) == len(set(indices)) == 12
    assert chosen == choose_gallery(labels, scores)


@pytest.mark.parametrize(
    ("label", "expected", "reason"),
    [
        (0, [2, 0, 1], "no defect to compare"),
        (1, [1, 0, 2], "no good image to compare"),
        (-1, [2, 0, 1], "Most anomalous"),
    ],
)
def test_gallery_of_one_class(label: int, expected: list[int], reason: str) -> None:
    chosen = choose_gallery(np.full(3, label), np.array([2.0, 1.0, 3.0]))
    assert [index for index, _ in chosen] == expected
    assert all(reason in why for _, why in chosen)


def test_gallery_leaves_out_images_without_a_score() -> None:
    labels = np.array([0, 1, 0, 1])
    assert choose_gallery(labels, np.full(4, NAN)) == []
    assert choose_gallery(np.empty(0, int), np.empty(0)) == []
    chosen = choose_gallery(labels, np.array([NAN, 1.0, 2.0, NAN]))
    assert sorted(index for index, _ in chosen) == [1, 2]


def test_best_threshold_maximises_balanced_accuracy() -> None:
    rng = np.random.default_rng(6)
    labels = np.repeat([0, 1], [30, 50])
    scores = rng.normal(labels, 1.0)

    def balanced(threshold: float) -> float:
        called = scores > threshold
        return float(called[labels == 1].mean() + (~called[labels == 0]).mean())

    threshold = best_threshold(labels, scores)
    assert threshold is not None
    assert balanced(threshold) == max(balanced(score) for score in scores)


@pytest.mark.parametrize(
    ("labels", "scores"),
    [([0, 0], [1, 2]), ([0, 1], [1, 1]), ([0, 1], [2, 1]), ([0, 1], [1, NAN]), ([], [])],
)
def test_no_threshold_where_nothing_separates(labels: list[int], scores: list[float]) -> None:
    assert best_threshold(np.array(labels, int), np.array(scores, float)) is None


@pytest.mark.parametrize("upright", [True, False])
def test_pictures_are_drawn_over_what_the_model_saw(
    tiny_model: ModelArtifact, tmp_path: Path, upright: bool
) -> None:
    """Models of earlier formats saw photographs without their EXIF orientation."""
    decoding = Decoding() if upright else None
    recipe = tiny_model.recipe.model_copy(update={"decoding": decoding})
    model = replace(tiny_model, recipe=recipe)
    exif, stored = Image.Exif(), gallery_image(0).image
    exif[0x112] = 6
    Image.fromarray(stored).save(tmp_path / "turned.png", exif=exif)
    images = index_images(Location.parse(tmp_path / "turned.png"), "weave")
    labelled = [prepare_labelled(row, model.framing, Fetcher()) for row in images.to_pylist()]
    judge = Judge(model, torch.device("cpu"), "float32", "torch")
    parts = Location.parse(tmp_path / "parts")
    parts.make_folder()
    rows = pa.Table.from_pylist(judge_labelled(judge, labelled), schema=SCORED_PARTS)
    (parts / "0.parquet").write(as_parquet(rows))
    results, written = collect(parts), dict[str, bytes]()
    figures = Figures.of(results, {})
    write_report(results, figures, {"weave": model}, images, "Scores", written.__setitem__)
    [picture] = [content for name, content in written.items() if name.endswith(".png")]
    seen = np.rot90(stored, -1) if upright else stored
    expected = overlay(seen, png_to_levels(rows["heatmap"][0].as_py()))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(picture))), expected)


def test_thinning_keeps_ends_and_area_of_the_curve() -> None:
    rng = np.random.default_rng(7)
    labels = np.repeat([0, 1], 4000)
    scores = rng.normal(labels * 1.2, 1.0)
    full = roc_points(labels, scores)
    thin = thin_roc(*full)
    assert len(full[0]) > charts.MAX_ROC_POINTS >= len(thin[0]) > 300
    assert (thin[0][0], thin[1][0], thin[0][-1], thin[1][-1]) == (0, 0, 1, 1)
    area = float(np.diff(thin[0]) @ (thin[1][1:] + thin[1][:-1]) / 2)
    assert area == pytest.approx(image_auroc(labels, scores), abs=5e-4)


def test_page_is_well_formed_and_fetches_nothing() -> None:
    html = render(labelled_report(), unlabelled_report())
    document = Document(html)
    assert document.open == []
    assert not document.all("script") and not document.all("link")
    for _, attributes in document.elements:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            target = attributes.get(name)
            assert target is None or target.startswith(("#", "data:image/")), target
    assert "@import" not in html and "url(" not in html
    identifiers = [attributes["id"] for _, attributes in document.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    for anchor in document.all("a"):
        assert (anchor["href"] or "").removeprefix("#") in identifiers


def test_page_shows_what_the_report_says() -> None:
    report = labelled_report()
    words = Document(render(report, labelled_report("nuts", seed=1))).words
    for expected in (
        "Inspection report",
        "2026-06-14 09:30 UTC",
        "ssray 1.2.3",
        "bolts-0001",
        "0.971",
        f"AUROC {report.metrics['image_auroc']:.3f}",
        "20 good, 40 defective",
        "k = 11, n = 3",
        "The settings were chosen on synthetic defects.",
        "truncated: cut short",
        "False-positive rate",
        "True-positive rate",
        "chosen with the labels",
        "Worst: a reason.",
        "false alarm (false positive)",
    ):
        assert expected in words
    nuts = labelled_report("nuts", seed=1)
    mean = (report.metrics["image_auroc"] + nuts.metrics["image_auroc"]) / 2
    assert f"Mean {mean:.3f} 0.971" in words


def test_types_have_their_own_figures() -> None:
    report = labelled_report()
    words = Document(render(report)).words
    median = np.median(report.scores[45:])
    assert f"dent 15 {median:.4g} 0.876 0.912 \N{EM DASH}" in words


def test_figures_come_with_their_intervals_and_undefined_ones_with_the_reason() -> None:
    report = labelled_report()
    words = Document(render(report)).words
    value, low, high = (report.metrics[f"image_ap{end}"] for end in ("", "_low", "_high"))
    assert f"Image AP mean precision over recall {value:.3f} {low:.3f} to {high:.3f}" in words
    assert "AUPIMO too few pixels \N{EM DASH}" in words
    assert "AU-PRO 0.05" not in words
    assert "All figures" not in Document(render(unlabelled_report())).words


def test_pictures_are_embedded_shrunk_and_described() -> None:
    large = gallery_image(1, side=page.PICTURE_SIDE + 52)
    report = replace(labelled_report(), gallery=[large, gallery_image(None)])
    images = Document(render(report)).all("img")
    kinds = []
    for image in images:
        assert image["alt"]
        head, _, content = (image["src"] or "").partition(";base64,")
        picture = Image.open(io.BytesIO(base64.b64decode(content)))
        assert max(picture.size) <= page.PICTURE_SIDE
        assert head == f"data:image/{str(picture.format).lower()}"
        kinds.append(picture.format)
    assert kinds == ["JPEG", "JPEG", "PNG", "JPEG", "JPEG", "JPEG", "PNG"]


def test_undefined_metrics_give_their_reason() -> None:
    words = Document(render(unlabelled_report())).words
    assert "Image AUROC \N{EM DASH} needs both good and defective images" in words
    assert "Pixel AUROC \N{EM DASH} needs both good and defective images" in words
    assert "No ROC curve and no best separation: both need good and defective images" in words
    assert "nan" not in words.lower().split()


def test_masks_that_cannot_be_used_are_listed_with_the_reason() -> None:
    report = replace(labelled_report(), mask_errors=[("bolts/dent/000.png", "32 rows")])
    assert (
        "What is wrong with the mask bolts/dent/000.png 32 rows" in Document(render(report)).words
    )
    assert "wrong with the mask" not in Document(render(labelled_report())).words


@pytest.mark.parametrize(
    ("uris", "names"),
    [
        (
            ["/d/nut/test/bent/000.png", "/d/nut/test/good/000.png"],
            ["bent/000.png", "good/000.png"],
        ),
        (["/d/new/000.png", "/d/new/001.png"], ["new/000.png", "new/001.png"]),
        (["s3://b/a/x/0.png", "s3://b/c/x/0.png"], ["a/x/0.png", "c/x/0.png"]),
        (["s3://b/0.png"], ["b/0.png"]),
        (
            ["/d/nut.tar#test/bent/0.png", "/d/nut.tar#test/good/0.png"],
            ["bent/0.png", "good/0.png"],
        ),
        (["/0.png", "/d/e/0.png"], ["/0.png", "/d/e/0.png"]),
        ([], []),
    ],
)
def test_a_cards_name_tells_its_image_from_others(uris: list[str], names: list[str]) -> None:
    assert names_for_people(uris) == names


def test_mean_leaves_undefined_metrics_out() -> None:
    report = replace(labelled_report(), metrics=UNDEFINED | {"image_auroc": 0.75})
    words = Document(render(report, unlabelled_report())).words
    assert "Mean 0.750 of 1 \N{EM DASH} of 0" in words


def test_a_nearly_perfect_metric_is_not_rounded_to_perfect() -> None:
    for value, text in ((0.99996, "> 0.999"), (1.0, "1.000")):
        report = replace(labelled_report(), metrics=UNDEFINED | {"pixel_auroc": value})
        assert f"Pixel AUROC {text}" in Document(render(report)).words


def test_hostile_text_is_escaped() -> None:
    item = replace(gallery_image(1), name=HOSTILE, uri=HOSTILE, why=HOSTILE, split_type=HOSTILE)
    report = replace(
        labelled_report(HOSTILE),
        model_version=HOSTILE,
        split_types=[HOSTILE] * 60,
        errors=[(HOSTILE, HOSTILE)],
        mask_errors=[(HOSTILE, HOSTILE)],
        facts=[(HOSTILE, HOSTILE)],
        notes=[HOSTILE],
        gallery=[item],
    )
    html = render_page(HOSTILE, [report, unlabelled_report()], HOSTILE, HOSTILE)
    document = Document(html)
    assert not document.all("script")
    assert document.open == []
    assert document.words.count(HOSTILE) > 12
    assert all("onerror" not in attributes for _, attributes in document.elements)
    assert all((image["src"] or "").startswith("data:") for image in document.all("img"))
    assert any(HOSTILE in (image["alt"] or "") for image in document.all("img"))


@pytest.mark.parametrize(
    ("labels", "scores"),
    [
        ([], []),
        ([0], [0.0]),
        ([1], [NAN]),
        ([0, 1], [0.0, 0.0]),
        ([0, -1], [1.0, 2.0]),
        ([0, 1, 1], [1e-9, 1e9, NAN]),
        ([1, 0], [5.0, 5.0000001]),
    ],
)
def test_page_of_few_images(labels: list[int], scores: list[float]) -> None:
    report = CategoryReport(
        category="few",
        model_version="few",
        labels=np.array(labels, int),
        scores=np.array(scores, float),
        split_types=["any"] * len(labels),
        metrics=UNDEFINED,
    )
    html = render(report)
    document = Document(html)
    assert document.open == []
    for bar in document.all("rect"):
        assert float(bar["height"] or 0) > 0
        assert float(bar["width"] or 0) > 0
    assert re.search(r"\b(nan|inf)\b", html, re.IGNORECASE) is None


def test_thousands_of_scores_do_not_bloat_the_page() -> None:
    rng = np.random.default_rng(8)
    labels = np.repeat([0, 1], 10_000)
    scores = rng.lognormal(labels * 1.0, 1.0)
    report = replace(
        labelled_report(),
        labels=labels,
        scores=scores,
        split_types=["good"] * 10_000 + ["scratch"] * 10_000,
        gallery=[],
    )
    html = render(report)
    assert len(html) < 60_000
    assert "logarithmic" in Document(html).words
