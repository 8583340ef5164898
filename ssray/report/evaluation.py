"""Writes the report of an evaluation: the page, and the overlay pictures beside it."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

import ssray
from ssray.calibration.calibrate import Calibration
from ssray.calibration.map_settings import EXPERTS_TRIED
from ssray.config import Decoding
from ssray.data.decode import read_image
from ssray.errors import ImageError
from ssray.metrics.values import percent
from ssray.models.artifact import ModelArtifact
from ssray.report.gallery import GalleryImage, choose_gallery
from ssray.report.page import CategoryReport, render_page
from ssray.scoring.evaluation import Figures, expert_figures, in_words
from ssray.scoring.heatmap import overlay, png_to_levels
from ssray.scoring.labelled import read_truth
from ssray.scoring.outputs import Write
from ssray.scoring.results import Results, usable
from ssray.storage.fetch import Fetcher

NETWORK_NAMES = {
    "none": "Model I",
    "pixel": "Model II, a coefficient per pixel",
    "channel": "Model II, a coefficient per channel",
    "both": "Model II, a coefficient per pixel and channel",
}
OBJECTIVE_NAMES = {
    "reconstruct": "(1), reconstruct",
    "amplify": "(4), amplify",
    "ensemble": "(1) and (4)",
}
DIFFERENCE_NAMES = {
    "squared": "squared",
    "ssim": "SSIM",
    "both": "geometric mean of squared and SSIM",
    "features": "in features of a pretrained network",
}
WORST = 6
"""How many images of the worst mistakes are shown for each category."""
BORDERLINE = 6
"""How many images with a score close to the best threshold are shown for each category."""


def write_report(
    results: Results,
    figures: Figures,
    models: dict[str, ModelArtifact],
    images: pa.Table,
    title: str,
    write: Write,
) -> None:
    """Writes ``report.html``, and an overlay picture of every image shown in it.

    Args:
        results: the scores and heatmaps of all images.
        figures: the metrics of each category and defect type.
        models: the model of each category.
        images: the table of the images that were scored.
        title: the title of the page.
        write: writes a file.
    """
    reports, rows = [], {row["uri"]: row for row in images.to_pylist()}
    for row in figures.categories.to_pylist():
        category, model = row["category"], models[row["category"]]
        gallery = _gallery(results, category, rows, model.recipe.decoding)
        _write_overlays(gallery, f"heatmaps/{category}", write)
        reports.append(_category_report(row, figures, results, gallery, model))
    generated = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    page = render_page(title, reports, generated, ssray.__version__)
    write("report.html", page.encode())


def _write_overlays(gallery: list[GalleryImage], folder: str, write: Write) -> None:
    """Writes the overlay of each image to ``TYPE/RANK-NAME.png``, at the image's resolution.

    The rank is the image's place in the gallery.
    """
    for rank, picture in enumerate(gallery):
        name = f"{rank:02}-{PurePosixPath(picture.name).stem}.png"
        place = f"{folder}/{picture.split_type or 'images'}/{name}"
        write(place, _png(overlay(picture.image, picture.levels)))


def _gallery(
    results: Results,
    category: str,
    images: Mapping[str, Mapping[str, Any]],
    decoding: Decoding | None,
) -> list[GalleryImage]:
    """Chooses the images of a category to show, and reads them with heatmap and mask.

    An image that can't be read whole is not shown.

    Args:
        results: the scores and heatmaps of all images.
        category: the category.
        images: the rows of the table of images, by their URI.
        decoding: the model's: images are shown as it saw them.
    """
    table = results.of(category)
    rows = [row for row in table.to_pylist() if row["error"] is None]
    names = names_for_people([row["uri"] for row in rows])
    labels, scores = usable(table)
    chosen = choose_gallery(labels, scores, worst=WORST, borderline=BORDERLINE)
    heatmaps = results.heatmaps([rows[i]["uri"] for i, _ in chosen])
    gallery, fetch = [], Fetcher()
    for i, why in chosen:
        row = rows[i]
        try:
            image = read_image(row["uri"], decoding)
        except ImageError:  # too large to be decoded whole, or gone since it was scored
            continue
        gallery.append(
            GalleryImage(
                name=names[i],
                uri=row["uri"],
                split_type=row["split_type"] or "",
                label=row["label"],
                score=row["score"],
                why=why,
                image=image,
                levels=png_to_levels(heatmaps[row["uri"]]),
                truth=_truth(images[row["uri"]], image, fetch),
            )
        )
    return gallery


def names_for_people(uris: Sequence[str]) -> list[str]:
    """Paths that tell images apart: without the folders that all share, but with at least one.

    >>> names_for_people(["/data/nut/test/bent/000.png", "/data/nut/test/good/000.png"])
    ['bent/000.png', 'good/000.png']
    """
    paths = [PurePosixPath(uri).parts for uri in uris]
    shared = 0
    for level in zip(*(parts[:-2] for parts in paths), strict=False):
        if len(set(level)) > 1:
            break
        shared += 1
    return [str(PurePosixPath(*parts[shared:])) for parts in paths]


def _truth(
    row: Mapping[str, Any], image: npt.NDArray[np.uint8], fetch: Fetcher
) -> npt.NDArray[np.bool_] | None:
    """Where an image, (H, W, 3), is defective: (H, W) bool; None if unknown.

    A mask of another size is resized by taking the nearest pixels.
    """
    shape = image.shape[0], image.shape[1]
    try:
        mask = read_truth(row, shape, fetch)
    except ImageError:  # said where its image was scored
        return None
    if mask is None:
        return None
    rows = np.arange(shape[0]) * mask.shape[0] // shape[0]
    columns = np.arange(shape[1]) * mask.shape[1] // shape[1]
    truth: npt.NDArray[np.bool_] = mask[np.ix_(rows, columns)]
    return truth


def _category_report(
    metrics: dict[str, Any],
    figures: Figures,
    results: Results,
    gallery: list[GalleryImage],
    model: ModelArtifact,
) -> CategoryReport:
    """Collects what the page says about one category; ``metrics`` is its row of the figures."""
    table = results.of(metrics["category"])
    labels, scores = usable(table)
    scored = [row for row in table.to_pylist() if row["error"] is None]
    errors = [(row["uri"], row["error"]) for row in table.to_pylist() if row["error"]]
    mask_errors = [
        (row["uri"], row["mask_detail"]) for row in table.to_pylist() if row["mask_error"]
    ]
    types = [row for row in figures.types.to_pylist() if row["category"] == metrics["category"]]
    return CategoryReport(
        category=metrics["category"],
        model_version=metrics["model_version"],
        labels=labels,
        scores=scores,
        split_types=[row["split_type"] or "" for row in scored],
        errors=errors,
        mask_errors=mask_errors,
        metrics=metrics,
        metrics_by_type={row["defect_type"]: row for row in types},
        facts=_facts(model) + _expert_facts(model, metrics),
        notes=_notes(model) + _mask_notes(metrics["mask_level"]),
        gallery=gallery,
    )


def _facts(model: ModelArtifact) -> list[tuple[str, str]]:
    """Lists how a model was made, as labels and values."""
    facts, chosen, recipe = model.facts, model.calibration.anomaly_map, model.recipe
    height, width = facts.input_shape
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
        ("linear autoencoder", _linear(model)),
        ("usual level", "maps are divided by it" if chosen.relative else "not used"),
        ("average map", f"t = {chosen.average_power:g}" if chosen.average_power else "not used"),
        ("image score", score[chosen.image_score]),
    ]


def _expert_facts(model: ModelArtifact, metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Says which experts a model has, and what each is worth by itself."""
    whose, features = model.calibration.anomaly_map.experts, model.recipe.features
    if model.neighbours is None or features is None:
        return [("second expert", "none")]
    bank = f"{len(model.neighbours['bank']):,} places in a bank, features of {features.weights}"
    used = {"joined": "joined", "autoencoders": "not used", "neighbours": "used alone"}
    facts = [("second expert", f"{bank}, {used[whose or 'autoencoders']}")]
    own = expert_figures(metrics)
    if own:
        aurocs = ", ".join(f"{name} {_percent(auroc)}" for name, auroc in own.items())
        facts.append(("image AUROC by expert", aurocs))
    return facts


