"""Runs that write into one folder leave the results of one of them, whole."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from ssray.errors import DataError, ScoringError
from ssray.scoring import outputs
from ssray.scoring.outputs import Outputs, Write
from ssray.scoring.results import collect
from ssray.scoring.tables import SCORED_PARTS
from ssray.storage.lease import Lease
from ssray.storage.location import Location
from ssray.storage.parquet import write_table

RUN = "scored_parts/_run.json"


def table(*names: str) -> pa.Table:
    rows = [{"uri": name, "category": "nut", "model_version": "v1"} for name in names]
    return pa.Table.from_pylist(rows, schema=SCORED_PARTS)


def files(place: Path) -> set[str]:
    return {
        str(path.relative_to(place))
        for path in place.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def write_all(write: Write, *names: str) -> None:
    for name in names:
        write(name, name.encode())


def finish(run: Outputs, *names: str) -> None:
    with run.replacing() as write:
        write_all(write, *names)


def test_a_later_run_replaces_all_that_an_earlier_one_left(tmp_path: Path) -> None:
    (tmp_path / "heatmaps").mkdir()
    (tmp_path / "heatmaps/mine.png").write_bytes(b"mine")
    first, second = (Outputs(Location.parse(tmp_path)) for _ in range(2))
    assert first.parts.path != second.parts.path
    for run in (first, second):
        write_table(table("a"), run.parts / "0.parquet")
    finish(first, "scores.parquet", "metrics.md", "report.html", "heatmaps/nut/bent/00-000.png")
    assert (tmp_path / "metrics.md").exists()
    finish(second, "scores.parquet", "report.html", "heatmaps/nut/bent/00-001.png")
    part = Path(second.parts.path).relative_to(tmp_path) / "0.parquet"
    pictures = {"heatmaps/mine.png", "heatmaps/nut/bent/00-001.png"}
    assert files(tmp_path) == {"scores.parquet", "report.html", RUN, str(part), *pictures}


def test_an_earlier_runs_figures_are_gone_where_a_later_one_breaks_off(tmp_path: Path) -> None:
    finish(Outputs(Location.parse(tmp_path)), "scores.parquet", "metrics.md")
    with (
        pytest.raises(FileExistsError),
        Outputs(Location.parse(tmp_path)).replacing() as write,
    ):
        write_all(write, "scores.parquet", "scores.parquet/metrics.md")
    assert {"scores.parquet"} == files(tmp_path) - {RUN}
    finish(Outputs(Location.parse(tmp_path)), "report.html")
    assert files(tmp_path) == {"report.html", RUN}


def test_what_failed_to_score_leaves_no_parts(tmp_path: Path) -> None:
    run = Outputs(Location.parse(tmp_path))
    write_table(table("a"), run.parts / "0.parquet")
    with pytest.raises(ScoringError, match="no worker"), run.scored():
        raise ScoringError("no worker")
    assert files(tmp_path) == set()


def test_runs_that_end_at_once_never_mix_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six write at once; a lease that is held for long is waited for."""

    def quick(place: Location, work: str) -> Lease:
        return Lease(place, work, beat=0.05, silence=5)

    monkeypatch.setattr(outputs, "Lease", quick)
    begun = threading.Barrier(6)

    def work(number: int) -> None:
        run = Outputs(Location.parse(tmp_path))
        begun.wait()
        with run.replacing() as write:
            write("scores.parquet", b"%d" % number)
            time.sleep(0.15)
            write("report.html", b"%d" % number)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert (tmp_path / "scores.parquet").read_bytes() == (tmp_path / "report.html").read_bytes()
    assert files(tmp_path) == {"scores.parquet", "report.html", RUN}


def test_a_folder_that_cannot_be_replaced_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "scored_parts").mkdir()
    (tmp_path / RUN).write_text('{"mine": 1}')
    with pytest.raises(DataError, match=r"_run\.json: damaged.*Delete .*or choose another"):
        Outputs(Location.parse(tmp_path))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["a"], "1 rows, expected 2.*no row for b"),
        (["a", "b", "c"], "3 rows, expected 2.*a row too many for c"),
        (["a", "b", "b"], "3 rows, expected 2.*a row too many for b"),
        (["a", "c"], "2 rows, expected 2.*First of 2 that are wrong: no row for b"),
    ],
)
def test_rows_that_are_not_the_runs_are_refused(
    tmp_path: Path, parts: list[str], message: str
) -> None:
    place = Location.parse(tmp_path)
    for number, name in enumerate(parts):
        write_table(table(name), place / f"{number}.parquet")
    with pytest.raises(ScoringError, match=message):
        collect(place).check(table("a", "b"))


def test_rows_in_any_order_are_complete(tmp_path: Path) -> None:
    write_table(table("b", "a"), Location.parse(tmp_path) / "0.parquet")
    collect(Location.parse(tmp_path)).check(table("a", "b"))
