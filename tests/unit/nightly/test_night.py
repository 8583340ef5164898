"""A night, scored by no model and without Ray: whatever happens, each image has one row."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import secrets
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ssray.config import Compute
from ssray.errors import ArtifactError, ConfigError, ConflictError, DataError, ScoringError
from ssray.nightly import protocol, run
from ssray.nightly.batch import BatchResult
from ssray.nightly.plan import read_batch
from ssray.nightly.preparing import Spent
from ssray.nightly.protocol import Assignment, NightOutcome, NightRequest, Stages, run_night
from ssray.nightly.rows import NIGHT
from ssray.nightly.run import Part, Places, Run, without_rows, write_part
from ssray.nightly.seen import Seen
from ssray.nightly.sources import CategoryRule, Source
from ssray.nightly.table import ScoreTable
from ssray.storage.location import Location

DATE = "2026-11-21"
Faults = Callable[[Source], str | None]
"""Why storage does not give an image now; None if it does."""


def no_faults(source: Source) -> str | None:
    return None


def nothing() -> None:
    pass


@dataclasses.dataclass
class Plant:
    """Images on a disk, and someone who scores them by their sizes.

    Attributes:
        faults: of the storage.
        device: on which scores are computed.
        unusable: categories whose model can't be used.
        before_part: called before each file of rows is written.
        shut: for ``faults``.
        scored: how often each image was scored.
    """

    root: Path
    faults: Faults = no_faults
    device: str = "cpu"
    unusable: tuple[str, ...] = ()
    before_part: Callable[[], None] = nothing
    shut: bool = False
    scored: Counter[str] = dataclasses.field(default_factory=Counter)

    def put(self, *names: str, content: bytes = b"image") -> None:
        for name in names:
            path = self.root / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def request(self, **options: Any) -> NightRequest:
        place = Location.parse(self.root)
        options = {"batch": 4, "patience": 0.0} | options
        return NightRequest(
            images=[place / "images"],
            rule=CategoryRule(),
            models=place / "models",
            out=place / "out",
            date=DATE,
            **options,
        )

    def night(self, compute: Compute | None = None, **options: Any) -> NightOutcome:
        return run_night(self.request(**options), compute or Compute(), self.stages)

    @contextlib.contextmanager
    def stages(self, places: Places, run: Run) -> Iterator[Stages]:
        yield Worker(self, places)

    @property
    def table(self) -> ScoreTable:
        return ScoreTable(Location.parse(self.root / "out"))

    def rows(self) -> dict[str, tuple[float | None, str | None]]:
        """Score and error of each image, by the name of its file."""
        found = self.table.night(DATE, ["uri", "score", "error"]).to_pylist()
        rows = {
            row["uri"].removeprefix(f"{self.root}/images/"): (row["score"], row["error"])
            for row in found
        }
        assert len(rows) == len(found), "no image twice"
        return rows

    def work(self) -> list[str]:
        """What is kept of runs."""
        night = self.root / "out/_nights" / DATE
        return sorted(path.name for path in night.iterdir() if path.is_dir())


@dataclasses.dataclass
class Worker:
    plant: Plant
    places: Places

    @property
    def device(self) -> str:
        return self.plant.device

    def score(self, batches: Sequence[Assignment], give_up: bool) -> Generator[Part, None, None]:
        for number, planned, files, _ in batches:
            listed = read_batch(self.places.manifest, number, planned)
            sources = without_rows(self.places, listed, files)
            result = self.result(sources, give_up)
            self.plant.before_part()
            category = sources[0].category
            yield write_part(self.places, number, category, files, result, self.device)

    def paused(self, yes: bool) -> None:
        pass

    def result(self, sources: Sequence[Source], give_up: bool) -> BatchResult:
        rows, postponed = list[dict[str, Any]](), Counter[str]()
        for source in sources:
            self.plant.scored[source.uri] += 1
            fault = self.plant.faults(source)
            if fault and not give_up:
                postponed[fault] += 1
                continue
            row: dict[str, Any] = {
                "uri": source.uri,
                "category": source.category,
                "etag": source.etag,
            }
            if source.category in self.plant.unusable:
                fault = "model_unusable"
            rows.append(row | {"error": fault, "score": None if fault else source.size})
        return BatchResult(pa.Table.from_pylist(rows, schema=NIGHT), Spent(), 0, postponed)


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plant:
    monkeypatch.setattr(protocol, "published", lambda store: {"a": "v1", "b": "v1"})
    monkeypatch.setattr(protocol, "FIRST_PAUSE_SECONDS", 0.01)
    found = Plant(tmp_path)
    found.put(*(f"a/{number}" for number in range(10)), *(f"b/{number}" for number in range(3)))
    # Files of a listing are told apart by suffix; these have none.
    monkeypatch.setattr("ssray.nightly.sources.passed_over_as", lambda path: None)
    return found


ALL = {f"a/{number}" for number in range(10)} | {f"b/{number}" for number in range(3)}


class Killed(BaseException):
    """A process that is killed does nothing more."""


def killed(*_: object) -> None:
    raise Killed


def test_each_image_has_a_row_and_nothing_else_is_left(plant: Plant) -> None:
    outcome = plant.night()
    assert set(plant.rows()) == ALL
    assert outcome.new and outcome.images == 13 and not outcome.missing
    assert outcome.committed is not None
    assert outcome.committed.summary.images == 13
    assert outcome.committed.states == {"new": 13}
    assert plant.work() == []
    again = plant.night()
    assert not again.new and again.images == 13
    assert again.committed == outcome.committed
    assert plant.table.number(DATE) == 1
    assert set(plant.scored.values()) == {1}


def test_no_images_are_an_error(plant: Plant) -> None:
    request = dataclasses.replace(plant.request(), images=[Location.parse(plant.root / "empty")])
    (plant.root / "empty").mkdir()
    with pytest.raises(DataError, match=r"no images\. Found nothing"):
        run_night(request, Compute(), plant.stages)
    assert plant.work() == []


def test_what_arrives_later_is_scored_and_what_was_replaced_is_scored_again(plant: Plant) -> None:
    plant.night()
    plant.put("a/late", "c/first")
    late = plant.night()
    assert late.committed is not None
    assert late.committed.states == {"known": 13, "new": 2}
    assert late.committed.summary.images == 2
    assert late.images == 15
    assert set(plant.rows()) == ALL | {"a/late", "c/first"}
    plant.put("a/3", content=b"another image")
    plant.put("a/later")
    changed = plant.night()
    assert changed.committed is not None
    assert changed.committed.states == {"known": 14, "changed": 1, "new": 1}
    assert plant.rows()["a/3"] == (len(b"another image"), None)
    assert changed.images == 16 == len(plant.rows())
    assert plant.work() == []
    (plant.root / "images/a/4").unlink()
    assert not plant.night().new, "what is gone keeps its row"
    files = {path.name for path in (plant.root / "out").rglob("*.parquet")}
    named = {Path(uri).name for uri in plant.table.dataset().files}
    assert named <= files, "all that counts is there"


def test_anew_replaces_the_night_and_the_former_rows_stay_readable(plant: Plant) -> None:
    from deltalake import DeltaTable

    plant.night()
    (plant.root / "images/a/0").unlink()
    plant.put("a/1", content=b"longer than before")
    outcome = plant.night(again=True)
    assert outcome.images == 12
    assert plant.rows()["a/1"] == (len(b"longer than before"), None)
    before = DeltaTable(str(plant.root / "out"), version=1).to_pyarrow_table()
    assert len(before) == 13


def test_anew_goes_on_where_it_was_killed(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant.night()
    plant.scored.clear()
    waiting = iter([nothing, nothing, nothing, killed])
    plant.before_part = lambda: next(waiting)()
    with pytest.raises(Killed):
        plant.night(again=True)
    plant.before_part = nothing
    assert plant.night(again=True).images == 13
    assert plant.scored.total() == 13 + 3, "the batch under way is scored again"
    assert plant.table.number(DATE) == 2
    plant.before_part = killed
    with pytest.raises(Killed):
        plant.night(again=True)
    plant.before_part = nothing
    monkeypatch.setattr(protocol, "published", lambda store: {"a": "v2", "b": "v1"})
    outcome = plant.night(again=True)
    assert outcome.committed is not None
    assert outcome.committed.run.night.versions["a"] == "v2", "with the models of now"


def test_anew_with_nothing_to_score_leaves_the_night_as_it_is(plant: Plant) -> None:
    plant.night()
    images = plant.root / "images"
    images.rename(plant.root / "elsewhere")
    images.mkdir()
    with pytest.raises(DataError, match=r"no images\. Found nothing"):
        plant.night(again=True)
    plant.put("a/late")
    assert plant.night().images == 14, "rows of what is gone stay"


def test_a_run_that_was_killed_goes_on_and_then_takes_what_arrived(plant: Plant) -> None:
    def killed_at(count: int) -> Callable[[], None]:
        left = iter(range(count))

        def step() -> None:
            if next(left, None) is None:
                raise Killed

        return step

    plant.before_part = killed_at(2)
    with pytest.raises(Killed):
        plant.night()
    assert plant.table.count(DATE) == 0, "nobody sees half a night"
    assert len(plant.work()) == 1
    plant.put("a/late")
    plant.before_part = nothing
    outcome = plant.night()
    assert set(plant.rows()) == ALL | {"a/late"}
    assert plant.table.number(DATE) == 2
    assert outcome.images == 14
    assert sum(plant.scored.values()) == 14 + 2, "the batch under way is scored again"
    assert plant.work() == []


def test_another_device_or_version_begins_anew(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill() -> None:
        if plant.scored.total() > 8:
            raise Killed

    plant.before_part = kill
    with pytest.raises(Killed):
        plant.night()
    plant.before_part, plant.device = nothing, "cuda"
    plant.scored.clear()
    plant.night()
    assert set(plant.scored.values()) == {1}, "no row of the other device"
    assert set(plant.rows()) == ALL
    plant.put("a/x", "a/y", "b/z")

    def once() -> None:
        plant.before_part = killed
        plant.scored.clear()

    plant.before_part = once
    with pytest.raises(Killed):
        plant.night()
    plant.before_part = nothing
    plant.scored.clear()
    monkeypatch.setattr("ssray.__version__", "99.0")
    plant.night()
    assert set(plant.scored) == {f"{plant.root}/images/{name}" for name in ("a/x", "a/y", "b/z")}
    assert len(plant.rows()) == 16
    assert plant.work() == []


def test_rows_of_an_actor_that_was_taken_for_dead_are_not_there_twice(plant: Plant) -> None:
    score = Worker.score

    def twice(self: Worker, batches: Sequence[Assignment], give_up: bool) -> Iterator[Part]:
        assert list(score(self, batches, give_up)), "of an actor whose answers get lost"
        yield from score(self, batches, give_up)

    def some(source: Source) -> str | None:
        return "unreadable" if source.uri.endswith(("a/1", "b/2")) and plant.shut else None

    plant.faults, plant.shut = some, True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Worker, "score", twice)
        patch.setattr(protocol, "before_commit", killed)
        with pytest.raises(Killed):
            plant.night()
        plant.shut = False
        with pytest.raises(Killed):
            plant.night()
    files = [path.name for path in (plant.root / "out").rglob("*.parquet")]
    assert len([name for name in files if name.count("-") == 2]) == 12
    assert set(plant.rows() if plant.night() else ()) == ALL
    assert len(plant.table.paths(DATE)) == 6
    assert {path.name for path in (plant.root / "out").rglob("date=*/*/*.parquet")} == {
        Path(path).name for path in plant.table.paths(DATE)
    }


def test_other_arguments_are_refused(plant: Plant) -> None:
    plant.before_part = killed
    with pytest.raises(Killed):
        plant.night()
    plant.before_part = nothing
    with pytest.raises(ConfigError, match="begun with heatmaps flagged, now it is all"):
        plant.night(heatmaps="all")
    with pytest.raises(ConfigError, match="begun with batch 4, now it is 8"):
        plant.night(batch=8)
    plant.night()
    assert not plant.night(batch=8).new
    with pytest.raises(ConfigError, match="scored with precision auto, now it is float32"):
        plant.night(Compute(precision="float32"))
    assert plant.night(Compute(precision="float32"), again=True).new
    with pytest.raises(ConfigError, match="expected a day"):
        Places(Location.parse(plant.root), "21.11.2026")


@contextlib.contextmanager
def without_lease(*_: object) -> Iterator[Any]:
    """Each process takes itself for the only one."""
    name = secrets.token_hex(8)
    own = {"name": name, "write": staticmethod(Location.write), "confirm": staticmethod(nothing)}
    yield type("Nobody", (), own)


@pytest.mark.parametrize("asleep", ["before its rows are written", "before its commit"])
@pytest.mark.parametrize("again", [False, True])
def test_a_driver_that_wakes_up_later_spoils_nothing(
    plant: Plant, monkeypatch: pytest.MonkeyPatch, asleep: str, again: bool
) -> None:
    monkeypatch.setattr(protocol, "Lease", without_lease)
    if again:
        plant.night()
    other = Plant(plant.root)
    waiting = [True]

    def the_other_one() -> None:
        if waiting:
            waiting.clear()
            (plant.root / "out/_nights" / DATE / "run.json").unlink()  # as on another's listing
            assert other.night(again=again).images == 13

    if asleep == "before its commit":
        keep = run.before_commit

        def slept(places: Places, committed: Any) -> list[str]:
            found = keep(places, committed)
            the_other_one()
            return found

        monkeypatch.setattr(protocol, "before_commit", slept)
    else:
        plant.before_part = the_other_one
    with pytest.raises(ConflictError, match="committed by another process"):
        plant.night(again=again)
    assert set(plant.rows()) == ALL
    assert plant.table.number(DATE) == 1 + again
    counted = plant.table.paths(DATE)
    assert all((plant.root / "out" / path).is_file() for path in counted)
    assert not plant.night().new
    plant.put("a/late")
    plant.night()
    assert set(plant.rows()) == ALL | {"a/late"}
    assert plant.work() == [], "what the sleeper left behind is gone"


def test_killed_between_its_commit_and_the_clearing_up(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(protocol, "after_commit", killed)
        with pytest.raises(Killed):
            plant.night()
    assert len(plant.work()) == 1
    outcome = plant.night()
    assert not outcome.new
    assert outcome.committed is not None and outcome.committed.summary.images == 13
    assert plant.work() == []
    assert set(plant.rows()) == ALL


def test_storage_that_fails_costs_time_and_no_row(plant: Plant) -> None:
    begun = time.monotonic()
    states: list[str] = []

    def down(source: Source) -> str | None:
        return "unreadable" if time.monotonic() < begun + 0.3 else None

    plant.faults = down
    outcome = run_night(plant.request(patience=60.0), Compute(), plant.stages, states.append)
    assert {error for _, error in plant.rows().values()} == {None}
    assert outcome.images == 13 and not outcome.missing
    assert any("images without an answer (unreadable:" in state for state in states)


def test_a_pause_blames_no_image_for_what_was_broken_off(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Notes of batches that were begun are of the present round alone."""
    score, notes, begun = Worker.score, list[int](), time.monotonic()

    def noted(self: Worker, *arguments: Any) -> Generator[Part, None, None]:
        notes.append(len(self.places.notes.files()))
        (self.places.notes / "000000/batch/note").write(b"")
        yield from score(self, *arguments)

    monkeypatch.setattr(Worker, "score", noted)
    plant.faults = lambda _: "unreadable" if time.monotonic() < begun + 0.3 else None
    plant.night(patience=60.0)
    assert set(notes) == {0} and len(notes) > 1
    assert set(plant.rows()) == ALL


