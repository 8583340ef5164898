"""From scored parts to what users read: tables, heatmap pictures and the report page."""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from PIL import Image

import ssray
from ssray.artifact import ModelArtifact
from ssray.data.decode import read_image, read_mask
from ssray.data.storage import Location
from ssray.metrics.auroc import PixelCounts, image_auroc
from ssray.report.gallery import UNKNOWN, GalleryImage, choose_gallery
from ssray.report.heatmap import overlay, png_to_levels
from ssray.report.page import CategoryReport, render_page
from ssray.report.tables import METRICS, SCORED_PARTS, SCORES

NETWORK_NAMES = {
    "none": "Model I",
    "pixel": "Model II, a coefficient per pixel",
    "channel": "Model II, a coefficient per channel",
    "both": "Model II, a coefficient per pixel and channel",
}
OBJECTIVE_NAMES = {
    "reconstruct": "(1), reconstruct",
    "amplify": "(4), amplify",
    "ensemble": "(1) and (4), pixel-wise maximum",
}
DIFFERENCE_NAMES = {
    "squared": "squared",
    "ssim": "SSIM",
    "both": "geometric mean of squared and SSIM",
}
WORST = 6
BORDERLINE = 6


@dataclass(frozen=True)
class Results:
    """All rows of a run.

    Attributes:
        scores: the ``SCORES`` table, by category and uri.
        counts: pixel counts of each category.
    """

    scores: pa.Table
    counts: dict[str, PixelCounts]

    def categories(self) -> list[str]:
        return sorted(set(self.scores["category"].to_pylist()))

    def of(self, category: str) -> pa.Table:
        return self.scores.filter(pc.equal(self.scores["category"], category))


def collect(parts: Location) -> Results:
    """Reads the scored parts of a run, heatmaps left where they are."""
    dataset = pads.dataset(parts.path, filesystem=parts.filesystem, schema=SCORED_PARTS)
    counts: dict[str, PixelCounts] = defaultdict(PixelCounts.zero)
    tables = []
    for batch in dataset.to_batches(columns=[*SCORES.names, "pixel_counts"]):
        for row in batch.select(["category", "pixel_counts"]).to_pylist():
            if row["pixel_counts"] is not None:
                counts[row["category"]] += PixelCounts.from_bytes(row["pixel_counts"])
        tables.append(pa.table(batch.select(SCORES.names)))
    scores = pa.concat_tables(tables).cast(SCORES)
    return Results(scores.sort_by([("category", "ascending"), ("uri", "ascending")]), dict(counts))


def metrics_table(results: Results) -> pa.Table:
    """The ``METRICS`` table: a row a category."""
    rows = []
    for category in results.categories():
        table = results.of(category)
        labels, scores = _usable(table)
        counts = results.counts.get(category, PixelCounts.zero())
        rows.append(
            {
                "category": category,
                "model_version": table["model_version"][0].as_py(),
                "n_good": int((labels == 0).sum()),
                "n_defect": int((labels == 1).sum()),
                "n_error": len(table) - len(scores),
                "image_auroc": image_auroc(labels, scores),
                "pixel_auroc": counts.auroc(),
            }
        )
    return pa.Table.from_pylist(rows, schema=METRICS)


def write_table(table: pa.Table, place: Location) -> None:
    """Writes one Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    place.write(buffer.getvalue())


def write_report(
    results: Results,
    metrics: pa.Table,
    parts: Location,
    models: dict[str, ModelArtifact],
    out: Location,
    title: str,
    mask_uris: Mapping[str, str],
) -> None:
    """Writes ``report.html``, and an overlay picture of every image shown in it.

    Pictures go to ``heatmaps/CATEGORY/TYPE/RANK-NAME.png`` at the image's own resolution; the
    rank is the place in the report's gallery.
    """
    reports = []
    for row in metrics.to_pylist():
        category = row["category"]
        table = results.of(category)
        gallery = _gallery(table, parts, mask_uris)
        for rank, picture in enumerate(gallery):
            name = f"{rank:02}-{PurePosixPath(picture.name).stem}.png"
            place = out / "heatmaps" / category / (picture.split_type or "images") / name
            place.write(_png(overlay(picture.image, picture.levels)))
        reports.append(_category_report(row, table, gallery, models[category]))
    generated = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    page = render_page(title, reports, generated, ssray.__version__)
    (out / "report.html").write(page.encode())


def _gallery(table: pa.Table, parts: Location, mask_uris: Mapping[str, str]) -> list[GalleryImage]:
    rows = [row for row in table.to_pylist() if row["error"] is None]
    labels, scores = _usable(table)
    chosen = choose_gallery(labels, scores, worst=WORST, borderline=BORDERLINE)
    heatmaps = _heatmaps(parts, [rows[i]["uri"] for i, _ in chosen])
    gallery = []
    for i, why in chosen:
        row = rows[i]
        image = read_image(row["uri"])
        truth = _truth(mask_uris.get(row["uri"]), row["label"], image.shape[:2])
        gallery.append(
            GalleryImage(
                name=PurePosixPath(row["uri"]).name,
                uri=row["uri"],
                split_type=row["split_type"] or "",
                label=row["label"],
                score=row["score"],
                why=why,
                image=image,
                levels=png_to_levels(heatmaps[row["uri"]]),
                truth=truth,
            )
        )
    return gallery


def _truth(
    mask_uri: str | None, label: int | None, shape: tuple[int, ...]
) -> npt.NDArray[np.bool_] | None:
    """The ground truth at the image's resolution (nearest pixel); None where nobody knows."""
    if mask_uri is None:
        return np.zeros(shape, bool) if label == 0 else None
    mask = read_mask(mask_uri)
    rows = np.arange(shape[0]) * mask.shape[0] // shape[0]
    columns = np.arange(shape[1]) * mask.shape[1] // shape[1]
    truth: npt.NDArray[np.bool_] = mask[np.ix_(rows, columns)]
    return truth


