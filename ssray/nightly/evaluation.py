"""How good the models of past nights were, told by labels that came later.

Labels are joined to the rows of the nights by ``uri``, and the figures are those of
``ssray.metrics``. Of a night only the rows that have a label are held, and never a heatmap.
Figures of pixels are not computed: nights keep 8-bit heatmaps, by default of flagged images alone.
Defects that were missed and good images that passed would be absent from the counts, so that no
curve over all thresholds could be right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from ssray.errors import ConfigError, DataError
from ssray.metrics.images import DECISIONS, decision_metrics, image_metrics
from ssray.metrics.labels import DEFECT, GOOD
from ssray.nightly.labels import Labels, read_labels
from ssray.nightly.table import ScoreTable
from ssray.scoring.evaluation import stated
from ssray.scoring.outputs import Outputs
from ssray.scoring.results import flags, usable
from ssray.scoring.tables import MEASURE_FIELDS
from ssray.storage.location import Location
from ssray.storage.parquet import as_parquet

NIGHT_METRICS = pa.schema(
    [
        pa.field("category", pa.string(), nullable=False),
        pa.field("date", pa.date32()),
        pa.field("model_version", pa.string()),
        pa.field("n_scored", pa.int64(), nullable=False),
        pa.field("n_error", pa.int64(), nullable=False),
        pa.field("n_labelled", pa.int64(), nullable=False),
        pa.field("n_labelled_error", pa.int64(), nullable=False),
        pa.field("n_good", pa.int64(), nullable=False),
        pa.field("n_defect", pa.int64(), nullable=False),
        *MEASURE_FIELDS,
        pa.field("image_f1max_threshold", pa.float64(), nullable=False),
        *(pa.field(name, pa.float64(), nullable=False) for name in DECISIONS),
        pa.field("undefined", pa.string(), nullable=False),
    ]
)
"""A row for each category, night and version of its model, and one for all nights of a category and
version, whose ``date`` is null; scores of two versions are not compared. ``n_scored`` images have a
score and ``n_error`` have none; ``n_labelled`` scored images have a label, ``n_good`` and
``n_defect`` of them, and ``n_labelled_error`` have a label and no score. Figures are over the
labelled images that have a score, as in ``METRICS`` of ``ssray.scoring.tables``.
``model_version`` is null for images of a category that had no model."""

LABELLED_SCORES = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("date", pa.date32(), nullable=False),
        pa.field("model_version", pa.string()),
        pa.field("score", pa.float32()),
        pa.field("p_value", pa.float64()),
        pa.field("flagged", pa.bool_()),
        pa.field("seen_by", pa.string()),
        pa.field("error", pa.string()),
        pa.field("label", pa.int8(), nullable=False),
    ]
)
"""The rows of the nights that have a label, as ``ssray.nightly.rows`` has them, with the ``label``:
0 good, 1 defect."""

_COLUMNS = [name for name in LABELLED_SCORES.names if name != "label"]
_GROUP = ("category", "date", "model_version")


class Span(NamedTuple):
    """Nights from a first to a last date, both included."""

    first: date
    last: date

    @classmethod
    def parse(cls, text: str) -> Span:
        """Reads ``YYYY-MM-DD``, or two such dates with ``..`` between them.

        Raises:
            ConfigError: if it is neither, or the last date comes before the first.

        >>> Span.parse("2026-11-20..2026-11-22").last
        datetime.date(2026, 11, 22)
        """
        first, dots, last = text.partition("..")
        try:
            span = cls(date.fromisoformat(first), date.fromisoformat(last if dots else first))
        except ValueError:
            raise ConfigError(
                f"--date {text}: not a date. Expected YYYY-MM-DD, or YYYY-MM-DD..YYYY-MM-DD for "
                "all nights from one to another."
            ) from None
        if span.last < span.first:
            raise ConfigError(f"--date {text}: ends before it begins. Give the earlier date first.")
        return span

    def __str__(self) -> str:
        return f"{self.first}" if self.first == self.last else f"{self.first}..{self.last}"


@dataclass(frozen=True)
class LabelledNights:
    """What labels say of nights.

    Attributes:
        metrics: the ``NIGHT_METRICS`` table, by category, date and version.
        scores: the ``LABELLED_SCORES`` table, by date, category and uri.
        labels: what the table of labels said.
        absent: the URIs of labels that are in none of the nights.
        unlabelled: how many rows of the nights have no label.
    """

    metrics: pa.Table
    scores: pa.Table
    labels: Labels
    absent: list[str]
    unlabelled: int


def evaluate_nights(
    scores: Location, spans: Sequence[Span], labels: Location, out: Location
) -> LabelledNights:
    """Joins labels to nights and writes ``metrics.parquet`` and ``scores.parquet``.

    Nothing is written before all labels are read and joined.

    Args:
        scores: the table of scores.
        spans: which of its nights; all if empty.
        labels: a table as ``read_labels`` takes it.
        out: the folder to write to, whose earlier results are replaced (``Outputs``).

    Raises:
        ConfigError: if ``out`` lies inside ``scores``.
        DataError: if there is no such table or night, the labels can't be used, or none of them is
            of an image of the nights.
    """
    if f"{out}/".startswith(f"{scores}/"):
        raise ConfigError(f"--out {out} lies inside --scores {scores}. Choose a folder outside.")
    found = read_labels(labels)
    dataset = ScoreTable(scores).dataset()
    nights = _chosen(scores, _nights(scores, dataset), spans)
    chosen = pc.field("date").isin(nights)
    joined = _join(dataset.scanner(columns=_COLUMNS, filter=chosen), found)
    if not len(joined.scores):
        raise DataError(
            f"{labels}: none of {len(found.of)} labels is of an image in {len(nights)} nights of "
            f"{scores}; the first is of {joined.absent[0]}. Expected each uri as it stands in the "
            "rows of a night."
        )
    outputs = Outputs(out)
    with outputs.replacing() as write:
        write("scores.parquet", as_parquet(joined.scores))
        write("metrics.parquet", as_parquet(joined.metrics))
    return joined


def _nights(scores: Location, dataset: pads.Dataset) -> list[date]:
    """Lists the dates of all nights, in order, without reading a row.

    Raises:
        DataError: if the table is not one of nights.
    """
    missing = {*_COLUMNS} - {*dataset.schema.names}
    parts = [pads.get_partition_keys(each.partition_expression) for each in dataset.get_fragments()]
    if missing or any("date" not in part for part in parts):
        raise DataError(
            f"{scores}: a table, but not of nights: {', '.join(sorted(missing)) or 'partitions'} "
            "missing. Expected what ssray nightly wrote to."
        )
    return sorted({part["date"] for part in parts})


def _chosen(scores: Location, nights: Sequence[date], spans: Sequence[Span]) -> list[date]:
    """Chooses the nights that lie in a span.

    Raises:
        DataError: if there is none in one of the spans, or none at all.
    """
    if not nights:
        raise DataError(f"{scores}: no nights yet. Score one with ssray nightly.")
    for span in spans:
        if not any(span.first <= night <= span.last for night in nights):
            raise DataError(
                f"{scores}: no night of {span}. Found {len(nights)}, {nights[0]} to {nights[-1]}."
            )
    return [night for night in nights if not spans or any(a <= night <= b for a, b in spans)]


def _join(rows: pads.Scanner, labels: Labels) -> LabelledNights:
    """Reads rows some at a time, counts all of them and keeps those that have a label."""
    images, errors = Counter[tuple[Any, ...]](), Counter[tuple[Any, ...]]()
    labelled, unlabelled, seen = [], 0, set[str]()
    for batch in rows.to_batches():
        table = _with_reasons(pa.Table.from_batches([batch]))
        counts = table.group_by(_GROUP).aggregate([([], "count_all"), ("error", "count")])
        for count in counts.to_pylist():
            for night in (count["date"], None):
                group = (count["category"], night, count["model_version"])
                images[group] += count["count_all"]
                errors[group] += count["error_count"]
        known = pa.array(map(labels.of.get, table["uri"].to_pylist()), pa.int8())
        table = table.append_column("label", known).filter(pc.is_valid(known))
        unlabelled += len(known) - len(table)
        seen.update(table["uri"].to_pylist())
        labelled.append(table.select(LABELLED_SCORES.names).cast(LABELLED_SCORES))
    scores = pa.concat_tables(labelled) if labelled else LABELLED_SCORES.empty_table()
    figures = [
        {
            **dict(zip(_GROUP, group, strict=True)),
            "n_scored": count - errors[group],
            "n_error": errors[group],
            **_figures(_rows_of(scores, *group)),
        }
        for group, count in sorted(images.items(), key=_order)
    ]
    return LabelledNights(
        pa.Table.from_pylist(figures, schema=NIGHT_METRICS),
        scores.sort_by([(name, "ascending") for name in ("date", "category", "uri")]),
        labels,
        [uri for uri in labels.of if uri not in seen],
        unlabelled,
    )


def _with_reasons(table: pa.Table) -> pa.Table:
    """Gives rows without a finite score the error ``not_finite`` if they have none."""
    finite = pc.fill_null(pc.is_finite(table["score"]), False)
    silent = pc.and_(pc.is_null(table["error"]), pc.invert(finite))
    reasons = pc.if_else(silent, "not_finite", table["error"])
    return table.set_column(table.schema.get_field_index("error"), "error", reasons)


def _order(item: tuple[tuple[Any, ...], int]) -> tuple[str, date, str]:
    """By category, then date, all dates last, then version."""
    (category, night, version), _ = item
    return category, night or date.max, version or ""


def _rows_of(table: pa.Table, category: str, night: date | None, version: str | None) -> pa.Table:
    """The rows of a category and version; of one night, or of all."""
    chosen = pc.equal(table["category"], category)
    model = table["model_version"]
    chosen = pc.and_(chosen, pc.is_null(model) if version is None else pc.equal(model, version))
    if night is not None:
        chosen = pc.and_(chosen, pc.equal(table["date"], night))
    return table.filter(pc.fill_null(chosen, False))


def _figures(table: pa.Table) -> dict[str, Any]:
    """The figures of the labelled rows of one group."""
    labels, scores = usable(table)
    of_images, decisions = image_metrics(labels, scores), decision_metrics(labels, flags(table))
    return {
        "n_labelled": len(labels),
        "n_labelled_error": len(table) - len(labels),
        "n_good": int((labels == GOOD).sum()),
        "n_defect": int((labels == DEFECT).sum()),
        **of_images.values,
        **decisions.values,
        "undefined": stated(of_images.undefined | decisions.undefined),
    }