def test_what_stays_refused_leaves_the_night_incomplete_until_it_is_given(plant: Plant) -> None:
    def shut(source: Source) -> str | None:
        return "forbidden" if source.uri.endswith(("a/3", "b/1")) else None

    plant.faults = shut
    outcome = plant.night(patience=0.05)
    assert outcome.missing == {"forbidden": 2}
    assert set(plant.rows()) == ALL - {"a/3", "b/1"}
    assert plant.scored[f"{plant.root}/images/a/3"] > 1
    assert plant.scored[f"{plant.root}/images/a/4"] == 1, "its rows were kept"
    assert plant.night().missing == {"forbidden": 2}
    plant.faults = no_faults
    outcome = plant.night()
    assert not outcome.missing and outcome.images == 13
    assert {error for _, error in plant.rows().values()} == {None}


def test_given_up_images_have_a_row_that_can_be_made_again(plant: Plant) -> None:
    plant.faults = lambda source: "unreadable" if source.category == "b" else None
    outcome = plant.night(give_up=True)
    assert outcome.errors == {"unreadable": 3}
    assert not outcome.missing and outcome.images == 13
    plant.faults = no_faults
    assert not plant.night().new
    outcome = plant.night(retry_errors=True)
    assert outcome.committed is not None
    assert outcome.committed.states == {"known": 10, "again": 3}
    assert outcome.errors == {}
    assert set(plant.rows()) == ALL


