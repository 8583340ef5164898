"""The table of scores: rows are there with a commit, each night's commits in their order."""

from __future__ import annotations

import datetime
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from pyarrow import csv

from ssray.errors import ConflictError, DataError, ScoringError
from ssray.nightly.heatmap import draw_heatmap
from ssray.nightly.rows import IN_FILES, NIGHT, SCORES_TABLE
from ssray.nightly.run import name_in_paths
from ssray.nightly.table import How, RowFile, ScoreTable
from ssray.storage.location import Location
from tests.helpers import Ended

DATE, LATER = "2026-11-21", "2026-11-22"


@pytest.fixture
def table(tmp_path: Path) -> ScoreTable:
    return ScoreTable(Location.parse(tmp_path / "the scores"))


def file_of(
    table: ScoreTable, name: str, category: str, scores: dict[str, float], date: str = DATE
) -> RowFile:
    """Writes a file of rows, and says what a table has to know of it."""
    rows = [{"uri": uri, "score": score, "boxes": [[1, 2, 3, 4]]} for uri, score in scores.items()]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=IN_FILES), buffer)
    path = f"date={date}/category={name_in_paths(category)}/{name}.parquet"
    (table.root / path).write(buffer.getvalue())
    return RowFile(path, buffer.tell(), category, len(rows), 0)


def scores(table: ScoreTable, date: str = DATE) -> dict[tuple[str, str], float]:
    rows = table.night(date, ["uri", "category", "score"]).to_pylist()
    found = {(row["category"], row["uri"]): row["score"] for row in rows}
    assert len(found) == len(rows) == table.count(date), "no row twice"
    return found


def test_rows_are_there_with_their_commit(table: ScoreTable) -> None:
    peculiar = ["a/b", "100 %", "\N{LATIN SMALL LETTER E WITH ACUTE}" * 300, "..", "category=x", ""]
    files = [file_of(table, f"r-{i}", name, {"u": i}) for i, name in enumerate(peculiar)]
    assert not table.exists() and table.number(DATE) == 0 and table.count(DATE) == 0
    with pytest.raises(ScoringError, match="no night of 2026-11-21"):
        table.night(DATE)
    with pytest.raises(DataError, match="no table of scores there"):
        table.dataset()
    table.commit(DATE, 1, "r", "append", files[:-1])
    assert scores(table) == {(name, "u"): i for i, name in enumerate(peculiar[:-1])}
    assert (table.number(DATE), table.number(LATER)) == (1, 0)
    assert table.night(DATE).schema.names == NIGHT.names
    assert table.dataset().schema.names == SCORES_TABLE.names
    assert table.paths(DATE) == {file.path for file in files[:-1]}
    assert table.run_of(DATE, 1) == "r"
    assert table.run_of(DATE, 2) is None


def test_of_two_that_commit_the_same_number_one_is_refused(table: ScoreTable) -> None:
    one, other = (file_of(table, f"{name}-0", "c", {"u": i}) for i, name in enumerate("ab"))
    asleep = ScoreTable(table.root)
    before = asleep._table() or asleep._created()
    table.commit(DATE, 1, "a", "append", [one])
    with pytest.raises(ConflictError, match="committed by another process"):
        asleep.commit(DATE, 1, "b", "append", [other])
    with pytest.MonkeyPatch.context() as patch:  # it saw the table before, and commits now
        seen = iter([before])
        found = ScoreTable._table
        patch.setattr(ScoreTable, "_table", lambda self: next(seen, None) or found(self))
        with pytest.raises(ConflictError, match="committed by another process"):
            asleep.commit(DATE, 1, "b", "append", [other])
    assert scores(table) == {("c", "u"): 0}
    table.commit(LATER, 1, "b", "append", [file_of(table, "b-1", "c", {"u": 1}, LATER)])
    assert scores(table, LATER) == {("c", "u"): 1}, "another night is no concern of this one"