def _linear(model: ModelArtifact) -> str:
    """Describes the linear autoencoder, in a few words."""
    if model.linear is None:
        return "none"
    _, height, width = model.linear["mean"].shape
    how = f"joined by the {model.calibration.anomaly_map.join}"
    return f"{len(model.linear['basis'])} components at {width} x {height} px, {how}"


def _notes(model: ModelArtifact) -> list[str]:
    """Explains how map settings, pixel threshold and image threshold came about, in sentences."""
    return [_choice(model), _pixel_threshold(model.calibration), _decision(model.calibration)]


def _mask_notes(level: int | None) -> list[str]:
    """Says how masks were read, unless they were read as most are."""
    return [] if level is None else [in_words(level)]


def _choice(model: ModelArtifact) -> str:
    """Explains how the settings of the anomaly map were chosen."""
    calibration = model.calibration
    selection = calibration.selection
    wanted = model.recipe.anomaly_map
    left_open = [name for name in ("difference", "kernel") if getattr(wanted, name) is None]
    by_experts = calibration.anomaly_map.experts and wanted.experts is None
    if by_experts and selection.tried == EXPERTS_TRIED:
        return f"Whose maps count was chosen without test labels, on {_judged(calibration)}"
    if selection.basis == "recipe":
        whose = "the defaults" if left_open else "the recipe's own"
        return f"Difference and kernel are {whose}; no synthetic defect was perceptible."
    if left_open and selection.tried != 1:
        return f"Chosen without test labels ({' and '.join(left_open)}), on {_judged(calibration)}"
    whose = "the defaults" if left_open else "the recipe's own"
    return f"Difference and kernel are {whose}; the model was judged on {_judged(calibration)}"


