"""Evaluation of labelled images and scoring of unlabelled ones, start to finish."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from ssray.cluster.score import score_images
from ssray.config import Compute
from ssray.errors import DataError
from ssray.models.artifact import ModelArtifact, load
from ssray.report.evaluation import write_report
from ssray.scoring.evaluation import Figures
from ssray.scoring.labelled import map_place
from ssray.scoring.results import Results, collect
from ssray.storage.location import Location
from ssray.storage.parquet import write_table

PARTS = "scored_parts"
"""Holds what the scoring actors wrote; a later run into the same folder replaces it."""


OnScored = Callable[[int, int], None]


def _unheard(done: int, count: int) -> None:
    pass


def evaluate(
    images: pa.Table,
    store: Location,
    versions: Mapping[str, str],
    compute: Compute,
    out: Location,
    maps: Location | None = None,
    on_scored: OnScored = _unheard,
) -> tuple[pa.Table, pa.Table]:
    """Scores a table's test images and writes ``metrics.parquet``, ``metrics_by_type.parquet``,
    ``metrics.md``, ``scores.parquet``, ``report.html`` and the heatmap pictures shown in it.

    Args:
        images: of a labelled data set; training images in it are passed over.
        store: the model store.
        versions: the model version of each category to evaluate.
        compute: as for ``score_images``.
        out: the folder to write to. Tables, report and parts of an earlier run there are
            replaced; pictures of other images stay.
        maps: keeps every anomaly map as ``score_images`` says.
        on_scored: called with how many images are scored, and how many there are.

    Returns:
        The ``METRICS`` and the ``SCORES`` table.

    Raises:
        DataError: if the maps of two images would be kept under one name, or a folder can't be
            created.
    """
    test = images.filter(pc.equal(images["split"], "test"))
    if maps is not None:
        _refuse_shared_places(test, maps)
        maps.make_folder()
    models = _load(store, versions)
    results = _scored(test, store, versions, compute, out, maps, on_scored)
    figures = Figures.of(results, _held_out(models))
    write_table(figures.categories, out / "metrics.parquet")
    write_table(figures.types, out / "metrics_by_type.parquet")
    (out / "metrics.md").write(figures.markdown().encode())
    mask_uris = {
        row["uri"]: row["mask_uri"] for row in test.to_pylist() if row["mask_uri"] is not None
    }
    write_report(results, figures, models, out, "Evaluation", mask_uris)
    return figures.categories, results.scores


def score(
    images: pa.Table,
    store: Location,
    versions: Mapping[str, str],
    compute: Compute,
    out: Location,
    on_scored: OnScored = _unheard,
) -> pa.Table:
    """Scores unlabelled images; writes ``scores.parquet``, ``report.html`` and pictures.

    Returns:
        The ``SCORES`` table.
    """
    models = _load(store, versions)
    results = _scored(images, store, versions, compute, out, None, on_scored)
    write_report(results, Figures.of(results, _held_out(models)), models, out, "Scores", {})
    return results.scores


def _held_out(models: Mapping[str, ModelArtifact]) -> dict[str, Sequence[float]]:
    """The scores of the good images that each model was calibrated on."""
    return {name: model.calibration.image_scores for name, model in models.items()}


def _refuse_shared_places(images: pa.Table, maps: Location) -> None:
    taken: dict[str, str] = {}
    for row in images.to_pylist():
        place = str(map_place(maps, row["category"], row["split_type"], row["uri"]))
        if place in taken:
            raise DataError(
                f"{taken[place]} and {row['uri']} would share {place}. Rename one, or leave out "
                "--maps."
            )
        taken[place] = row["uri"]


def _scored(
    images: pa.Table,
    store: Location,
    versions: Mapping[str, str],
    compute: Compute,
    out: Location,
    maps: Location | None,
    on_scored: OnScored,
) -> Results:
    parts = out / PARTS
    parts.delete()
    parts.make_folder()
    score_images(images, store, versions, compute, parts, maps, on_scored)
    results = collect(parts)
    write_table(results.scores, out / "scores.parquet")
    return results


def _load(store: Location, versions: Mapping[str, str]) -> dict[str, ModelArtifact]:
    """Every model of the run, so that a damaged one is refused before any work starts."""
    return {category: load(store, category, version) for category, version in versions.items()}