def test_a_commit_whose_answer_got_lost_is_no_conflict(
    table: ScoreTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = file_of(table, "a-0", "c", {"u": 1})
    write = DeltaTable.create_write_transaction

    def lost(self: DeltaTable, *args: object, **options: object) -> None:
        write(self, *args, **options)  # type: ignore[arg-type]
        raise OSError("the connection broke off")

    monkeypatch.setattr(DeltaTable, "create_write_transaction", lost)
    table.commit(DATE, 1, "a", "append", [file])
    assert scores(table) == {("c", "u"): 1}


def test_rows_are_replaced_in_one_commit_and_stay_readable(table: ScoreTable) -> None:
    table.commit(DATE, 1, "a", "append", [file_of(table, "a-0", "c", {"u": 1, "v": 2, "w": 3})])
    table.commit(LATER, 1, "a", "append", [file_of(table, "a-1", "c", {"u": 7}, LATER)])
    new = [file_of(table, "b-0", "c", {"v": 20, "x": 4}), file_of(table, "b-1", "d", {"y": 5})]
    table.commit(DATE, 2, "b", "replace", new)
    expected = {("c", "u"): 1, ("c", "v"): 20, ("c", "w"): 3, ("c", "x"): 4, ("d", "y"): 5}
    assert scores(table) == expected
    assert table.night(DATE)["boxes"].to_pylist() == [[[1, 2, 3, 4]]] * 5
    table.commit(DATE, 3, "c", "redo", [file_of(table, "c-0", "c", {"u": 100})])
    assert scores(table) == {("c", "u"): 100}
    assert scores(table, LATER) == {("c", "u"): 7}
    versions = [DeltaTable(str(table.root), version=v).to_pyarrow_table() for v in range(1, 5)]
    assert [len(rows) for rows in versions] == [3, 4, 6, 2]


def test_files_are_joined_deleted_and_gone(table: ScoreTable) -> None:
    for number, uri in enumerate("abc", start=1):
        table.commit(DATE, number, "r", "append", [file_of(table, f"r-{number}", "c", {uri: 1})])
    table.commit(LATER, 1, "s", "append", [file_of(table, "s-0", "c", {"z": 2}, LATER)])
    waiting = file_of(table, "t-0", "c", {"late": 3}, LATER)
    assert table.compact(DATE) == (3, 1)
    assert set(scores(table)) == {("c", uri) for uri in "abc"}
    assert table.count_before(LATER) == 3
    table.delete_before(LATER)
    assert table.count_before(LATER) == 0
    assert set(table.dataset().to_table()["date"].to_pylist()) == {
        datetime.date.fromisoformat(LATER)
    }
    assert DeltaTable(str(table.root), version=3).to_pyarrow_table().num_rows == 3
    assert table.vacuum(0) == 4, "three files, and what they were joined to"
    left = {path.name for path in Path(str(table.root)).rglob("*.parquet")}
    assert {"s-0.parquet", "t-0.parquet"} == {name for name in left if name[1] == "-"}
    table.commit(LATER, 2, "t", "append", [waiting])
    assert set(scores(table, LATER)) == {("c", "z"), ("c", "late")}


def test_a_place_that_is_no_table_is_said_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "_delta_log").mkdir()
    (tmp_path / "_delta_log/00000000000000000000.json").write_text("no log")
    with pytest.raises(ScoringError, match="can't be read or written") as raised:
        ScoreTable(Location.parse(tmp_path)).number(DATE)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("how", ["replace", "redo"])
def test_rows_that_others_wrote_anew_at_the_same_time_are_told(table: ScoreTable, how: How) -> None:
    for number, uri in enumerate("abc", start=1):
        table.commit(DATE, number, "r", "append", [file_of(table, f"r-{number}", "c", {uri: 1})])
    before, found = table._table(), ScoreTable._table
    table.compact(DATE)
    with pytest.MonkeyPatch.context() as patch:
        seen = iter([before])
        patch.setattr(ScoreTable, "_table", lambda self: next(seen, None) or found(self))
        with pytest.raises(ScoringError, match="rewrote files of 2026-11-21 at the same time"):
            table.commit(DATE, 4, "x", how, [file_of(table, "x-0", "c", {"a": 9})])
    table.commit(DATE, 5, "z", "redo", [file_of(table, "z-1", "c", {"e": 2})])
    assert scores(table) == {("c", "e"): 2}