def _judged(calibration: Calibration) -> str:
    """Names what a model was judged on, and how it did."""
    selection = calibration.selection
    return (
        f"{selection.defects} {selection.basis} and {calibration.reference_images} defect-free "
        f"images, {calibration.held_out_references} of them held out from training (image AUROC "
        f"{_percent(selection.image_auroc)}, pixel AUROC {_percent(selection.pixel_auroc)} there)."
    )


def _pixel_threshold(calibration: Calibration) -> str:
    """Explains which pixels belong to the predicted mask."""
    return (
        "The predicted mask marks pixels above the largest value on "
        f"{calibration.held_out_references} held-out images: {calibration.pixel_threshold:.3g} "
        "times the level that such images typically reach at their worst place."
    )


def _decision(calibration: Calibration) -> str:
    """Explains which images are flagged, and how many false alarms to expect."""
    count, rate = len(calibration.image_scores), calibration.false_alarm_rate
    if not count:
        return "The model was made before images were flagged; train it again for that."
    note = (
        f"An image is flagged if its score is above {calibration.image_threshold:.4g}, so that "
        f"at most {_percent(calibration.supported_rate)} of the defect-free images are, as far as "
        f"they are like the {count} held-out ones."
    )
    if calibration.supported_rate > rate:
        needed = math.ceil(1 / rate) - 1
        note += (
            f" {_percent(rate)} were asked for, which takes {needed} held-out images: raise "
            "schedule.holdout or add training images."
        )
    return note


def _percent(share: float | None) -> str:
    return "unknown" if share is None or math.isnan(share) else percent(share, decimals=1)


def _png(image: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()
