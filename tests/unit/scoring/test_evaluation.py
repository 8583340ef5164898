"""The tables of figures, and the Markdown beside the paper's numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from ssray.data.mvtec_ad import CATEGORIES
from ssray.metrics.images import decision_metrics, held_out_metrics, image_metrics
from ssray.metrics.pixels import PixelCounts
from ssray.scoring.evaluation import Figures, cell
from ssray.scoring.results import collect
from ssray.scoring.tables import METRICS, METRICS_BY_TYPE, SCORED_PARTS
from ssray.storage.location import Location
from ssray.storage.parquet import write_table


def part(category: str, kind: str, scores: list[float], seed: int) -> list[dict[str, object]]:
    """Rows of one type as a scoring actor writes them; ``good`` images have no defect."""
    rng = np.random.default_rng(seed)
    counts = PixelCounts()
    for score in scores:
        mask = np.zeros((400, 400), bool)
        mask[40:80, 50:90] = kind != "good"
        counts.add((rng.random(mask.shape) * (1 + score * mask)).astype(np.float32), mask)
    rows: list[dict[str, object]] = [
        {
            "uri": f"{category}/{kind}/{i}.png",
            "category": category,
            "split_type": kind,
            "label": int(kind != "good"),
            "model_version": "v1",
            "score": score,
            "flagged": score > 1.8,
            "error": None,
        }
        for i, score in enumerate(scores)
    ]
    rows[0]["pixel_counts"] = counts.to_bytes()
    return rows


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Figures:
    place = Location.parse(tmp_path_factory.mktemp("parts"))
    rows = [
        *part("grid", "good", [1.0, 2.0], 0),
        *part("grid", "bent", [3.0, 1.5], 1),
        *part("transistor", "good", [1.0], 2),
        *part("transistor", "cut", [2.0, 3.0], 3),
        *part("own", "good", [1.0, 2.0], 4),
    ]
    broken = dict(rows[2]) | {"uri": "grid/bent/9.png", "score": None, "error": "truncated"}
    broken.pop("pixel_counts")
    lost = broken | {"uri": "grid/thread/0.png", "split_type": "thread"}
    rows[3] |= {"mask_error": "mask_shape", "mask_detail": "another aspect"}
    for number, half in enumerate((rows[:3], [broken, lost, *rows[3:]])):
        table = pa.Table.from_pylist(half, schema=SCORED_PARTS)
        write_table(table, place / f"{number}.parquet")
    return Figures.of(collect(place), {"grid": [0.5, 1.0, 1.7], "own": [1.0]}, {"own": 1})


def test_every_figure_has_its_column() -> None:
    found = image_metrics(np.array([0, 1]), np.array([0.0, 1.0])).values
    found |= PixelCounts().metrics().values
    found |= held_out_metrics(np.array([0, 1]), np.array([0.0, 1.0]), np.array([0.5])).values
    found |= decision_metrics(np.array([0, 1]), np.array([False, True])).values
    assert set(METRICS.names) > set(found)
    assert set(METRICS.names) - set(found) == {
        *("category", "model_version", "undefined", "n_good", "n_defect", "n_error"),
        *("n_mask_error", "mask_level", "n_regions", "n_pixels_good", "n_pixels_defect"),
        *("image_auroc_autoencoders", "image_auroc_neighbours"),
    }


def test_a_row_a_category_and_a_row_a_type(figures: Figures) -> None:
    assert figures.categories.schema.equals(METRICS)
    assert figures.types.schema.equals(METRICS_BY_TYPE)
    grid, own, transistor = figures.categories.to_pylist()
    assert (grid["n_good"], grid["n_defect"], grid["n_error"], grid["n_regions"]) == (2, 2, 2, 2)
    assert (grid["false_alarms"], grid["defects_flagged"]) == (0.5, 0.5)
    # Clopper and Pearson's: for one of two, the roots of p ** 2 and (1 - p) ** 2 = 1 - 0.025.
    assert grid["false_alarms_low"] == pytest.approx(1 - 0.975**0.5)
    assert grid["false_alarms_high"] == pytest.approx(0.975**0.5)
    assert grid["image_auroc"] == 0.75
    assert grid["image_auroc_held_out"] == pytest.approx(5 / 6)
    assert math.isnan(transistor["image_auroc_held_out"])
    assert "the model keeps no scores of held-out images" in transistor["undefined"]
    assert "image_auroc_held_out" in own["undefined"], "no defect"
    assert transistor["image_auroc"] == 1.0
    assert grid["n_pixels_good"] + grid["n_pixels_defect"] == 4 * 400 * 400
    kinds = [(row["category"], row["defect_type"]) for row in figures.types.to_pylist()]
    assert kinds == [("grid", "bent"), ("grid", "thread"), ("transistor", "cut")]
    bent, thread, _ = figures.types.to_pylist()
    assert (bent["n_defect"], bent["n_error"]) == (2, 1)
    assert (thread["n_defect"], thread["n_error"]) == (0, 1)
    assert math.isnan(thread["image_auroc"])
    assert own["undefined"].count(":") == 2


def cells(figures: Figures, start: str) -> list[str]:
    """The cells of the first line of the Markdown that starts so."""
    lines = figures.markdown().splitlines()
    line = next(line for line in lines if line.startswith(f"| {start}"))
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_what_is_undefined_is_named_and_left_out_of_averages(figures: Figures) -> None:
    text = figures.markdown()
    assert "- own: image_auroc, image_ap," in text
    assert "_low" not in text
    assert "no image with a defect" in text
    assert "- grid thread: pixel_auroc" in text
    assert "nan" not in text.lower()
    assert cells(figures, "own")[1:5] == ["", "", "", ""]
    assert cells(figures, "**all (3)**")[1] == "87.5"


def test_images_without_a_score_are_counted_beside_the_table(figures: Figures) -> None:
    assert "could not be scored, named in `scores.parquet`: grid 2." in figures.markdown()


def test_masks_that_cannot_be_used_are_counted_and_their_images_are_not_lost(
    figures: Figures,
) -> None:
    text = figures.markdown()
    assert "count for no figure of pixels, named in `scores.parquet`: grid 1." in text
    assert "own: Masks have low values alone; those from 1 on are read as defective." in text
    grid, own, _ = figures.categories.to_pylist()
    assert (grid["n_mask_error"], grid["n_defect"], grid["mask_level"]) == (1, 2, None)
    assert (own["n_mask_error"], own["mask_level"]) == (0, 1)
    bent, thread, _ = figures.types.to_pylist()
    assert (bent["n_mask_error"], thread["n_mask_error"]) == (1, 0)


def test_a_name_begins_no_cell_line_or_element_of_the_markdown(figures: Figures) -> None:
    hostile = "a|b\n# c <img src=x onerror=alert(1)> `d`"
    rows = [row | {"category": hostile} for row in figures.categories.to_pylist()[:1]]
    types = [row | {"defect_type": hostile} for row in figures.types.to_pylist()[:1]]
    text = Figures(
        pa.Table.from_pylist(rows, schema=METRICS),
        pa.Table.from_pylist(types, schema=METRICS_BY_TYPE),
    ).markdown()
    plain = figures.markdown()
    for line in text.splitlines():
        assert "a|b" not in line
        assert not line.startswith("# c")
        assert "<img" not in line
    columns = {line.count("|") for line in plain.splitlines() if line.startswith("|")}
    assert {line.count("|") for line in text.splitlines() if line.startswith("|")} <= columns
    assert "a&#124;b&#10;&#35; c &#60;img" in text


def test_averages_stand_beside_the_papers_over_the_same_categories(figures: Figures) -> None:
    grid, transistor = figures.categories.to_pylist()[::2]
    low = cell(grid["image_auroc_low"])
    assert cells(figures, "grid")[:3] == ["grid", f"75 ({low} to 100)", "100"]
    assert cells(figures, "**textures of MVTec AD (1)**")[4] == "99.7"
    everything = cells(figures, "**all of MVTec AD (2)**")
    mean = 50 * (grid["pixel_auroc"] + transistor["pixel_auroc"])
    assert float(everything[3]) == pytest.approx(mean, abs=0.006)
    assert everything[4] == "99.15"


def test_a_mean_over_categories_the_paper_lacks_stands_alone(figures: Figures) -> None:
    """``own`` has no AUROC; its mean is over the paper's categories and may stand beside it."""
    assert cells(figures, "**all (3)**")[1:3] == ["87.5", "99.4"]
    own = {"image_auroc": 0.5, "pixel_auroc": 0.5, "undefined": ""}
    rows = figures.categories.to_pylist()
    rows[1] |= own
    changed = replace(figures, categories=pa.Table.from_pylist(rows, schema=METRICS))
    assert cells(changed, "**all (3)**")[1:3] == ["75", ""]


def test_a_share_is_not_rounded_up_to_all() -> None:
    assert [cell(share) for share in (1.0, 0.99996, 0.5, 0.98765)] == [
        "100",
        "> 99.99",
        "50",
        "98.77",
    ]


def test_a_name_cannot_break_the_table(figures: Figures) -> None:
    rows = [row | {"category": "a|b"} for row in figures.categories.to_pylist()]
    changed = replace(figures, categories=pa.Table.from_pylist(rows[:1], schema=METRICS))
    assert len(cells(changed, "a&#124;b")) == len(cells(figures, "grid"))


def test_the_papers_averages() -> None:
    """Of all 15 categories, as the paper prints them."""
    image, pixel = np.mean([known.published for known in CATEGORIES.values()], axis=0)
    assert (round(image, 1), round(pixel, 1)) == (99.6, 99.1)
    textures = {name for name, known in CATEGORIES.items() if known.texture}
    assert textures == {"carpet", "grid", "leather", "tile", "wood"}
