"""Labels that came later, joined to nights: figures against scikit-learn, and users' mistakes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from ssray.errors import ConfigError, DataError
from ssray.nightly.evaluation import (
    LABELLED_SCORES,
    NIGHT_METRICS,
    LabelledNights,
    Span,
    evaluate_nights,
)
from ssray.nightly.rows import SCORES_TABLE
from ssray.storage.location import Location
from tests.helpers import Ended

FIRST, SECOND, THIRD = (date(2026, 11, day) for day in (20, 21, 23))
Rows = list[dict[str, Any]]


def night(
    day: date, category: str, version: str, count: int, seed: int, shift: float = 1.0
) -> tuple[Rows, dict[str, int]]:
    """Rows of one night and category, and the labels of all images, every third one a defect."""
    rng = np.random.default_rng(seed)
    labels = {f"/{day}/{category}/{version}/{n}.png": int(n % 3 == 0) for n in range(count)}
    scores = np.round(rng.normal(size=count) + shift * np.array(list(labels.values())), 1)
    rows = [
        {
            "uri": uri,
            "category": category,
            "date": day,
            "model_version": version,
            "score": float(score),
            "flagged": bool(score > 1),
            "heatmap": b"not a picture" if score > 1 else None,
        }
        for uri, score in zip(labels, scores, strict=True)
    ]
    return rows, labels


def write_nights(place: Path, *nights: Rows) -> Location:
    for rows in nights:
        table = pa.Table.from_pylist(rows, schema=SCORES_TABLE)
        write_deltalake(place, table, mode="append", partition_by=["date", "category"])
    return Location.parse(place)


def write_labels(place: Path, labels: Mapping[str, int]) -> Location:
    place.write_text("\n".join(["uri,label", *(f"{uri},{n}" for uri, n in labels.items())]))
    return Location.parse(place)


def metrics_of(
    found: LabelledNights, category: str, day: date | None, version: str | None
) -> dict[str, Any]:
    [row] = [
        row
        for row in found.metrics.to_pylist()
        if (row["category"], row["date"], row["model_version"]) == (category, day, version)
    ]
    return dict(row)


def check(row: dict[str, Any], rows: Rows, labels: dict[str, int]) -> None:
    """Compares figures with scikit-learn's and scipy's over the labelled rows with a score."""
    known = [each for each in rows if each["uri"] in labels and each["score"] is not None]
    truth = np.array([labels[each["uri"]] for each in known])
    scores = np.array([each["score"] for each in known], np.float32)
    flagged = np.array([each["flagged"] for each in known])
    assert row["n_scored"] == sum(each["score"] is not None for each in rows)
    assert (row["n_labelled"], row["n_defect"]) == (len(known), truth.sum())
    assert row["n_good"] == len(known) - truth.sum()
    assert row["image_auroc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert row["image_auroc_low"] < row["image_auroc"] < row["image_auroc_high"]
    assert row["image_ap"] == pytest.approx(average_precision_score(truth, scores), abs=1e-12)
    for name, label in (("false_alarms", 0), ("defects_flagged", 1)):
        test = stats.binomtest(int(flagged[truth == label].sum()), int((truth == label).sum()))
        interval = test.proportion_ci(0.95, method="exact")
        assert row[name] == pytest.approx(test.statistic)
        assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx(tuple(interval))
    assert row["undefined"] == ""


@pytest.fixture
def nights(tmp_path: Path) -> tuple[Location, dict[str, tuple[Rows, dict[str, int]]]]:
    """Three nights: of ``nut`` two by version v1 and one by v2, of ``x y/ü`` the first alone."""
    made = {
        "first": night(FIRST, "nut", "v1", 60, 0),
        "second": night(SECOND, "nut", "v1", 45, 1, shift=2.0),
        "third": night(THIRD, "nut", "v2", 30, 2),
        "other": night(FIRST, "x y/ü", "v1", 30, 3),
    }
    table = write_nights(tmp_path / "scores", *(rows for rows, _ in made.values()))
    return table, made


def test_figures_of_each_night_and_of_all_are_those_of_scikit_learn(
    nights: tuple[Location, dict[str, tuple[Rows, dict[str, int]]]], tmp_path: Path
) -> None:
    table, made = nights
    labels = {uri: label for _, known in made.values() for uri, label in known.items()}
    unlabelled = [uri for n, uri in enumerate(labels) if n % 5 == 1]
    known = {uri: label for uri, label in labels.items() if uri not in unlabelled}
    place = write_labels(tmp_path / "labels.csv", known | {"/elsewhere.png": 1})
    found = evaluate_nights(table, [], place, Location.parse(tmp_path / "out"))

    groups = [(row["category"], row["date"], row["model_version"]) for row in _rows(found)]
    assert groups == [
        ("nut", FIRST, "v1"),
        ("nut", SECOND, "v1"),
        ("nut", THIRD, "v2"),
        ("nut", None, "v1"),
        ("nut", None, "v2"),
        ("x y/ü", FIRST, "v1"),
        ("x y/ü", None, "v1"),
    ]
    first, second, third, other = (rows for rows, _ in made.values())
    for category, day, version, rows in (
        ("nut", FIRST, "v1", first),
        ("nut", SECOND, "v1", second),
        ("nut", THIRD, "v2", third),
        ("nut", None, "v1", first + second),
        ("nut", None, "v2", third),
        ("x y/ü", None, "v1", other),
    ):
        check(metrics_of(found, category, day, version), rows, known)
    assert (found.absent, found.unlabelled) == (["/elsewhere.png"], len(unlabelled))

    written = pq.read_table(tmp_path / "out" / "metrics.parquet")
    assert written.schema == NIGHT_METRICS
    assert written.equals(found.metrics)
    scores = pq.read_table(tmp_path / "out" / "scores.parquet")
    assert scores.schema == LABELLED_SCORES
    assert dict(zip(*(scores[name].to_pylist() for name in ("uri", "label")), strict=True)) == known


def _rows(found: LabelledNights) -> Rows:
    rows: Rows = found.metrics.to_pylist()
    return rows


@pytest.mark.parametrize(
    ("spans", "days"),
    [
        (["2026-11-20"], {FIRST}),
        (["2026-11-20..2026-11-22"], {FIRST, SECOND}),
        (["2026-11-20", "2026-11-22..2026-12-01"], {FIRST, THIRD}),
        ([], {FIRST, SECOND, THIRD}),
    ],
)
def test_nights_are_chosen_by_their_dates(
    nights: tuple[Location, dict[str, tuple[Rows, dict[str, int]]]],
    tmp_path: Path,
    spans: list[str],
    days: set[date],
) -> None:
    table, made = nights
    labels = {uri: label for _, known in made.values() for uri, label in known.items()}
    place = write_labels(tmp_path / "labels.csv", labels)
    chosen = [Span.parse(text) for text in spans]
    found = evaluate_nights(table, chosen, place, Location.parse(tmp_path / "out"))
    assert {row["date"] for row in _rows(found)} - {None} == days
    assert set(found.scores["date"].to_pylist()) == days
    elsewhere = [row for rows, _ in made.values() for row in rows if row["date"] not in days]
    assert len(found.absent) == len(elsewhere)


def test_images_without_a_score_are_counted_and_take_part_in_no_figure(tmp_path: Path) -> None:
    rows, labels = night(FIRST, "nut", "v1", 40, 0)
    unlabelled_error, labelled_error, silent, infinite = rows[:4]
    del labels[unlabelled_error["uri"]]
    for row in (unlabelled_error, labelled_error):
        row.update(score=None, flagged=None, error="truncated")
    silent.update(score=None)
    infinite.update(score=math.inf)
    lost = {"uri": "/lost.png", "category": "bolt", "date": FIRST, "error": "unknown_category"}
    table = write_nights(tmp_path / "scores", [*rows, lost])
    place = write_labels(tmp_path / "labels.csv", labels | {"/lost.png": 1})
    found = evaluate_nights(table, [], place, Location.parse(tmp_path / "out"))

    nut = metrics_of(found, "nut", FIRST, "v1")
    assert (nut["n_scored"], nut["n_error"], nut["n_labelled_error"]) == (36, 4, 3)
    infinite.update(score=None)
    check(nut, rows, labels)
    bolt = metrics_of(found, "bolt", None, None)
    assert (bolt["n_scored"], bolt["n_error"], bolt["n_labelled_error"]) == (0, 1, 1)
    assert math.isnan(bolt["image_auroc"]) and "no image with a defect" in bolt["undefined"]
    errors = found.scores.select(["uri", "error"]).to_pylist()
    assert {"uri": silent["uri"], "error": "not_finite"} in errors
    assert {"uri": labelled_error["uri"], "error": "truncated"} in errors


def test_labels_of_one_class_leave_the_auroc_undefined_and_say_why(tmp_path: Path) -> None:
    rows, labels = night(FIRST, "nut", "v1", 30, 0)
    table = write_nights(tmp_path / "scores", rows)
    good = {uri: label for uri, label in labels.items() if not label}
    place = write_labels(tmp_path / "labels.csv", good)
    found = metrics_of(
        evaluate_nights(table, [], place, Location.parse(tmp_path / "out")), "nut", None, "v1"
    )
    assert math.isnan(found["image_auroc"]) and math.isnan(found["defects_flagged"])
    assert "image_auroc" in found["undefined"] and "no image with a defect" in found["undefined"]
    alarms = [row["flagged"] for row in rows if not labels[row["uri"]]]
    assert found["false_alarms"] == pytest.approx(np.mean(alarms))


def test_heatmaps_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.dataset as pads

    from ssray.nightly import evaluation

    rows, labels = night(FIRST, "nut", "v1", 30, 0)
    table = write_nights(tmp_path / "scores", rows)
    asked: list[str] = []

    class Watched:
        def __init__(self, root: Location) -> None:
            self._dataset = pads.dataset(root.path, partitioning="hive", schema=SCORES_TABLE)
            self.schema = self._dataset.schema

        def dataset(self) -> Watched:
            return self

        def get_fragments(self) -> Any:
            return self._dataset.get_fragments()

        def scanner(self, columns: list[str], **rest: Any) -> pads.Scanner:
            asked.extend(columns)
            return self._dataset.scanner(columns=columns, **rest)

    monkeypatch.setattr(evaluation, "ScoreTable", Watched)
    place = write_labels(tmp_path / "labels.csv", labels)
    evaluate_nights(table, [], place, Location.parse(tmp_path / "out"))
    assert "score" in asked and "heatmap" not in asked


@pytest.mark.parametrize("text", ["yesterday", "2026-11", "2026-11-31", "..", "2026-11-20.."])
def test_what_is_no_date_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="Expected YYYY-MM-DD"):
        Span.parse(text)


def test_a_span_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(ConfigError, match="ends before it begins"):
        Span.parse("2026-11-21..2026-11-20")


def test_a_place_that_is_no_table_of_nights_is_refused(tmp_path: Path) -> None:
    labels, out = write_labels(tmp_path / "l.csv", {"/a": 1}), Location.parse(tmp_path / "out")
    with pytest.raises(DataError, match="no table of scores"):
        evaluate_nights(Location.parse(tmp_path / "none"), [], labels, out)
    other = tmp_path / "other"
    write_deltalake(other, pa.table({"uri": ["/a"], "score": [1.0]}))
    with pytest.raises(DataError, match=r"not of nights: category, date, .* missing"):
        evaluate_nights(Location.parse(other), [], labels, out)
    write_deltalake(
        tmp_path / "whole", SCORES_TABLE.empty_table(), partition_by=["date", "category"]
    )
    with pytest.raises(DataError, match="no nights yet"):
        evaluate_nights(Location.parse(tmp_path / "whole"), [], labels, out)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ("uri,label\n/a,0\n/a,1\n", [], "/a (rows 1 and 2)"),
        ("uri,label\n/a,perhaps\n", [], "label 'perhaps'"),
        ("uri,label\n/a,0\n/b,1\n", [], "none of 2 labels is of an image in 1 nights"),
        ("uri,label\n{image},0\n", ["--date", "2026-11-22"], "no night of 2026-11-22. Found 1, "),
        ("uri,label\n{image},0\n", ["--date", "22.11.2026"], "not a date"),
        ("uri,label\n{image},0\n", ["--out", "{scores}/figures"], "lies inside --scores"),
        ("uri,label\n{image},0\n", ["--models", "m"], "--models don't go with --scores and"),
        ("uri,label\n{image},0\n", ["--device", "cpu"], "--device don't go with --scores and"),
    ],
)
def test_a_mistake_ends_in_one_line_and_exit_code_2_before_anything_is_written(
    program: Callable[..., Ended], tmp_path: Path, labels: str, options: list[str], message: str
) -> None:
    rows, _ = night(FIRST, "nut", "v1", 10, 0)
    scores = tmp_path / "scores"
    write_nights(scores, rows)
    before = sorted(scores.rglob("*"))
    (tmp_path / "labels.csv").write_text(labels.format(image=rows[0]["uri"]))
    asked = ["--scores", scores, "--labels", tmp_path / "labels.csv", "--out", tmp_path / "out"]
    ended = program("evaluate", *asked, *(option.format(scores=scores) for option in options))
    assert ended.code == 2
    assert message in ended.err
    assert "Traceback" not in ended.err + ended.out
    assert not (tmp_path / "out").exists()
    assert sorted(scores.rglob("*")) == before


def test_the_command_prints_figures_and_what_has_no_partner(
    program: Callable[..., Ended],
    nights: tuple[Location, dict[str, tuple[Rows, dict[str, int]]]],
    tmp_path: Path,
) -> None:
    table, made = nights
    labels = {uri: label for name in ("first", "second") for uri, label in made[name][1].items()}
    uris = [*labels, "/elsewhere.png", next(iter(labels))]
    words = [("good", "defect")[labels.get(uri, 1)] for uri in uris]
    given = pa.table({"uri": uris, "label": words, "mask": pa.nulls(len(uris), pa.string())})
    pq.write_table(given, tmp_path / "labels.parquet")
    ended = program(
        *("evaluate", "--scores", table, "--labels", tmp_path / "labels.parquet"),
        *("--date", "2026-11-20", "--date", "2026-11-21..2026-11-30", "--out", tmp_path / "out"),
    )
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    table_lines = [line.split() for line in lines if line.startswith("nut")]
    assert [line[:4] for line in table_lines] == [
        ["nut", "2026-11-20", "v1", "60"],
        ["nut", "2026-11-21", "v1", "45"],
        ["nut", "all", "v1", "105"],
    ]
    rows = made["first"][0]
    found = sum(row["flagged"] and labels[row["uri"]] for row in rows)
    alarms = sum(row["flagged"] and not labels[row["uri"]] for row in rows)
    auroc = roc_auc_score(
        [labels[row["uri"]] for row in rows], [np.float32(row["score"]) for row in rows]
    )
    assert f" {auroc:.4f} (" in lines[1]
    assert f" {found} of 20, {5 * found} % " in lines[1]
    assert f" {alarms} of 40, " in lines[1]
    for line in (
        "1 labels were given again, and count once.",
        "1 of 106 labels are of no image in these nights; the first: /elsewhere.png",
        "60 images of these nights have no label.",
        "Masks are not read: nights keep no maps to measure pixels by.",
        f"Figures: {tmp_path / 'out' / 'metrics.parquet'}",
    ):
        assert line in lines


def test_the_folder_holds_the_results_of_the_last_run_alone(
    nights: tuple[Location, dict[str, tuple[Rows, dict[str, int]]]], tmp_path: Path
) -> None:
    table, made = nights
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.html").write_text("of an earlier run")
    for name in ("first", "third"):
        place = write_labels(tmp_path / "labels.csv", made[name][1])
        evaluate_nights(table, [], place, Location.parse(out))
    assert len(pq.read_table(out / "scores.parquet")) == 30
    assert {path.name for path in out.iterdir()} == {
        *("metrics.parquet", "scores.parquet", "scored_parts")
    }
