"""The tables of figures, and the Markdown beside the paper's numbers."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from ssray.data.storage import Location
from ssray.metrics.images import MEASURES, image_metrics
from ssray.metrics.pixels import PixelCounts
from ssray.report.figures import PAPER, TEXTURES, Figures
from ssray.report.results import collect
from ssray.report.tables import (
    IMAGE_METRICS,
    METRICS,
    METRICS_BY_TYPE,
    PIXEL_METRICS,
    SCORED_PARTS,
    write_table,
)


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
            "error": None,
        }
        for i, score in enumerate(scores)
    ]
    rows[0]["pixel_counts"] = counts.to_bytes()
    return rows


@pytest.fixture
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
    for number, half in enumerate((rows[:3], [broken, *rows[3:]])):
        table = pa.Table.from_pylist(half, schema=SCORED_PARTS)
        write_table(table, place / f"{number}.parquet")
    return Figures.of(collect(place))


def test_every_figure_has_its_column() -> None:
    found = image_metrics(np.array([0, 1]), np.array([0.0, 1.0])).values
    found |= PixelCounts().metrics().values
    assert list(MEASURES) == list(IMAGE_METRICS)
    assert set(PixelCounts().metrics().values) == set(PIXEL_METRICS)
    assert set(found) <= set(METRICS.names)


def test_a_row_a_category_and_a_row_a_type(figures: Figures) -> None:
    assert figures.categories.schema.equals(METRICS)
    assert figures.types.schema.equals(METRICS_BY_TYPE)
    grid, own, transistor = figures.categories.to_pylist()
    assert (grid["n_good"], grid["n_defect"], grid["n_error"], grid["n_regions"]) == (2, 2, 1, 2)
    assert grid["image_auroc"] == 0.75
    assert transistor["image_auroc"] == 1.0
    assert grid["n_pixels_good"] + grid["n_pixels_defect"] == 4 * 400 * 400
    kinds = [(row["category"], row["defect_type"]) for row in figures.types.to_pylist()]
    assert kinds == [("grid", "bent"), ("transistor", "cut")]
    assert figures.types.to_pylist()[0]["n_error"] == 1
    assert own["undefined"].count(":") == 2


def test_what_is_undefined_is_named_and_left_out_of_averages(figures: Figures) -> None:
    text = figures.markdown()
    assert "- own: image_auroc" in text
    assert "no image with a defect" in text
    assert "no defective pixel" in text
    assert "nan" not in text.lower()
    [average] = [line for line in text.splitlines() if "**all (3)**" in line]
    assert average.split("|")[2].strip() == "87.5"


def test_averages_stand_beside_the_papers_over_the_same_categories(figures: Figures) -> None:
    lines = figures.markdown().splitlines()
    [grid] = [line for line in lines if line.startswith("| grid | 75 ")]
    assert grid.split("|")[3].strip() == "100"
    [textures] = [line for line in lines if "**textures of MVTec AD (1)**" in line]
    assert textures.split("|")[5].strip() == "99.7"
    [everything] = [line for line in lines if "**all (3)**" in line]
    assert everything.split("|")[5].strip() == "99.15"


def test_the_papers_averages() -> None:
    """Of all 15 categories, as the paper prints them."""
    image, pixel = np.mean(list(PAPER.values()), axis=0)
    assert (round(image, 1), round(pixel, 1)) == (99.6, 99.1)
    assert set(TEXTURES) < set(PAPER)