def test_rows_are_replaced_in_files_that_were_compacted(table: ScoreTable) -> None:
    """Those of a category with another name than its folder, too."""
    for number, uri in enumerate("abc", start=1):
        table.commit(
            DATE, number, "r", "append", [file_of(table, f"r-{number}", "a/b %", {uri: 1})]
        )
    table.compact(DATE)
    table.commit(DATE, 4, "x", "replace", [file_of(table, "x-0", "a/b %", {"a": 9, "d": 4})])
    table.commit(DATE, 5, "y", "replace", [file_of(table, "y-0", "other", {"a": 7})])
    expected = {("a/b %", "a"): 9, ("a/b %", "b"): 1, ("a/b %", "c"): 1, ("a/b %", "d"): 4}
    assert scores(table) == expected | {("other", "a"): 7}, "of its own category alone"
    dataset = DeltaTable(str(table.root)).to_pyarrow_dataset()
    with duckdb.connect() as database:
        database.register("scores", dataset)
        query = "SELECT score FROM scores WHERE uri = 'a' AND category = 'a/b %'"
        assert database.execute(query).fetchall() == [(9.0,)]
    table.compact(DATE)
    assert scores(table) == expected | {("other", "a"): 7}


def test_an_image_is_found_in_files_that_a_merge_wrote(table: ScoreTable) -> None:
    table.commit(DATE, 1, "a", "append", [file_of(table, "a-0", "c", {"u": 1, "v": 2})])
    table.commit(DATE, 2, "b", "replace", [file_of(table, "b-0", "c", {"v": 20})])
    for uri, score in (("u", 1.0), ("v", 20.0)):
        with pytest.raises(ScoringError, match=rf"no heatmap was kept \(c, score {score}"):
            draw_heatmap(table.root, uri, table.root / "out.png")
    with pytest.raises(DataError, match="w is not in any night"):
        draw_heatmap(table.root, "w", table.root / "out.png")


def test_a_night_is_read_without_a_look_at_the_files_of_others(table: ScoreTable) -> None:
    table.commit(DATE, 1, "a", "append", [file_of(table, "a-0", "c", {"u": 1})])
    other = file_of(table, "b-0", "c", {"v": 2}, LATER)
    table.commit(LATER, 1, "b", "append", [other])
    (table.root / other.path).delete()
    assert scores(table) == {("c", "u"): 1}
    found = table._table()
    assert found is not None
    assert [len(table._of_files(found, date).files) for date in (DATE, LATER, None)] == [1, 1, 2]


def test_a_process_that_has_read_the_table_ends_in_order(table: ScoreTable) -> None:
    """Threads that read in Python abort most of such processes when they end."""
    for number in range(1, 4):
        table.commit(DATE, number, "r", "append", [file_of(table, f"r-{number}", "c", {"u": 1})])
    program = (
        "from ssray.nightly.table import ScoreTable; from ssray.storage.location import Location;"
        f"ScoreTable(Location.parse({str(table.root)!r})).night({DATE!r}, ['uri', 'score'])"
    )
    ended = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        for _ in range(5)
    ]
    assert [(each.returncode, each.stderr) for each in ended] == [(0, "")] * 5


def test_others_read_the_table_as_it_is(table: ScoreTable) -> None:
    table.commit(DATE, 1, "r", "append", [file_of(table, "r-0", "a/b", {"u": 1, "v": 2})])
    table.commit(LATER, 1, "s", "append", [file_of(table, "s-0", "c", {"u": 3}, LATER)])
    with duckdb.connect() as database:
        database.register("scores", DeltaTable(str(table.root)).to_pyarrow_dataset())
        query = "SELECT category, sum(score) FROM scores WHERE date = ? GROUP BY category"
        assert database.execute(query, [DATE]).fetchall() == [("a/b", 3.0)]
    frame = DeltaTable(str(table.root)).to_pandas(columns=["date", "category", "uri"])
    assert sorted(zip(frame["category"], frame["uri"], strict=True)) == [
        ("a/b", "u"),
        ("a/b", "v"),
        ("c", "u"),
    ]