def test_a_storage_that_is_down_altogether_ends_with_nothing(plant: Plant) -> None:
    plant.faults = lambda source: "unreadable"
    outcome = plant.night()
    assert outcome.missing == {"unreadable": 13}
    assert not outcome.new and outcome.images == 0
    plant.faults = no_faults
    assert plant.night().images == 13


def test_an_image_that_was_replaced_while_the_night_ran_is_listed_anew(plant: Plant) -> None:
    stale = [f"{plant.root}/images/a/7"]

    def replaced(source: Source) -> str | None:
        if source.uri in stale:
            stale.clear()
            plant.put("a/7", content=b"the new one")
            return "changed"
        return None

    plant.faults = replaced
    outcome = plant.night()
    assert not outcome.missing
    assert plant.rows()["a/7"] == (len(b"the new one"), None)
    assert set(plant.rows()) == ALL


def test_one_refused_image_is_in_the_way_of_no_late_one(plant: Plant) -> None:
    plant.faults = lambda source: "forbidden" if source.uri.endswith("a/3") else None
    assert plant.night().missing == {"forbidden": 1}
    assert plant.night().missing == {"forbidden": 1}, "a run without a row"
    plant.put("a/late")
    outcome = plant.night()
    assert outcome.missing == {"forbidden": 1} and outcome.new
    assert set(plant.rows()) == ALL - {"a/3"} | {"a/late"}


