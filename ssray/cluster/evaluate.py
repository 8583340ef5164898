"""Evaluation of labelled images and scoring of unlabelled ones, start to finish."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from ssray.cluster.score import score_images
from ssray.config import Compute
from ssray.data.masks import mask_levels, with_mask_levels
from ssray.errors import DataError
from ssray.models.artifact import ModelArtifact, load
from ssray.report.evaluation import write_report
from ssray.scoring.evaluation import Figures
from ssray.scoring.labelled import map_place
from ssray.scoring.outputs import Outputs
from ssray.scoring.results import Results, collect
from ssray.storage.location import Location
from ssray.storage.parquet import as_parquet

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

    A mask that can't be used costs its image's figures of pixels alone; its row says why.

    Args:
        images: of a labelled data set; training images in it are passed over.
        store: the model store.
        versions: the model version of each category to evaluate.
        compute: as for ``score_images``.
        out: the folder to write to. The results of an earlier run there are replaced, those of
            one that goes on at the same time are kept apart (``ssray.scoring.outputs``).
        maps: keeps every anomaly map as ``score_images`` says.
        on_scored: called with how many images are scored, and how many there are.

    Returns:
        The ``METRICS`` and the ``SCORES`` table.

    Raises:
        DataError: if the maps of two images would be kept under one name, or a folder can't be
            created.
    """
    test = with_mask_levels(images.filter(pc.equal(images["split"], "test")))
    if maps is not None:
        _refuse_shared_places(test, maps)
        maps.make_folder()
    models, outputs = _load(store, versions), Outputs(out)
    results = _scored(test, store, versions, compute, outputs, maps, on_scored)
    figures = Figures.of(results, _held_out(models), mask_levels(test))
    with outputs.replacing() as write:
        write("scores.parquet", as_parquet(results.scores))
        write("metrics.parquet", as_parquet(figures.categories))
        write("metrics_by_type.parquet", as_parquet(figures.types))
        write("metrics.md", figures.markdown().encode())
        write_report(results, figures, models, test, "Evaluation", write)
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

    They replace the results of an earlier run in that folder, as those of ``evaluate`` do.

    Returns:
        The ``SCORES`` table.
    """
    models, outputs = _load(store, versions), Outputs(out)
    results = _scored(images, store, versions, compute, outputs, None, on_scored)
    figures = Figures.of(results, _held_out(models))
    with outputs.replacing() as write:
        write("scores.parquet", as_parquet(results.scores))
        write_report(results, figures, models, images, "Scores", write)
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
    outputs: Outputs,
    maps: Location | None,
    on_scored: OnScored,
) -> Results:
    """Scores all images of a table; the results are those of this run, and complete."""
    with outputs.scored():
        score_images(images, store, versions, compute, outputs.parts, maps, on_scored)
        results = collect(outputs.parts)
        results.check(images)
    return results


def _load(store: Location, versions: Mapping[str, str]) -> dict[str, ModelArtifact]:
    """Every model of the run, so that a damaged one is refused before any work starts."""
    return {category: load(store, category, version) for category, version in versions.items()}