def test_nights_are_listed_and_taken_out(
    table: ScoreTable, tmp_path: Path, program: Callable[..., Ended]
) -> None:
    rows = [
        {"uri": 'x,\n"y"', "score": 2.5, "flagged": True, "boxes": [[1, 2, 3, 4]], "heatmap": b"p"},
        {"uri": "z", "error": "empty"},
    ]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=IN_FILES), buffer)
    (table.root / f"date={DATE}/category=c/r-0.parquet").write(buffer.getvalue())
    file = RowFile(f"date={DATE}/category=c/r-0.parquet", buffer.tell(), "c", 2, 0)
    table.commit(DATE, 1, "r", "append", [file])
    table.commit(LATER, 1, "s", "append", [file_of(table, "s-0", "c", {"u": 3}, LATER)])
    ended = program("scores", "--scores", str(table.root))
    assert ended.code == 0, ended.err
    lines = [line.split() for line in ended.out.splitlines()]
    assert lines[1:] == [[DATE, "2", "1", "1"], [LATER, "1", "0", "0"]]
    for suffix in (".parquet", ".csv"):
        place = tmp_path / f"taken out/night{suffix}"
        command = ("scores", "--scores", str(table.root), "--date", DATE, "--to", str(place))
        assert "2 rows" in program(*command).out
    taken = pq.read_table(tmp_path / "taken out/night.parquet")
    assert taken.schema.names == NIGHT.names
    assert taken["heatmap"].to_pylist() == [b"p", None]
    lines_in_names = csv.ParseOptions(newlines_in_values=True)
    read = csv.read_csv(tmp_path / "taken out/night.csv", parse_options=lines_in_names)
    assert read["uri"].to_pylist() == ['x,\n"y"', "z"]
    assert read["boxes"].to_pylist() == ["[[1, 2, 3, 4]]", ""]
    assert "heatmap" not in read.schema.names


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--date", "2026-11-20", "--to", "x.csv"], "no night of 2026-11-20"),
        (["--date", DATE, "--to", "x.xlsx"], "ends in .parquet or .csv"),
        (["--date", DATE], "--date and --to go together"),
        (
            ["--date", DATE, "--to", "/proc/x.csv"],
            "--to /proc/x.csv: can't be written. Give a folder",
        ),
        (["--date", "yesterday", "--to", "x.csv"], "expected a day such as"),
    ],
)
def test_what_cannot_be_taken_out_is_said(
    table: ScoreTable, options: list[str], said: str, program: Callable[..., Ended]
) -> None:
    table.commit(DATE, 1, "r", "append", [file_of(table, "r-0", "c", {"u": 1})])
    ended = program("scores", "--scores", str(table.root), *options)
    assert ended.code == 2
    assert said in ended.err
    empty = program("scores", "--scores", str(table.root / "nowhere"))
    assert empty.code == 2 and "no table of scores there" in empty.err


def test_nights_are_deleted_by_those_who_say_yes(
    table: ScoreTable, program: Callable[..., Ended]
) -> None:
    table.commit(DATE, 1, "r", "append", [file_of(table, "r-0", "c", {"u": 1})])
    table.commit(LATER, 1, "s", "append", [file_of(table, "s-0", "c", {"u": 3}, LATER)])
    place = ["--scores", str(table.root)]
    asked = program("scores", "delete", *place, "--before", LATER)
    assert "1 rows would be deleted; --yes deletes them" in asked.out
    assert table.count(DATE) == 1
    assert "1 rows deleted" in program("scores", "delete", *place, "--before", LATER, "--yes").out
    assert (table.count(DATE), table.count(LATER)) == (0, 1)
    gone = program("scores", "delete", *place, "--before", LATER, "--yes", "--vacuum").out
    assert "1 files deleted for good" in gone
    assert program("scores", "delete", *place, "--before", "2026-13-01").code == 2
    joined = program("scores", "compact", *place, "--date", LATER)
    assert "nothing to join" in joined.out