def test_a_run_all_of_whose_images_were_replaced_lists_them_anew(plant: Plant) -> None:
    plant.night()
    plant.put("a/late", content=b"1")

    def replaced(source: Source) -> str | None:
        if source.etag and source.etag.startswith("1-"):
            plant.put("a/late", content=b"the new one")
            return "changed"
        return None

    plant.faults = replaced
    assert not plant.night().missing
    assert plant.rows()["a/late"] == (len(b"the new one"), None)


def test_what_is_replaced_again_and_again_is_missing_until_it_is_given_up(plant: Plant) -> None:
    plant.faults = lambda source: "changed" if source.uri.endswith("a/3") else None
    outcome = plant.night()
    assert outcome.missing == {"changed": 1} and outcome.new
    assert set(plant.rows()) == ALL - {"a/3"}
    outcome = plant.night(give_up=True)
    assert not outcome.missing and outcome.errors == {"changed": 1}
    assert set(plant.rows()) == ALL


def test_what_was_replaced_and_is_gone_is_not_missing(plant: Plant) -> None:
    def taken_away(source: Source) -> str | None:
        if not source.uri.endswith("a/3"):
            return None
        (plant.root / "images/a/3").unlink()
        return "changed"

    plant.faults = taken_away
    assert not plant.night().missing
    assert set(plant.rows()) == ALL - {"a/3"}


