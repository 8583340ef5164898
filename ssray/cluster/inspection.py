"""Evaluation of labelled images and scoring of unlabelled ones, start to finish."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from ssray.artifact import load
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
        out: the folder to write to. What an earlier run left there is replaced.

    Returns:
        The ``METRICS`` table.
    """
    test = manifest.filter(pc.equal(manifest["split"], "test"))
    results = _scored(test, store, versions, compute, out)
    metrics = metrics_table(results)
    write_table(metrics, out / "metrics.parquet")
    mask_uris = {
        row["uri"]: row["mask_uri"] for row in test.to_pylist() if row["mask_uri"] is not None
    }
    _report(results, metrics, store, versions, out, "Evaluation", mask_uris)
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
    results = _scored(manifest, store, versions, compute, out)
    _report(results, metrics_table(results), store, versions, out, "Scores", {})
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


def _report(
    results: Results,
    metrics: pa.Table,
    store: Location,
    versions: Mapping[str, str],
    out: Location,
    title: str,
    mask_uris: Mapping[str, str],
) -> None:
    models = {category: load(store, category, version) for category, version in versions.items()}
    write_report(results, metrics, out / PARTS, models, out, title, mask_uris)
