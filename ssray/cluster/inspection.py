"""Evaluation of labelled images and scoring of unlabelled ones, start to finish."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from ssray.artifact import ModelArtifact, load
from ssray.cluster.score import score_manifest
from ssray.config import Compute
from ssray.data.storage import Location
from ssray.report.results import Results, collect, metrics_table, write_report, write_table

PARTS = "scored_parts"
"""Holds what the scoring actors wrote; a later run into the same folder replaces it."""


def evaluate(
    manifest: pa.Table,
    store: Location,
    versions: Mapping[str, str],
    compute: Compute,
    out: Location,
) -> pa.Table:
    """Scores a manifest's test images and writes ``metrics.parquet``, ``scores.parquet``,
    ``report.html`` and the heatmap pictures shown in it.

    Args:
        manifest: of a labelled data set; training images in it are passed over.
        store: the model store.
        versions: the model version of each category to evaluate.
        compute: as for ``score_manifest``.
        out: the folder to write to. Tables, report and parts of an earlier run there are
            replaced; pictures of other images stay.

    Returns:
        The ``METRICS`` table.
    """
    test = manifest.filter(pc.equal(manifest["split"], "test"))
    models = _load(store, versions)
    results = _scored(test, store, versions, compute, out)
    metrics = metrics_table(results)
    write_table(metrics, out / "metrics.parquet")
    mask_uris = {
        row["uri"]: row["mask_uri"] for row in test.to_pylist() if row["mask_uri"] is not None
    }
    write_report(results, metrics, out / PARTS, models, out, "Evaluation", mask_uris)
    return metrics


def score(
    manifest: pa.Table,
    store: Location,
    versions: Mapping[str, str],
    compute: Compute,
    out: Location,
) -> pa.Table:
    """Scores unlabelled images; writes ``scores.parquet``, ``report.html`` and pictures.

    Returns:
        The ``SCORES`` table.
    """
    models = _load(store, versions)
    results = _scored(manifest, store, versions, compute, out)
    write_report(results, metrics_table(results), out / PARTS, models, out, "Scores", {})
    return results.scores


def _scored(
    manifest: pa.Table,
    store: Location,
    versions: Mapping[str, str],
    compute: Compute,
    out: Location,
) -> Results:
    parts = out / PARTS
    if parts.exists():
        parts.filesystem.delete_dir(parts.path)
    score_manifest(manifest, store, versions, compute, parts)
    results = collect(parts)
    write_table(results.scores, out / "scores.parquet")
    return results


def _load(store: Location, versions: Mapping[str, str]) -> dict[str, ModelArtifact]:
    """Every model of the run, so that a damaged one is refused before any work starts."""
    return {category: load(store, category, version) for category, version in versions.items()}