@pytest.mark.parametrize("reason", ["forbidden", "unreadable"])
def test_many_batches_without_a_row_are_not_in_the_way_of_others(plant: Plant, reason: str) -> None:
    plant.faults = lambda source: reason if source.category == "a" else None
    assert len(ALL) // 4 >= protocol.MOST_FAILED_BATCHES
    assert plant.night(patience=0.1).missing == {reason: 10}
    assert set(plant.rows()) == {"b/0", "b/1", "b/2"}


def test_a_night_whose_files_are_damaged_is_scored_anew(plant: Plant) -> None:
    plant.night()
    (plant.root / "out/_nights" / DATE / "run.json").write_text("")
    with pytest.raises(DataError, match=r"Score the night anew with --again"):
        plant.night()
    assert plant.night(again=True).images == 13
    assert plant.work() == []


def test_a_file_of_rows_that_is_cut_short_counts_for_nothing(plant: Plant) -> None:
    waiting = iter([nothing, nothing, killed])
    plant.before_part = lambda: next(waiting)()
    with pytest.raises(Killed):
        plant.night()
    cut = min((plant.root / "out").rglob("date=*/*/*.parquet"))
    cut.write_bytes(b"")
    plant.before_part = nothing
    plant.night()
    assert set(plant.rows()) == ALL
    assert not cut.exists()