def _category_report(
    metrics: dict[str, Any], table: pa.Table, gallery: list[GalleryImage], model: ModelArtifact
) -> CategoryReport:
    labels, scores = _usable(table)
    usable = [row for row in table.to_pylist() if row["error"] is None]
    errors = [(row["uri"], row["error"]) for row in table.to_pylist() if row["error"]]
    return CategoryReport(
        category=metrics["category"],
        model_version=metrics["model_version"],
        labels=labels,
        scores=scores,
        split_types=[row["split_type"] or "" for row in usable],
        errors=errors,
        image_auroc=metrics["image_auroc"],
        pixel_auroc=metrics["pixel_auroc"],
        facts=_facts(model),
        notes=_notes(model),
        gallery=gallery,
    )


def _facts(model: ModelArtifact) -> list[tuple[str, str]]:
    facts, chosen, recipe = model.facts, model.calibration.anomaly_map, model.recipe
    height, width = facts.input_shape
    assert chosen.image_score is not None
    score = {
        "sum": "sum of the map",
        "max": "maximum of the map",
        "topk": f"mean of the highest {100 * chosen.top_fraction:g} % of pixels",
    }
    return [
        ("recipe", f"{recipe.name}, width {recipe.network.width}, f = {recipe.network.kernel}"),
        ("network", NETWORK_NAMES[recipe.network.blend]),
        ("objective", OBJECTIVE_NAMES[recipe.objective.kind]),
        ("network input", f"{width} x {height} px"),
        ("training images", f"{facts.training_images}, {facts.held_out_images} more held out"),
        ("training", f"{facts.seconds / 60:.1f} min, {facts.images_seen:,.0f} images seen"),
        ("hardware", f"{facts.workers} x {facts.device}, {facts.precision}"),
        ("validation loss", f"{facts.validation_loss:.5f}"),
        ("difference", DIFFERENCE_NAMES[chosen.difference]),
        ("smoothing", f"k = {chosen.kernel} px, n = {chosen.repeats}"),
        ("average map", f"t = {chosen.average_power:g}" if chosen.average_power else "not used"),
        ("image score", score[chosen.image_score]),
    ]


def _notes(model: ModelArtifact) -> list[str]:
    calibration = model.calibration
    selection = calibration.selection
    references = (
        f"{calibration.reference_images} defect-free images, {calibration.held_out_references} "
        "of them held out from training"
    )
    if selection.basis == "synthetic defects":
        choice = (
            "The kernel and the image score were chosen without test labels, on "
            f"{selection.defects} synthetic defects made from {references} "
            f"(image AUROC {_percent(selection.image_auroc)}, pixel AUROC "
            f"{_percent(selection.pixel_auroc)} there)."
        )
    else:
        choice = "The kernel and the image score are the recipe's own."
    threshold = (
        "The predicted mask marks pixels above the largest value on "
        f"{references}: {calibration.pixel_threshold:.3g} times the level that such images "
        "typically reach at their worst place."
    )
    return [choice, threshold]


def _percent(value: float | None) -> str:
    return "unknown" if value is None or math.isnan(value) else f"{100 * value:.1f} %"


def _usable(table: pa.Table) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Labels (unknown is -1) and scores of the rows without an error."""
    rows = table.filter(pc.is_null(table["error"]))
    labels = pc.fill_null(rows["label"], UNKNOWN).to_numpy().astype(np.int64)
    return labels, rows["score"].to_numpy().astype(np.float64)


def _heatmaps(parts: Location, uris: list[str]) -> dict[str, bytes]:
    dataset = pads.dataset(parts.path, filesystem=parts.filesystem, schema=SCORED_PARTS)
    wanted = dataset.to_table(
        columns=["uri", "heatmap"], filter=pc.field("uri").isin(pa.array(uris, pa.string()))
    ).to_pylist()
    return {row["uri"]: row["heatmap"] for row in wanted}


def _png(image: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()