def test_what_goes_wrong_after_the_commit_is_told_as_it_is(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failed(*_: object) -> None:
        raise OSError("503 slow down")

    with monkeypatch.context() as patch:
        patch.setattr(protocol, "after_commit", failed)
        with pytest.raises(ScoringError, match="503 slow down"):
            plant.night()
    assert not plant.night().new
    assert set(plant.rows()) == ALL


def test_clearing_up_leaves_what_older_versions_of_the_table_name(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deltalake import DeltaTable

    with monkeypatch.context() as patch:
        patch.setattr(protocol, "after_commit", killed)
        with pytest.raises(Killed):
            plant.night()
    assert plant.table.compact(DATE) == (3, 1)
    plant.night()
    assert plant.work() == []
    assert len(DeltaTable(str(plant.root / "out"), version=1).to_pyarrow_table()) == 13


def test_a_model_that_is_mended_scores_its_category_again(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(store: Location, category: str, version: str) -> None:
        if category in plant.unusable:
            raise ArtifactError("broken")

    monkeypatch.setattr(protocol, "load", load)
    plant.unusable = ("b",)
    outcome = plant.night()
    assert outcome.errors == {"model_unusable": 3}
    assert not plant.night().new, "broken as before"
    plant.unusable = ()
    outcome = plant.night()
    assert outcome.errors == {}
    assert outcome.committed is not None
    assert outcome.committed.states == {"known": 10, "again": 3}
    assert set(plant.rows()) == ALL


def test_batches_that_get_lost_are_no_night(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    score = Worker.score

    def all_but_one(self: Worker, *args: Any) -> Iterator[Part]:
        yield from list(score(self, *args))[1:]

    monkeypatch.setattr(Worker, "score", all_but_one)
    with pytest.raises(ScoringError, match="4 images of 2026-11-21 have no row"):
        plant.night()
    assert plant.table.count(DATE) == 0


@pytest.mark.parametrize("seed", range(8))
def test_killed_anywhere_any_number_of_times(
    plant: Plant, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Every write and delete may be the last one; images arrive and change meanwhile."""
    generator = random.Random(seed)
    write, delete, commit = Location.write, Location.delete, ScoreTable.commit
    left = [0]

    def step() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    def killing(work: Any) -> Any:
        def wrapped(*args: Any, **options: Any) -> Any:
            step()
            result = work(*args, **options)
            step()
            return result

        return wrapped

    monkeypatch.setattr(protocol, "Lease", without_lease)
    monkeypatch.setattr(Location, "write", killing(write))
    monkeypatch.setattr(Location, "delete", killing(delete))
    monkeypatch.setattr(ScoreTable, "commit", killing(commit))
    expected = dict.fromkeys(ALL, len(b"image"))
    for number in range(20):
        left[0] = generator.randint(1, 25)
        with contextlib.suppress(Killed):
            plant.night()
        counted = plant.table.paths(DATE)
        assert all((plant.root / "out" / path).is_file() for path in counted)
        if number % 4 == 0:
            name = generator.choice([f"a/{number}-new", *ALL])
            content = b"x" * generator.randint(1, 50)
            plant.put(name, content=content)
            expected[name] = len(content)
    left[0] = 0
    plant.night()
    assert {name: score for name, (score, _) in plant.rows().items()} == expected
    assert not plant.night().new
    plant.put("a/last")
    plant.night()
    assert plant.work() == []


def test_what_is_known_of_many_rows_takes_a_few_bytes_each() -> None:
    count = 200_000
    rows = pa.record_batch(
        {
            "uri": [f"s3://prod/{number}" for number in range(count)],
            "category": ["a"] * count,
            "etag": [f"{number % 7}" for number in range(count)],
            "error": ["unreadable" if number % 2 else None for number in range(count)],
        }
    )
    seen = Seen.of([rows], lambda category, error: error == "unreadable")
    assert seen.keys.nbytes + seen.tags.nbytes + seen.again.nbytes == 25 * count

    def state(number: int, etag: str | None) -> str:
        return seen.state(Source(f"s3://prod/{number}", "a", etag=etag))

    assert [state(n, str(n % 7)) for n in (0, 1, 199_998, 199_999)] == [
        "known",
        "again",
        "known",
        "again",
    ]
    assert state(2, "3") == "changed"
    assert state(2, None) == "known", "nothing was listed to compare"
    assert state(count, "0") == "new"
    assert Seen.of([], lambda category, error: True).state(Source("x", "a")) == "new"
